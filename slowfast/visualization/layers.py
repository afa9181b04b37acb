"""Weights and activations of layers as pictures.

Layers are named as the original does, ``path/to/layer``, and for activations with indices after it: ``0,1;2`` are
lists of places along the axes after the batch, combined as NumPy does with lists of indices.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn

GAP = 1  # pixels between tiles
LEAST_SIDE = 240  # pixels of a picture: smaller ones are enlarged by a whole number
MOST_TILES = 1024


@dataclass(frozen=True)
class LayerChoice:
    """A layer, and what of its activations is shown: lists of places along the axes after the batch (none: all)."""

    name: str
    indices: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def parse(cls, text: str) -> LayerChoice:
        """``"s1/pathway0_stem/conv 0,1;2"``; dots for slashes will do. ``ValueError`` for anything else."""
        name, *rest = text.split()
        if len(rest) > 1:
            raise ValueError(
                f"TENSORBOARD.MODEL_VIS.LAYER_LIST: {text!r} is not 'path/to/layer' or 'path/to/layer 0,1;2'"
            )
        try:
            indices = tuple(tuple(int(n) for n in axis.split(",")) for axis in rest[0].split(";")) if rest else ()
        except ValueError as error:
            raise ValueError(
                f"TENSORBOARD.MODEL_VIS.LAYER_LIST: the indices in {text!r} are no whole numbers"
            ) from error
        return cls(name.replace("/", ".").removeprefix("module."), indices)

    def select(self, activation: Tensor) -> Tensor:
        """Of one sample [...], what is shown."""
        if not self.indices:
            return activation
        try:
            return activation[tuple(torch.tensor(axis) for axis in self.indices)]
        except IndexError as error:
            raise ValueError(
                f"TENSORBOARD.MODEL_VIS.LAYER_LIST: the indices {self.indices} do not fit {self.name}, which gives "
                f"{list(activation.shape)} for a clip: {error}"
            ) from error


def find_layers(network: nn.Module, choices: Sequence[LayerChoice]) -> dict[str, nn.Module]:
    """The layers by name; ``ValueError`` names those that come near where there is none."""
    modules = dict(network.named_modules())
    modules.pop("")
    for choice in choices:
        if choice.name not in modules:
            close = difflib.get_close_matches(choice.name, modules, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(list(modules)[:8])}, ..."
            raise ValueError(f"TENSORBOARD.MODEL_VIS.LAYER_LIST: the network has no layer {choice.name}; {hint}")
    return {choice.name: modules[choice.name] for choice in choices}


@contextmanager
def recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, what the layers give in a forward pass is kept: name -> tensors, several where a layer gives several.

    NOTE: copies, because a ReLU in place would overwrite what came before it.
    """
    kept: dict[str, list[Tensor]] = {}

    def keeper(name: str) -> Callable:
        def keep(module: nn.Module, args: tuple, output: object) -> None:
            outputs = output if isinstance(output, list | tuple) else [output]
            kept[name] = [item.detach().float().cpu().clone() for item in outputs if isinstance(item, Tensor)]

        return keep

    handles = [layer.register_forward_hook(keeper(name)) for name, layer in layers.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def tile(values: Tensor) -> Tensor:
    """Any tensor as one picture [H, W]: numbers in rows, a matrix as it is, more axes as tiles of the last two.

    Tiles stand in a square, in order, with NaN between them. At most ``MOST_TILES`` of them are shown.
    """
    values = values.detach().float().cpu()
    if values.ndim <= 1:
        width = max(1, math.isqrt(values.numel()))
        rows = -(-values.numel() // width)
        flat = torch.full((rows * width,), torch.nan)
        flat[: values.numel()] = values.flatten()
        return flat.view(rows, width)
    if values.ndim == 2:
        return values
    tiles = values.flatten(0, -3)[:MOST_TILES]
    columns = math.isqrt(len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1:]
    sheet = torch.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), torch.nan)
    for place, item in enumerate(tiles):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = item
    return sheet


def picture(values: Tensor, colormap: str = "viridis") -> np.ndarray:
    """``tile`` in colours from the least to the largest value, uint8 [H, W, 3]; gaps are white."""
    sheet = tile(values).numpy()
    finite = sheet[np.isfinite(sheet)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    scaled = (sheet - low) / (high - low) if high > low else np.where(np.isnan(sheet), np.nan, 0.5)
    colors = mpl.colormaps[colormap](np.ma.masked_invalid(scaled), bytes=True)
    rgb = np.where(np.isnan(sheet)[..., None], np.uint8(255), colors[..., :3])
    grow = max(1, -(-LEAST_SIDE // max(rgb.shape[:2])))
    return np.ascontiguousarray(rgb.repeat(grow, 0).repeat(grow, 1))


def weight_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """The layer's own weights: name -> tensor."""
    return {name: parameter.detach() for name, parameter in layer.named_parameters(recurse=False)}
