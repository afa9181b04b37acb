"""Loss functions by the names that ``MODEL.LOSS_FUNC`` uses."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy against soft targets, averaged over the batch.

    ``logits`` [B, K]; ``targets`` [B, K] weights per class (used as they are, not normalised) or [B] indices.
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    return torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1).mean()


def binary_cross_entropy_with_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Independent yes/no per class on logits; ``targets`` [B, K] in 0..1."""
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def binary_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Independent yes/no per class on probabilities; ``targets`` [B, K] in 0..1."""
    return F.binary_cross_entropy(scores, targets.to(scores.dtype))


def multi_mse(preds: Sequence[Tensor], labels: Sequence[tuple[Tensor, float]]) -> tuple[Tensor, list[Tensor]]:
    """Mean squared errors of predictions, each of a (target, weight): their weighted sum, and each by itself."""
    parts = [F.mse_loss(pred, target) for pred, (target, _) in zip(preds, labels, strict=True)]
    return sum(weight * part for part, (_, weight) in zip(parts, labels, strict=True)), parts


LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "bce": binary_cross_entropy,
    "bce_logit": binary_cross_entropy_with_logits,
    "soft_cross_entropy": soft_cross_entropy,
    "mse": F.mse_loss,
}


def get_loss(name: str) -> Loss:
    """The loss called ``name`` (``MODEL.LOSS_FUNC``)."""
    if name not in LOSSES:
        raise ValueError(f"MODEL.LOSS_FUNC={name!r} is unknown; known: {', '.join(sorted(LOSSES))}")
    return LOSSES[name]
