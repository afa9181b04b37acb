"""The published weights: which there are, under which names, and bringing one of them here whole.

A file is complete or it is not there: it grows under another name, is read as a checkpoint, and only then gets its
own. Nothing but the settings decides where files come from and where they lie.
"""

import csv
import difflib
import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from iopath.common.file_io import file_lock
from tqdm import tqdm

from slowfast import __version__
from slowfast.config import load_cfg

if TYPE_CHECKING:
    from torch import nn

    from slowfast.checkpoint import LoadReport

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SLOWFAST_CACHE"
MIRROR_VARIABLE = "SLOWFAST_ZOO_MIRROR"
OFFLINE_VARIABLE = "SLOWFAST_OFFLINE"

_CHUNK = 1 << 18
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}  # worth another try
_LONGEST_PAUSE_S = 30.0


class ZooError(ValueError):
    """A published model that is unknown, or whose file cannot be had; the message says what to do instead."""


# ---------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Entry:
    """One published row. Accuracies, FLOPs and parameters are what its authors stated, None where they did not.

    ``top1`` and ``top5`` of a pre-training are those after fine-tuning.
    """

    name: str
    task: str  # classification, multi-label, detection, pretraining
    dataset: str
    arch: str
    size: str
    frames_x_rate: str  # frames x sampling rate, in the notation of the papers
    method: str  # of training or pre-training, where it is not the plain one
    views: str  # spatial crops x temporal clips
    pretrain: str
    top1: float | None  # percent, as top5 and mean_ap
    top5: float | None
    mean_ap: float | None
    other: str
    flops_g: float | None  # of one view, a multiplication with its addition counted once
    params_m: float | None
    config: str  # relative to the repository
    opts: str  # what the config lacks, KEY VALUE ...
    config_finetune: str  # the config that uses a pre-training's weights
    note: str
    source: str  # page of the original that states the row
    link: str  # direct, manual (no plain download), wrong (leads to another model's file)
    url: str
    file: str  # below the cache folder and below a mirror
    sha256: str  # empty where nobody has stated it

    @property
    def twin(self) -> str:
        """The name of an earlier entry with the same file, or empty."""
        first = next(entry.name for entry in entries() if entry.file == self.file)
        return "" if first == self.name else first


class Record(NamedTuple):
    """What ``tools/zoo.py table`` found out here about an entry whose network can be built."""

    params: int  # by building it
    names: str  # "equal" or "differ": state-dict names, order and shapes against the original's; empty if not on record
    outputs: str  # "tested": a test compares its outputs with the original's; empty if not on record
    gflops: float | None = (
        None  # convolutions and matrix products of one view, a multiplication with its addition counted once
    )
    view: str = ""  # the frames x pixels that were counted, as in 16x224


_NUMBERS = {"top1", "top5", "mean_ap", "flops_g", "params_m"}


@cache
def entries() -> tuple[Entry, ...]:
    """Every published row, in the original's order."""
    rows = _rows("models.csv")
    return tuple(
        Entry(**{f.name: _number(row[f.name]) if f.name in _NUMBERS else row[f.name] for f in fields(Entry)})
        for row in rows
    )


@cache
def records() -> Mapping[str, Record]:
    """Name of an entry -> what was found out here; entries whose network cannot be built yet are absent."""
    return {
        row["name"]: Record(int(row["params"]), row["names"], row["outputs"], _number(row["gflops"]), row["view"])
        for row in _rows("records.csv")
    }


