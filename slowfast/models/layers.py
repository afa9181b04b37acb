"""The layers that all conv nets share: one 3-D convolution, max pooling, initialisation, activation checkpointing.

The one idea: activations stay ``channels_last_3d`` from stem to head, and every 3-D convolution goes through
``Conv3d`` below, so how it is computed is chosen here, without touching a weight or a name.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from slowfast.models import conv_passes, winograd

CONV_BACKENDS = ("auto", "native")


class Conv3d(nn.Conv3d):
    """``nn.Conv3d``, weights 5-D as ever; ``backend`` says how it is computed.

    "native" is plain ``conv3d``. "auto" keeps activations in ``channels_last_3d`` and takes the form that
    ``conv_form`` names. All forms give the same numbers up to rounding.
    """

    backend = "auto"

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, T, H, W] -> [B, C_out, T', H', W']."""
        if self.backend == "native" or self.padding_mode != "zeros" or isinstance(self.padding, str) or x.ndim != 5:
            return super().forward(x)
        return self.convolve(x, self.stride)

    def convolve(self, x: Tensor, stride: tuple[int, int, int]) -> Tensor:
        """The "auto" form, with ``stride``."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.kernel_size != (1, 1, 1) or self.padding != (0, 0, 0) or self.groups > 1:  # else see ``_pointwise``
            x, stride = _skip_unseen(x, self.kernel_size, stride, self.padding)
        options = {"stride": stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        form = conv_form(tuple(x.shape), self.out_channels, self.kernel_size, device=x.device.type, **options)
        return _FORMS[form](x, self.weight, self.bias, **options)


def conv_form(
    shape: tuple[int, ...],
    out_channels: int,
    kernel: tuple[int, int, int],
    *,
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    dilation: tuple[int, int, int],
    groups: int,
    device: str,
) -> str:
    """How "auto" computes a 3-D convolution of an input of ``shape`` [B, C, T, H, W]: a name of ``_FORMS``.

    A fixed rule of shapes, from the measurements of benchmarks/conv_forms.py on a CPU. Other devices always get
    "native" in ``channels_last_3d``: nothing else has been measured there.
    """
    if device != "cpu":
        return "native"
    if winograd.suits(shape, out_channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups):
        return "winograd"
    batch, channels, *size = shape
    kt, kh, kw = kernel
    if kernel == (1, 1, 1) and padding == (0, 0, 0) and groups == 1:
        # NOTE: not below 8 channels and not with a stride, see ``_skip_unseen``.
        return "frames" if stride == (1, 1, 1) and 8 <= channels <= 16 else "pointwise"
    out_size = [_out_size(*axis) for axis in zip(size, kernel, stride, padding, dilation, strict=True)]
    if groups == 1 and dilation == (1, 1, 1) and 2 * batch * math.prod(out_size) <= out_channels:
        return "gemm"
    # NOTE: PyTorch sends a small conv3d of batch 1 to its slow path, not to oneDNN.
    is_slow = groups == 1 and batch == 1 and math.prod(shape[:4]) <= 20480 and min(kh, kw) <= 3
    if kt == 1 and stride[0] == 1 and padding[0] == 0:
        is_wide = groups == 1 and min(channels, out_channels) >= 128
        return "frames" if is_slow or groups > 1 or is_wide or math.prod(out_size[1:]) > 64 else "native"
    if kh == kw == 1 and stride[1:] == (1, 1) and padding[1:] == (0, 0):
        keeps_frames = kt % 2 == 1 and stride[0] == 1 and 2 * padding[0] == dilation[0] * (kt - 1)
        if groups == 1 and keeps_frames and math.prod(size) >= 32:
            return "products"
        has_fast_gradient = groups == 1 and min(channels, out_channels) >= 32  # see ``conv_passes``
        is_narrow = channels <= (64 if stride[0] == 1 else 16)
        return "time" if is_slow or groups > 1 or is_narrow or has_fast_gradient else "native"
    return "stack" if groups == 1 and (is_slow or out_channels <= 4) else "native"


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _skip_unseen(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Leave out what a kernel of size 1 steps over, and the stride that remains.

    NOTE: not for speed alone. As conv2d in channels_last, 1 x 1 of stride 2 over fewer than 8 channels corrupts
    memory in oneDNN's backward pass (seen with PyTorch 2.15 on AVX2).
    """
    steps = [s if k == 1 and p == 0 else 1 for k, s, p in zip(kernel, stride, padding, strict=True)]
    if steps == [1, 1, 1] or x.device.type != "cpu":
        return x, stride
    return conv_passes.every_nth(x, tuple(steps)), tuple(s // step for s, step in zip(stride, steps, strict=True))


def _native(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride, padding, dilation, groups) -> Tensor:
    """A 2-D or 3-D convolution; in training on a CPU with its passes apart, where that is faster."""
    if (
        groups == 1
        and set(dilation) == {1}
        and conv_passes.can_split(x, weight)
        and conv_passes.weight_gradient_form(x, weight, stride, padding) != "native"
    ):
        return _plus(conv_passes.convolve(x, weight, stride, padding), bias)
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    return convolve(x, weight, bias, stride, padding, dilation, groups)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.view(-1, *[1] * (y.ndim - 2))


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride, **options) -> Tensor:
    """1 x 1 x 1: one matrix product over the channels-last view."""
    if conv_passes.can_split(x, weight):
        return _plus(conv_passes.convolve_points(x, weight, stride), bias)
    x = x if max(stride) == 1 else conv_passes.every_nth(x, stride)
    return F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


