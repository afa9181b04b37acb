"""Weights of one network made to fit another: pure functions from state dict to state dict.

A state dict maps names to tensors. ``target`` is the state dict of the network to be filled; only its names and
shapes are read. An entry that no rule fits is passed on as it is, so that loading can report it.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slowfast.checkpoint.caffe2_names import model_name
from slowfast.checkpoint.hub_names import from_hub, match_projections

State = Mapping[str, Tensor]
Grid = tuple[int, int, int]
Rule = Callable[[str, Tensor, torch.Size], Tensor | None]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def fit_state(
    state: State,
    target: State,
    *,
    clear_patterns: Iterable[str] = (),
    inflate: bool = False,
    image_init: bool = False,
    grid: Grid | None = None,
    fixed: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Every conversion that applies on the way from a file to the network ``target``.

    ``clear_patterns`` are cut out of names; ``inflate`` turns 2-D convolutions into 3-D ones; ``image_init``
    carries image transformers over to video and back. Position tables of another length are interpolated, joint ones to
    the target's ``grid`` of tokens (t, h, w); of the ``fixed`` tables the target keeps its own. Files of pytorchvideo's
    hub and of torchvision are renamed.
    """
    state = clear_names(without_wrapper(state, target), clear_patterns)
    state = match_projections(from_hub(state, target), target)
    if inflate:
        state = inflate_convolutions(state, target)
    else:
        if image_init:
            state = convert_transformer(state, target)
        state = interpolate_positions(keep_fixed(state, target, fixed), target, grid)
    return expand_sub_bn(fold_sub_bn(append_axes(state, target)), target)


def without_wrapper(state: State, target: State) -> dict[str, Tensor]:
    """``state`` without the ``module.`` that ``DataParallel`` puts before every name, unless ``target`` has it."""
    if all(name.startswith("module.") for name in state) and not any(name.startswith("module.") for name in target):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)


def clear_name(name: str, patterns: Iterable[str]) -> str:
    """``name`` without, for each pattern in order, its first occurrence."""
    for pattern in patterns:
        name = name.replace(pattern, "", 1)
    return name


def clear_names(state: State, patterns: Iterable[str]) -> dict[str, Tensor]:
    """For each pattern in order, its first occurrence in each name removed."""
    patterns = list(patterns)
    return {clear_name(name, patterns): tensor for name, tensor in state.items()}


def fold_sub_bn(state: State) -> "OrderedDict[str, Tensor]":
    """Sub-batch norm under the names of plain batch norm; the statistics of the splits are dropped."""
    folded = OrderedDict()
    for name, tensor in state.items():
        layer, inner, leaf = _split_tail(name)
        if leaf in _STATISTICS and inner in ("bn", "split_bn") and f"{layer}.split_bn.running_mean" in state:
            if inner == ("split_bn" if leaf == "num_batches_tracked" else "bn"):
                folded[f"{layer}.{leaf}"] = tensor
        else:
            folded[name] = tensor
    return folded


def expand_sub_bn(state: State, target: State) -> dict[str, Tensor]:
    """Statistics of plain batch norm given to the whole and, repeated, to the splits of the target's sub-batch norm."""
    expanded = dict(state)
    for name, wanted in target.items():
        layer, inner, leaf = _split_tail(name)
        is_inside = leaf in _STATISTICS and inner in ("bn", "split_bn") and f"{layer}.split_bn.running_mean" in target
        source = state.get(f"{layer}.{leaf}", state.get(f"{layer}.bn.{leaf}")) if is_inside else None
        if source is not None:
            expanded.pop(f"{layer}.{leaf}", None)
            repeats = wanted.numel() // source.numel() if inner == "split_bn" and source.ndim else 0
            expanded[name] = source.repeat(repeats) if repeats > 1 else source
    return expanded


def _split_tail(name: str) -> tuple[str, str, str]:
    """``a.b.bn.running_mean`` -> (``a.b``, ``bn``, ``running_mean``)."""
    rest, _, leaf = name.rpartition(".")
    layer, _, inner = rest.rpartition(".")
    return layer, inner, leaf


def inflate_convolutions(state: State, target: State) -> dict[str, Tensor]:
    """Kernels ``[O, I, h, w]`` repeated to the target's ``[O, I, T, h, w]`` and divided by T: a still clip gives the
    response of the image. (Carreira and Zisserman, "Quo Vadis, Action Recognition?", 2017.)
    """
    return _where_shapes_differ(state, target, lambda _, tensor, shape: _repeat_in_time(tensor, shape, divide=True))


