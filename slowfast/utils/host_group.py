"""Small exchanges between processes on the host, beside the training: nothing here touches a GPU or waits for one."""

import json
from typing import Any

import torch
import torch.distributed as dist

from slowfast.utils import distributed


def _host_group() -> Any:
    """A group of all processes for tensors in host memory."""
    return distributed.get_group("host", lambda: dist.new_group(backend="gloo"))


def host_min(value: int) -> int:
    """The smallest of an integer over all processes."""
    if distributed.get_world_size() == 1:
        return value
    tensor = torch.tensor([value])
    dist.all_reduce(tensor, dist.ReduceOp.MIN, group=_host_group())
    return int(tensor)


class DelayedMax:
    """The largest of an integer over all processes, one call late: the exchange runs while the caller computes.

    In a single process it is the value itself, at once.
    """

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, Any] | None = None

    def __call__(self, value: int) -> int:
        """Offer ``value`` and get the largest of the call before (0 at the first call)."""
        if distributed.get_world_size() == 1:
            return value
        tensor = torch.tensor([value])
        before = self._pending
        self._pending = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_host_group(), async_op=True)
        if before is None:
            return 0
        tensor, work = before
        work.wait()
        return int(tensor)

    def finish(self) -> None:
        """Wait for the exchange that is still running; every process must have made as many calls."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None


class NoticeboardError(RuntimeError):
    """The notices of other processes cannot be reached (any more)."""


class Noticeboard:
    """A notice per rank that all can read, in the store over which the processes met; usable in any thread."""

    def __init__(self, name: str) -> None:
        store = dist.distributed_c10d._get_default_store()  # NOTE: there is no public way to it
        self._store = dist.PrefixStore(name, store.clone() if hasattr(store, "clone") else store)
        self._posted = 0

    def post(self, notice: dict[str, Any]) -> None:
        """Replace the notice of this rank."""
        self._posted += 1
        try:
            self._store.set(str(distributed.get_rank()), json.dumps({**notice, "number": self._posted}))
        except (RuntimeError, OSError) as error:
            raise NoticeboardError(str(error)) from error

    def read(self) -> dict[int, dict[str, Any] | None]:
        """The notice of every rank (None: it has not written one), with the ``number`` of times it was replaced."""
        try:
            names = [str(rank) for rank in range(distributed.get_world_size())]
            texts = [self._store.get(name) if self._store.check([name]) else b"null" for name in names]
            return dict(enumerate(map(json.loads, texts)))
        except (RuntimeError, OSError) as error:
            raise NoticeboardError(str(error)) from error
