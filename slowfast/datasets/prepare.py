"""Preparation: videos as they come become videos that train fast, with lists, class names and a manifest.

The one idea: the manifest is the state. A video's outcome is one line that is appended when its file is complete, and a
file gets its name only then; so a run may end in any way at any time, and the next one goes on from there.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from slowfast.datasets.encode import PARTIAL, Outcome, PreparationError, Settings, prepare_video, source_state
from slowfast.datasets.folders import SPLITS, STAND_IN
from slowfast.datasets.isolated import Lost, run_isolated
from slowfast.datasets.prepare_plan import Plan, Row, Video
from slowfast.datasets.records import CLASS_NAMES_FILE
from slowfast.datasets.sources import VideoFile

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
LEFT_OUT = "left_out.csv"
_SEPARATORS = (" ", ",", "\t", ";", "|")


def prepare(
    plan: Plan,
    folder: str | os.PathLike,
    settings: Settings,
    *,
    sources: Sequence[str] = (),
    workers: int = 1,
    timeout_s: float = 600.0,
    retry: bool = False,
    progress: Callable[[Iterable[Outcome], int], Iterable[Outcome]] = lambda outcomes, total: outcomes,
) -> list[Outcome]:
    """Prepare all videos of ``plan`` into ``folder``, write its lists, and give the outcomes in the plan's order.

    What an earlier run has done with the same settings is not done again; with ``retry`` videos that it left out
    are. ``sources`` are folders that must stay untouched. ``progress`` wraps the outcomes, whose number comes second.
    """
    folder = os.path.abspath(folder)
    check_output(folder, sources, (video.source for video in plan.videos))
    with _Manifest(folder) as manifest:
        wanted = settings.fingerprint()
        known = [manifest.outcome_of(video, wanted, folder if settings.encode else None) for video in plan.videos]
        todo = [number for number, outcome in enumerate(known) if outcome is None or (retry and outcome.reason)]
        if len(todo) < len(known):
            logger.info("%d of %d videos are done already", len(known) - len(todo), len(known))
        work = partial(prepare_video, folder=folder, settings=settings)
        answers = run_isolated(work, [plan.videos[number] for number in todo], workers=workers, timeout_s=timeout_s)

        def outcomes() -> Iterator[Outcome]:
            for place, result in answers:
                video = plan.videos[todo[place]]
                if isinstance(result, Lost):
                    state = source_state(video.source)
                    result = Outcome(video.source, video.target, wanted, result.reason, **state)
                manifest.append(result)
                known[todo[place]] = result
                yield result

        with contextlib.closing(answers):
            for _ in progress(outcomes(), len(todo)):
                pass
    write_lists(plan, known, folder, settings)
    return known


def check_output(folder: str, sources: Iterable[str], files: Iterable[str]) -> None:
    """Refuse a ``folder`` in which a source lies, or that lies in a folder of sources, or that holds something else."""
    out = os.path.realpath(folder)
    for source in sources:
        real = os.path.realpath(source)
        if real == out or out.startswith(real + os.sep) or real.startswith(out + os.sep):
            raise ValueError(
                f"the output {folder!r} and the input {source!r} lie in one another: choose another output"
            )
    for file in files:
        if os.path.realpath(file).startswith(out + os.sep):
            raise ValueError(f"{file} lies in the output {folder!r}: choose another")
    if os.path.isdir(out) and os.listdir(out) and not os.path.isfile(os.path.join(out, MANIFEST)):
        raise ValueError(f"{folder!r} is not empty, and no earlier run made it ({MANIFEST}): choose another")
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"the output {folder!r} is not a folder")


class _Manifest:
    """The file of outcomes, held by one run at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file = os.path.join(folder, MANIFEST)
        self._known: dict[str, Outcome] = {}

    def __enter__(self) -> _Manifest:
        os.makedirs(self._folder, exist_ok=True)
        self._lock = _lock(os.path.join(self._folder, ".lock"))
        try:
            # What was being encoded when an earlier run ended.
            shutil.rmtree(os.path.join(self._folder, PARTIAL), ignore_errors=True)
            self._known = {outcome.target: outcome for outcome in read_manifest(self._folder)}
            self._rewrite()
            self._stream = open(self._file, "a", encoding="ascii")
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *error) -> None:
        self._stream.close()
        self._rewrite()
        shutil.rmtree(os.path.join(self._folder, PARTIAL), ignore_errors=True)
        os.close(self._lock)

    def _rewrite(self) -> None:
        """One line for each video, and no broken last one."""
        lines = (json.dumps(asdict(outcome)) + "\n" for outcome in self._known.values())
        _write(self._file, "".join(lines))

    def append(self, outcome: Outcome) -> None:
        self._known[outcome.target] = outcome
        self._stream.write(json.dumps(asdict(outcome)) + "\n")
        self._stream.flush()

    def outcome_of(self, video: Video, settings: str, folder: str | None) -> Outcome | None:
        """What became of ``video`` with these settings, if it has not changed since and its file is there."""
        outcome = self._known.get(video.target)
        if outcome is None or outcome.source != video.source or outcome.settings != settings:
            return None
        if source_state(video.source) != {
            "source_bytes": outcome.source_bytes,
            "source_mtime_ns": outcome.source_mtime_ns,
        }:
            return None
        if not outcome.reason and folder is not None:
            path = os.path.join(folder, video.target)
            if not os.path.isfile(path) or os.path.getsize(path) != outcome.bytes:
                return None
        return outcome


