"""What is put around a network: gradient averaging over processes, sharding, compilation.

``models/`` knows none of it, and ``utils.distributed.unwrap`` takes it off again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from slowfast.utils import distributed


@dataclass(frozen=True)
class Wrapping:
    """How a network is wrapped.

    ``static_graph``: every step has the same graph, which spares the search for it. ``find_unused``: some parameters
    get no gradient in some steps. ``compression``: gradients travel between processes in half the bytes.
    ``shapes``: how many clip shapes the network will meet, each of which is compiled once.
    """

    compile: bool = False
    fsdp: bool = False
    static_graph: bool = False
    find_unused: bool = False
    compression: str = "none"
    shapes: int = 1

    @classmethod
    def from_cfg(cls, cfg) -> "Wrapping":
        """What the keys of MODEL, TRAIN and MULTIGRID ask for."""
        if cfg.MODEL.FP16_ALLREDUCE and cfg.MODEL.BF16_ALLREDUCE:
            raise ValueError("MODEL.FP16_ALLREDUCE and MODEL.BF16_ALLREDUCE are both True: choose one")
        if cfg.MODEL.FSDP:
            if cfg.TRAIN.EMA_DECAY or cfg.MODEL.MODEL_NAME == "ContrastiveModel":
                raise ValueError("MODEL.FSDP does not go with TRAIN.EMA_DECAY or ContrastiveModel: switch one off")
            if cfg.MODEL.FP16_ALLREDUCE or cfg.MODEL.BF16_ALLREDUCE:
                raise ValueError("MODEL.FSDP has no MODEL.FP16_ALLREDUCE or MODEL.BF16_ALLREDUCE: switch them off")
        is_plain = not (cfg.DETECTION.ENABLE or cfg.MASK.ENABLE or cfg.MODEL.MODEL_NAME == "ContrastiveModel")
        accumulates = cfg.TRAIN.ACCUMULATION_STEPS > 1
        is_static = is_plain and not (cfg.MODEL.DETACH_FINAL_FC or accumulates or cfg.MODEL.COMPILE)
        return cls(
            compile=cfg.MODEL.COMPILE,
            fsdp=cfg.MODEL.FSDP,
            static_graph=is_static,
            # Below a detached classifier nothing gets a gradient.
            find_unused=cfg.MODEL.DETACH_FINAL_FC,
            compression="fp16" if cfg.MODEL.FP16_ALLREDUCE else "bf16" if cfg.MODEL.BF16_ALLREDUCE else "none",
            shapes=1 + len(cfg.MULTIGRID.SHORT_CYCLE_FACTORS) if cfg.MULTIGRID.SHORT_CYCLE else 1,
        )


def wrap_model(network: nn.Module, wrapping: Wrapping, *, backend: str | Callable = "inductor") -> nn.Module:
    """``network``, on its device, ready for training steps; ``backend`` is that of ``torch.compile``.

    In a single process without compilation this is the network itself.
    """
    wrapped = network
    if distributed.get_world_size() > 1 and wrapping.fsdp:
        shard(network)
    elif distributed.get_world_size() > 1:
        wrapped = average_gradients(network, wrapping)
    if wrapping.compile:
        # One graph for training and one for evaluation per shape: a shape is a bucket, never a symbolic size.
        limit = torch._dynamo.config
        limit.recompile_limit = max(limit.recompile_limit, 4 * wrapping.shapes)
        wrapped = torch.compile(wrapped, dynamic=False, backend=backend)
    return wrapped


def average_gradients(network: nn.Module, wrapping: Wrapping) -> DistributedDataParallel:
    """``network`` whose gradients are averaged over all processes while the backward pass goes on.

    Running statistics are those of the first process everywhere, but for buffers that the network names in
    ``replicated_buffers()``.
    """
    device = next(network.parameters()).device
    if hasattr(network, "replicated_buffers"):
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, network.replicated_buffers())
    wrapped = DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=wrapping.static_graph,
        find_unused_parameters=wrapping.find_unused,
    )
    if wrapping.compression != "none":
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(None, getattr(default_hooks, f"{wrapping.compression}_compress_hook"))
    return wrapped


def shard(network: nn.Module) -> None:
    """Cut the parameters of ``network`` up over all processes, in place, block by block.

    A block (a stage of a conv net, a block of a transformer) is put together when it computes, and cut up again after.
    NOTE: an optimiser must be built after this, of the parameters as they are then.
    """
    from torch.distributed.fsdp import fully_shard

    for child in network.children():
        for block in child if isinstance(child, nn.ModuleList) else [child]:
            if any(True for _ in block.parameters()):
                fully_shard(block)
    fully_shard(network)


def is_sharded(network: nn.Module) -> bool:
    """Whether ``shard`` was applied."""
    return any(hasattr(param, "device_mesh") for param in network.parameters())


@contextmanager
def put_together(network: nn.Module) -> Iterator[None]:
    """Within it every process holds all weights: to evaluate, where processes have different numbers of batches."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not network, recurse=False)
            part.reshard()


def keep_gradients_local(model: nn.Module) -> AbstractContextManager:
    """A context in which backward passes add to the gradients of this process without averaging over processes."""
    inner = getattr(model, "_orig_mod", model)
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()
