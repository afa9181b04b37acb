"""What comes from outside while a job runs: signals to stop, other processes, and processes that hang.

A signal only leaves a note; the job reads it between two steps, all processes at the same one. A second thread
looks after the main one where that is stuck in a call that no signal interrupts.
"""

import faulthandler
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, NoReturn

from slowfast.utils import distributed
from slowfast.utils.host_group import DelayedMax, Noticeboard, NoticeboardError, host_min

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""Of a job that was told to stop and can be continued by the same command (EX_TEMPFAIL of sysexits.h: try again)."""
GRACE = 120.0
"""Seconds after a signal in which the main thread must finish a step; then the process ends without saving."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))

# A signal that came when a job had nothing left to stop is for the next job of this process.
_unanswered: list[int] = []

# Files of functions in which a process waits for the others.
_WAITING_IN = (
    "/torch/distributed/",
    "/torch/autograd/",
    "/torch/nn/parallel/",
    "slowfast/utils/distributed.py",
    "slowfast/utils/host_group.py",
)


class Interrupted(SystemExit):
    """A signal stopped the job where it can be continued; uncaught, the process exits with ``EXIT_CODE``."""

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_CODE)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Wish(IntEnum):
    """What a process asks for between two steps; the largest of all processes is done."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Watch:
    """Listens to signals, lets the processes agree, and ends those that hang. A context manager.

    SIGTERM and SIGUSR1 stop the job at its next ``agree`` or ``check``. Signals are only listened to in the main
    thread of a program. ``hang_minutes`` above 0 ends every process of a job of several when one of them has shown
    no progress (``beat``) for that long, and says which.
    """

    def __init__(self, *, hang_minutes: float = 0.0) -> None:
        self.hang_seconds = hang_minutes * 60 if distributed.get_world_size() > 1 else 0.0
        self.received: int | None = None
        self._latest_wish = DelayedMax()
        self._doing = "starting"
        self._beats = 0
        self._beat_at = time.monotonic()
        self._stopping = False
        self._signals_seen = False
        self._closed = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            self.received = _unanswered.pop() if _unanswered else None
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
            self._open_pipe()
        if self._pipe or self.hang_seconds:
            self._thread = threading.Thread(target=self._look_after, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Interrupted):
            logger.warning(str(error))
        elif self.received is not None and error is None and not self._stopping:
            _unanswered.append(self.received)
        try:
            if error is None or isinstance(error, Interrupted):  # with any other error the processes are not in step
                self.beat("waiting for the other processes to end")
                self._latest_wish.finish()
        except RuntimeError as failure:  # another process is gone already
            if error is None:
                raise
            logger.debug(f"stopped without the others: {failure}")  # all had agreed; the exit code stays that of a stop
        finally:
            self._close()

    def _close(self) -> None:
        self._closed.set()
        if self._pipe:
            signal.set_wakeup_fd(-1)
            os.write(self._pipe[1], b"\0")
        if self._thread:
            self._thread.join()
        for end in self._pipe or ():
            os.close(end)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    # ------------------------------------------------------------ called by the job

    def beat(self, doing: str) -> None:
        """A sign of life: the job now begins with ``doing`` ("waiting for data", ...)."""
        self._doing, self._beat_at = doing, time.monotonic()
        self._beats += 1

    def agree(self, wish: Wish = Wish.NOTHING) -> Wish:
        """What all processes do now; each must call it equally often.

        In a single process that is its own wish, or STOP after a signal. Among several it is the largest wish of
        the call before this one: the exchange runs meanwhile on the host, and nothing waits for it.
        """
        own = Wish.STOP if self.received is not None else wish
        return Wish(self._latest_wish(int(own)))

    def check(self) -> None:
        """``agree``, and stop where that is what is agreed on."""
        if self.agree() is Wish.STOP:
            self.stop()

    def over(self, batches: Iterable[Any], length: int, doing: str) -> Iterator[Any]:
        """``batches``, stopping between two of them after a signal; processes may have different numbers of them.

        The processes agree as long as all of them have batches left (``length`` is that of this one).
        """
        common = host_min(length)
        for number, batch in enumerate(batches, start=1):
            self.beat(doing)
            yield batch
            self.beat(f"waiting for data to go on {doing}")
            if number <= common:
                self.check()

    def answer(self) -> None:
        """The job is about to stop: what it saves until then may take longer than ``GRACE``."""
        self._stopping = True

    def stop(self) -> NoReturn:
        """Raise :class:`Interrupted`."""
        self.answer()
        name = signal.Signals(self.received).name if self.received else "a signal to another process"
        raise Interrupted(f"stopped by {name}; the same command continues (exit code {EXIT_CODE})")

    # ------------------------------------------------------------ signals

    def _note(self, number: int, _: object) -> None:
        self.received = number

    def _open_pipe(self) -> None:
        """Have signals written to a pipe as well, at once, even while the main thread is stuck in foreign code."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if before == -1:
            self._pipe = read, write
        else:  # an event loop needs it: leave it alone
            signal.set_wakeup_fd(before)
            os.close(read)
            os.close(write)

    # ------------------------------------------------------------ the second thread

    def _look_after(self) -> None:
        main = threading.main_thread().ident
        pause = min(self.hang_seconds / 4 or 5.0, 5.0)
        board = Noticeboard("watch") if self.hang_seconds else None
        unanswered: tuple[float, int] | None = None  # since when a signal is, and the beats by then
        while not self._closed.is_set():
            self._wait_for_signal(pause)
            if self._closed.is_set():
                return
            if self._signals_seen and (unanswered is None or self._stopping or self._beats != unanswered[1]):
                unanswered = time.monotonic(), self._beats
            if unanswered and time.monotonic() - unanswered[0] > GRACE:
                self._end(f"a signal was not answered for {GRACE:.0f} s while {self._doing}", EXIT_CODE)
            if board is None:
                continue
            try:
                self._show_and_compare(board, main, pause)
            except NoticeboardError as error:  # the process that keeps it is gone
                logger.debug(f"processes cannot be compared any more: {error}")
                board = None

    def _wait_for_signal(self, pause: float) -> None:
        """Return after ``pause`` seconds, or sooner if a signal has come or the watch is over."""
        if self._pipe is None:
            self._closed.wait(pause)
        elif select.select([self._pipe[0]], [], [], pause)[0]:
            self._signals_seen = self._signals_seen or any(number in SIGNALS for number in os.read(self._pipe[0], 256))

    def _show_and_compare(self, board: Noticeboard, main: int | None, pause: float) -> None:
        """Show the others where this process is; if it has been there for too long, say who holds all up, and end."""
        board.post(self._notice(main))
        if not self._is_stuck():
            return
        before = board.read()
        for _ in range(3):  # the others find out at about the same time; a process that is frozen posts no more
            time.sleep(pause)
            board.post(self._notice(main))
        lives = board.read()
        if not self._is_stuck():  # it was slow, and goes on
            return
        silent = [rank for rank, life in lives.items() if life is None or life == before[rank]]
        minutes = self.hang_seconds / 60
        self._end(f"no progress for TRAIN.HANG_MINUTES={minutes:g}: {name_hung(lives, silent)}", 1)

    def _is_stuck(self) -> bool:
        return time.monotonic() - self._beat_at > self.hang_seconds

    def _notice(self, main: int | None) -> dict[str, Any]:
        place, waits = where(sys._current_frames().get(main))
        age = time.monotonic() - self._beat_at
        return {"beats": self._beats, "age": age, "doing": self._doing, "place": place, "waits": waits}

    def _end(self, reason: str, code: int) -> None:
        """End the process at once; its stack goes to the terminal."""
        logger.error(reason)
        for handler in logger.parent.handlers if logger.parent else ():
            handler.flush()
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        os._exit(code)


