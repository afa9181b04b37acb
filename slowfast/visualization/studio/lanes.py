"""Jobs that wait their turn for a process of their own, which may crash, hang or be ended without harm to the server.

The one idea: a process has one job at a time, so ending it is all there is to cancelling; the next job gets a new one.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from slowfast.visualization.studio import work

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_LOOK_S = 0.1  # how often it is looked whether a job was cancelled or hangs
_END_S = 2.0  # for a process to end by itself


class TooManyJobsError(RuntimeError):
    """Too many jobs are waiting already."""


@dataclass
class Job:
    """Something to do: ``function`` of ``work`` with ``arguments``; ``finish`` makes of its result what is shown."""

    function: str
    arguments: dict[str, Any]
    finish: Callable[[dict[str, Any]], dict[str, Any]] = dict
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "waiting"
    done: int = 0
    total: int = 0
    note: str = ""
    result: dict[str, Any] | None = None
    error: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    unwanted: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask for its end: it soon is "cancelled", or "done" where it was nearly so."""
        self.unwanted.set()

    def shown(self) -> dict[str, Any]:
        """As plain values."""
        names = ("id", "state", "done", "total", "note", "error")
        shown = {name: getattr(self, name) for name in names}
        return shown | ({"result": self.result} if self.state == "done" else {})

    def end(self, state: State, *, result: dict[str, Any] | None = None, error: str = "") -> None:
        """Nothing more will happen to it."""
        self.result, self.error, self.state = result, error, state
        self.ended.set()


class Lane:
    """A queue of jobs and the process that does them one by one.

    A job that tells nothing for ``stall_s`` seconds is taken to hang. At most ``most_waiting`` jobs wait. ``serve``
    is what the process runs.
    """

    def __init__(
        self,
        name: str,
        *,
        stall_s: float = 300.0,
        most_waiting: int = 30,
        serve: Callable[[Connection], None] = work.serve,
    ) -> None:
        self.name, self._stall_s, self._serve = name, stall_s, serve
        self._waiting: queue.Queue[Job | None] = queue.Queue(most_waiting)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Any = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"studio {name}", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether a job would not be taken now."""
        return self._waiting.full()

    def submit(self, job: Job) -> Job:
        """Put it in the queue; ``TooManyJobsError`` where that is full."""
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise TooManyJobsError(f"{self._waiting.maxsize} jobs are waiting: try again when some are done") from None
        return job

    def close(self) -> None:
        """End the process; jobs that wait are cancelled."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join()

    # ------------------------------------------------------------ in the thread

    def _work(self) -> None:
        while not self._closing.is_set():
            job = self._waiting.get()
            if job is None:
                continue
            if job.unwanted.is_set() or self._closing.is_set():
                job.end("cancelled")
                continue
            job.state = "running"
            self._carry_out(job)
        self._stop()
        with contextlib.suppress(queue.Empty):
            while True:
                left = self._waiting.get_nowait()
                if left is not None:
                    left.end("cancelled")

    def _carry_out(self, job: Job) -> None:
        if self._process is None or not self._process.is_alive():
            self._start()
        try:
            self._connection.send((job.function, job.arguments))
            self._listen(job)
        except (EOFError, OSError):
            job.end("failed", error=f"the process that looked at it died ({self._cause()})")
        if job.state in ("failed", "cancelled") and not self._closing.is_set():
            logger.info("%s: %s %s %s", self.name, job.function, job.state, job.error)

    def _listen(self, job: Job) -> None:
        heard = time.monotonic()
        while not job.ended.is_set():
            wait([self._connection, self._process.sentinel], _LOOK_S)
            if job.unwanted.is_set() or self._closing.is_set():
                self._stop(busy=True)
                job.end("cancelled")
            elif self._connection.poll():
                heard = time.monotonic()
                self._take(job, *self._connection.recv())
            elif not self._process.is_alive():
                raise EOFError
            elif time.monotonic() - heard > self._stall_s:
                self._stop(busy=True)
                job.end("failed", error=f"nothing happened for {self._stall_s:g} s, so it was ended")

    def _take(self, job: Job, kind: str, content: Any) -> None:
        if kind == "progress":
            job.done, job.total, job.note = content
        elif kind == "failed":
            job.end("failed", error=content)
        else:
            try:
                job.end("done", result=job.finish(content))
            except (ValueError, OSError) as error:
                job.end("failed", error=str(error))

    def _start(self) -> None:
        # NOTE: spawned, since a fork of a process with threads may hang at the first lock that one of them held.
        context = multiprocessing.get_context("spawn")
        self._connection, inner = context.Pipe()
        self._process = context.Process(target=self._serve, args=(inner,), name=f"studio {self.name}", daemon=True)
        self._process.start()
        inner.close()

    def _stop(self, *, busy: bool = False) -> None:
        if self._process is not None:
            self._connection.close()  # an idle one goes by itself
            if busy:
                self._process.terminate()
            self._process.join(_END_S)
            self._process.kill()
            self._process.join()
            self._process = None

    def _cause(self) -> str:
        self._process.join(_END_S)
        code = self._process.exitcode or 0
        self._stop()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
