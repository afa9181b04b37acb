"""A feature for every video of the training list, read by row."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.utils import distributed


def random_features(*shape: int) -> Tensor:
    """Uniform numbers so that a feature, the last axis, has a length of about 1."""
    bound = 1 / math.sqrt(shape[-1] / 3)
    return torch.rand(shape).mul_(2 * bound).sub_(bound)


class MemoryBank(nn.Module):
    """Features [N, D] of N videos, random at first; the buffer may have an axis of one moment in time, [N, 1, D].

    All processes hold the same bank: features are gathered before they are written.
    """

    def __init__(self, length: int, dim: int, *, time_axis: bool = False):
        super().__init__()
        shape = (length, 1, dim) if time_axis else (length, dim)
        self.register_buffer("memory", random_features(*shape))

    def __len__(self) -> int:
        return len(self.memory)

    @property
    def features(self) -> Tensor:
        """[N, D], not a copy."""
        return self.memory.flatten(1)

    @torch.no_grad()
    def resize(self, length: int) -> None:
        """Make room for ``length`` videos; where that is a change, all features are random again."""
        if length != len(self):
            self.memory = random_features(length, *self.memory.shape[1:]).to(self.memory)

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor, rate: float = 1.0) -> None:
        """Move rows ``index`` [B] by ``rate`` towards ``features`` [B, D] of all processes; rows have length 1.

        A row named several times takes the last of its features.
        """
        index = distributed.all_gather_rows(index)
        features = distributed.all_gather_rows(features.to(self.memory.dtype))
        order = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, order, -1).amax(1)  # so that equal rows write equal values
        features = features[last]
        if rate < 1:
            features = torch.lerp(self.features[index], features, rate)
        self.features[index] = F.normalize(features, dim=1)
