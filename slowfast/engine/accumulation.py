"""A batch in parts whose gradients add up to those of the whole: the same update with less memory."""

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

_PER_BOX = ("labels", "boxes", "image_boxes", "keyframes")


def in_parts(batch: Any, parts: int) -> list[tuple[Any, float, bool]]:
    """``batch`` cut into nearly equal parts: (part, its share of what the loss is averaged over, is it the last).

    A loss is averaged over the rows of the labels: clips, or boxes. Batch norm sees, and mixup mixes, each part alone.
    """
    if parts == 1:
        return [(batch, 1.0, True)]
    count = len(batch)
    bounds = [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]
    cut = [part_of(batch, first, last) for first, last in bounds if last > first]
    rows = max(len(batch.labels), 1)
    return [(part, len(part.labels) / rows, number == len(cut)) for number, part in enumerate(cut, start=1)]


def part_of(batch: Any, first: int, last: int) -> Any:
    """The samples ``first`` to ``last`` - 1 of a ``Batch``, with their boxes."""
    has_boxes = batch.boxes is not None
    if has_boxes:
        inside = (batch.boxes[:, 0] >= first) & (batch.boxes[:, 0] < last)
        moved = batch.boxes.new_tensor([first, 0, 0, 0, 0])
    changed: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            # Frames of each sample, or one tensor per view.
            changed[item.name] = value[first:last] if has_boxes else [view[first:last] for view in value]
        elif isinstance(value, Tensor) and has_boxes and item.name in _PER_BOX:
            rows = value[inside]
            changed[item.name] = rows - moved if item.name in ("boxes", "image_boxes") else rows
        elif isinstance(value, Tensor):
            changed[item.name] = value[first:last]
    return replace(batch, **changed)
