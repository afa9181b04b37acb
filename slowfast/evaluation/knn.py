"""Classes by the nearest neighbours: how well features tell classes apart without training on labels.

Wu et al., https://arxiv.org/abs/1805.01978, sec. 3.4.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 200


def nearest(features: Tensor, bank: Tensor, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Similarity and row of the ``count`` nearest rows of ``bank`` [N, D] to each of ``features`` [B, D].

    Both [B, min(count, N)], nearest first. Features are brought to length 1, the rows of a bank have it.
    """
    similar = F.normalize(features.to(bank.dtype), dim=1) @ bank.T  # [B, N]
    return similar.topk(min(count, len(bank)), dim=1)


def vote(similar: Tensor, classes: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Scores [B, K]: each neighbour of ``classes`` [B, n] votes for its class with exp(similarity / temperature)."""
    scores = similar.new_zeros(len(similar), num_classes)
    return scores.scatter_add_(1, classes, torch.exp(similar / temperature))
