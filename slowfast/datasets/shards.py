"""Shards: the videos of a list in a few large tar files, for places where many small files are slow to read.

``<split>.shards.json`` names the tar files of a split, and path and label of every video in them. The tar files are
laid out as webdataset's (``00000012.mp4`` beside ``00000012.json``) and may lie behind http(s), as the index may.

The one idea: a shard is read from its start to its end in one go and its videos are kept in memory, and rows are asked
for in an order in which few shards are needed at a time. A row stays what it is in a list of files: the same request
gives the same clip.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import tarfile
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple, TypeVar

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.datasets.batch import Request
from slowfast.datasets.build import DATASET_REGISTRY
from slowfast.datasets.kinetics import Kinetics
from slowfast.datasets.records import VIDEO_SUFFIXES, FlatStrings, PathLabels, some
from slowfast.datasets.samplers import CycleStep, TrainBatchSampler
from slowfast.datasets.sampling import FrameChoice
from slowfast.datasets.sources import ClipSource, DecodeError, open_video
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

INDEX = "{split}.shards.json"
SHARDS_AT_ONCE = 4  # of which rows are shuffled together; a worker keeps as many in memory
_TRIES, _PAUSE_S, _TIMEOUT_S = 3, 1.0, 60.0  # of a request over the network
# NOTE: a reply that breaks off is an HTTPException, which is no OSError.
_BROKEN = (OSError, EOFError, tarfile.TarError, http.client.HTTPException)
_T = TypeVar("_T")


# ---------------------------------------------------------------- writing


def write_shards(
    records: PathLabels,
    folder: str,
    split: str,
    *,
    prefix: str = "",
    shard_bytes: int = 64 << 20,
    shuffle_seed: int | None = None,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda rows, total: rows,
) -> tuple[int, list[str]]:
    """Copy the videos of ``records`` into tar files of about ``shard_bytes``, and write their index last.

    With ``shuffle_seed`` the rows are shuffled, so that a shard holds all kinds. Paths are noted relative to
    ``prefix``. Gives the number of shards, and the videos that do not exist and are left out.
    """
    if shard_bytes < 1:
        raise ValueError(f"shards of {shard_bytes} bytes: at least 1")
    os.makedirs(folder, exist_ok=True)
    rows = np.arange(len(records))
    if shuffle_seed is not None:
        rows = np.random.default_rng(shuffle_seed).permutation(rows)
    shards, missing = [], []
    writer: _ShardWriter | None = None
    try:
        for row in progress(rows.tolist(), len(rows)):
            record = records[row]
            if os.path.isdir(record.path):
                raise ValueError(f"{record.path} is a folder: only video files go into shards")
            if not os.path.isfile(record.path):
                missing.append(record.path)
                continue
            if writer is None:
                writer = _ShardWriter(folder, f"{split}-{len(shards):06d}.tar")
            writer.add(record.path, os.path.relpath(record.path, prefix) if prefix else record.path, int(record.label))
            if writer.bytes >= shard_bytes:
                shards.append(writer.close())
                writer = None
        if writer is not None:
            shards.append(writer.close())
            writer = None
    finally:
        if writer is not None:
            writer.abandon()
    if not shards:
        raise FileNotFoundError(f"none of the {len(records)} videos exists: {some(missing)}")
    index = {"version": 1, "class_names": records.class_names, "shards": shards}
    file = os.path.join(folder, INDEX.format(split=split))
    with open(f"{file}.new", "w", encoding="ascii") as stream:
        json.dump(index, stream)
    os.replace(f"{file}.new", file)
    return len(shards), missing


class _ShardWriter:
    """One tar file in the making; it has its name when it is complete."""

    def __init__(self, folder: str, name: str) -> None:
        self._file, self._name = os.path.join(folder, name), name
        self._tar = tarfile.open(f"{self._file}.part", "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  see close
        self._paths: list[str] = []
        self._labels: list[int] = []
        self.bytes = 0

    def add(self, path: str, name: str, label: int) -> None:
        key = f"{len(self._paths):08d}"
        with open(path, "rb") as stream:
            data = stream.read()
        self._put(f"{key}.json", json.dumps({"path": name, "label": label}).encode())
        suffix = os.path.splitext(path)[1].lower()
        self._put(f"{key}{suffix if suffix in VIDEO_SUFFIXES else '.mp4'}", data)
        self._paths.append(name)
        self._labels.append(label)
        self.bytes += len(data)

    def _put(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> dict:
        self._tar.close()
        os.replace(f"{self._file}.part", self._file)
        return {"file": self._name, "bytes": self.bytes, "paths": self._paths, "labels": self._labels}

    def abandon(self) -> None:
        self._tar.close()
        os.remove(f"{self._file}.part")


# ---------------------------------------------------------------- reading


def read_stream(file: str, read: Callable[[IO[bytes]], _T]) -> _T:
    """What ``read`` makes of a file read from its start to its end, also behind http and https.

    Over the network it is read again from the start where the connection fails or breaks off.
    """
    if not file.startswith(("http://", "https://")):
        with pathmgr.open(file, "rb") as stream:
            return read(stream)
    for attempt in range(_TRIES):
        try:
            with urllib.request.urlopen(file, timeout=_TIMEOUT_S) as stream:
                return _read_reply(stream, read)
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt + 1 == _TRIES:
                raise
        except (OSError, http.client.HTTPException):
            if attempt + 1 == _TRIES:
                raise
        time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _read_reply(reply: http.client.HTTPResponse, read: Callable[[IO[bytes]], _T]) -> _T:
    """What ``read`` makes of a reply; ``IncompleteRead`` where that breaks off, whatever ``read`` makes of it."""
    try:
        result = read(reply)
    except (tarfile.TarError, EOFError):
        _read_rest(reply)
        raise
    _read_rest(reply)
    return result


def _read_rest(reply: http.client.HTTPResponse) -> None:
    reply.read()
    if reply.length:  # NOTE: ``read(n)`` does not complain of a body that ends early
        raise http.client.IncompleteRead(b"", reply.length)


@dataclass(frozen=True)
class Shard:
    """A tar file and the rows that it holds."""

    file: str
    first: int
    count: int


class ShardStore:
    """The videos of the shards used last, by row."""

    def __init__(self, shards: Sequence[Shard], *, at_once: int = SHARDS_AT_ONCE) -> None:
        self.shards = shards
        self.at_once = at_once
        self.shards_read = 0
        self._firsts = np.array([shard.first for shard in shards])
        self._held: OrderedDict[int, list[bytes]] = OrderedDict()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_held": OrderedDict()}  # what is held belongs to one process

    def shard_of(self, row: int) -> int:
        """The number of the shard that holds ``row``."""
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def video(self, row: int) -> bytes:
        """The bytes of the file in ``row``; ``DecodeError`` if its shard cannot be read."""
        number = self.shard_of(row)
        if number not in self._held:
            while len(self._held) >= self.at_once:
                self._held.popitem(last=False)
            self._held[number] = read_shard(self.shards[number])
            self.shards_read += 1
        self._held.move_to_end(number)
        return self._held[number][row - self.shards[number].first]


def read_shard(shard: Shard) -> list[bytes]:
    """All videos of a shard in their order, read in one go. Nothing is unpacked to the disk."""
    try:
        videos = read_stream(shard.file, _unpacked)
    except _BROKEN as error:
        raise DecodeError(shard.file, f"the shard cannot be read: {error}") from error
    if len(videos) != shard.count:
        raise DecodeError(shard.file, f"the shard holds {len(videos)} videos, its index names {shard.count}")
    return videos


def _unpacked(stream: IO[bytes]) -> list[bytes]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        return [
            tar.extractfile(member).read()
            for member in tar
            if member.isfile() and member.name.lower().endswith(VIDEO_SUFFIXES)
        ]


class ShardRecord(NamedTuple):
    """One video in a shard; ``path`` is the shard's with the video's own behind it."""

    path: str
    label: int
    file: str  # the shard
    row: int
    store: ShardStore

    def open(
        self, *, short_side: int | None = None, threads: int = 1, decoder: str = "pyav", upright: bool = True
    ) -> ClipSource:
        """The frames."""
        data = self.store.video(self.row)
        return open_video(
            self.path, short_side=short_side, threads=threads, data=data, decoder=decoder, upright=upright
        )

    def label_of(self, choice: FrameChoice) -> int | Tensor:
        """The label of the video."""
        return self.label


class ShardRecords(Sequence[ShardRecord]):
    """The videos of an index."""

    def __init__(
        self,
        shards: Sequence[Shard],
        paths: Iterable[str],
        labels: Sequence[int],
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.store = ShardStore(shards)
        self._paths = FlatStrings(paths)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Shard and path of one row."""
        return f"{self.store.shards[self.store.shard_of(index)].file}/{self._paths[index]}"

    def __getitem__(self, index: int) -> ShardRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        file = self.store.shards[self.store.shard_of(index)].file
        return ShardRecord(f"{file}/{self._paths[index]}", int(self.labels[index]), file, index, self.store)


