"""At the start on a GPU: are 3-D convolutions in half precision right here, and not pathologically slow?

Some builds of cuDNN compute them wrongly, or fall back to kernels many times slower than those of float32. Both are
silent: a training is merely worse, or merely slow.
"""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

# Largest difference over largest value; bf16 keeps 8 bits of a number, fp16 11.
LARGEST_ERROR = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
# Half precision should be faster; several times slower means that no good kernel was found.
LARGEST_SLOWDOWN = 3.0
# (input channels, output channels, kernel, groups): what residual and depthwise networks are made of.
LAYERS = (
    (32, 32, (3, 1, 1), 1),
    (32, 32, (1, 3, 3), 1),
    (32, 64, (3, 3, 3), 1),
    (32, 32, (3, 3, 3), 32),
)


def check_convolutions(
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    convolve: Callable[..., Tensor] = F.conv3d,
    measure: bool = True,
) -> list[str]:
    """What is wrong with convolutions of ``dtype`` (bf16 or fp16; None is float32, where nothing is looked at).

    Results and gradients are compared with those of float32 on the same device; with ``measure`` their times are, too.
    Takes about a second.
    """
    if dtype not in LARGEST_ERROR:
        return []
    problems = []
    for inside, outside, kernel, groups in LAYERS:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, inside, 8, 28, 28, generator=generator).to(device)
        weight = torch.randn(outside, inside // groups, *kernel, generator=generator).to(device)
        # Both start from the same rounded numbers, so that only the computation differs.
        x, weight = x.to(dtype).float(), weight.to(dtype).float()
        padding = tuple(size // 2 for size in kernel)

        def run(kind: torch.dtype, x=x, weight=weight, padding=padding, groups=groups) -> list[Tensor]:
            inputs = [tensor.to(kind).requires_grad_() for tensor in (x, weight)]
            out = convolve(*inputs, padding=padding, groups=groups)
            return [out, *torch.autograd.grad(out.float().square().mean(), inputs)]

        error = max(relative_error(half, full) for half, full in zip(run(dtype), run(torch.float32), strict=True))
        slowdown = seconds(lambda: run(dtype), device) / seconds(lambda: run(torch.float32), device) if measure else 0.0
        problems += judge(error, slowdown, dtype, f"{inside} to {outside} channels, kernel {kernel}, {groups} group(s)")
    return problems


def judge(error: float, slowdown: float, dtype: torch.dtype, layer: str) -> list[str]:
    """What to say of a layer whose results are off by ``error`` and that takes ``slowdown`` times as long."""
    name = str(dtype).removeprefix("torch.")
    problems = []
    if not error <= LARGEST_ERROR[dtype]:  # NaN too
        problems.append(f"{name} convolutions are wrong here ({layer}: off by {error:.2g} of the largest value)")
    if slowdown > LARGEST_SLOWDOWN:
        problems.append(f"{name} convolutions take {slowdown:.1f} times as long as float32 ({layer})")
    return problems


def remedy(dtype: torch.dtype) -> str:
    """What to do about a problem."""
    other = "fp16" if dtype is torch.bfloat16 else "bf16"
    return (
        f"install a newer cuDNN (pip install -U nvidia-cudnn-cu12 or -cu13, as PyTorch's), or set "
        f"TRAIN.MIXED_PRECISION_TYPE {other} or TRAIN.MIXED_PRECISION False"
    )


def warn_of_convolutions(device: torch.device, dtype: torch.dtype | None) -> None:
    """On a GPU: log what ``check_convolutions`` finds, with the remedy. A check that cannot run says so."""
    if device.type != "cuda":
        return
    try:
        problems = check_convolutions(device, dtype)
    except RuntimeError as error:
        logger.warning(f"the check of {dtype} convolutions failed: {str(error).splitlines()[0]}")
        return
    for problem in problems:
        logger.warning(f"cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name(device)}: {problem}")
    if problems:
        logger.warning(remedy(dtype))


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference over largest absolute value of the reference."""
    value, reference = value.detach().float(), reference.detach().float()
    return float((value - reference).abs().max() / reference.abs().max().clamp_min(1e-12))


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Time of one ``work`` after a warm-up."""
    for _ in range(2):
        work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
