"""A loader whose workers may die: a video that crashes or hangs its decoder costs that video and no more.

The one idea: a worker notes which video it is about to touch, so when it dies, it is known of what. That video counts
as bad from then on (``watched`` answers with ``DecodeError``, so the usual rule replaces it), a new worker takes the
place of the dead one and makes its batches again. Batches come in the order of the sampler, whatever happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import logging
import multiprocessing
import pickle
import queue
import signal
import sys
import threading
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Sized
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch.multiprocessing  # noqa: F401 - teaches pickle to hand tensors on in shared memory

from slowfast.datasets import batch as batches
from slowfast.datasets.batch import Batch
from slowfast.datasets.sources import DecodeError

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # per worker: the one it makes and the one after
MAX_UNEXPLAINED = 3  # deaths without a batch in between that no video can be blamed for
BATCHES_BETWEEN_TRIMS = 16
_NO_ROW = -1
# A worker that dies of one of these was told to.
_ORDERED = {getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)}


class _Here:
    """What a worker knows about itself."""

    def __init__(self, slot: Any, timeout_s: float) -> None:
        self.slot, self.timeout_s = slot, timeout_s
        self.condemned: dict[int, str] = {}


_here: _Here | None = None  # set in a worker


@contextlib.contextmanager
def watched(index: int, path: str) -> Iterator[None]:
    """Around all work on the video in row ``index`` that could crash or hang; does nothing outside a worker.

    ``DecodeError`` where that video has ended a worker before.
    """
    if _here is None:
        yield
        return
    if index in _here.condemned:
        raise DecodeError(path, _here.condemned[index])
    _here.slot.value = index
    timed = _here.timeout_s > 0 and hasattr(signal, "setitimer")
    if timed:
        signal.setitimer(signal.ITIMER_REAL, _here.timeout_s)  # SIGALRM ends the process, whatever it does
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _here.slot.value = _NO_ROW


class ClipLoader:
    """Batches of ``dataset`` in the order of ``batch_sampler``, made by ``num_workers`` processes that live on.

    Batch k is made by worker k modulo ``num_workers``. ``timeout_s``: a worker that is ``watched`` for longer counts as
    hung; 0 waits forever. With 0 workers batches are made in this process, which nothing protects from a crash.
    An exception of a worker is raised here.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_sampler: Any,
        *,
        collate_fn: Callable[[list], Batch] = batches.collate,
        num_workers: int = 0,
        pin_memory: bool = False,
        timeout_s: float = 0.0,
        worker_init_fn: Callable[[int], None] | None = None,
        start_method: str | None = None,
    ) -> None:
        self.dataset, self.batch_sampler, self.collate_fn = dataset, batch_sampler, collate_fn
        self.num_workers, self.pin_memory, self.timeout_s = num_workers, pin_memory, timeout_s
        self.worker_init_fn = worker_init_fn
        self._context = multiprocessing.get_context(start_method)
        self._workers: list[_Worker] = []
        self._condemned: dict[int, str] = {}
        self._killed: Counter[int] = Counter()  # by row: how often a worker was killed from outside at it
        self._unexplained = 0
        self._pass = 0
        self._given = (-1, 0)  # the turn of the sampler that the last batch is of, and the batch after it
        self._finalizer = weakref.finalize(self, _end, self._workers)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def state(self) -> dict[str, Any]:
        """Where the present pass is, after the batches it has given; plain numbers, for ``load_state``.

        From ``set_epoch`` on that is the start of the next pass.
        """
        turn, batch = self._given
        return self.batch_sampler.state(batch if turn == self.batch_sampler.turn else self.batch_sampler.start_batch)

    def load_state(self, state: dict[str, Any]) -> None:
        """The next pass gives what was left in ``state``, with any number of workers.

        ``ValueError`` where it is that of other batches.
        """
        self.batch_sampler.load_state(state)

    def close(self) -> None:
        """End the workers; a later pass starts new ones."""
        _end(self._workers)

    def __iter__(self) -> Iterator[Batch]:
        self._given = self.batch_sampler.turn, self.batch_sampler.start_batch
        return self._counted()

    def _counted(self) -> Iterator[Batch]:
        made = self._made() if self.num_workers == 0 else self._fetched()
        turn, start = self.batch_sampler.turn, self.batch_sampler.start_batch
        for number, batch in enumerate(_ahead(made, Batch.pin_memory) if self.pin_memory else made, start + 1):
            self._given = turn, number  # before it is used: whoever asks while using it has it behind him
            yield batch

    def _made(self) -> Iterator[Batch]:
        for requests in self.batch_sampler:
            yield self.collate_fn([self.dataset[request] for request in requests])

    # ------------------------------------------------------------ workers

    def _fetched(self) -> Iterator[Batch]:
        while len(self._workers) < self.num_workers:
            self._workers.append(self._start())
        self._pass += 1
        for worker in self._workers:
            worker.tasks.clear()  # of a pass that was given up
        start = self.batch_sampler.start_batch
        wanted = enumerate(self.batch_sampler, start)
        pending: deque[int] = deque()
        exhausted = False
        while True:
            while not exhausted and len(pending) < BATCHES_AHEAD * self.num_workers:
                number, requests = next(wanted, (None, None))
                exhausted = number is None
                if not exhausted:
                    self._give(self._workers[number % self.num_workers], _Task(self._pass, number, requests))
                    pending.append(number)
            if not pending:
                return
            yield self._receive(pending.popleft() % self.num_workers)

    def _start(self) -> _Worker:
        number = len(self._workers)
        return _Worker(self._context, self.dataset, self.collate_fn, self.timeout_s, self.worker_init_fn, number)

    def _give(self, worker: _Worker, task: _Task) -> None:
        worker.tasks.append(task)
        with contextlib.suppress(OSError):  # it died: found out when its batch is fetched
            worker.connection.send((task, self._condemned))

    def _receive(self, place: int) -> Batch:
        """The oldest batch asked of a worker, by its successors if need be."""
        while True:
            worker = self._workers[place]
            answer = worker.answer()
            if answer is not None:
                worker.tasks.popleft()
                self._unexplained = 0
                if isinstance(answer, _Raised):
                    raise answer.error from _WorkerError(answer.where)
                return answer
            self._judge(worker)
            self._workers[place] = successor = self._start()
            for task in worker.tasks:
                self._give(successor, task)

    def _judge(self, worker: _Worker) -> None:
        """Find what a dead worker died of."""
        worker.process.join()
        code, row = worker.process.exitcode or 0, worker.slot.value
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        worker.connection.close()
        told_to = code == 0 or -code in _ORDERED
        if row != _NO_ROW and how == "SIGKILL":  # by someone else, the kernel out of memory as a rule
            self._killed[row] += 1
        if row == _NO_ROW or told_to or self._killed[row] == 1:
            self._unexplained += 1
            text = f"DataLoader worker (pid {worker.process.pid}) ended unexpectedly ({how})."
            if self._unexplained > MAX_UNEXPLAINED:
                raise RuntimeError(text)
            logger.warning("%s A new one takes its place", text)
            return
        if how == "SIGALRM":
            reason = f"not decoded within {self.timeout_s:g} s (DATA_LOADER.VIDEO_TIMEOUT)"
        else:
            reason = f"its decoder ended the process ({how})"
        self._condemned[row] = reason
        logger.warning("row %d: %s; it counts as bad, and a new worker takes the place of the old one", row, reason)


