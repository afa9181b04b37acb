"""Checkpoint files: their names, writing them whole or not at all, reading them without running what is in them."""

import errno
import io
import logging
import os
import re
import reprlib
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slowfast.checkpoint.caffe2_names import model_name
from slowfast.checkpoint.convert import expand_sub_bn, fold_sub_bn, from_caffe2
from slowfast.checkpoint.plain_pickle import STAND_INS, Refused, finish_arrays, load_plain
from slowfast.utils.distributed import unwrap
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_LEGACY_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken or does not fit; the message names the file."""


class CheckpointTooLarge(CheckpointError):
    """A checkpoint for which there is not enough memory; nothing else is known to be wrong with it."""


# ---------------------------------------------------------------- names


def checkpoint_path(output_dir: str | Path, epoch: int, task: str = "") -> str:
    """Where the state after ``epoch`` (0-based) is saved; the name counts from 1."""
    prefix = f"{task}_" if task else ""
    return os.path.join(output_dir, FOLDER, f"{prefix}checkpoint_epoch_{epoch + 1:05d}.pyth")


def step_checkpoint_path(output_dir: str | Path, epochs: int, step: int, task: str = "") -> str:
    """Where the state within an epoch is saved: after ``epochs`` whole epochs and ``step`` steps of the next.

    Among the other names it sorts, as plain text too, behind that of the last whole epoch.
    """
    whole = checkpoint_path(output_dir, epochs - 1, task)
    return f"{whole.removesuffix('.pyth')}_step_{step:07d}.pyth"


def list_checkpoints(output_dir: str | Path, task: str = "") -> list[str]:
    """The checkpoints of whole epochs of ``task`` in a job's folder, oldest first.

    Other tasks' and foreign files are not among them, nor are those that were saved within an epoch.
    """
    return [path for position, path in list_positions(output_dir, task) if position[1] is None]


def list_positions(output_dir: str | Path, task: str = "") -> list[tuple[tuple[int, int | None], str]]:
    """((whole epochs, steps of the next), path) of every checkpoint of ``task``, oldest first.

    Steps are None for a checkpoint of whole epochs.
    """
    folder = os.path.join(output_dir, FOLDER)
    if not pathmgr.isdir(folder):
        return []
    prefix = re.escape(f"{task}_") if task else ""
    pattern = re.compile(rf"{prefix}checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")
    found = [(match, name) for name in pathmgr.ls(folder) if (match := pattern.fullmatch(name))]
    positions = [
        ((int(match[1]), None if match[2] is None else int(match[2])), os.path.join(folder, name))
        for match, name in found
    ]
    return sorted(positions, key=lambda entry: (entry[0][0], -1 if entry[0][1] is None else entry[0][1]))


def find_last_checkpoint(output_dir: str | Path, task: str = "", *, within_epochs: bool = False) -> str | None:
    """The newest good checkpoint of a whole epoch, or ``within_epochs`` the newest of all; None without any.

    Files that are empty, cut off, damaged or no checkpoints are passed over with a warning that names them. For want
    of memory none is: ``CheckpointTooLarge``.
    """
    paths = [path for position, path in list_positions(output_dir, task) if within_epochs or position[1] is None]
    for path in reversed(paths):
        try:
            check_checkpoint(path)
        except CheckpointTooLarge:
            raise
        except CheckpointError as error:
            logger.warning(f"passed over: {error}")
        else:
            return path
    return None


def check_checkpoint(path: str | Path) -> None:
    """Read a whole checkpoint file and compare its checksums; ``CheckpointError`` says what is wrong with it."""
    local = _find_file(str(path))
    damaged, is_whole = None, False
    try:
        if not os.path.getsize(local):
            raise CheckpointError(f"{path} is empty: it was not written or copied to its end")
        if zipfile.is_zipfile(local):
            with zipfile.ZipFile(local) as archive:
                damaged = archive.testzip()
                is_whole = damaged is None
    except CheckpointError:
        raise
    except OSError as error:
        _raise_if_memory(path, error)
        raise CheckpointError(f"{path} cannot be read ({_cause(error)})") from error
    except Exception as error:  # nothing limits what a damaged file makes its reader raise
        _raise_if_memory(path, error)
        raise CheckpointError(f"{path} is damaged ({_cause(error)})") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} is wrong")
    try:
        load_checkpoint(path)
    except CheckpointTooLarge as error:
        if is_whole:
            raise
        raise CheckpointError(str(error)) from error  # nothing says that it is as large as it claims


# ---------------------------------------------------------------- writing


def save_checkpoint(
    path: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    epoch: int,
    cfg_text: str,
    scaler: torch.amp.GradScaler | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the state after ``epoch`` (0-based) so that ``path`` is either whole or untouched."""
    write_atomically(path, checkpoint_content(model, optimizer, epoch, cfg_text, scaler, extra))