def where(frame: Any) -> tuple[str, bool]:
    """The innermost line of this package in a stack, and whether what it calls waits for other processes."""
    waits = False
    while frame is not None:
        file = frame.f_code.co_filename.replace(os.sep, "/")
        waits = waits or any(part in file for part in _WAITING_IN)
        if "/slowfast/" in file:
            return f"{frame.f_code.co_name} ({file.rsplit('/', 1)[1]}:{frame.f_lineno})", waits
        frame = frame.f_back
    return "outside the package", waits


def name_hung(lives: dict[int, dict[str, Any] | None], silent: list[int]) -> str:
    """Which ranks hold up the others, given the last notice of each and those that post none any more; where all are.

    A rank is held up if it waits for others; of those that do not, the ones that came least far are to blame.
    """
    heard = {rank: life for rank, life in lives.items() if rank not in silent}
    busy = {rank: life for rank, life in heard.items() if not life["waits"]} or heard
    fewest = min((life["beats"] for life in busy.values()), default=0)
    blamed = silent or [rank for rank, life in busy.items() if life["beats"] == fewest]
    lines = [
        f"rank {rank}: no sign of life"
        if rank in silent
        else f"rank {rank}: {life['doing']} for {life['age']:.0f} s, in {life['place']}"
        for rank, life in sorted(lives.items())
    ]
    names = " and ".join(f"rank {rank}" for rank in sorted(blamed))
    return "\n  ".join([f"{names} {'hangs' if len(blamed) == 1 else 'hang'}", *lines])


@contextmanager
def forwarded(pids: Sequence[int]) -> Iterator[set[int]]:
    """Hand signals to stop on to the processes ``pids`` that do the job, instead of dying of them; gives those sent."""
    sent: set[int] = set()

    def forward(number: int, _: object) -> None:
        sent.add(number)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield sent
        return
    handlers = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield sent
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Say what to do when a loader worker was killed; its process id stands in PyTorch's own message."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"{str(error).splitlines()[0]} Killed mostly means out of memory: lower DATA_LOADER.NUM_WORKERS or the "
            "batch size. The same command continues from the newest checkpoint"
        ) from error
