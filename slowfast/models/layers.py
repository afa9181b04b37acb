"""The layers that all conv nets share: one 3-D convolution, max pooling, initialisation, activation checkpointing.

The one idea: activations stay ``channels_last_3d`` from stem to head, and every 3-D convolution goes through
``Conv3d`` below, so how it is computed is chosen here, without touching a weight or a name.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONV_BACKENDS = ("auto", "native")


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` with 5-D weights as ever; ``backend`` says how it is computed."""

    backend = "auto"


class MaxPool3d(nn.MaxPool3d):
    """``nn.MaxPool3d`` of the conv nets."""

    def __init__(self, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int] = (0, 0, 0)):
        super().__init__(tuple(kernel_size), tuple(stride), tuple(padding))


def set_conv_backend(model: nn.Module, backend: str) -> None:
    """Let every ``Conv3d`` of ``model`` be computed by ``backend``: "auto" or "native"."""
    if backend not in CONV_BACKENDS:
        raise ValueError(f"MODEL.CONV_BACKEND={backend!r}: allowed are {', '.join(CONV_BACKENDS)}")
    for module in model.modules():
        if isinstance(module, Conv3d):
            module.backend = backend


@contextmanager
def conv_backend(model: nn.Module, backend: str) -> Iterator[None]:
    """Compute the convolutions of ``model`` by ``backend`` inside the ``with`` block, then as before."""
    before = {module: module.backend for module in model.modules() if isinstance(module, Conv3d)}
    set_conv_backend(model, backend)
    try:
        yield
    finally:
        for module, name in before.items():
            module.backend = name


def mark_final(module: nn.Module) -> nn.Module:
    """Flag ``module`` as the last convolution or norm of a residual branch, for ``init_weights``."""
    module.is_final = True
    return module


@torch.no_grad()
def init_weights(
    model: nn.Module, *, fc_std: float = 0.01, zero_final_norm: bool = False, zero_final_conv: bool = False
) -> None:
    """Initialise a conv net in the order of ``model.modules()``.

    - convolutions: normal, std ``sqrt(2 / (C_out * kt * kh * kw))`` whatever the groups, bias 0;
      0 for a flagged one where ``zero_final_conv``;
    - batch norms: scale 1, or 0 for a flagged one where ``zero_final_norm``; shift 0.
      NOTE: sub-batch norm is no batch norm here, so its scale always starts at 1 (published recipes were trained so);
    - linear layers: normal with ``fc_std``, bias 0.
    """
    for module in model.modules():
        is_final = getattr(module, "is_final", False)
        if isinstance(module, nn.Conv3d):
            if is_final and zero_final_conv:
                module.weight.zero_()
            else:
                module.weight.normal_(0, math.sqrt(2.0 / (module.out_channels * math.prod(module.kernel_size))))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                module.weight.fill_(0.0 if is_final and zero_final_norm else 1.0)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, fc_std)
        else:
            continue
        if module.bias is not None:
            module.bias.zero_()


@contextmanager
def _running_stats_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms inside normalise by the batch as before but leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def maybe_checkpointed(module: nn.Module, x, *, enabled: bool):
    """``module(x)``; where ``enabled``, its activations are not kept but computed again in the backward pass.

    The second computation does not update running statistics, so a batch counts once.
    """
    if not (enabled and torch.is_grad_enabled()):
        return module(x)
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_stats_kept(module)))