def checkpoint_content(
    model: nn.Module,
    optimizer: Optimizer,
    epoch: int,
    cfg_text: str,
    scaler: torch.amp.GradScaler | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds: the live tensors, not copies of them.

    The model goes in without its wrappers and with sub-batch norm under the names of batch norm; the statistics of
    the sub-batches, which other programs do not know, lie in ``split_statistics``. ``extra`` entries (tensors and
    plain values) go beside the standard ones and may not replace them.
    """
    state = unwrap(model).state_dict()
    content = {
        "epoch": epoch,
        "model_state": fold_sub_bn(state),
        "optimizer_state": optimizer.state_dict(),
        "cfg": cfg_text,
    }
    if scaler is not None:
        content["scaler_state"] = scaler.state_dict()
    splits = {name: tensor for name, tensor in state.items() if ".split_bn." in name}
    if splits:
        content["split_statistics"] = splits
    taken = content.keys() & (extra or {}).keys()
    if taken:
        raise ValueError(f"extra entries {sorted(taken)} would replace standard ones of the checkpoint")
    return {**content, **(extra or {})}


def copy_to_host(value: Any) -> Any:
    """``value`` with a copy in host memory of every tensor in its containers, as it is now."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return type(value)((key, copy_to_host(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(map(copy_to_host, value))
    return value


def write_atomically(path: str | Path, content: Any) -> None:
    """``torch.save`` into a temporary file beside ``path``, on the disk and read back, then renamed.

    A write that fails leaves ``path`` as it was and raises ``OSError`` with its cause and the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            checked = _CheckedFile(file)
            torch.save(content, checked)
            if checked.error is not None:
                raise checked.error
            file.flush()
            os.fsync(file.fileno())
        found = _checksum(temporary)
        if found != checked.checksum:
            raise OSError(errno.EIO, "what was written is not what is read back: the disk or its file system fails")
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        space = f"; {shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free" if path.parent.is_dir() else ""
        reason = f"{path} could not be written: {error.strerror or error}{space}. Checkpoints before it are untouched"
        raise OSError(error.errno, reason) from error
    finally:
        temporary.unlink(missing_ok=True)


class _CheckedFile:
    """A file for ``torch.save``: sums up what passes, and keeps the first error instead of raising it inside.

    NOTE: PyTorch's writer answers an error of the file below it with one of its own that hides the cause.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.checksum = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Pass ``data`` on, unless a write has failed."""
        if self.error is None:
            self.checksum = zlib.crc32(data, self.checksum)
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing: the owner of the file does it."""


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too, where the system can do that for a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(output_dir: str | Path) -> None:
    """Delete the temporary files of writers that were killed."""
    for path in Path(output_dir, FOLDER).glob(".*.pyth.*.part"):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- reading


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU, with the weights under ``model_state``.

    Recognised by content: PyTorch files of this framework or the original (``model_state`` and more), PyTorch
    files that are a bare state dict, and Caffe2 pickles with ``blobs``. Only tensors, arrays and plain values are
    ever built from a file: anything else in it is refused, not run. Every failure is a ``CheckpointError``.
    """
    path = str(path)
    local = _find_file(path)
    content = _read_torch(path, local) if _is_torch_file(path, local) else _read_pickle(path, local)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if "shards" in content:
        content = _join_shards(path, local, content)
    if "model_state" in content:
        _check_state(path, content["model_state"])
        return dict(content)
    if "blobs" in content:
        return {"model_state": _convert_blobs(path, content["blobs"])}
    if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return {"model_state": dict(content)}
    names = [key if isinstance(key, str) else reprlib.repr(key) for key in list(content)[:8]]
    raise CheckpointError(
        f"{path} has no weights this framework knows (model_state, blobs, or a bare state dict); "
        f"it holds {', '.join(names) or 'nothing'}"
    )


def _find_file(path: str) -> str:
    """Where the file lies on this machine, fetched if need be."""
    try:
        if not pathmgr.exists(path):
            raise CheckpointError(f"{path}: there is no such checkpoint file")
        if pathmgr.isdir(path):
            raise CheckpointError(f"{path} is a folder; name a checkpoint file in it")
        return pathmgr.get_local_path(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be fetched ({_cause(error)})") from error


def _check_state(path: str, state: Any) -> None:
    wanted = "it must hold the network's state_dict(), names and tensors"
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: its model_state is a {type(state).__name__}; {wanted}")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            entry = f"{type(value).__name__} under {reprlib.repr(name)}"
            raise CheckpointError(f"{path}: its model_state has a {entry}; {wanted}")
        odd = _oddity(value)
        if odd:
            raise CheckpointError(f"{path}: {name} in its model_state is {odd}: save it as a plain tensor of numbers")


def _oddity(tensor: Tensor) -> str:
    """What kind of tensor it is, where that cannot be a weight."""
    kinds = {
        "without content (device meta)": tensor.is_meta,
        "sparse": tensor.layout is not torch.strided,
        "quantised": tensor.is_quantized,
        "complex": tensor.is_complex(),
    }
    return next((kind for kind, applies in kinds.items() if applies), "")


def _convert_blobs(path: str, blobs: Any) -> dict[str, Tensor]:
    if not isinstance(blobs, Mapping):
        raise CheckpointError(f"{path}: its blobs are a {type(blobs).__name__}, not names and arrays")
    for name, value in blobs.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: its blobs have the name {reprlib.repr(name)}, which is no text")
        if model_name(name) is not None and not isinstance(value, np.ndarray | np.number | Tensor | int | float):
            raise CheckpointError(f"{path}: its blob {name} is a {type(value).__name__}, not an array of numbers")
    try:
        return from_caffe2(blobs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its blobs cannot be converted ({_cause(error)})") from error


def _join_shards(path: str, local: str, content: Mapping[str, Any]) -> dict[str, Any]:
    from slowfast.checkpoint.sharded import join_shards  # loads much of torch.distributed, which few files need

    try:
        return join_shards(local, content)
    except (OSError, ValueError) as error:
        _raise_if_memory(path, error)
        raise CheckpointError(f"{path} is not whole: {_first_line(error)}") from error
    except Exception as error:  # nothing limits what damaged shards make their reader raise
        _raise_if_memory(path, error)
        raise CheckpointError(f"{path} is not whole: its shards cannot be read ({_cause(error)})") from error


def _is_torch_file(path: str, local: str) -> bool:
    try:
        with open(local, "rb") as file:
            start = file.read(64)
            if zipfile.is_zipfile(file):
                return True
    except OSError as error:
        _raise_if_memory(path, error)
        raise CheckpointError(f"{path} cannot be read ({_cause(error)})") from error
    try:
        return load_plain(io.BytesIO(start)) == _LEGACY_TORCH_MAGIC
    except Exception:  # whatever it is, reading it as a pickle says what is wrong
        return False


def _read_torch(path: str, local: str) -> Any:
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return finish_arrays(torch.load(local, map_location="cpu", weights_only=True))
    except Refused as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except OSError as error:
        _raise_if_memory(path, error)
        raise CheckpointError(f"{path} cannot be read ({_cause(error)})") from error
    except Exception as error:  # nothing limits what a damaged file makes its reader raise
        _raise_if_memory(path, error)
        if "TorchScript archive" in str(error):
            raise CheckpointError(
                f"{path} is a compiled network (TorchScript), which holds code: save the state_dict() of the network "
                "that it was made from"
            ) from error
        foreign = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "")
        if foreign:
            raise CheckpointError(
                f"{path} is refused: it holds more than tensors and plain values, and building that could run "
                f"code hidden in the file ({foreign})"
            ) from error
        raise CheckpointError(f"{path} is not a whole PyTorch file; was it cut off? ({_cause(error)})") from error


def _read_pickle(path: str, local: str) -> Any:
    start = b""
    try:
        with open(local, "rb") as file:
            start = file.read(24)
            file.seek(0)
            return load_plain(file)
    except Refused as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except OSError as error:
        _raise_if_memory(path, error)
        raise CheckpointError(f"{path} cannot be read ({_cause(error)})") from error
    except Exception as error:  # nothing limits what a damaged file makes its reader raise
        _raise_if_memory(path, error)
        raise CheckpointError(
            f"{path} is no checkpoint, or one that was cut off: it begins with {start!r} ({_cause(error)})"
        ) from error


def _raise_if_memory(path: str, error: Exception) -> None:
    """``CheckpointTooLarge`` where memory ran out."""
    is_refused = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if is_refused or re.search("can(no|')t allocate memory", str(error), re.IGNORECASE):
        raise CheckpointTooLarge(
            f"{path} asks for more memory than there is ({_cause(error)}): free some or give the job more; if the file "
            "is not that large, it is damaged"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cause(error: Exception) -> str:
    """Kind and message of an error, in one line; of PyTorch's long advice, the line that says what is wrong."""
    text = str(error)
    lines = (text.partition("WeightsUnpickler error:")[2].strip() or text).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---------------------------------------------------------------- into the model


@dataclass(frozen=True)
class LoadReport:
    """What became of each weight: names, and for other shapes (name, shape in the file, shape in the model)."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def complete(self) -> bool:
        """Whether file and model hold the same weights."""
        return not (self.missing or self.unexpected or self.mismatched)

    def problems(self) -> list[str]:
        """Names of all weights that did not go from the file into the model."""
        return [*self.missing, *self.unexpected, *(name for name, _, _ in self.mismatched)]

    def table(self) -> str:
        """One line per kind of problem and first part of the name, with a count and an example.

        Where all names begin with the same part, lines go by the first two.
        """
        rows = [f"{len(self.loaded)} weights loaded"]
        shapes = {
            name: f" is {list(here)} in the file, {list(there)} in the model" for name, here, there in self.mismatched
        }
        depth = 1 if len({name.split(".")[0] for name in (*self.loaded, *self.problems())}) > 1 else 2

        def prefix_of(name: str) -> str:
            return ".".join(name.split(".")[:depth])

        for title, names in (
            ("not in the file, left as they were", self.missing),
            ("not in the model, not used", self.unexpected),
            ("of another shape, left as they were", tuple(shapes)),
        ):
            for prefix, count in Counter(map(prefix_of, names)).items():
                example = next(name for name in names if prefix_of(name) == prefix)
                rows.append(f"  {prefix}: {count} {title}, e.g. {example}{shapes.get(example, '')}")
        return "\n".join(rows)


def compare_weights(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """What would become of each weight of ``state`` in ``model``. Counters of batches are not missed."""
    target = unwrap(model).state_dict()
    state = expand_sub_bn(fold_sub_bn(state), target)
    return LoadReport(
        loaded=tuple(name for name in target if name in state and state[name].shape == target[name].shape),
        missing=tuple(name for name in target if name not in state and not name.endswith("num_batches_tracked")),
        unexpected=tuple(name for name in state if name not in target),
        mismatched=tuple(
            (name, tuple(state[name].shape), tuple(target[name].shape))
            for name in target
            if name in state and state[name].shape != target[name].shape
        ),
    )


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, allow_partial: bool | Sequence[str] = False
) -> LoadReport:
    """Copy ``state`` into ``model`` (without its wrappers) where name and shape agree.

    ``allow_partial`` says which weights may fail to: none, any (True), or those whose names begin with one of the
    given prefixes. Others are a ``CheckpointError`` with the report's table, raised before anything is copied; so
    is a state of which nothing fits. Sub-batch norm takes the statistics of plain batch norm and the other way
    round. Counters of batches are not missed: nothing that we compute depends on them.
    """
    model = unwrap(model)
    report = compare_weights(model, state)
    allowed = ("",) if allow_partial is True else tuple(allow_partial or ())
    refused = [name for name in report.problems() if not name.startswith(allowed)]
    if refused or not report.loaded:
        raise CheckpointError(misfit(report, len(refused)))
    target = model.state_dict()
    state = expand_sub_bn(fold_sub_bn(state), target)
    model.load_state_dict({name: _like(state[name], target[name]) for name in report.loaded}, strict=False)
    return report


def misfit(report: LoadReport, refused: int) -> str:
    """The message of an error about weights of which ``refused`` disagree, or which have nothing to carry over."""
    count = f"{refused} disagree" if refused else "the file has nothing of it to carry over"
    return f"the weights do not fit the model ({count}):\n{report.table()}"


def _like(value: Tensor, target: Tensor) -> Tensor:
    """``value``, cut up over processes where ``target`` is."""
    if not hasattr(target, "device_mesh"):
        return value
    from slowfast.checkpoint.sharded import as_sharded

    return as_sharded(value, target)