def read_manifest(folder: str | os.PathLike) -> list[Outcome]:
    """The outcomes in the manifest of a prepared folder; a last line that was cut off is left out."""
    outcomes = []
    with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, MANIFEST), encoding="ascii") as stream:
        for line in stream:
            with contextlib.suppress(ValueError, TypeError):
                outcomes.append(Outcome(**json.loads(line)))
    return outcomes


def _lock(file: str) -> int:
    """An open file that no other run can lock; it is free again as soon as this process is gone."""
    handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return handle
    try:
        # NOTE: unlike flock's, this lock is not inherited by the processes that encode.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise PreparationError(f"another run is working on {os.path.dirname(file)!r}") from error
    return handle


def write_lists(plan: Plan, outcomes: Sequence[Outcome], folder: str, settings: Settings) -> None:
    """``{train,val,test}.csv``, class names, and the videos that are left out with the reason.

    Without videos for one of val and test, those of the other serve for both.
    """
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    left_out = []
    separator = list_separator(plan, settings)
    for row in plan.rows:
        outcome = outcomes[row.video] if row.video is not None else None
        reason = row.reason if outcome is None else outcome.reason
        if reason:
            left_out.append((row.split, row.name, reason))
        else:
            path = outcome.target if settings.encode else outcome.source
            lines[row.split].append(f"{path}{separator}{row.label}\n")
    for split in SPLITS:
        rows = lines[split] or lines[STAND_IN.get(split, split)]
        file = os.path.join(folder, f"{split}.csv")
        if rows:
            _write(file, "".join(rows))
        elif os.path.exists(file):
            os.remove(file)
    if plan.class_ids:
        _write(os.path.join(folder, CLASS_NAMES_FILE), json.dumps(plan.class_ids, indent=1) + "\n")
    with _replacing(os.path.join(folder, LEFT_OUT)) as stream:
        csv.writer(stream).writerows([("split", "video", "reason"), *left_out])


def list_separator(plan: Plan, settings: Settings) -> str:
    """What stands between path and label in the lists: a space, unless sources with spaces are listed as they are."""
    names = [] if settings.encode else [video.source for video in plan.videos]
    free = (mark for mark in _SEPARATORS if not any(mark in name for name in names))
    separator = next(free, None)
    if separator is None:
        raise ValueError(f"the videos' names hold all of {_SEPARATORS}: no list can be written, prepare copies instead")
    return separator


def _write(file: str, text: str) -> None:
    with _replacing(file) as stream:
        stream.write(text)


@contextlib.contextmanager
def _replacing(file: str):
    """A text file that takes the place of ``file`` when it is complete."""
    new = f"{file}.new"
    with open(new, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        yield stream
    os.replace(new, file)


# ---------------------------------------------------------------- what came of it

CLIPS = {"8 frames, every 8th": (8, 8), "32 frames, every 2nd": (32, 2)}


@dataclass(frozen=True)
class Speed:
    """Clips per second of one core, before and after, on the same videos."""

    clip: str
    before: float
    after: float


def measure_speed(
    pairs: Sequence[tuple[str, str]],
    short_side: int,
    *,
    clips: int = 3,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> list[Speed]:
    """How fast random clips of (original, prepared) videos are opened, decoded and scaled, in turns."""
    rng = np.random.default_rng(0)
    spent = {(name, side): 0.0 for name in CLIPS for side in (0, 1)}
    rounds = [(name, pair) for pair in pairs for name in CLIPS for _ in range(clips)]
    for name, pair in progress(rounds, len(rounds)):
        num_frames, stride = CLIPS[name]
        place = rng.random()
        for side, path in enumerate(pair):
            start = time.process_time()
            video = VideoFile(path, short_side=short_side or None)
            room = max(0, video.info.num_frames - num_frames * stride)
            frames = np.arange(num_frames) * stride + round(place * room)
            video.read(np.minimum(frames, video.info.num_frames - 1))
            spent[name, side] += time.process_time() - start
    count = len(pairs) * clips
    return [Speed(name, count / spent[name, 0], count / spent[name, 1]) for name in CLIPS] if pairs else []


def alike(plan: Plan, outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Names of two videos of different splits whose original files are equal, byte for byte."""
    first: dict[str, Row] = {}
    found = []
    for row in plan.rows:
        digest = outcomes[row.video].source_sha256 if row.video is not None else ""
        other = first.setdefault(digest, row) if digest else row
        if other.split != row.split:
            found.append((f"{other.split}: {other.name}", f"{row.split}: {row.name}"))
    return found
