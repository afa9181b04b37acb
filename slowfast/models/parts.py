"""Small parts that network families share: rounding of widths, stochastic depth, the MLP of a transformer block."""

import torch
from torch import Tensor, nn


def round_width(width: int, factor: float, *, minimum: int = 1, divisor: int = 1) -> int:
    """``width * factor`` to the nearest multiple of ``divisor``, at least ``minimum`` and 90 % of the product.

    A factor of 0 leaves the width as it is.
    """
    if not factor:
        return width
    exact = width * factor
    rounded = max(minimum, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


class DropPath(nn.Module):
    """Stochastic depth: in training, leave out the whole branch of a sample with probability ``rate``.

    What stays is scaled by 1 / (1 - rate). (Huang et al., https://arxiv.org/abs/1603.09382)
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a drop rate of {rate} for stochastic depth: allowed is [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> same."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < keep  # float32 whatever x is
        return x * (kept.to(x.dtype) / keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:g}"


def drop_path(rate: float) -> nn.Module:
    """``DropPath``, or nothing where the rate is 0."""
    return DropPath(rate) if rate else nn.Identity()


class Mlp(nn.Module):
    """Two linear layers with a GELU between, dropout after the GELU and after the second."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, *, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim_hidden, dim_out)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim_in] -> [B, N, dim_out]."""
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))
