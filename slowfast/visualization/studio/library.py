"""The runs below an output folder, found again whenever somebody looks, and the videos that they name.

The one idea: whoever asks has ids only, and an id is looked up among what was found here. No path comes from outside.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slowfast.visualization.detections import KEY_FRAMES, TABLE, BoxTest, read_box_test
from slowfast.visualization.results import JobResults, ViewTest, read_job

MAX_DEPTH = 4  # folders below the output folder
MAX_RUNS = 1000
_FRESH_S = 2.0  # a list of runs is not made again within
_KEPT = 24  # runs whose results stay in memory
_MARKS = ("config.yaml", "json_stats.log")
_FILES = (*_MARKS, "stdout.log", "bad_videos.csv", TABLE, KEY_FRAMES)
_PARENTS = 5  # folders above a run in which a relative path of its lists may begin


class NotFoundError(LookupError):
    """There is no such run, test or video."""


@dataclass(frozen=True)
class Run:
    """A folder that a job has written to; ``name`` is its path below the output folder."""

    id: str
    name: str
    folder: Path

    def files(self) -> list[Path]:
        """The files of which its results are read."""
        return [file for name in _FILES if (file := self.folder / name).is_file()] + sorted(
            self.folder.glob("test_*x*.jsonl")
        )

    def state(self) -> tuple:
        """Different when one of its files has changed, or a checkpoint was added."""
        paths = [*self.files(), *([folder] if (folder := self.folder / "checkpoints").is_dir() else [])]
        return tuple((path.name, (found := path.stat()).st_mtime_ns, found.st_size) for path in paths)

    def changed_at(self) -> float:
        """When one of its files was written last, in seconds of the epoch."""
        return max((file.stat().st_mtime for file in self.files()), default=0.0)


@dataclass(frozen=True)
class RunVideo:
    """A video of a run: tested (``row`` of test ``test``), or with boxes (``test`` "boxes", ``row`` of the videos)."""

    run: Run
    test: str
    row: int
    path: str  # where it can be read; empty where it is gone
    name: str

    @property
    def id(self) -> str:
        """Its name for the page."""
        return f"t-{self.run.id}-{self.test}-{self.row}"


class Library:
    """Runs in and below ``root``."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root).absolute()
        self._runs: dict[str, Run] = {}
        self._looked = -_FRESH_S
        self._jobs: OrderedDict[str, tuple[tuple, JobResults, BoxTest | None]] = OrderedDict()
        self._kept: dict[str, tuple[tuple, Any]] = {}
        self._lock = threading.RLock()

    # ------------------------------------------------------------ runs

    def runs(self) -> list[Run]:
        """All of them, by name."""
        with self._lock:
            if time.monotonic() - self._looked > _FRESH_S:
                found = [Run(run_id(name), name, folder) for name, folder in find_runs(self.root)]
                self._runs = {run.id: run for run in found}
                self._looked = time.monotonic()
            return list(self._runs.values())

    def run(self, key: str) -> Run:
        """The run with this id; ``NotFoundError`` where there is none."""
        found = next((run for run in self.runs() if run.id == key), None)
        if found is None:
            raise NotFoundError("there is no such run: it may have been moved or deleted")
        return found

    def results(self, run: Run) -> JobResults:
        """What it has left, read again when its files have changed."""
        return self._read(run)[0]

    def boxes(self, run: Run) -> BoxTest | None:
        """Its test of boxes, if it has one."""
        return self._read(run)[1]

    def kept(self, run: Run, make: Callable[[], Any]) -> Any:
        """What ``make`` made of a run, made again when its files have changed: small things, of any number of runs."""
        state = run.state()
        with self._lock:
            if run.id not in self._kept or self._kept[run.id][0] != state:
                self._kept[run.id] = (state, make())
            return self._kept[run.id][1]

    def _read(self, run: Run) -> tuple[JobResults, BoxTest | None]:
        state = run.state()
        with self._lock:
            kept = self._jobs.get(run.id)
            if kept is None or kept[0] != state:
                kept = (state, read_job(run.folder), read_box_test(run.folder))
                self._jobs[run.id] = kept
            self._jobs.move_to_end(run.id)
            while len(self._jobs) > _KEPT:
                self._jobs.popitem(last=False)
            return kept[1:]

    # ------------------------------------------------------------ videos

    def test(self, run: Run, name: str) -> ViewTest:
        """One test of a run, named by its views ("3x3")."""
        for test in self.results(run).tests:
            if test_name(test) == name:
                return test
        raise NotFoundError(f"{run.name} has no test of {name} views")

    def video(self, key: str) -> RunVideo:
        """The video with this id; ``NotFoundError`` where there is none."""
        parts = re.fullmatch(r"t-([^-]+)-([^-]+)-(\d{1,9})", key, re.ASCII)
        if parts is None:
            raise NotFoundError("there is no such video")
        run, name, row = self.run(parts[1]), parts[2], int(parts[3])
        named = self.box_videos(run) if name == "boxes" else [video.path for video in self.test(run, name).videos]
        if row >= len(named):
            raise NotFoundError("there is no such video")
        return RunVideo(run, name, row, locate(named[row], run.folder), named[row])

    def box_videos(self, run: Run) -> list[str]:
        """The files of the key frames that a test of boxes has kept, each once."""
        test = self.boxes(run)
        return list(dict.fromkeys(line["file"] for line in test.key_frames)) if test is not None else []


def run_id(name: str) -> str:
    """An id that stays the same as long as the folder keeps its name."""
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]


def test_name(test: ViewTest) -> str:
    """The views of a test, as in the name of its file."""
    return f"{test.clips}x{test.crops}"


def find_runs(root: Path) -> list[tuple[str, Path]]:
    """(name, folder) of each folder in and below ``root`` that a job has written to."""
    found = []
    for folder, folders, files in os.walk(root):
        path = Path(folder)
        below = path.relative_to(root)
        if any(name in _MARKS or name == TABLE or _is_test(name) for name in files):
            found.append((str(below) if below.parts else root.name or str(root), path))
            if len(found) >= MAX_RUNS:
                break
        deep = len(below.parts) >= MAX_DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if name[0] != "." and name != "checkpoints")
    return sorted(found)


def _is_test(name: str) -> bool:
    return name.startswith("test_") and name.endswith(".jsonl")


def locate(path: str, folder: Path) -> str:
    """The absolute path of a file that a run in ``folder`` names; empty where it is gone.

    A relative path is one of where the job was started: here, or a folder that the run's lies in.
    """
    places = [Path.cwd(), *list(folder.parents)[:_PARENTS]]
    return next((str(found) for place in places if (found := place / path).exists()), "")