def convert_transformer(state: State, target: State) -> dict[str, Tensor]:
    """Image transformer to video or back: patch embedding, pooling kernels and position table.

    Going to video, patch and pooling kernels are repeated over time, not divided (the published recipes were
    trained so). Going to images, the patch kernel is summed over time and a separate spatial position table
    becomes the joint one.
    """
    patch = "patch_embed.proj.weight"
    to_image = patch in state and patch in target and state[patch].ndim == 5 and target[patch].ndim == 4
    converted = dict(state)
    if to_image:
        converted[patch] = state[patch].sum(2)  # [D, C, t, h, w] -> [D, C, h, w]
        if "pos_embed_spatial" in state:
            parts = [state["pos_embed_class"]] if "pos_embed_class" in state else []
            converted["pos_embed"] = torch.cat([*parts, state["pos_embed_spatial"]], dim=1)  # [1, 1 + N, D]
            for name in ("pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"):
                converted.pop(name, None)

    def repeat(name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        if name == patch or any(part in name for part in ("pool_q", "pool_k", "pool_v")):
            return _repeat_in_time(tensor, shape, divide=False)
        return None

    return _where_shapes_differ(converted, target, repeat)


def keep_fixed(state: State, target: State, fixed: Iterable[str]) -> dict[str, Tensor]:
    """``state`` with the target's own tables for those that are ``fixed`` (not learnt), where their lengths differ."""
    names = [name for name in fixed if name in state and name in target and state[name].shape != target[name].shape]
    own = {name: target[name] for name in names if target[name].shape[-1] == state[name].shape[-1]}
    return {
        **state,
        **{name: table.full_tensor() if hasattr(table, "full_tensor") else table for name, table in own.items()},
    }


def interpolate_positions(state: State, target: State, grid: Grid | None = None) -> dict[str, Tensor]:
    """Position tables at another resolution or length: linear along one axis, bicubic over a square grid.

    Joint tables go to the target's ``grid`` of tokens (t, h, w), where their own can be told: either frames or
    resolution are those of the target.
    """
    num_cls = [int("cls_token" in names) for names in (state, target)]

    def resize(name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        if tensor.ndim != len(shape) or tensor.shape[-1] != shape[-1]:
            return None
        if "attn.rel_pos" in name:
            return _resize_rows(tensor[None], shape[0])[0]
        if name.endswith("pos_embed_temporal"):
            return _resize_rows(tensor, shape[1])
        if name.endswith("pos_embed_spatial"):
            return _resize_square(tensor, shape[1])
        if name in ("pos_embed", "decoder_pos_embed") and grid is not None and num_cls[0] == num_cls[1]:
            cls, table = tensor[:, : num_cls[0]], tensor[:, num_cls[0] :]
            table = _resize_joint(table, grid)
            return None if table is None else torch.cat([cls, table], dim=1)
        return None

    return _where_shapes_differ(state, target, resize)


def append_axes(state: State, target: State) -> dict[str, Tensor]:
    """Matrices and kernels that lack the target's last axes of length 1 (old files omit them)."""

    def append(_: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        missing = len(shape) - tensor.ndim
        return tensor.reshape(shape) if missing > 0 and (*tensor.shape, *[1] * missing) == tuple(shape) else None

    return _where_shapes_differ(state, target, append)


def from_caffe2(blobs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Caffe2 blobs under our names; momenta and counters are left out."""
    state = {}
    for blob, value in blobs.items():
        name = model_name(blob)
        if name is not None:
            state[name] = torch.from_numpy(np.array(value))
    return state


def _where_shapes_differ(state: State, target: State, rule: Rule) -> dict[str, Tensor]:
    """``rule(name, tensor, wanted shape)`` applied where the target has the name in another shape; None keeps it."""
    result = {}
    for name, tensor in state.items():
        result[name] = tensor
        if name in target and target[name].shape != tensor.shape:
            changed = rule(name, tensor, target[name].shape)
            if changed is not None:
                result[name] = changed
    return result


def _repeat_in_time(tensor: Tensor, shape: torch.Size, *, divide: bool) -> Tensor | None:
    """``[O, I, h, w]`` or ``[O, I, 1, h, w]`` -> ``[O, I, T, h, w]``; None where more than time differs."""
    image = tensor.squeeze(2) if tensor.ndim == 5 and tensor.shape[2] == 1 else tensor
    if len(shape) != 5 or image.ndim != 4 or image.shape != (*shape[:2], *shape[3:]):
        return None
    video = image.unsqueeze(2).expand(shape)
    return video / shape[2] if divide else video.clone()


def _resize_rows(table: Tensor, length: int) -> Tensor:
    """``[1, L, D]`` -> ``[1, length, D]``, linear."""
    return F.interpolate(table.transpose(1, 2), size=length, mode="linear").transpose(1, 2).contiguous()


def _resize_square(table: Tensor, length: int) -> Tensor | None:
    """``[1, n*n, D]`` -> ``[1, length, D]``, bicubic; None where either is no square."""
    if table.shape[1] == length:
        return table
    old, new = round(table.shape[1] ** 0.5), round(length**0.5)
    if old * old != table.shape[1] or new * new != length:
        return None
    grid = table.transpose(1, 2).unflatten(2, (old, old))  # [1, n*n, D] -> [1, D, n, n]
    resized = F.interpolate(grid, size=(new, new), mode="bicubic")
    return resized.flatten(2).transpose(1, 2).contiguous()  # [1, D, m, m] -> [1, m*m, D]


def _resize_joint(table: Tensor, new: Grid) -> Tensor | None:
    """``[1, N, D]`` of a square grid to the grid ``new``; None where its frames are not certain."""
    length, (t, h, w) = table.shape[1], new
    side = math.isqrt(length // t)
    frames = {t} if side and t * side * side == length else set()
    frames |= {length // (h * w)} if length % (h * w) == 0 else set()
    if len(frames) != 1:
        return None
    space = _resize_square(table[0].unflatten(0, (*frames, -1)), h * w)  # [N, D] -> [t', h'*w', D] -> [t', h*w, D]
    return None if space is None else _resize_rows(space.transpose(0, 1), t).transpose(0, 1).reshape(1, t * h * w, -1)
