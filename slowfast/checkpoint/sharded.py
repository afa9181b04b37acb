"""Checkpoints of networks that no process holds whole: every process writes its own shards.

Beside the ordinary file, which holds all that is not sharded, lies a folder written by
``torch.distributed.checkpoint`` with tensors alone. Reading puts both together to what an ordinary file holds, on any
number of processes, so a sharded training resumes, is tested and is exported like any other. The folder's
``.metadata`` is a pickle: nothing but what describes tensors is built from it. The ordinary file has length and CRC-32
of every file of the folder.
"""

import io
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from slowfast.utils import distributed

_MARK = "in the folder of shards: "
_UNTOUCHED = "Checkpoints before it are untouched"


def shards_folder(path: str | Path) -> Path:
    """Where the shards of the checkpoint file ``path`` lie."""
    return Path(f"{path}.shards")


def save_shards(path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the sharded tensors of ``content``; what is left of it, to be written to ``path`` itself.

    Every process calls this, with its own shards, and returns when all are written and read back. ``OSError`` on all of
    them says what went wrong on one.
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
    try:
        dcp.save(tensors, checkpoint_id=folder)
    except CheckpointException as error:
        raise OSError(
            f"{folder} could not be written: {_reason(error)}. Checkpoints before it are untouched"
        ) from error
    return {**rest, "shards": folder.name, "shard_files": _read_back(folder)}


def join_shards(path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """``content``, read from ``path``, with the tensors of its folder as whole ones on the CPU.

    ``OSError`` or ``ValueError`` says what is wrong with the folder.
    """
    folder = shards_folder(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"its folder of shards {folder} is missing")
    try:
        sums = content.get("shard_files")
        if sums is not None:
            _compare(folder, sums)
        reader = _Reader(folder)
        if sums is None:  # a checkpoint from before lengths and sums were noted
            _test_parts(folder, reader.read_metadata())
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, RuntimeError, *_PICKLE_ERRORS) as error:
        raise ValueError(f"its folder of shards {folder} cannot be read: {_reason(error)}") from error

    def put(_: str, value: Any) -> Any:
        if not (isinstance(value, str) and value.startswith(_MARK)):
            return value
        name = value.removeprefix(_MARK)
        if name not in tensors:
            raise ValueError(f"its folder of shards {folder} has no {name}")
        return tensors[name]

    return {key: value for key, value in _map(content, put).items() if key not in ("shards", "shard_files")}


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


def _reason(error: BaseException) -> str:
    """What went wrong, in words; on the first of the processes, where PyTorch has gathered the errors of all."""
    if isinstance(error, CheckpointException) and error.failures:
        error, _ = next(iter(error.failures.values()))
    return str(error) or type(error).__name__


# ---------------------------------------------------------------- whether the files are whole


def _read_back(folder: Path) -> dict[str, list[int]]:
    """{name: [bytes, CRC-32]} of every file of ``folder``, which each process has tested for its own shards."""
    own = sorted(folder.glob(f"__{distributed.get_rank()}_*.distcp"))
    problem = ""
    try:
        _test_parts(folder, _Reader(folder).read_metadata(), {file.name for file in own})
        sums = {file.name: _sum(file) for file in own + [folder / ".metadata"] * distributed.is_main_process()}
    except (OSError, *_PICKLE_ERRORS) as error:
        sums, problem = {}, _reason(error)
    answers = distributed.all_gather_objects((sums, problem))
    if any(text for _, text in answers):
        reasons = "; ".join(f"process {rank}: {text}" for rank, (_, text) in enumerate(answers) if text)
        raise OSError(f"{folder} is not as it was written ({reasons}). {_UNTOUCHED}")
    return {name: entry for part, _ in answers for name, entry in part.items()}


def _test_parts(folder: Path, metadata: Metadata, names: Collection[str] | None = None) -> None:
    """Compare the checksums that PyTorch's writer put with the tensors of all shards, or of those in ``names``."""
    for info in metadata.storage_data.values():
        if names is None or info.relative_path in names:
            with open(folder / info.relative_path, "rb") as file:
                file.seek(info.offset)
                part = io.BytesIO(file.read(info.length))
            try:
                damaged = zipfile.ZipFile(part).testzip()
            except (zipfile.BadZipFile, NotImplementedError) as error:
                raise ValueError(f"{info.relative_path} is damaged ({error})") from error
            if damaged:
                raise ValueError(f"{info.relative_path} is damaged: the checksum of its part {damaged} is wrong")


def _compare(folder: Path, sums: Mapping[str, Sequence[int]]) -> None:
    for name, (length, checksum) in sums.items():
        found = _sum(folder / name)
        if found[0] != length:
            raise ValueError(f"{name} has {found[0]} bytes, and had {length} when it was written")
        if found[1] != checksum:
            raise ValueError(f"{name} is damaged: its checksum is wrong")


def _sum(path: Path) -> list[int]:
    length = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            length, checksum = length + len(block), zlib.crc32(block, checksum)
    return [length, checksum]


# ---------------------------------------------------------------- reading without running what is in the folder


# What reading a broken or foreign pickle, or using what it describes, can raise.
_PICKLE_ERRORS = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, TypeError, ValueError),
    *(OverflowError, MemoryError, RecursionError),
)


class _Reader(dcp.FileSystemReader):
    """Reads ``.metadata`` once, and shards of its own folder only. The shards themselves hold tensors alone.

    NOTE: PyTorch's reader unpickles whatever ``.metadata`` asks for, and what it calls bytes from the shards as well;
    ``_MetadataUnpickler`` knows no bytes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with open(folder / ".metadata", "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError(".metadata does not describe shards")
        for info in metadata.storage_data.values():
            if PurePath(info.relative_path).name != info.relative_path:
                raise ValueError(f".metadata names a file outside its folder ({info.relative_path})")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the folder holds, as it was when this reader was made."""
        return self._metadata


def _plain_path(*parts: str) -> str:
    """A path as text: where the folder lay when it was written, which nobody needs."""
    return "/".join(parts)


def _member(kind: Any, name: str) -> Enum:
    """What the first releases of Python 3.11 need of ``getattr`` to restore a member of an enumeration."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(".metadata is refused: it asks for an attribute of something else than an Enum")
    return kind[name]


_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata")),
    *((_METADATA, name) for name in ("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size")),
    ("torch.serialization", "_get_layout"),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}
_STAND_INS = {
    **{(module, "PosixPath"): _plain_path for module in ("pathlib", "pathlib._local")},
    **{(module, "WindowsPath"): _plain_path for module in ("pathlib", "pathlib._local")},
    ("builtins", "getattr"): _member,
}


class _MetadataUnpickler(pickle.Unpickler):
    """Builds descriptions of tensors; every other name in the file is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(
                f".metadata is refused: it asks for {module}.{name}, but only descriptions of tensors are read"
            )
        return super().find_class(module, name)
