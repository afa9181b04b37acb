"""Batches on their way to the device, beside the computation instead of before it."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


class DeviceMover:
    """Brings batches to ``device``; on a GPU by a stream of its own, so that copying overlaps with computing.

    The host queues the steps ahead of the device: while the backward pass of one step still runs, the next batch is
    copied (from the page-locked memory that the loader fills, see ``DATA_LOADER.PIN_MEMORY``) and normalised. The
    main stream waits for that batch, the host for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Any) -> Any:
        """``batch`` (a ``Batch``) on the device."""
        if self.stream is None:
            return batch.to(self.device)
        main = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            moved = batch.to(self.device)
        main.wait_stream(self.stream)
        for tensor in tensors_of(moved):
            if tensor.is_cuda:
                tensor.record_stream(main)  # its memory is not given away before the main stream has used it
        return moved


def tensors_of(batch: Any) -> list[Tensor]:
    """All tensors of a dataclass, also those in lists."""
    values = [getattr(batch, item.name) for item in fields(batch)]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [value for value in flat if isinstance(value, Tensor)]