def _winograd(x: Tensor, weight: Tensor, bias: Tensor | None, **options) -> Tensor:
    """3 x 1 x 1 or 1 x 3 x 3 with fewer multiplications, in float32."""
    is_temporal = weight.shape[2] == 3
    is_plain = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    if not is_plain or torch.compiler.is_compiling():  # a compiler would unroll it
        return (_products if is_temporal else _frames)(x, weight, bias, **options)
    return (winograd.convolve_time if is_temporal else winograd.convolve_frames)(x, weight, bias)


def _frames(x: Tensor, weight: Tensor, bias: Tensor | None, **options) -> Tensor:
    """1 x k x k: a 2-D convolution of all frames of all clips."""
    return _per_frame(x, weight.squeeze(2), bias, **options).permute(0, 4, 1, 2, 3)


def _per_frame(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride, padding, dilation, groups) -> Tensor:
    """2-D convolution of each frame with ``weight`` [D, C, kh, kw] -> [B, T, H', W', D]."""
    batch, _, frames = x.shape[:3]
    images = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)  # [B, C, T, H, W] -> [B*T, C, H, W], a view
    geometry = {"stride": stride[1:], "padding": padding[1:], "dilation": dilation[1:]}
    y = _native(images, weight, bias, **geometry, groups=groups)
    return y.permute(0, 2, 3, 1).unflatten(0, (batch, frames))  # [B*T, D, H', W'] -> [B, T, H', W', D]


def _time(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride, padding, dilation, groups) -> Tensor:
    """k x 1 x 1: a 2-D convolution of one image per clip, T high and H * W wide."""
    size = x.shape[3:]
    image = time_as_height(x)
    geometry = {"stride": (stride[0], 1), "padding": (padding[0], 0), "dilation": (dilation[0], 1)}
    y = _native(image, weight.flatten(3), bias, **geometry, groups=groups)
    return y.permute(0, 2, 3, 1).unflatten(2, size).permute(0, 4, 1, 2, 3)  # [B, D, T', H*W] -> [B, D, T', H, W]


