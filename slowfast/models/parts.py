"""Small parts that network families share: rounding of widths, stochastic depth, MLPs, fixed position tables, hooks."""

from collections.abc import Callable

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


def has_hooks(block: nn.Module) -> bool:
    """Whether someone looks into ``block``, or computes its weights on the fly."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "parametrizations")
    return any(getattr(module, kind, None) for module in block.modules() for kind in kinds)


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is a ``kind`` itself, and nobody looks into it or has put another ``forward`` on it."""
    return type(module) is kind and "forward" not in vars(module) and not has_hooks(module)


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


class MLPHead(nn.Module):
    """Linear layers with ReLUs between, each hidden one with a norm where one is given.

    A norm replaces the bias of its layer; the last layer always has one.
    """

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, *, num_layers: int, norm: Callable | None = None):
        super().__init__()
        if num_layers < 1:
            raise ValueError(
                f"an MLP of {num_layers} layers (CONTRASTIVE.NUM_MLP_LAYERS, CONTRASTIVE.PREDICTOR_DEPTHS): at least 1"
            )
        layers: list[nn.Module] = []
        for i in range(num_layers - 1):
            layers.append(nn.Linear(dim_hidden if i else dim_in, dim_hidden, bias=norm is None))
            layers += [norm(dim_hidden)] if norm else []
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(dim_hidden if num_layers > 1 else dim_in, dim_out))
        for layer in layers:
            layer.is_in_mlp = True  # for init_weights
        self.projection = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim_in] -> [..., dim_out]; norms count every position as a sample."""
        return self.projection(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def sincos_table(dim: int, grid: tuple[int, int, int]) -> Tensor:
    """Fixed positions of a grid (t, h, w) of tokens, t slowest: [t * h * w, dim].

    A quarter of the channels tells the frame, three eighths each the column and the row: sines, then cosines, of the
    position times ``10000 ** (-2 i / d)`` for channel i of d. (MAE for video: https://arxiv.org/abs/2205.09113)
    """
    if dim % 16:
        raise ValueError(f"fixed sine-cosine positions need a width that is a multiple of 16, not MVIT.EMBED_DIM={dim}")

    def waves(size: int, channels: int) -> Tensor:
        rates = 10000.0 ** (-torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
        angles = torch.arange(size, dtype=torch.float64)[:, None] * rates  # [size, channels / 2]
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    t, h, w = grid
    frames = waves(t, dim // 4)[:, None, None].expand(t, h, w, -1)
    columns = waves(w, dim * 3 // 8)[None, None].expand(t, h, w, -1)
    rows = waves(h, dim * 3 // 8)[None, :, None].expand(t, h, w, -1)
    return torch.cat([frames, columns, rows], dim=3).flatten(0, 2).float()
