"""5 x k x k convolutions of few channels, as I3D begins with, with 8 instead of 20 multiplications along time for four
frames. (Winograd's minimal filters, Lavin and Gray, https://arxiv.org/abs/1509.09308; points 0, 1, -1, 2, -2, 1/2,
-1/2 and infinity)

Clips and filters go through small fixed matrices along time; each point is then a 2-D convolution, and another matrix
makes frames of them. In float32 the largest error is some 2e-6 of the largest output (direct: 1e-6).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS, POINTS, FRAMES = 5, 8, 4  # of the kernel, of each piece of a clip, outputs of a piece
MOST_VALUES = 2**22  # of points of outputs that are there at once: they should stay in a processor's cache
_INPUT = (  # over 360
    (360, 0, -1890, 0, 1890, 0, -360, 0),
    (0, -80, -80, 340, 340, -80, -80, 0),
    (0, 80, -80, -340, 340, 80, -80, 0),
    (0, 2, 1, -10, -5, 8, 4, 0),
    (0, -2, 1, 10, -5, -8, 4, 0),
    (0, 512, 1024, -640, -1280, 128, 256, 0),
    (0, -512, 1024, 640, -1280, -128, 256, 0),
    (0, -360, 0, 1890, 0, -1890, 0, 360),
)
_AT = (0, 1, -1, 2, -2, 0.5, -0.5)  # and infinity


def suits(shape: tuple[int, ...], weight: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """Whether this pays for an input of ``shape`` [B, C, T, H, W] and a weight [D, C, kt, kh, kw]."""
    frames = shape[2]
    saves = 2 * POINTS * -(-frames // FRAMES) <= STEPS * frames - 6  # what falls into the padding costs nothing
    is_long = (weight[2], stride[0], padding[0]) == (STEPS, 1, 2)
    fits = all(
        n + 2 * p >= k for n, k, p in zip(shape[3:], weight[3:], padding[1:], strict=True)
    )  # or PyTorch says why
    return is_long and weight[3] > 1 and shape[1] <= 4 and weight[0] >= 32 and saves and fits


@lru_cache(maxsize=64)
def _matrices(frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """What turns frames into points of pieces [8 * pieces, T], filters into points [8, 5], and points back [T, 8 P]."""
    pieces = -(-frames // FRAMES)
    with torch.inference_mode(False), torch.no_grad():
        options = {"dtype": torch.float64, "device": "cpu"}
        points = torch.tensor(_AT, **options)[:, None]
        filters, outputs = (
            torch.cat([points ** torch.arange(n, device="cpu"), torch.eye(n, **options)[-1:]]) for n in (STEPS, FRAMES)
        )
        source = torch.zeros(POINTS, pieces, FRAMES * pieces + STEPS - 1, **options)
        target = torch.zeros(POINTS, pieces, FRAMES * pieces, **options)
        for piece in range(pieces):
            start = FRAMES * piece
            source[:, piece, start : start + POINTS] = torch.tensor(_INPUT, **options) / 360
            target[:, piece, start : start + FRAMES] = outputs
        source, target = source[..., 2 : frames + 2].flatten(0, 1), target[..., :frames].flatten(0, 1)
        return source.float().contiguous(), filters.float(), target.t().float().contiguous()


@torch.no_grad()
def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """x [B, C, T, H, W] with weight [D, C, 5, kh, kw] -> [B, D, T, H', W'], channels last; no gradients, float32."""
    (_, sh, sw), (dim, _, _, kh, kw) = stride, weight.shape
    rows = _padded(x, padding)
    frames = rows.shape[1]
    height, width = (rows.shape[2] - kh) // sh + 1, (rows.shape[3] - kw) // sw + 1
    source, of_filters, target = _matrices(frames)
    pieces = len(source) // POINTS
    filters = torch.einsum("pk,dckhw->pdchw", of_filters, weight)
    most = _rows_at_once(height, width * len(source) * dim)
    y = torch.empty(len(x), dim, frames, height, width, dtype=x.dtype, memory_format=torch.channels_last_3d)
    found = x.new_empty(POINTS, pieces, most * width * dim)
    for clip, out in zip(rows, y.permute(0, 2, 3, 4, 1), strict=True):
        for start in range(0, height, most):
            num = min(most, height - start)
            band = clip[:, sh * start : sh * (start + num - 1) + kh]
            points = (source @ band.flatten(1)).view(POINTS, pieces, *band.shape[1:]).permute(0, 1, 4, 2, 3)
            values = found[..., : num * width * dim]
            for i, (images, kernel) in enumerate(zip(points, filters, strict=True)):
                # The bias of point 1 reaches every output once.
                part = F.conv2d(images, kernel, bias if i == 1 else None, (sh, sw))
                values[i].copy_(part.permute(0, 2, 3, 1).flatten(1))
            into = out.flatten(1)[:, start * width * dim : (start + num) * width * dim]  # a view
            torch.mm(target, values.flatten(0, 1), out=into)
    return y


def weight_gradient(
    x: Tensor, grad: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Of x [B, C, T, H, W] and gradients [B, D, T, H', W'] of the output, channels last -> [D, C, 5, kh, kw]."""
    (_, sh, sw), (steps, kh, kw) = stride, kernel
    channels, (dim, frames, height, width) = x.shape[1], grad.shape[1:]
    source, of_filters, target = _matrices(frames)
    pieces = len(source) // POINTS
    most = _rows_at_once(height, width * len(source) * dim)
    total = x.new_zeros(POINTS, kh * kw * channels, dim)
    for clip, slopes in zip(_padded(x, padding), grad.permute(0, 2, 3, 4, 1), strict=True):
        for start in range(0, height, most):
            num = min(most, height - start)
            band = clip[:, sh * start : sh * (start + num - 1) + kh]
            points = (source @ band.flatten(1)).view(POINTS, pieces, *band.shape[1:])
            of_band = slopes.flatten(1)[:, start * width * dim : (start + num) * width * dim]  # a view
            their = (target.t() @ of_band).view(POINTS, -1, dim)
            for i, images in enumerate(points):
                windows = images.unfold(1, kh, sh).unfold(2, kw, sw).permute(0, 1, 2, 4, 5, 3)
                total[i].addmm_(windows.reshape(-1, total.shape[1]).t(), their[i])
    total = torch.einsum("pk,pnd->dkn", of_filters, total)
    return total.view(dim, steps, kh, kw, channels).permute(0, 4, 1, 2, 3)


def _padded(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    """[B, C, T, H, W] -> [B, T, H, W, C], padded in space."""
    _, ph, pw = padding
    return F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, pw, pw, ph, ph)).contiguous()


def _rows_at_once(height: int, values_per_row: int) -> int:
    return math.ceil(height / math.ceil(height * values_per_row / MOST_VALUES))
