"""What the addresses of the page mean: runs, videos, uploads and jobs. Knows nothing of sockets."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import slowfast
from slowfast.checkpoint.io import find_last_checkpoint
from slowfast.visualization.studio import describe
from slowfast.visualization.studio.lanes import Job, Lane, TooManyJobsError
from slowfast.visualization.studio.library import Library, NotFoundError, Run
from slowfast.visualization.studio.store import Store, UploadError

Plain = dict[str, Any]

MAX_COMPARED = 8
_KEPT_JOBS = 60
_PICTURE_WAIT_S = 1.5  # a browser has few connections: a picture that takes longer is asked for again
_WINDOW_S = (0.05, 600.0)
_MAX_CLASSES = 10**6


class RefusedError(Exception):
    """A request that is not carried out; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What is taken from outside."""

    upload_bytes: int = 500 << 20
    seconds: float = 600.0


class Studio:
    """All behind the page, for runs below ``root``; ``device`` is that of PyTorch, None a GPU if there is one."""

    def __init__(self, root: str | Path, *, limits: Limits = Limits(), device: str | None = None) -> None:
        self.library, self.store = Library(root), Store(max_bytes=limits.upload_bytes)
        self.limits, self.device = limits, device
        # Small pictures go a way of their own: many are asked for at once, and nobody waits behind them.
        self.media, self.network, self.pictures = Lane("media"), Lane("network"), Lane("pictures")
        self._jobs: OrderedDict[tuple, Job] = OrderedDict()
        self._files: dict[str, str] = {}  # by video: what the player gets
        self._pictures: dict[tuple, Job] = {}
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Have the processes ready before somebody waits for them."""
        for lane in (self.media, self.network, self.pictures):
            lane.submit(Job("warm", {"network": lane is self.network}))

    def close(self) -> None:
        """End what runs and delete what was uploaded."""
        for lane in (self.media, self.network, self.pictures):
            lane.close()
        self.store.close()

    # ------------------------------------------------------------ to look at

    def about(self) -> Plain:
        """What the page needs to know first."""
        return {
            "version": slowfast.__version__,
            "folder": str(self.library.root),
            "max_upload_bytes": self.limits.upload_bytes,
            "max_seconds": self.limits.seconds,
        }

    def runs(self) -> Plain:
        """The table of runs."""
        return {
            "folder": str(self.library.root),
            "runs": [describe.summary(self.library, r) for r in self.library.runs()],
        }

    def run(self, key: str) -> Plain:
        """One run."""
        return describe.details(self.library, self.library.run(key))

    def compare(self, query: Mapping[str, str]) -> Plain:
        """Some runs side by side."""
        keys = list(dict.fromkeys(filter(None, query.get("runs", "").split(","))))
        if not 2 <= len(keys) <= MAX_COMPARED:
            raise RefusedError(400, f"{len(keys)} runs: 2 to {MAX_COMPARED} can be compared")
        return describe.compared(self.library, [self.library.run(key) for key in keys])

    def videos(self, key: str, test: str, query: Mapping[str, str]) -> Plain:
        """The videos behind a cell of the confusion matrix."""
        numbers = {
            name: whole(query[name], name) for name in ("true", "predicted", "offset", "limit") if query.get(name)
        }
        numbers["limit"] = min(numbers.get("limit", 60), 200)
        run = self.library.run(key)
        return describe.videos_of(self.library, run, test, wrong=query.get("wrong") == "1", **numbers)

    def video(self, key: str) -> Plain:
        """What is known of a video."""
        if key.startswith("u-"):
            upload = self._upload(key)
            return {"id": key, "title": upload.title, "size": upload.size, "there": True}
        return describe.video_of_run(self.library, self.library.video(key))

    def uploads(self) -> Plain:
        """What was uploaded, the newest first."""
        found = [{"id": u.id, "title": u.title, "size": u.size} for u in self.store.uploads()]
        return {"uploads": found}

    # ------------------------------------------------------------ uploads

    def receive(self, stream: BinaryIO, length: int, name: str) -> Plain:
        """Keep a video."""
        upload = self.store.receive(stream, length, name)
        return {"id": upload.id, "title": upload.title, "size": upload.size}

    def remove(self, key: str) -> Plain:
        """Delete an upload."""
        if not self.store.remove(key):
            raise NotFoundError("there is no such upload")
        return {"removed": key}

    def _upload(self, key: str):
        upload = self.store.upload(key)
        if upload is None:
            raise NotFoundError("this upload is no longer there: drop the file again")
        return upload

    # ------------------------------------------------------------ jobs

    def start(self, request: Any) -> Plain:
        """Begin what ``request`` asks for, or find it begun: a video made playable, predicted or explained."""
        if not isinstance(request, dict):
            raise RefusedError(400, "an object is expected")
        kind, video = request.get("kind"), request.get("video")
        if kind not in ("play", "predict", "explain") or not isinstance(video, str):
            raise RefusedError(400, "kind (play, predict or explain) and video are expected")
        path, limit = self._path_of(video)
        if kind == "play":
            return self._begin(("play", video), lambda: self._play(video, path, limit), self.media)
        arguments = {
            "path": path,
            "max_seconds": limit,
            "window_s": seconds(request.get("window_s"), "window_s"),
            "stride_s": seconds(request.get("stride_s"), "stride_s"),
        }
        if kind == "explain":
            target = request.get("target")
            if target is not None and (type(target) is not int or not 0 <= target < _MAX_CLASSES):
                raise RefusedError(400, f"target {str(target)[:20]} is not the number of a class")
            arguments["target"] = target
        run = self.library.run(str(request.get("run")))
        arguments["run"] = self._network_of(run)
        key = (kind, video, *(str(value) for value in arguments.values()))
        return self._begin(key, lambda: Job(kind, arguments), self.network)

    def job(self, key: str) -> Plain:
        """How it is with a job."""
        return self._find(key).shown()

    def cancel(self, key: str) -> Plain:
        """End a job."""
        job = self._find(key)
        job.cancel()
        return {"cancelled": job.id}

    def media_file(self, key: str) -> Path:
        """The file that the player gets, once it was made ready."""
        path = Path(self._files.get(key, ""))
        if key not in self._files or not path.is_file():
            raise NotFoundError("this video was not made ready for playing")
        return path

    def picture_file(self, key: str) -> Path | None:
        """A small picture of a video, made when it is first asked for; None where it must be asked for again."""
        path, _ = self._path_of(key)
        with self._lock:
            job = self._pictures.get(key)
            if job is None or (job.result is not None and not Path(job.result["file"]).exists()):
                if self.pictures.is_full:
                    return None
                target = self.store.new_file(".jpg", keep=1000)
                job = self.pictures.submit(Job("picture", {"path": path, "target": str(target)}))
                self._pictures[key] = job
        if not job.ended.wait(_PICTURE_WAIT_S):
            return None
        if job.result is None:
            raise NotFoundError(job.error or "there is no picture")
        return Path(job.result["file"])

    def _play(self, video: str, path: str, limit: float | None) -> Job:
        def finish(result: Plain) -> Plain:
            self._files[video] = result["file"]
            return {name: value for name, value in result.items() if name != "file"} | {"url": f"/media/{video}"}

        target = str(self.store.new_file(".mp4"))
        return Job("play", {"path": path, "target": target, "max_seconds": limit}, finish)

    def _begin(self, key: tuple, make, lane: Lane) -> Plain:
        with self._lock:
            job = self._jobs.get(key)
            gone = key[0] == "play" and job is not None and job.state == "done" and not self._still_plays(key[1])
            if job is None or job.unwanted.is_set() or job.state in ("failed", "cancelled") or gone:
                job = lane.submit(make())
                self._jobs[key] = job
            self._jobs.move_to_end(key)
            for old in [k for k, j in self._jobs.items() if j.ended.is_set()][:-_KEPT_JOBS]:
                del self._jobs[old]
        return job.shown()

    def _still_plays(self, video: str) -> bool:
        return Path(self._files.get(video, "")).is_file()

    def _find(self, key: str) -> Job:
        with self._lock:
            for job in self._jobs.values():
                if job.id == key:
                    return job
        raise NotFoundError("there is no such job any more: start it again")

    def _path_of(self, video: str) -> tuple[str, float | None]:
        """Where a video lies, and how many seconds it may last."""
        if video.startswith("u-"):
            return str(self._upload(video).path), self.limits.seconds
        found = self.library.video(video)
        if not found.path:
            raise NotFoundError(f"{found.name} is not there any more")
        return found.path, None

    def _network_of(self, run: Run) -> Plain:
        job = self.library.results(run)
        reason = describe.why_not(job)
        if reason:
            raise RefusedError(400, f"{run.name} cannot be shown a video: {reason}")
        last = find_last_checkpoint(run.folder, str(job.settings.get("TASK", "")))
        config = run.folder / "config.yaml"
        return {
            "config": str(config),
            "checkpoint": last or "",
            "folder": str(run.folder),
            "device": self.device,
            "state": tuple(Path(file).stat().st_mtime_ns for file in (config, last) if file),
        }


def seconds(value: Any, name: str) -> float | None:
    """A length in seconds, or None where it is not given."""
    if value is None:
        return None
    low, high = _WINDOW_S
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RefusedError(400, f"{name} {str(value)[:20]} is not {low:g} to {high:g} seconds")
    return float(value)


def whole(text: str, name: str) -> int:
    """A number of the address."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise RefusedError(400, f"{name}={text[:20]!r} is not a number")
    return int(text)


def status_of(error: Exception) -> int | None:
    """The HTTP status of an error that a request caused; None for any other."""
    if isinstance(error, RefusedError | UploadError):
        return error.status
    if isinstance(error, NotFoundError):
        return 404
    return 429 if isinstance(error, TooManyJobsError) else None
