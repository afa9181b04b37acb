"""3 x 1 x 1 and 1 x 3 x 3 convolutions with fewer multiplications: 6 instead of 12 for four steps, 36 instead of 144
for 4 x 4 pixels. (Winograd's minimal filters, Lavin and Gray, https://arxiv.org/abs/1509.09308)

Input, filters and output each go through a small fixed matrix; between them stands one matrix product per transformed
point. In float32 the result is rounded a little more coarsely than that of a direct convolution: the largest error is
some 1e-5 of the largest output (direct: 1e-6), along time 2e-6. All tensors are channels last.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

POINTS, STEP = 6, 4  # of each transformed piece; outputs that it gives
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_FILTER = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # over 24
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
MOST_TILES = 512  # computed at once: what lies between the products stays in a processor's cache


def pieces(size: int) -> int:
    """How many pieces of four outputs cover ``size``."""
    return -(-size // STEP)


def suits(
    shape: tuple[int, ...],
    out_channels: int,
    kernel: tuple[int, int, int],
    *,
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    dilation: tuple[int, int, int],
    groups: int,
) -> bool:
    """Whether a convolution of an input of ``shape`` [B, C, T, H, W] is one of these and wide enough to gain."""
    batch, channels, frames, height, width = shape
    if groups > 1 or stride != (1, 1, 1) or dilation != (1, 1, 1) or min(channels, out_channels) < 128:
        return False
    if (kernel, padding) == ((3, 1, 1), (1, 0, 0)):
        # The other form leaves out the products with padding.
        saves = 4 * POINTS * pieces(frames) <= 3 * (3 * frames - 2)
        return saves and max(channels, out_channels) >= 256 and pieces(frames) * height * width >= 64
    return (kernel, padding) == ((1, 3, 3), (0, 1, 1)) and saves_tiles(batch * frames, height, width)


def saves_tiles(images: int, height: int, width: int) -> bool:
    """Whether tiles of 4 x 4 outputs halve the products of a 3 x 3 convolution at least, and are many enough."""
    tiles = pieces(height) * pieces(width)
    return 2 * POINTS**2 * tiles <= 9 * height * width and images * tiles >= 64


def _matrix(rows: tuple, scale: float = 1.0) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device="cpu") * scale


@lru_cache(maxsize=64)
def _along_time(frames: int) -> tuple[Tensor, Tensor]:
    """What turns frames into points of pieces, [6 * pieces, T], and back into outputs, [T, 6 * pieces]."""
    num = pieces(frames)
    with torch.inference_mode(False), torch.no_grad():
        source, target = torch.zeros(2, POINTS, num, STEP * num + 2, dtype=torch.float64, device="cpu")
        for piece in range(num):
            start = STEP * piece
            source[:, piece, start : start + POINTS] = _matrix(_INPUT)  # of frames beginning with one of padding
            target[:, piece, start : start + STEP] = _matrix(_OUTPUT).t()
        source, target = source[..., 1 : frames + 1].flatten(0, 1), target[..., :frames].flatten(0, 1)
        return source.float().contiguous(), target.t().float().contiguous()


@lru_cache(maxsize=1)
def _in_tiles() -> tuple[Tensor, Tensor, Tensor]:
    """The matrices of 6 x 6 inputs [36, 36], of 3 x 3 filters [36, 9] and of 4 x 4 outputs [16, 36]."""
    with torch.inference_mode(False), torch.no_grad():
        each = (_matrix(_INPUT), _matrix(_FILTER, 1 / 24), _matrix(_OUTPUT))
        return tuple(torch.kron(matrix, matrix).float() for matrix in each)


@lru_cache(maxsize=1)
def _of_filters() -> Tensor:
    """The matrix of filters of three steps, [6, 3]."""
    with torch.inference_mode(False), torch.no_grad():
        return _matrix(_FILTER, 1 / 24).float()


def _transformed(matrix: Tensor, weight: Tensor) -> Tensor:
    """Filters [D, C, taps] -> [points, D, C]."""
    return (matrix @ weight.flatten(0, 1).t()).view(-1, *weight.shape[:2])


def _gradient(matrix: Tensor, grad: Tensor, like: Tensor) -> Tensor:
    """Gradient of transformed filters [points, D, C] -> that of filters [D, C, ...]."""
    return (matrix.t() @ grad.flatten(1)).t().reshape(like.shape)


def filters_in_time(weight: Tensor) -> Tensor:
    """Weight [D, C, 3, 1, 1] as [6, D, C]: twice its size."""
    return _transformed(_of_filters(), weight.flatten(2))


def convolve_time(x: Tensor, weight: Tensor, bias: Tensor | None = None, filters: Tensor | None = None) -> Tensor:
    """3 x 1 x 1, stride 1, padding 1: x [B, C, T, H, W] and weight [D, C, 3, 1, 1], float32, on a CPU.

    ``filters`` are ``filters_in_time(weight)``, made before; then there are no gradients.
    """
    rows = x.permute(0, 2, 3, 4, 1)
    rows = _Time.apply(rows, weight, bias) if filters is None else _convolved_in_time(rows, filters, bias)
    return rows.permute(0, 4, 1, 2, 3)


def _convolved_in_time(rows: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """[B, T, H, W, C] with filters [6, D, C] -> [B, T, H, W, D]."""
    source, target = _along_time(rows.shape[1])
    y = rows.new_empty(*rows.shape[:4], filters.shape[1])
    for clip, out in zip(rows, y, strict=True):
        points = (source @ clip.flatten(1)).view(POINTS, -1, clip.shape[-1])
        points = torch.bmm(points, filters.transpose(1, 2))
        if bias is not None:
            points[1] += bias  # reaches every output once
        torch.mm(target, points.view(target.shape[1], -1), out=out.flatten(1))
    return y


class _Time(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _convolved_in_time(rows, filters_in_time(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        rows, weight = ctx.saved_tensors
        slopes = grad.contiguous()
        source, target = _along_time(rows.shape[1])
        filters = filters_in_time(weight)
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_filters = None
        for i, slope in enumerate(slopes):
            points = (target.t() @ slope.flatten(1)).view(POINTS, -1, len(weight))
            if grad_rows is not None:
                parts = torch.bmm(points, filters).view(len(source), -1)
                torch.mm(source.t(), parts, out=grad_rows[i].flatten(1))
            if ctx.needs_input_grad[1]:
                values = (source @ rows[i].flatten(1)).view(POINTS, -1, rows.shape[-1])
                grad_filters = _plus_products(grad_filters, points.transpose(1, 2), values)
        grad_weight = None if grad_filters is None else _gradient(_of_filters(), grad_filters, weight)
        return grad_rows, grad_weight, grad.sum((0, 1, 2, 3)) if ctx.needs_input_grad[2] else None


def _plus_products(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total`` + left @ right for each point, written over ``total`` where there is one."""
    return torch.bmm(left, right) if total is None else total.baddbmm_(left, right)


