"""The passes of a network's convolutions in training, each alone: oneDNN's, and ours by matrix products.

    python benchmarks/conv_passes.py [--network "SlowFast 8x8 R50"] [--rounds 9] [--threads 2]

For each shape of convolution that a clip meets on its way through the network: its forward pass, the gradient of its
input and that of its weight, as PyTorch computes them for the plain convolution and as ``slowfast.models.conv_passes``
does. The forms take turns; medians in milliseconds. "used" is what the network's training takes for the last column.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from models import NETWORKS, make, read_config
from torch import Tensor
from torch.nn import functional as F

from slowfast.models import conv_passes, long_kernels, winograd
from slowfast.models.layers import Conv3d, time_as_height

Key = tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def find_shapes(model: torch.nn.Module, clips: Tensor) -> Counter[Key]:
    """(input [B, C, T, H, W], outputs, kernel, stride, padding) of every convolution that is not grouped."""
    found: Counter[Key] = Counter()

    def look(module: Conv3d, args: tuple[Tensor]) -> None:
        if module.groups == 1:
            found[tuple(args[0].shape), module.out_channels, module.kernel_size, module.stride, module.padding] += 1

    for module in model.modules():
        if isinstance(module, Conv3d):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(clips)
    return found


def plain_passes(x: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> tuple[dict[str, Callable], Tensor]:
    """PyTorch's own, in 2-D or 3-D, and the gradient of the output that they get."""
    ones, zeros = [1] * len(stride), [0] * len(stride)
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    slope = torch.randn_like(convolve(x, weight, None, stride, padding))

    def backward(*mask: bool) -> Callable:
        options = (None, stride, padding, ones, False, zeros, 1, [*mask, False])
        return lambda: torch.ops.aten.convolution_backward(slope, x, weight, *options)

    passes = {
        "forward": lambda: convolve(x, weight, None, stride, padding),
        "input": backward(True, False),
        "weight": backward(False, True),
    }
    return passes, slope


def passes_of(key: Key) -> tuple[dict[str, Callable], str]:
    """The passes by name, and what is used for the gradient of the weight."""
    shape, dim, kernel, stride, padding = key
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(dim, shape[1], *kernel) * 0.01
    if kernel == (1, 1, 1):
        x = x[:, :, :: stride[0], :: stride[1], :: stride[2]].contiguous(memory_format=torch.channels_last_3d)
        rows = x.permute(0, 2, 3, 4, 1)
        slopes = torch.randn(*rows.shape[:-1], dim)
        flat, ours = weight.flatten(1), conv_passes.product
        found = {
            "forward": lambda: F.linear(rows, flat),
            "input": lambda: F.linear(slopes, flat.t()),
            "weight": lambda: slopes.flatten(0, 3).t() @ rows.flatten(0, 3),
            "forward, ours": lambda: ours(rows, flat),
            "input, ours": lambda: ours(slopes, flat.t()),
            "weight, ours": lambda: conv_passes.point_weight_gradient(rows, slopes),
        }
        return found, "product"
    if min(kernel[1:]) == 1 or kernel[0] == 1:  # as the network does: a 2-D convolution over a view
        if kernel[0] > 1:
            images = time_as_height(x)
            weight = weight.flatten(3)
            stride, padding = (stride[0], 1), (padding[0], 0)
        else:
            images = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
            weight, stride, padding = weight.squeeze(2), stride[1:], padding[1:]
        found, slope = plain_passes(images, weight, stride, padding)
        rows, slopes = images.permute(0, 2, 3, 1), slope.permute(0, 2, 3, 1).contiguous()
        size = tuple(weight.shape[2:])
        found["weight, patches"] = lambda: conv_passes.image_weight_gradient(rows, slopes, size, stride, padding)
        if (size, stride, padding) == ((3, 3), (1, 1), (1, 1)):
            found["weight, minimal filters"] = lambda: winograd.weight_gradient(rows, slopes, weight)
        return found, conv_passes.weight_gradient_form(images, weight, stride, padding)
    found, slope = plain_passes(x, weight, stride, padding)
    if stride[0] == 1:
        found["weight, patches"] = lambda: conv_passes.clip_weight_gradient(x, slope, kernel, stride, padding)
    if long_kernels.suits(shape, tuple(weight.shape), stride, padding):
        found["forward, minimal filters"] = lambda: long_kernels.convolve(x, weight, None, stride, padding)
        found["weight, minimal filters"] = lambda: long_kernels.weight_gradient(x, slope, kernel, stride, padding)
    return found, conv_passes.weight_gradient_form(x, weight, stride, padding)


def time_in_turn(forms: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, form in forms.items():
                start = time.perf_counter()
                form()
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="SlowFast 8x8 R50", choices=[n for n in NETWORKS if "MViT" not in n])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = NETWORKS[options.network]
    cfg = read_config(network.config, None)
    side = cfg.DATA.TRAIN_CROP_SIZE
    model = make(network, "ours", None).eval()
    shapes = find_shapes(model, torch.randn(network.batch, 3, cfg.DATA.NUM_FRAMES, side, side))
    print(f"{options.network}, {options.threads} thread(s), milliseconds")
    for key, number in shapes.items():
        passes, used = passes_of(key)
        shape, dim, kernel, stride, _ = key
        size = f"{' x '.join(map(str, shape))} -> {dim}, {'x'.join(map(str, kernel))} / {'x'.join(map(str, stride))}"
        times = "; ".join(f"{name} {each:.2f}" for name, each in time_in_turn(passes, options.rounds).items())
        print(f"{number} x {size} (used: {used}): {times}", flush=True)


if __name__ == "__main__":
    main()
