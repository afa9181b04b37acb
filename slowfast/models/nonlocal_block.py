"""The non-local block: every position attends to every other one, in space and time."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.layers import Conv3d, MaxPool3d, mark_final
from slowfast.models.norm import Norm

INSTANTIATIONS = ("softmax", "dot_product")


class Nonlocal(nn.Module):
    """Non-local neural networks (Wang et al., https://arxiv.org/abs/1711.07971), with a residual connection.

    Queries come from the input, keys and values from the input after max pooling by ``pool`` (t, h, w).
    """

    def __init__(
        self,
        dim: int,
        dim_inner: int,
        *,
        pool: Sequence[int] = (1, 1, 1),
        instantiation: str = "softmax",
        norm: Norm = nn.BatchNorm3d,
    ):
        super().__init__()
        if instantiation not in INSTANTIATIONS:
            raise ValueError(f"NONLOCAL.INSTANTIATION={instantiation!r}: allowed are {', '.join(INSTANTIATIONS)}")
        self.instantiation = instantiation
        self.conv_theta = Conv3d(dim, dim_inner, 1)
        self.conv_phi = Conv3d(dim, dim_inner, 1)
        self.conv_g = Conv3d(dim, dim_inner, 1)
        self.conv_out = Conv3d(dim_inner, dim, 1)
        self.bn = mark_final(norm(dim))
        self.pool = MaxPool3d(pool, pool) if any(size > 1 for size in pool) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> same."""
        size = x.shape[2:]
        pooled = self.pool(x)
        query = self.conv_theta(x).flatten(2).transpose(1, 2)  # [B, D, T, H, W] -> [B, N, D]
        key = self.conv_phi(pooled).flatten(2).transpose(1, 2)  # [B, M, D]
        value = self.conv_g(pooled).flatten(2).transpose(1, 2)  # [B, M, D]
        if self.instantiation == "softmax":
            one_head = [tensor.unsqueeze(1) for tensor in (query, key, value)]  # [B, 1, N or M, D]
            mixed = F.scaled_dot_product_attention(*one_head).squeeze(1)  # [B, N, D]
        else:
            mixed = _linear_attention(query, key, value / key.shape[1])
        mixed = mixed.transpose(1, 2).unflatten(2, size)  # [B, N, D] -> [B, D, T, H, W]
        return x + self.bn(self.conv_out(mixed))


def _linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``query @ key^T @ value`` of [B, N, D], [B, M, D], [B, M, D], multiplied in the cheaper order."""
    (num_queries, dim), num_keys = query.shape[1:], key.shape[1]
    if 2 * num_queries * num_keys <= dim * (num_queries + num_keys):
        return (query @ key.transpose(1, 2)) @ value
    return query @ (key.transpose(1, 2) @ value)
