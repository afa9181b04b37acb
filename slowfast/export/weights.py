"""Weights kept in fewer bits than they are computed with: a layer makes its float32 weight each time it is asked.

Runtimes that fold constants do it once, when they load the file; the file is small all the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Conv2d, nn.Conv3d, nn.Linear)
INT8_MAX = 127


class FromInt8(nn.Module):
    """int8 [C_out, ...] times the scale of its output channel."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, stored: Tensor) -> Tensor:
        """The float32 weight."""
        return stored.float() * self.scale


class FromBFloat16(nn.Module):
    """bfloat16 to float32."""

    def forward(self, stored: Tensor) -> Tensor:
        """The float32 weight."""
        return stored.float()


def to_int8(weight: Tensor) -> tuple[Tensor, nn.Module]:
    """The nearest multiples, -127 to 127, of a scale that is the largest weight of the output channel / 127."""
    largest = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1))
    scale = torch.where(largest > 0, largest, 1.0) / INT8_MAX
    return (weight / scale).round().to(torch.int8), FromInt8(scale)


def to_bfloat16(weight: Tensor) -> tuple[Tensor, nn.Module]:
    """The nearest bfloat16."""
    return weight.to(torch.bfloat16), FromBFloat16()


def store_weights(network: nn.Module, reduce: Callable[[Tensor], tuple[Tensor, nn.Module]]) -> None:
    """Keep the weights of all convolutions and linear layers of ``network`` as ``reduce`` makes them."""
    for layer in list(network.modules()):
        if isinstance(layer, LAYERS):
            stored, restore = reduce(layer.weight.detach().float())
            del layer.weight
            layer.register_buffer("weight", stored)
            parametrize.register_parametrization(layer, "weight", restore, unsafe=True)
