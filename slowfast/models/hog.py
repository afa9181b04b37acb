"""Histograms of oriented gradients, the target of MaskFeat.

Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", 2005; Wei et al., "Masked Feature Prediction
for Self-Supervised Visual Pre-Training", https://arxiv.org/abs/2112.09133.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HOG(nn.Module):
    """For each colour and each cell of ``cell`` x ``cell`` pixels, how strong the gradients of each direction are.

    Directions are unsigned, in ``bins`` equal parts of half a turn; the bins of a cell have unit length. Computed in
    the precision of the input, whatever autocast says, and without gradients.
    """

    def __init__(self, bins: int = 9, cell: int = 8):
        super().__init__()
        self.bins, self.cell = bins, cell
        kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("weight_x", kernel.expand(3, 1, 3, 3).clone())
        self.register_buffer("weight_y", kernel.t().expand(3, 1, 3, 3).clone())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, 3, bins, H / cell, W / cell]."""
        height, width = x.shape[2:]
        if height % self.cell or width % self.cell:
            raise ValueError(f"an image of {height} x {width} pixels has no whole cells of {self.cell}")
        with torch.autocast(x.device.type, enabled=False):
            padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
            gx = F.conv2d(padded, self.weight_x.to(x.dtype), groups=3)
            gy = F.conv2d(padded, self.weight_y.to(x.dtype), groups=3)
            strength = torch.hypot(gx, gy)
            direction = (torch.atan2(gx, gy) * (self.bins / math.pi)).floor().remainder(self.bins)
            sums = [self._cell_sums(strength * (direction == number)) for number in range(self.bins)]
            return F.normalize(torch.stack(sums, dim=2), dim=2)

    def _cell_sums(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 3, H / cell, W / cell]."""
        return x.unflatten(3, (-1, self.cell)).unflatten(2, (-1, self.cell)).sum((3, 5))
