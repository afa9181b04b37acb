"""Ranks and collectives: the only place that asks ``torch.distributed`` who and how many we are.

Every function also works in a single process without a process group, where it is the identity.
"""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_initialized() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


# Groups of some of the processes, or over another backend, by what they are for; "all" is the group they belong to.
_groups: dict[str, Any] = {}


def get_group(purpose: str, make: Callable[[], Any]) -> Any:
    """The process group for ``purpose``, which ``make`` makes once; all processes must ask for it at the same point."""
    world = dist.group.WORLD
    if _groups.get("all") is not world:
        _groups.clear()
        _groups["all"] = world
    if purpose not in _groups:
        _groups[purpose] = make()
    return _groups[purpose]


def leave() -> None:
    """Leave the process group, and wait until no thread works for it any more.

    NOTE: a thread of gloo's that still holds a tensor while the interpreter ends asks it for leave to free that
    tensor, and the process aborts ("terminate called without an active exception") with all its work done.
    """
    _groups.clear()  # a group that anything refers to keeps its threads
    if is_initialized():
        dist.destroy_process_group()
    gc.collect()


def get_rank() -> int:
    """Rank among all processes, 0 in a single process."""
    return dist.get_rank() if is_initialized() else 0


def get_world_size() -> int:
    """Number of processes on all machines."""
    return dist.get_world_size() if is_initialized() else 1


def get_local_rank() -> int:
    """Rank among the processes of this machine; the index of this process's GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_initialized() else 0


def get_local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes files and prints."""
    return get_rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if get_world_size() > 1:
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over all processes, in place; the shape must be the same everywhere."""
    if get_world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Elementwise maximum of ``tensor`` over all processes, in place."""
    if get_world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean of ``tensor`` over all processes, in place."""
    return all_reduce_sum(tensor).div_(get_world_size()) if get_world_size() > 1 else tensor


def all_gather_ragged(tensor: Tensor) -> list[Tensor]:
    """One tensor per rank, in rank order; sizes may differ along the first axis."""
    world = get_world_size()
    if world == 1:
        return [tensor]
    length = torch.tensor([tensor.shape[0]], device=tensor.device)
    lengths = [torch.zeros_like(length) for _ in range(world)]
    dist.all_gather(lengths, length)
    longest = int(max(int(item) for item in lengths))
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return [part[: int(size)] for part, size in zip(parts, lengths, strict=True)]


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; a row's gradient is the sum of what every process has for it."""

    @staticmethod
    def forward(ctx, tensor: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.rows = group, len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, tensor, group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        first = dist.get_rank(ctx.group) * ctx.rows
        return grad[first : first + ctx.rows], None


def all_gather_rows(tensor: Tensor, *, local: bool = False) -> Tensor:
    """``tensor`` of all processes (``local``: of this machine), joined along the first axis in rank order.

    The shape must be the same everywhere. Gradients flow back: each row gets the sum of its gradients over
    processes.
    """
    if get_world_size() == 1 or (local and get_local_world_size() == 1):
        return tensor
    return _GatherRows.apply(tensor.contiguous(), _machine_group() if local else dist.group.WORLD)


def _machine_group() -> Any:
    """The processes of this machine."""
    if get_local_world_size() == get_world_size():
        return dist.group.WORLD
    return get_group("machine", lambda: dist.new_subgroups(group_size=get_local_world_size())[0])


def broadcast(tensor: Tensor) -> Tensor:
    """``tensor`` of the first process, in place; the shape must be the same everywhere."""
    if get_world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def all_gather_objects(value: Any) -> list[Any]:
    """One small picklable value per rank, in rank order. Only for data this program made itself."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, without DistributedDataParallel and ``torch.compile`` around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner
