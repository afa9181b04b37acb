"""Convolutions on a CPU whose three passes (forward, gradient of the input, gradient of the weight) are each computed
in the way that is fastest there.

oneDNN is fast forward and for the gradient of the input. Its gradient of the weight is not: here that is a matrix
product of the output's gradient and the patches of the input, which are copied a few rows at a time. A 1 x 1 x 1
convolution is oneDNN's over many positions and a matrix product over few; for its backward pass
it keeps what it is given, not what it makes of that. All tensors are channels last.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from slowfast.models import long_kernels, winograd

MOST_VALUES = 2**21  # of patches that are copied at once: they should stay in a processor's cache
NARROW = 64  # below this many output channels, the steps of a kernel in time share one product

Pair = tuple[int, int]


def can_split(x: Tensor, weight: Tensor) -> bool:
    """Whether the passes of a convolution of ``x`` may be computed apart: it is trained, on a CPU, in one type."""
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # a compiler would not see through them
    )


def weight_gradient_form(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> str:
    """How the gradient of ``weight`` [D, C, (kt,) kh, kw] is computed: "native", "patches" or "winograd".

    A fixed rule of shapes; benchmarks/conv_passes.py measures them. In 3-D, both are for the first convolution of a
    network, which has few channels.
    """
    dim, channels, *kernel = weight.shape
    if x.ndim == 5:
        if x.dtype == torch.float32 and long_kernels.suits(tuple(x.shape), tuple(weight.shape), stride, padding):
            return "winograd"
        return "patches" if channels <= 4 and min(kernel[:2]) > 1 and stride[0] == 1 else "native"
    if kernel[1] == 1:
        return "patches" if kernel[0] > 1 and min(dim, channels) >= 32 else "native"
    if min(dim, channels) >= 128:
        return "patches"
    is_minimal = (*kernel, *stride, *padding) == (3, 3, 1, 1, 1, 1) and min(dim, channels) >= 64
    is_minimal = is_minimal and x.dtype == torch.float32 and x[:, 0].numel() >= 2**12
    return "winograd" if is_minimal and winograd.saves_tiles(len(x), *x.shape[2:]) else "native"


def convolve(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """Images [N, C, H, W] or clips [B, C, T, H, W], these with a stride of 1 in time, with weight [D, C, (kt,) kh, kw].

    For what ``weight_gradient_form`` does not call "native".
    """
    return _Convolution.apply(x, weight, stride, padding)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding)
        if x.ndim == 4:
            return F.conv2d(x, weight, None, stride, padding)
        if weight_gradient_form(x, weight, stride, padding) == "winograd":
            return long_kernels.convolve(x, weight, None, stride, padding)
        return F.conv3d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        is_clip = x.ndim == 5
        grad = grad.contiguous(memory_format=torch.channels_last_3d if is_clip else torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
            options = (None, *ctx.geometry, ones, False, zeros, 1, [True, False, False])
            grad_x = torch.ops.aten.convolution_backward(grad, x, weight, *options)[0]
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad, weight, *ctx.geometry)
        return grad_x, grad_weight, None, None


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> Tensor:
    is_minimal = weight_gradient_form(x, weight, stride, padding) == "winograd"
    if x.ndim == 5:
        of_clips = long_kernels.weight_gradient if is_minimal else clip_weight_gradient
        return of_clips(x, grad, weight.shape[2:], stride, padding)
    rows, slopes = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    if is_minimal:
        return winograd.weight_gradient(rows, slopes, weight)
    return image_weight_gradient(rows, slopes, weight.shape[2:], stride, padding)


def _windows(images: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """[N, H, W, C] -> [N, H', W', kh, kw, C], a view of the padded images."""
    (ph, pw), (kh, kw), (sh, sw) = padding, kernel, stride
    padded = F.pad(images, (0, 0, pw, pw, ph, ph)) if ph or pw else images
    return padded.unfold(1, kh, sh).unfold(2, kw, sw).permute(0, 1, 2, 4, 5, 3)


def image_weight_gradient(images: Tensor, slopes: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Of images [N, H, W, C] and gradients [N, H', W', D] of the output -> [D, C, kh, kw]."""
    (channels, dim), (rows, columns) = (images.shape[3], slopes.shape[3]), slopes.shape[1:3]
    windows = _windows(images, kernel, stride, padding)
    values_per_row = columns * channels * kernel[0] * kernel[1]
    rows_at_once = max(1, MOST_VALUES // values_per_row)
    images_at_once = max(1, rows_at_once // rows)
    total = None
    for group, slope in zip(windows.split(images_at_once), slopes.split(images_at_once), strict=True):
        for some, their in zip(group.split(rows_at_once, 1), slope.split(rows_at_once, 1), strict=True):
            left, patches = their.reshape(-1, dim).t(), some.reshape(-1, kernel[0] * kernel[1] * channels)
            total = left @ patches if total is None else total.addmm_(left, patches)
    return total.view(dim, *kernel, channels).permute(0, 3, 1, 2)


def clip_weight_gradient(
    x: Tensor, grad: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Of x [B, C, T, H, W] and gradients [B, D, T', H', W'] of the output -> [D, C, kt, kh, kw]; stride 1 in time.

    The patches of each frame meet the gradients of all output frames that saw it.
    """
    steps, height, width = kernel
    channels, dim, num_out = x.shape[1], grad.shape[1], grad.shape[2]
    total = x.new_zeros(steps, dim, height * width * channels)
    for clip, slopes in zip(x.permute(0, 2, 3, 4, 1), grad.permute(0, 2, 3, 4, 1), strict=True):
        windows = _windows(clip, kernel[1:], stride[1:], padding[1:])
        rows_at_once = max(1, MOST_VALUES // (windows.shape[2] * total.shape[2]))
        for frame, frame_windows in enumerate(windows):
            # Step k of the kernel saw this frame from output frame ``frame + padding - k``.
            first, last = max(0, frame + padding[0] - num_out + 1), min(steps - 1, frame + padding[0])
            for start in range(0, windows.shape[1], rows_at_once):
                rows = slice(start, start + rows_at_once)
                patches = frame_windows[rows].reshape(-1, total.shape[2])
                met = [slopes[frame + padding[0] - k, rows].reshape(-1, dim) for k in range(first, last + 1)]
                if dim < NARROW:
                    total[first : last + 1].flatten(0, 1).addmm_(torch.cat(met, 1).t(), patches)
                else:
                    for k, slope in enumerate(met, first):
                        total[k].addmm_(slope.t(), patches)
    return total.view(steps, dim, height, width, channels).permute(1, 4, 0, 2, 3)


def convolve_points(x: Tensor, weight: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """1 x 1 x 1 convolution of x [B, C, T, H, W] with weight [D, C, 1, 1, 1] and stride (t, h, w)."""
    return _Points.apply(x, weight, stride).permute(0, 4, 1, 2, 3)


class _Points(torch.autograd.Function):
    """Keeps ``x``, not a copy of what the stride leaves of it: other layers keep it too."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return product(_copy_of_every_nth(x, stride).permute(0, 2, 3, 4, 1), weight.flatten(1))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            # Not as a view: where x has another reader, autograd then adds the two gradients in place.
            grad_x = product(grad, weight.flatten(1).t()).permute(0, 4, 1, 2, 3).detach()
            grad_x = _spread(grad_x, x.shape, ctx.stride)
        if ctx.needs_input_grad[1]:
            seen = _copy_of_every_nth(x, ctx.stride).permute(0, 2, 3, 4, 1)
            grad_weight = point_weight_gradient(seen, grad).view_as(weight)
        return grad_x, grad_weight, None


def convolve_swished_points(x: Tensor, gate: Tensor | None, weight: Tensor) -> Tensor:
    """1 x 1 x 1 convolution of ``swish(x * gate)``: x [B, C, T, H, W], gate [B, C, 1, 1, 1], weight [D, C, 1, 1, 1].

    Neither the product nor its Swish is kept for the backward pass, which computes both again from ``x``.
    """
    return _SwishedPoints.apply(x, gate, weight).permute(0, 4, 1, 2, 3)


class _SwishedPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor | None, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        swished = F.silu(x) if gate is None else F.silu(x * gate, inplace=True)
        return product(swished.permute(0, 2, 3, 4, 1), weight.flatten(1))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, gate, weight = ctx.saved_tensors
        grad = grad.contiguous()
        gated = x if gate is None else x * gate
        grad_x = grad_gate = grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = point_weight_gradient(F.silu(gated).permute(0, 2, 3, 4, 1), grad).view_as(weight)
        if any(ctx.needs_input_grad[:2]):
            slope = product(grad, weight.flatten(1).t()).permute(0, 4, 1, 2, 3).detach()
            grad_x = torch.ops.aten.silu_backward.grad_input(slope, gated, grad_input=slope)
            if gate is not None:
                grad_gate = torch.mul(grad_x, x, out=gated).sum((2, 3, 4), keepdim=True)
                grad_x.mul_(gate)
        return grad_x, grad_gate, grad_weight


def every_nth(x: Tensor, steps: tuple[int, int, int]) -> Tensor:
    """``x[:, :, ::t, ::h, ::w]`` of x [B, C, T, H, W], as a tensor of its own in channels last."""
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return _EveryNth.apply(x, steps)
    return _view_of_every_nth(x, steps).contiguous(memory_format=torch.channels_last_3d)


class _EveryNth(torch.autograd.Function):
    """The gradient is written once; PyTorch's writes it once for each axis."""

    @staticmethod
    def forward(ctx, x: Tensor, steps: tuple[int, int, int]) -> Tensor:
        ctx.shape, ctx.steps = x.shape, steps
        return _view_of_every_nth(x, steps).clone(memory_format=torch.channels_last_3d)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return _spread(grad, ctx.shape, ctx.steps), None


def _copy_of_every_nth(x: Tensor, steps: tuple[int, int, int]) -> Tensor:
    """``x`` itself where nothing is left out."""
    return x if max(steps) == 1 else _view_of_every_nth(x, steps).contiguous(memory_format=torch.channels_last_3d)


def _view_of_every_nth(x: Tensor, steps: tuple[int, int, int]) -> Tensor:
    t, h, w = steps
    return x[:, :, ::t, ::h, ::w]


def _spread(grad: Tensor, shape: torch.Size, steps: tuple[int, int, int]) -> Tensor:
    """The gradient of a tensor of ``shape``, of which every nth was taken; ``grad`` itself where that was all."""
    if max(steps) == 1:
        return grad
    grad_x = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last_3d).zero_()
    _view_of_every_nth(grad_x, steps).copy_(grad)
    return grad_x


def point_weight_gradient(rows: Tensor, slopes: Tensor) -> Tensor:
    """Of rows [B, T, H, W, C] and gradients [B, T, H, W, D] of the output -> [D, C]."""
    rows, slopes = rows.flatten(0, 3), slopes.flatten(0, 3)
    return (rows.t() @ slopes).t() if rows.shape[1] > slopes.shape[1] else slopes.t() @ rows  # the wider one first


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [B, T, H, W, C] times weight [D, C] -> [B, T, H, W, D]."""
    positions = rows.shape[:-1].numel()
    if positions < 2**14 or (positions < 2**16 and weight.numel() < 2**12):  # see benchmarks/conv_passes.py
        return F.linear(rows, weight)
    image = rows.flatten(0, 2).unsqueeze(0).permute(0, 3, 1, 2)  # [1, C, B*T*H, W], a view
    y = F.conv2d(image, weight[:, :, None, None]).permute(0, 2, 3, 1)
    # As the result of an autograd function a view could not be written over.
    return torch.ops.aten._unsafe_view(y, [*rows.shape[:-1], len(weight)])
