"""Work in processes of its own, so that a file which crashes or hangs its decoder costs that file and nothing else.

The one idea: every process has one item at a time, so it is known which one it died of.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

_LOOK_S = 1.0  # how often processes that are too slow, or a parent that is gone, are looked for


@dataclass(frozen=True)
class Lost:
    """In place of a result: the process died of this item, or took too long and was ended."""

    reason: str


def run_isolated(
    function: Callable[[Any], Any], items: Sequence[Any], *, workers: int = 1, timeout_s: float = 600.0
) -> Iterator[tuple[int, Any]]:
    """(number, ``function(items[number])``) in the order in which they are done; ``Lost`` for what has no result.

    An exception of ``function`` ends everything and is raised here. However the iteration ends, by an error or an
    interrupt too, no process stays behind.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers: at least one is needed")
    waiting = deque(range(len(items)))
    team = [_Worker(function) for _ in range(min(workers, len(items)))]
    try:
        while waiting or any(worker.number is not None for worker in team):
            for place, worker in enumerate(team):
                if worker.number is None and waiting:
                    if not worker.process.is_alive():
                        team[place] = worker = _Worker(function)
                    worker.give(waiting.popleft(), items)
            busy = [worker for worker in team if worker.number is not None]
            wait([handle for worker in busy for handle in (worker.connection, worker.process.sentinel)], _LOOK_S)
            for worker in busy:
                answer = worker.answer(timeout_s)
                if answer is not None:
                    number, result = answer
                    if isinstance(result, _Raised):
                        raise result.error
                    yield number, result
    finally:
        for worker in team:
            worker.end()


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _Worker:
    """One process, and the item that it is busy with."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        # NOTE: forked processes start at once; a spawned one would first import the whole package.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        self.connection, inner = context.Pipe()
        gc.collect()  # NOTE: garbage that holds a decoder is freed here, where the decoder's threads are
        self.process = context.Process(target=_serve, args=(function, inner, os.getpid()), daemon=True)
        self.process.start()
        inner.close()
        self.number: int | None = None
        self._since = 0.0

    def give(self, number: int, items: Sequence[Any]) -> None:
        self.number, self._since = number, time.monotonic()
        with contextlib.suppress(OSError):  # it has just died: ``answer`` finds that out
            self.connection.send(items[number])

    def answer(self, timeout_s: float) -> tuple[int, Any] | None:
        """The number of its item and the result, once there is one."""
        late = time.monotonic() - self._since > timeout_s
        try:
            if self.connection.poll():
                result = self.connection.recv()
            elif not self.process.is_alive():
                result = Lost(self._epitaph())
            elif late:
                self.process.kill()
                self.process.join()
                result = Lost(f"not done after {timeout_s:g} s")
            else:
                return None
        except (EOFError, OSError):
            result = Lost(self._epitaph())
        number, self.number = self.number, None
        return number, result

    def _epitaph(self) -> str:
        self.process.join()
        code = self.process.exitcode
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"its process died ({cause})"

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(function: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    """Answer items until the parent ends or dies; an interrupt is the parent's to handle."""
    gc.freeze()  # NOTE: freeing a forked copy of the parent's decoder would wait for threads that are not here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        while not connection.poll(_LOOK_S):
            if os.getppid() != parent:
                return
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        try:
            result = function(item)
        except Exception as error:
            result = _Raised(error)
        try:
            connection.send(result)
        except OSError:
            return  # the parent is gone
