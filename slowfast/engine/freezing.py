"""Parts of a network that do not learn: ``MODEL.FREEZE`` and ``MODEL.FROZEN_BN``."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from slowfast.models.norm import SubBatchNorm3d


def freeze_parameters(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop the learning of parameters whose name is, lies below, or matches one of ``patterns``; their names.

    "s1" and "s1.*" both freeze all of stage 1, "*.bn.*" all batch norms, "blocks.[0-3]" four blocks of a transformer.
    A pattern that matches nothing is a ``ValueError``.
    """
    frozen: list[str] = []
    for pattern in patterns:
        names = [
            name
            for name, _ in network.named_parameters()
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        ]
        if not names:
            parts = ", ".join(name for name, _ in network.named_children())
            raise ValueError(f"MODEL.FREEZE: {pattern!r} is no part of the network; its parts are {parts}")
        frozen += [name for name in names if name not in frozen]
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    return frozen


def hold_still(network: nn.Module, *, all_batch_norms: bool = False) -> None:
    """After ``train()``: batch norms whose parameters are all frozen use, and keep, their stored statistics.

    ``all_batch_norms`` does so for every 3-D batch norm; where its weight and bias are not frozen they still learn.
    """
    for module in network.modules():
        if isinstance(module, _NormBase | SubBatchNorm3d):
            own = list(module.parameters())
            is_frozen = bool(own) and not any(param.requires_grad for param in own)
            if is_frozen or (all_batch_norms and isinstance(module, nn.BatchNorm3d)):
                module.eval()
