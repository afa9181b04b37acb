"""Checkpoints of networks that no process holds whole: every process writes its own shards.

Beside the ordinary file, which holds all that is not sharded, lies a folder written by
``torch.distributed.checkpoint`` with tensors alone. Reading puts both together to what an ordinary file holds, on any
number of processes, so a sharded training resumes, is tested and is exported like any other.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from slowfast.utils import distributed

_MARK = "in the folder of shards: "


def shards_folder(path: str | Path) -> Path:
    """Where the shards of the checkpoint file ``path`` lie."""
    return Path(f"{path}.shards")


def save_shards(path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the sharded tensors of ``content``; what is left of it, to be written to ``path`` itself.

    Every process calls this, with its own shards, and returns when all are written.
    """
    folder, tensors = shards_folder(path), {}

    def take(place: str, value: Any) -> Any:
        if isinstance(value, DTensor):
            tensors[place] = value.detach()
            return _MARK + place
        return value

    rest = _map(content, take)
    if distributed.is_main_process():
        shutil.rmtree(folder, ignore_errors=True)  # of a writer that was killed
        folder.parent.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    dcp.save(tensors, checkpoint_id=folder)
    return {**rest, "shards": folder.name}


def join_shards(path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """``content``, read from ``path``, with the tensors of its folder as whole ones on the CPU.

    ``OSError`` or ``ValueError`` says what is wrong with the folder.
    """
    folder = shards_folder(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"its folder of shards {folder} is missing")
    try:
        metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    except (CheckpointException, RuntimeError) as error:
        raise ValueError(f"its folder of shards {folder} cannot be read: {error}") from error

    def put(_: str, value: Any) -> Any:
        is_mark = isinstance(value, str) and value.startswith(_MARK)
        return tensors[value.removeprefix(_MARK)] if is_mark else value

    return {key: value for key, value in _map(content, put).items() if key != "shards"}


def as_sharded(value: Tensor, like: Tensor) -> Tensor:
    """``value``, which all processes have, cut up as ``like`` is; itself where that is a plain tensor."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _map(value: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """``value`` with ``change(place, leaf)`` in place of every leaf of its dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: _map(item, change, f"{place}/{key}" if place else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(item, change, f"{place}/{number}") for number, item in enumerate(value))
    return change(place, value)