def time_as_height(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, C, T, H*W], a view in channels last."""
    return x.permute(0, 2, 3, 4, 1).flatten(2, 3).permute(0, 3, 1, 2)


def _products(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride, padding, dilation, groups) -> Tensor:
    """k x 1 x 1 that keeps the frames: each step of the kernel is a matrix product, added where it reaches."""
    if x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        return _time(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    rows = _TimeProducts.apply(_rows(x), weight, dilation[0])
    return _plus(rows.unflatten(2, tuple(x.shape[3:])).permute(0, 4, 1, 2, 3), bias)


class _TimeProducts(torch.autograd.Function):
    """The products, also of the gradients; what falls into the padding is not computed."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.dilation = dilation
        frames, steps = rows.shape[1], weight.shape[2]
        size = [*rows.shape[:3], len(weight)]  # B, T, H*W, D
        # NOTE: as the result of an autograd function a view could not be written over.
        if weight.shape[1] < 1024:  # oneDNN is faster forward, but not backward
            image, pad = rows.permute(0, 3, 1, 2), dilation * (steps // 2)
            y = F.conv2d(image, weight.flatten(3), None, 1, (pad, 0), (dilation, 1)).permute(0, 2, 3, 1)
            return torch.ops.aten._unsafe_view(y.contiguous(), size)
        filters = weight.flatten(2).permute(2, 1, 0).contiguous()  # [k, C, D]
        y = torch.ops.aten._unsafe_view(rows.flatten(0, 2) @ filters[steps // 2], size)
        for step, source, target in _reaches(steps, dilation, frames):
            for clip in range(len(rows)):
                y[clip, target].flatten(0, 1).addmm_(rows[clip, source].flatten(0, 1), filters[step])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        rows, weight = ctx.saved_tensors
        frames, steps = rows.shape[1], weight.shape[2]
        grad = grad.contiguous()
        filters = weight.flatten(2).permute(2, 0, 1).contiguous()  # [k, D, C]
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = (grad.flatten(0, 2) @ filters[steps // 2]).unflatten(0, rows.shape[:3])
            for step, source, target in _reaches(steps, ctx.dilation, frames):
                for clip in range(len(rows)):
                    grad_rows[clip, source].flatten(0, 1).addmm_(grad[clip, target].flatten(0, 1), filters[step])
        if ctx.needs_input_grad[1]:
            parts = [torch.zeros_like(filters[0]) for _ in range(steps)]
            parts[steps // 2] = grad.flatten(0, 2).t() @ rows.flatten(0, 2)
            for step, source, target in _reaches(steps, ctx.dilation, frames):
                for clip in range(len(rows)):
                    parts[step].addmm_(grad[clip, target].flatten(0, 1).t(), rows[clip, source].flatten(0, 1))
            grad_weight = torch.stack(parts, dim=2).view_as(weight)
        return grad_rows, grad_weight, None


def _rows(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, T, H*W, C], a view in channels last."""
    return x.permute(0, 2, 3, 4, 1).flatten(2, 3)


def _reaches(steps: int, dilation: int, frames: int) -> list[tuple[int, slice, slice]]:
    """Step of the kernel, frames that it reads and frames that it adds to; the step in the middle is left out."""
    reaches = []
    for step in range(steps):
        shift = (step - steps // 2) * dilation
        if 0 < abs(shift) < frames:
            source, target = slice(max(shift, 0), frames + min(shift, 0)), slice(max(-shift, 0), frames - max(shift, 0))
            reaches.append((step, source, target))
    return reaches


def _stack(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride, padding, dilation, groups) -> Tensor:
    """k x k x k: every frame through the kernels of all time steps at once, then a sum along time."""
    dim, _, kt = weight.shape[:3]
    weight = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)  # [D, C, kt, kh, kw] -> [kt*D, C, kh, kw]
    y = _per_frame(x, weight, None, stride=stride, padding=padding, dilation=dilation, groups=groups)
    y = F.pad(y, (0, 0, 0, 0, 0, 0, padding[0], padding[0])).unflatten(4, (kt, dim))
    last = y.shape[1] - dilation[0] * (kt - 1)
    starts = range(0, kt * dilation[0], dilation[0])
    total = y[:, : last : stride[0], :, :, 0]
    for i, start in enumerate(starts[1:], 1):
        total = total + y[:, start : start + last : stride[0], :, :, i]
    if bias is not None:
        total = total + bias
    return total.permute(0, 4, 1, 2, 3)  # [B, T', H', W', D] -> [B, D, T', H', W']


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride, padding, dilation, groups) -> Tensor:
    """Few positions and many channels: the patches as rows of one matrix product."""
    pt, ph, pw = padding
    patches = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, pw, pw, ph, ph, pt, pt))
    for axis, (size, step) in enumerate(zip(weight.shape[2:], stride, strict=True), 1):
        patches = patches.unsqueeze(-1) if size == step == 1 else patches.unfold(axis, size, step)
    # patches: [B, T', H', W', C, kt, kh, kw]
    return F.linear(patches.flatten(4), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


_FORMS = {
    "native": _native,
    "pointwise": _pointwise,
    "frames": _frames,
    "time": _time,
    "products": _products,
    "winograd": _winograd,
    "stack": _stack,
    "gemm": _gemm,
}


class MaxPool3d(nn.MaxPool3d):
    """``nn.MaxPool3d`` whose sizes may be the lists that a configuration holds."""

    def __init__(self, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int] = (0, 0, 0)):
        super().__init__(tuple(kernel_size), tuple(stride), tuple(padding))
        # PyTorch's own takes several times as long where nothing but frames is pooled.
        self.pools_frames = self.kernel_size == self.stride == (max(self.kernel_size[0], 2), 1, 1) and not any(
            self.padding
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T', H', W']."""
        if self.pools_frames and x.device.type == "cpu" and x.ndim == 5 and not torch.compiler.is_compiling():
            return _FramePool.apply(x, self.kernel_size[0])
        return super().forward(x)


class _FramePool(torch.autograd.Function):
    """The largest of each ``size`` frames in turn; the gradient goes to the first of them that has it."""

    @staticmethod
    def forward(ctx, x: Tensor, size: int) -> Tensor:
        frames = [x[:, :, i : x.shape[2] // size * size : size] for i in range(size)]
        y = frames[0].clone(memory_format=torch.preserve_format)
        for frame in frames[1:]:
            torch.maximum(y, frame, out=y)
        ctx.save_for_backward(x, y)
        ctx.size = size
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, y = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        end = x.shape[2] // ctx.size * ctx.size
        grad_x[:, :, end:] = 0
        rest = grad
        for i in range(ctx.size - 1):
            frame = slice(i, end, ctx.size)
            won = grad_x[:, :, frame]
            torch.mul(rest, (x[:, :, frame] == y).to(rest.dtype), out=won)
            is_last = i == ctx.size - 2
            rest = torch.sub(rest, won, out=grad_x[:, :, i + 1 : end : ctx.size] if is_last else torch.empty_like(rest))
        return grad_x, None


class AvgPool3d(nn.AvgPool3d):
    """``nn.AvgPool3d`` that also pools a map smaller than its kernel if padding fills it up; zeros count."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T', H', W']."""
        kernel, padding = _three(self.kernel_size), _three(self.padding)
        size = tuple(x.shape[2:])
        if all(n >= k for n, k in zip(size, kernel, strict=True)):
            return super().forward(x)
        if any(n + 2 * p < k for n, p, k in zip(size, padding, kernel, strict=True)):
            raise ValueError(
                f"a feature map is {size} (t, h, w), smaller than the pooling window {kernel}: the window of a head "
                "comes from DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE; give clips at least that large or change these "
                "keys"
            )
        pt, ph, pw = padding
        return F.avg_pool3d(F.pad(x, (pw, pw, ph, ph, pt, pt)), kernel, self.stride)


def _three(size: int | Sequence[int]) -> tuple[int, int, int]:
    return (size,) * 3 if isinstance(size, int) else tuple(map(int, size))


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
    - linear layers: normal with ``fc_std``, bias 0; in MLPs uniform by Xavier's rule of the number of inputs.
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
            if getattr(module, "is_in_mlp", False):
                nn.init.kaiming_uniform_(module.weight, a=1)
            else:
                module.weight.normal_(0, fc_std)
        else:
            continue
        if module.bias is not None:
            module.bias.zero_()


@contextmanager
def _running_stats_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms inside normalise by the batch as before but leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def maybe_checkpointed(module: nn.Module, x, *, enabled: bool):
    """``module(x)``; where ``enabled``, its activations are not kept but computed again in the backward pass.

    The second computation does not update running statistics, so a batch counts once.
    """
    if not (enabled and torch.is_grad_enabled()):
        return module(x)
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_stats_kept(module)))