def load_index(folder: str, split: str, num_classes: int | None = None) -> ShardRecords:
    """The videos that the index of ``split`` names; ``ValueError`` for one that cannot be used."""
    file = f"{folder.rstrip('/')}/{INDEX.format(split=split)}"
    try:
        index = json.loads(read_stream(file, lambda stream: stream.read()))
    except _BROKEN as error:
        raise FileNotFoundError(
            f"there is no {file} ({error}): DATA.PATH_TO_DATA_DIR is the folder of the shards, tools/make_shards.py "
            "writes them"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("version") != 1 or not index.get("shards"):
        raise ValueError(f"{file} is not an index of tools/make_shards.py")
    shards, paths, labels = [], [], []
    for shard in index["shards"]:
        name = shard["file"]
        if os.path.basename(name) != name or len(shard["paths"]) != len(shard["labels"]):
            raise ValueError(f"{file}: the entry of {name!r} is damaged")
        shards.append(Shard(f"{folder.rstrip('/')}/{name}", len(paths), len(shard["paths"])))
        paths += shard["paths"]
        labels += shard["labels"]
    wrong = [label for label in labels if label < 0 or (num_classes is not None and label >= num_classes)]
    if wrong:
        raise ValueError(f"{file}: label {wrong[0]} is not 0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes})")
    return ShardRecords(shards, paths, labels, index["class_names"])


# ---------------------------------------------------------------- order


class ShardBatchSampler(TrainBatchSampler):
    """Batches whose rows each worker finds in few shards at a time.

    The shards of an epoch, in an order from (seed, epoch), are one long row of videos, of which each worker of each
    rank has a stretch; within it the videos of ``SHARDS_AT_ONCE`` shards are shuffled together. So unlike with
    files, which videos make a batch depends on the number of ranks and workers. None is lost or given twice, but for
    the rest that does not fill a global batch.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        batch_size: int | Sequence[CycleStep],
        *,
        num_workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        rows = sum(shard.count for shard in shards)
        super().__init__(rows, batch_size, seed=seed, rank=rank, world_size=world_size)
        self.shards = shards
        self.num_workers = max(1, num_workers)

    def layout(self) -> list[int]:
        """Of ``TrainBatchSampler``, and the number of workers."""
        return [*super().layout(), self.num_workers]

    def __iter__(self) -> Iterator[list[Request]]:
        batches, workers = len(self), self.num_workers
        sizes = [self.cycle[batch % len(self.cycle)].batch_size for batch in range(batches)]
        lengths = [sum(sizes[worker::workers]) for worker in range(workers)]
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.shards))
        streams, begin = [], self.rank * sum(lengths)
        for worker, length in enumerate(lengths):
            rng = np.random.default_rng((self.seed, self.epoch, self.rank, worker))
            streams.append(iter(self._stretch(order, begin, begin + length, rng)))
            begin += length
        for batch, size in enumerate(sizes):
            rows = [next(streams[batch % workers]) for _ in range(size)]
            if batch >= self.start_batch:
                crop = self.cycle[batch % len(self.cycle)].crop_size
                yield [Request(row, self.epoch, crop) for row in rows]

    def _stretch(self, order: np.ndarray, begin: int, end: int, rng: np.random.Generator) -> Iterator[int]:
        """Rows ``begin`` to ``end`` of all in ``order`` of their shards, shuffled a few shards at a time."""
        parts, place = [], 0
        for number in order:
            shard = self.shards[number]
            first, last = max(begin, place), min(end, place + shard.count)
            if first < last:
                parts.append(np.arange(first, last) - place + shard.first)
            place += shard.count
        for start in range(0, len(parts), SHARDS_AT_ONCE):
            yield from rng.permutation(np.concatenate(parts[start : start + SHARDS_AT_ONCE])).tolist()


# ---------------------------------------------------------------- data set


@DATASET_REGISTRY.register()
class Shards(Kinetics):
    """``Kinetics`` from tar files: the same clips of the same rows, read in an order that suits them."""

    @classmethod
    def build_records(cls, cfg: CfgNode, split: str) -> ShardRecords:
        """The videos of the split's index in ``DATA.PATH_TO_DATA_DIR``."""
        contrastive = cfg.MODEL.MODEL_NAME == "ContrastiveModel"
        num_classes = cfg.CONTRASTIVE.NUM_CLASSES_DOWNSTREAM if contrastive else cfg.MODEL.NUM_CLASSES
        records = load_index(cfg.DATA.PATH_TO_DATA_DIR, split, num_classes)
        logger.info("%d videos in %d shards for %s", len(records), len(records.store.shards), split)
        return records

    def train_sampler(self, batch_size: int | Sequence[CycleStep], **options: int) -> ShardBatchSampler:
        """The sampler that goes with shards; the loader asks for it."""
        return ShardBatchSampler(self.records.store.shards, batch_size, **options)