def _rows(file: str) -> list[dict[str, str]]:
    with (resources.files("slowfast") / "zoo_data" / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _number(text: str) -> float | None:
    return float(text) if text else None


def select(*, task: str = "", dataset: str = "", arch: str = "") -> list[Entry]:
    """The entries with each of the given words, in upper or lower case, in the field of that name."""
    wanted = {"task": task, "dataset": dataset, "arch": arch}
    return [
        entry
        for entry in entries()
        if all(_plain(word) in _plain(getattr(entry, field)) for field, word in wanted.items())
    ]


def find(name: str) -> Entry:
    """The entry called ``name``; ``ZooError`` names the nearest ones if there is none."""
    by_name = {entry.name: entry for entry in entries()}
    wanted = name.strip().lower().replace("-", "_")
    if wanted in by_name:
        return by_name[wanted]
    close = difflib.get_close_matches(wanted, by_name, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "there is nothing like it."
    raise ZooError(f"no published model is called {name!r}; {hint} `python tools/zoo.py list` shows all {len(by_name)}")


def classifier(name: str, root: str | os.PathLike | None = None) -> tuple[str, str, list[str]]:
    """Configuration, weights (downloaded if need be) and further keys of an entry that classifies videos."""
    entry = find(name)
    if entry.task not in ("classification", "multi-label"):
        raise ZooError(f"{entry.name} is for {entry.task}: name one that classifies videos")
    return str(config_file(entry, root)), str(download(entry)), entry.opts.split()


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", text.lower())


# ---------------------------------------------------------------- where it lies


@dataclass(frozen=True)
class Settings:
    """Where files lie and where they come from."""

    cache: Path
    mirror: str = ""  # takes the place of the published addresses: <mirror>/<entry.file>
    offline: bool = False  # never ask a server

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """The settings that the environment variables give; SLOWFAST_CACHE is ~/.cache/slowfast if unset."""
        environ = os.environ if environ is None else environ
        mirror = environ.get(MIRROR_VARIABLE, "").strip()
        if mirror and not mirror.startswith(("http://", "https://")):
            raise ZooError(
                f"{MIRROR_VARIABLE}={mirror} is no http:// or https:// address; "
                f"a folder that holds the files is named by {CACHE_VARIABLE}"
            )
        return cls(
            cache=Path(environ.get(CACHE_VARIABLE) or "~/.cache/slowfast").expanduser(),
            mirror=mirror.rstrip("/"),
            offline=environ.get(OFFLINE_VARIABLE, "").strip().lower() not in ("", "0", "false", "no"),
        )

    def path(self, entry: Entry) -> Path:
        """Where the weights of ``entry`` lie, or would."""
        return self.cache / entry.file

    def address(self, entry: Entry) -> str:
        """Where the weights of ``entry`` can be downloaded; ``ZooError`` if nowhere."""
        if self.offline:
            raise ZooError(
                f"{entry.name} is not here, and {OFFLINE_VARIABLE} forbids downloads. Put the file of {entry.url} at "
                f"{self.path(entry)}, or unset {OFFLINE_VARIABLE}"
            )
        if self.mirror:
            return f"{self.mirror}/{quote(entry.file)}"
        if entry.link == "manual":
            raise ZooError(
                f"{entry.name} is on Google Drive, which gives files to browsers only: open {entry.url} and save the "
                f"file as {self.path(entry)}"
            )
        if entry.link == "wrong":
            raise ZooError(
                f"{entry.name} has no known address: {entry.note} ({entry.url}). If you have the weights, put them at "
                f"{self.path(entry)}"
            )
        return entry.url


def config_file(entry: Entry, root: str | os.PathLike | None = None) -> Path:
    """The YAML of ``entry`` in a clone of the repository: ``root``, else the package's, else the current folder."""
    roots = [Path(root)] if root is not None else [Path(__file__).resolve().parents[1], Path.cwd()]
    for folder in roots:
        if (folder / entry.config).is_file():
            return folder / entry.config
    raise ZooError(f"{entry.config} is not in {' or '.join(map(str, roots))}; work in a clone of the repository")


# ---------------------------------------------------------------- bringing it here


def download(
    name: str | Entry,
    settings: Settings | None = None,
    *,
    retries: int = 5,
    pause_s: float = 1.0,
    timeout_s: float = 30.0,
    progress: bool | None = None,
) -> Path:
    """The path of the weights on this machine, downloaded unless they are there.

    A dropped connection is taken up where it broke, after a pause that doubles each time; ``retries`` counts tries
    that bring nothing new. ``timeout_s`` is the longest silence of the server. ``progress`` None shows a bar on a
    terminal. Several processes may ask at once. A file that is no checkpoint, or not the one of an earlier
    download (its sum lies beside it), is never handed out: ``ZooError``.
    """
    entry = name if isinstance(name, Entry) else find(name)
    settings = settings or Settings.from_env()
    path = settings.path(entry)
    if path.exists():
        _check_kept(path, entry)
        return path
    url = settings.address(entry)
    try:
        with file_lock(str(path)):
            if path.exists():  # another process was first
                _check_kept(path, entry)
                return path
            _bring(url, path, entry, retries=retries, pause_s=pause_s, timeout_s=timeout_s, progress=progress)
    except OSError as error:
        raise ZooError(
            f"{path} cannot be written: {error.strerror or error}. {CACHE_VARIABLE} chooses the folder"
        ) from error
    return path


def _bring(url: str, path: Path, entry: Entry, **options) -> None:
    """Download ``url``, check it, and give it its name ``path``."""
    part = path.with_name(path.name + ".part")
    was_begun = part.exists()
    _fetch(url, part, title=entry.name, **options)
    try:
        digest = _check_new(part, path, entry, url)
    except ZooError as error:
        part.unlink()
        if not was_begun:
            raise
        logger.warning("%s. What an earlier download had left may be the cause: starting over", error)
        _fetch(url, part, title=entry.name, **options)
        try:
            digest = _check_new(part, path, entry, url)
        except ZooError:
            part.unlink()
            raise
    os.replace(part, path)
    _sum_file(path).write_text(f"{digest}  {path.name}\n")


class _BrokenOffError(Exception):
    """What may succeed when tried again."""


def _fetch(
    url: str, part: Path, *, title: str, retries: int, pause_s: float, timeout_s: float, progress: bool | None
) -> None:
    """The whole of ``url`` in the file ``part``, going on from what is in it."""
    furthest, failures = _size(part), 0
    while True:
        try:
            return _receive(url, part, title=title, timeout_s=timeout_s, progress=progress)
        except _BrokenOffError as error:
            size = _size(part)
            failures = 1 if size > furthest else failures + 1
            furthest = max(furthest, size)
            if failures > retries:
                kept = f"; the next download goes on from the {size} bytes in {part}" if size else ""
                raise ZooError(f"{url}: {error}. Given up after {failures} tries{kept}") from error
            pause = min(pause_s * 2 ** (failures - 1), _LONGEST_PAUSE_S)
            logger.warning("%s: %s; %d bytes are here, trying again in %g s", url, error, size, pause)
        time.sleep(pause)


def _receive(url: str, part: Path, *, title: str, timeout_s: float, progress: bool | None) -> None:
    """One connection: append to ``part`` what it lacks, or write it anew if the server gives only the whole."""
    start = _size(part)
    headers = {"User-Agent": f"slowfast/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:
                if _total(error.headers) == start:
                    return  # everything was here already
                part.unlink()
                raise _BrokenOffError("what an earlier download left is no beginning of this file") from error
            if error.code in _PASSING_STATUS:
                raise _BrokenOffError(f"the server answers {error.code} {error.reason}") from error
            raise ZooError(
                f"{url}: the server answers {error.code} {error.reason}. {MIRROR_VARIABLE} names another server; a "
                f"file that you have goes to {part.with_suffix('')}"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(getattr(error, "reason", "") or error or type(error).__name__)) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ZooError(f"{url} is a web page and not a file of weights; a proxy or login page, perhaps")
        if response.status == 206 and _begin(response.headers) != start:
            part.unlink()
            raise _BrokenOffError("the server sent another part than the one asked for")
        if response.status != 206:
            start = 0
        total = _total(response.headers)
        _check_space(part, total, start)
        hidden = None if progress is None else not progress  # None: hidden unless on a terminal
        bar = tqdm(total=total, initial=start, desc=title, unit="B", unit_scale=True, disable=hidden)
        with open(part, "ab" if start else "wb") as file, bar:
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = _size(part)
    if total is not None and size != total:
        raise _BrokenOffError(f"the connection was closed after {size} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from error


def _begin(headers: Mapping[str, str]) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _total(headers: Mapping[str, str]) -> int | None:
    """The size of the whole file, where the server says it."""
    whole = headers["Content-Range"].rpartition("/")[2] if "Content-Range" in headers else headers.get("Content-Length")
    return int(whole) if whole and whole.isdigit() else None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _check_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise ZooError(
            f"{part.parent} has {free / 1e6:.0f} MB left, and {(total - start) / 1e6:.0f} MB are to come. "
            f"{CACHE_VARIABLE} chooses another folder"
        )


def download_detector(settings: Settings | None = None, **options) -> Path:
    """The path of torchvision's Faster R-CNN (ResNet-50 FPN, trained on COCO) on this machine.

    It lies in the cache beside the published networks and comes from the same mirror; ``options`` are those of
    :func:`download`.
    """
    url = _detector_url()
    name = url.rpartition("/")[2]
    values = {field.name: None if field.name in _NUMBERS else "" for field in fields(Entry)}
    values |= {"name": "torchvision's Faster R-CNN", "task": "detection", "url": url, "file": f"torchvision/{name}"}
    path = download(Entry(**values), settings, **options)
    begins = name.rpartition("-")[2].removesuffix(".pth")  # of its sum, by torchvision's way of naming files
    digest = sha256_of(path)
    if not digest.startswith(begins):
        raise ZooError(f"{path} is not the file of {url}: its SHA-256 is {digest}, not {begins}...; remove it")
    return path


def _detector_url() -> str:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url


# ---------------------------------------------------------------- is it the right one


def _check_new(part: Path, path: Path, entry: Entry, url: str) -> str:
    """The sum of a finished download that is a checkpoint, and the same one as before if there was one."""
    _check_content(part, f"{url} did not give a checkpoint")
    digest = sha256_of(part)
    _compare(digest, path, entry, f"the file of {url}", f"remove {_sum_file(path)} if the new one is right")
    return digest


def _check_kept(path: Path, entry: Entry) -> None:
    """A file that lies in the cache is what it was; its sum is written down when it is seen first."""
    try:
        if not (entry.sha256 or _sum_file(path).exists()):
            _check_content(path, f"{entry.name} cannot be used")
        digest = sha256_of(path)
        _compare(digest, path, entry, str(path), "remove it to download it again")
        is_new = not _sum_file(path).exists()
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}") from error
    if is_new:
        with suppress(OSError):  # a cache that others keep, or on a disk that cannot be written to
            _sum_file(path).write_text(f"{digest}  {path.name}\n")


def _check_content(file: Path, complaint: str) -> None:
    from slowfast.checkpoint import CheckpointError, load_checkpoint

    try:
        load_checkpoint(file)
    except CheckpointError as error:
        raise ZooError(f"{complaint}: {error}") from error


def _compare(digest: str, path: Path, entry: Entry, what: str, remedy: str) -> None:
    recorded = _sum_file(path).read_text().split()[:1] if _sum_file(path).exists() else []
    for expected in filter(None, [entry.sha256, *recorded]):
        if digest != expected:
            raise ZooError(f"{what} has changed: its SHA-256 is {digest}, expected {expected}; {remedy}")


def _sum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def sha256_of(file: str | os.PathLike) -> str:
    """The SHA-256 sum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------- into a network


def build_published(
    name: str | Entry,
    *,
    pretrained: bool = False,
    opts: Sequence = (),
    root: str | os.PathLike | None = None,
    settings: Settings | None = None,
    **options,
) -> "nn.Module":
    """The network of an entry on the CPU, in eval mode; with the published weights if ``pretrained``.

    ``opts`` change keys of its config; ``options`` go to :func:`download`. Weights must fit completely.
    """
    entry = name if isinstance(name, Entry) else find(name)
    model = build_network(entry, opts, root)
    if pretrained:
        load_published(model, download(entry, settings, **options))
    return model.eval()


def build_network(entry: Entry, opts: Sequence = (), root: str | os.PathLike | None = None) -> "nn.Module":
    """The network of an entry with random weights, for a single process."""
    from slowfast.models import build_model

    cfg = load_cfg(config_file(entry, root), [*entry.opts.split(), "NUM_GPUS", 0, *opts])
    try:
        return build_model(cfg)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise ZooError(f"{entry.name} cannot be built: {error.args[0] if error.args else error}") from error


def load_published(model: "nn.Module", path: str | os.PathLike) -> "LoadReport":
    """Fill ``model`` from the file; ``CheckpointError`` with a table of the names unless all fit."""
    from slowfast.checkpoint import CheckpointError, load_checkpoint, load_initial_weights

    try:
        return load_initial_weights(model, load_checkpoint(path)["model_state"], allow_partial=False)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