def convolve_frames(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1 x 3 x 3, stride 1, padding 1: x [B, C, T, H, W] and weight [D, C, 1, 3, 3], float32, on a CPU."""
    return _as_clips(_Frames.apply(_images(x), weight, bias), x)


class _Frames(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        filters = _transformed(_in_tiles()[1], weight.flatten(2))
        return _convolved(images, filters.transpose(1, 2), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        images, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_images = grad_weight = None
        if ctx.needs_input_grad[0]:  # a convolution with the mirrored filters
            filters = _transformed(_in_tiles()[1].flip(1), weight.flatten(2))
            grad_images = _convolved(grad, filters, None)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(images, grad, weight)
        return grad_images, grad_weight, grad.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None


def _images(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, H, W, C], a view."""
    return x.permute(0, 2, 3, 4, 1).flatten(0, 1)


def _as_clips(images: Tensor, like: Tensor) -> Tensor:
    """[B*T, H, W, D] -> [B, D, T, H, W], a view."""
    return images.unflatten(0, (like.shape[0], like.shape[2])).permute(0, 4, 1, 2, 3)


def _groups(images: Tensor) -> tuple[Tensor, ...]:
    """``images`` in groups of no more than ``MOST_TILES`` tiles, or one by one."""
    return images.split(max(1, MOST_TILES // (pieces(images.shape[1]) * pieces(images.shape[2]))))


def _input_points(images: Tensor) -> Tensor:
    """[n, H, W, C] -> [36, tiles, C]."""
    _, height, width, channels = images.shape
    below, right = STEP * pieces(height) + 1 - height, STEP * pieces(width) + 1 - width
    tiles = F.pad(images, (0, 0, 1, right, 1, below)).unfold(1, POINTS, STEP).unfold(2, POINTS, STEP)
    tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(POINTS * POINTS, -1)  # n, rows, columns of tiles, C last
    return (_in_tiles()[0] @ tiles).view(POINTS * POINTS, -1, channels)


def _convolved(images: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """[N, H, W, C] with filters [36, C, D] -> [N, H, W, D]."""
    height, width = images.shape[1:3]
    y = images.new_empty(*images.shape[:3], filters.shape[2])
    start = 0
    for group in _groups(images):
        points = torch.bmm(_input_points(group), filters)
        if bias is not None:
            points[POINTS + 1] += bias  # reaches every output once
        tiles = (_in_tiles()[2] @ points.flatten(1)).view(
            STEP, STEP, len(group), pieces(height), pieces(width), filters.shape[2]
        )
        whole = tiles.permute(2, 3, 0, 4, 1, 5).reshape(len(group), STEP * pieces(height), STEP * pieces(width), -1)
        y[start : start + len(group)] = whole[:, :height, :width]
        start += len(group)
    return y


def weight_gradient(images: Tensor, slopes: Tensor, weight: Tensor) -> Tensor:
    """Of images [N, H, W, C] and gradients [N, H, W, D] of the output; the shape of ``weight``."""
    height, width = images.shape[1:3]
    rows, columns = pieces(height), pieces(width)
    grad = None
    for group, slope in zip(_groups(images), _groups(slopes), strict=True):
        tiles = F.pad(slope, (0, 0, 0, STEP * columns - width, 0, STEP * rows - height))
        tiles = tiles.unflatten(2, (columns, STEP)).unflatten(1, (rows, STEP)).permute(2, 4, 0, 1, 3, 5)
        points = (_in_tiles()[2].t() @ tiles.reshape(STEP * STEP, -1)).view(POINTS * POINTS, -1, slopes.shape[-1])
        grad = _plus_products(grad, points.transpose(1, 2), _input_points(group))
    return _gradient(_in_tiles()[1], grad, weight)
