"""The depthwise 3-D convolution of X3D and MViT: PyTorch's forward on a CPU is fast, its backward is not.

The gradients here are made of operations that are fast too. On one core they take a tenth of the time, and give the
same numbers up to rounding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from slowfast.models.layers import Conv3d

Size = tuple[int, int, int]  # t, h, w

MOST_VALUES = 2**22  # of frames that are gathered for one call of the weight gradient


class DepthwiseConv3d(Conv3d):
    """``Conv3d`` with one filter per channel and no bias."""

    def __init__(self, dim: int, kernel_size: Size, stride: Size = (1, 1, 1), padding: Size = (0, 0, 0), **options):
        super().__init__(dim, dim, kernel_size, stride, padding, groups=dim, bias=False, **options)
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        # Kernels of one pixel are left to ``Conv3d``.
        self.has_fast_backward = (
            self.dilation[0] == 1
            and max(self.kernel_size[1:]) > 1
            and all(p <= r for p, r in zip(self.padding, reach, strict=True))
        )

    def convolve(self, x: Tensor, stride: Size) -> Tensor:
        """The "auto" form, with ``stride``: [B, C, T, H, W] -> [B, C, T', H', W']."""
        is_training = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        is_plain = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not (is_training and is_plain and self.has_fast_backward) or torch.is_autocast_enabled("cpu"):
            return super().convolve(x, stride)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        return depthwise_conv3d(x, self.weight, stride, self.padding, self.dilation)


def depthwise_conv3d(x: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size) -> Tensor:
    """Convolve each channel of x [B, C, T, H, W] with its filter of weight [C, 1, kt, kh, kw].

    In time there is no dilation, and no padding exceeds the reach of the dilated kernel.
    """
    return _DepthwiseConv3d.apply(x, weight, stride, padding, dilation)


class _DepthwiseConv3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation)
        return F.conv3d(x, weight, None, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        grad_x = _grad_input(grad, weight, tuple(x.shape[2:]), *ctx.geometry) if ctx.needs_input_grad[0] else None
        grad_weight = _grad_weight(grad, x, weight, *ctx.geometry) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None, None


def _grad_input(grad: Tensor, weight: Tensor, size: Size, stride: Size, padding: Size, dilation: Size) -> Tensor:
    """The gradient, zeros between its entries where there was a stride, convolved with the mirrored filters."""
    kernel = weight.shape[2:]
    spread = [(n - 1) * s + 1 for n, s in zip(grad.shape[2:], stride, strict=True)]
    pads = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    # Rows, columns and frames at the end that no window reached, because the stride left a rest.
    rest = [n - (m + 2 * p - d * (k - 1)) for n, m, p, d, k in zip(size, spread, pads, dilation, kernel, strict=True)]
    if max(stride) > 1 or any(rest):
        batch, channels = grad.shape[:2]
        shape = [m + r for m, r in zip(spread, rest, strict=True)]
        wide = grad.new_zeros(batch, *shape, channels).permute(0, 4, 1, 2, 3)
        wide[:, :, : spread[0] : stride[0], : spread[1] : stride[1], : spread[2] : stride[2]] = grad
        grad = wide
    return F.conv3d(grad, weight.flip(2, 3, 4), None, 1, pads, dilation, len(weight))


def _grad_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size) -> Tensor:
    """For each time step of the filters, the gradient of a 2-D convolution of all pairs of frames that meet there."""
    num_in, num_out = x.shape[2], grad.shape[2]
    parts = []
    for step in range(weight.shape[2]):
        # Frame ``i * stride + step - padding`` meets frame i of the output: keep the i for which it exists.
        shift = step - padding[0]
        first = max(0, -(shift // stride[0]))
        last = min(num_out - 1, (num_in - 1 - shift) // stride[0])
        if last < first:
            parts.append(torch.zeros_like(weight[:, :, 0]))
            continue
        start = first * stride[0] + shift
        met = slice(start, last * stride[0] + shift + 1, stride[0])
        clips, slopes = x[:, :, met], grad[:, :, first : last + 1]
        # Frames of one clip need no copy; small clips are copied, which costs less than a call for each.
        at_once = max(1, MOST_VALUES // clips[0].numel())
        total = 0.0
        for some, their in zip(clips.split(at_once), slopes.split(at_once), strict=True):
            total = (
                total
                + torch.ops.aten.convolution_backward(
                    _frames(their),
                    _frames(some),
                    weight[:, :, 0],
                    None,
                    stride[1:],
                    padding[1:],
                    dilation[1:],
                    False,
                    [0, 0],
                    len(weight),
                    [False, True, False],
                )[1]
            )
        parts.append(total)
    return torch.stack(parts, dim=2)


def _frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W], channels last."""
    return x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