class _Task(NamedTuple):
    turn: int  # the pass it belongs to
    number: int
    requests: Sequence[Any]


class _Raised(NamedTuple):
    error: BaseException
    where: str


class _WorkerError(Exception):
    """The traceback of a worker, as the cause of the error that is raised again."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Worker:
    """The main process's side of a worker."""

    def __init__(self, context, dataset, collate_fn, timeout_s: float, init: Callable | None, number: int) -> None:
        self.connection, other = context.Pipe()
        self.slot = context.RawValue("q", _NO_ROW)
        self.tasks: deque[_Task] = deque()
        gc.collect()  # NOTE: garbage that holds a decoder is freed here, where the decoder's threads are
        arguments = (other, self.connection, self.slot, dataset, collate_fn, timeout_s, init, number)
        self.process = context.Process(target=_serve, args=arguments, name=f"loader worker {number}", daemon=True)
        self.process.start()
        other.close()

    def answer(self) -> Batch | _Raised | None:
        """What it answered to its oldest task, when it has; None if it died first."""
        while True:
            try:
                ready = wait([self.connection, self.process.sentinel])
                if self.connection not in ready and not self.connection.poll():
                    return None
                turn, number, result = self.connection.recv()
            except (EOFError, OSError):  # also where it died before its tensors were taken over
                return None
            if self.tasks and (turn, number) == self.tasks[0][:2]:
                return result


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.connection.send(None)
        worker.connection.close()
    for worker in workers:
        worker.process.join(timeout=1)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
    workers.clear()


def _serve(connection: Connection, other_end, slot, dataset, collate_fn, timeout_s: float, init, number: int) -> None:
    """The life of a worker."""
    gc.freeze()  # NOTE: freeing a forked copy of the parent's decoder would wait for threads that are not here
    global _here
    other_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process is interrupted too, and ends its workers
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _here = _Here(slot, timeout_s)
    batches.hands_on = True
    if init is not None:
        init(number)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    with contextlib.suppress(EOFError, OSError):  # the main process is gone, or wants no more
        for count in itertools.count(1):
            order = connection.recv()
            if order is None:
                return
            task, _here.condemned = order
            if trim is not None and count % BATCHES_BETWEEN_TRIMS == 0:
                trim(0)  # clips of all sizes leave holes in the heap, hundreds of MB in time
            connection.send((task.turn, task.number, _answer(task, dataset, collate_fn)))


def _answer(task: _Task, dataset, collate_fn) -> Batch | _Raised:
    try:
        return collate_fn([dataset[request] for request in task.requests])
    except Exception as error:
        where = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return _Raised(error, where)


def _ahead(items: Iterator[Batch], function: Callable[[Batch], Batch], depth: int = 2) -> Iterator[Batch]:
    """``function`` of each item, done by a thread up to ``depth`` items before they are asked for."""
    done: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                done.put((kind, value), timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", function(item)):
                    return
            put("end", None)
        except BaseException as error:  # raised again where the items are wanted
            put("error", error)

    thread = threading.Thread(target=work, name="pin", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = done.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()
