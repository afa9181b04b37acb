"""Which form of a 3-D convolution is fastest on a CPU: the measurement behind ``slowfast.models.layers.conv_form``.

    python benchmarks/conv_forms.py [--threads 1] [--repeats 5] [--only res5]

Every row is one layer of a network of this project. Its candidates take turns, so that a busy machine slows all of
them; the best of ``--repeats`` turns counts (processor time with one thread, wall time with more). A cell gives the
milliseconds of a training step (forward and backward) and of inference, and how they compare with plain ``conv3d``
in ``channels_last_3d`` (below 1 is faster); ``*`` marks the form that the rule picks. The last rows are whole
networks: plain ``conv3d`` throughout against the rule.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from slowfast.models.heads import HeadSpec
from slowfast.models.layers import _FORMS, conv_form
from slowfast.models.resnet import BlockOptions, ResNet, plan_stages
from slowfast.models.slowfast import SlowFast, lateral_dims

LAST = torch.channels_last_3d


class Layer(NamedTuple):
    """One convolution: input [B, C, T, H, W], output channels, kernel, stride; padding keeps the size."""

    name: str
    shape: tuple[int, int, int, int, int]
    out: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int] = (1, 1, 1)
    groups: int = 1


LAYERS = [
    # the small SlowFast of the quickstart: 16 clips of 16 frames of 64 pixels
    Layer("small fast stem", (16, 3, 16, 64, 64), 2, (5, 7, 7), (1, 2, 2)),
    Layer("small slow stem", (16, 3, 4, 64, 64), 16, (1, 7, 7), (1, 2, 2)),
    Layer("small lateral", (16, 8, 16, 16, 16), 16, (5, 1, 1), (4, 1, 1)),
    Layer("small fast res2 a", (16, 8, 16, 16, 16), 8, (3, 3, 3)),
    Layer("small slow res2 b", (16, 64, 4, 16, 16), 64, (1, 3, 3)),
    Layer("small slow res3 b", (16, 128, 4, 8, 8), 128, (1, 3, 3)),
    Layer("small slow res4 a", (16, 256, 4, 4, 4), 256, (3, 3, 3)),
    Layer("small slow res4 b", (16, 256, 4, 4, 4), 256, (1, 3, 3)),
    Layer("small slow res5 a, first", (16, 320, 4, 4, 4), 512, (3, 3, 3), (1, 2, 2)),
    Layer("small slow res5 a", (16, 512, 4, 2, 2), 512, (3, 3, 3)),
    Layer("small slow res5 b", (16, 512, 4, 2, 2), 512, (1, 3, 3)),
    Layer("small fast res5 a", (16, 64, 16, 2, 2), 64, (3, 3, 3)),
    # R50 networks, one clip
    Layer("R50 slow stem", (1, 3, 8, 224, 224), 64, (1, 7, 7), (1, 2, 2)),
    Layer("I3D stem", (1, 3, 8, 224, 224), 64, (5, 7, 7), (1, 2, 2)),
    Layer("R50 fast stem", (1, 3, 32, 224, 224), 8, (5, 7, 7), (1, 2, 2)),
    Layer("R50 res2 b", (1, 64, 8, 56, 56), 64, (1, 3, 3)),
    Layer("R50 res2 c", (1, 64, 8, 56, 56), 256, (1, 1, 1)),
    Layer("R50 res3 shortcut", (1, 256, 8, 56, 56), 512, (1, 1, 1), (1, 2, 2)),
    Layer("R50 res3 b", (1, 128, 8, 28, 28), 128, (1, 3, 3)),
    Layer("R50 res4 a", (1, 1024, 8, 14, 14), 256, (3, 1, 1)),
    Layer("R50 res4 b", (1, 256, 8, 14, 14), 256, (1, 3, 3)),
    Layer("R50 res5 a", (1, 2048, 8, 7, 7), 512, (3, 1, 1)),
    Layer("R50 res5 b", (1, 512, 8, 7, 7), 512, (1, 3, 3)),
    Layer("I3D res2 a", (1, 64, 8, 56, 56), 64, (3, 1, 1)),
    Layer("I3D res3 a", (1, 512, 4, 28, 28), 128, (3, 1, 1)),
    Layer("R50 fast res2 a", (1, 32, 32, 56, 56), 8, (3, 1, 1)),
    Layer("R50 fast res2 c", (1, 8, 32, 56, 56), 32, (1, 1, 1)),
    Layer("R50 fast res2 b", (1, 8, 32, 56, 56), 8, (1, 3, 3)),
    Layer("R50 lateral res2", (1, 32, 32, 56, 56), 64, (7, 1, 1), (4, 1, 1)),
    Layer("R50 lateral res3", (1, 64, 32, 28, 28), 128, (7, 1, 1), (4, 1, 1)),
    Layer("R18 fast res2 a", (1, 8, 32, 56, 56), 8, (3, 3, 3)),
    Layer("ResNeXt res3 b", (1, 128, 8, 28, 28), 128, (1, 3, 3), groups=32),
    # X3D
    Layer("X3D stem, time", (2, 24, 13, 80, 80), 24, (5, 1, 1), groups=24),
    Layer("X3D res3 b", (2, 54, 13, 28, 28), 54, (3, 3, 3), groups=54),
]


def best_times(candidates: list[Callable[[], None]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Shortest time of each candidate in milliseconds; they take turns."""
    best = [float("inf")] * len(candidates)
    for turn in range(repeats + 1):
        for i, run in enumerate(candidates):
            start = clock()
            run()
            if turn > 0:
                best[i] = min(best[i], 1e3 * (clock() - start))
    return best


def applicable(layer: Layer) -> list[str]:
    """Names of the forms that can compute ``layer``."""
    kt, kh, kw = layer.kernel
    forms = ["native"]
    if layer.kernel == (1, 1, 1) and layer.stride == (1, 1, 1) and layer.groups == 1:
        forms.append("pointwise")
    if kt == 1 and layer.stride[0] == 1 and (layer.kernel != (1, 1, 1) or layer.stride == (1, 1, 1)):
        forms.append("frames")
    if kh == kw == 1 and kt > 1 and layer.stride[1:] == (1, 1):
        forms.append("time")
        if layer.groups == 1 and layer.stride[0] == 1:
            forms.append("products")
    if layer.kernel in ((3, 1, 1), (1, 3, 3)) and layer.stride == (1, 1, 1) and layer.groups == 1:
        forms.append("winograd")
    if layer.groups == 1 and kt > 1:
        forms.append("stack")
    if layer.groups == 1 and layer.shape[1] * kt * kh * kw >= 512:
        forms.append("gemm")
    return forms


def time_layer(layer: Layer, repeats: int, clock: Callable[[], float]) -> list[tuple[str, float, float, bool]]:
    """(form, milliseconds of a training step, of inference, whether the rule picks it) of each candidate."""
    torch.manual_seed(0)
    x = torch.randn(layer.shape)
    channels = layer.shape[1]
    weight = (0.05 * torch.randn(layer.out, channels // layer.groups, *layer.kernel)).requires_grad_()
    options = {
        "stride": layer.stride,
        "padding": tuple(k // 2 for k in layer.kernel),
        "dilation": (1, 1, 1),
        "groups": layer.groups,
    }
    expected = F.conv3d(x, weight, None, **options).detach()
    needs_gradient = channels > 3  # not of the images below a stem

    def candidate(form: str, memory_format: torch.memory_format):
        source = x.clone(memory_format=memory_format).requires_grad_(needs_gradient)
        gradient = torch.randn_like(expected).contiguous(memory_format=memory_format)
        compute = _FORMS[form]
        torch.testing.assert_close(compute(source, weight, None, **options), expected, rtol=1e-3, atol=1e-3)

        def train():
            source.grad = weight.grad = None
            compute(source, weight, None, **options).backward(gradient)

        def infer():
            with torch.no_grad():
                compute(source, weight, None, **options)

        return train, infer

    names = ["contiguous", *applicable(layer)]
    runs = [candidate("native", torch.contiguous_format), *(candidate(form, LAST) for form in names[1:])]
    train = best_times([run[0] for run in runs], repeats, clock)
    infer = best_times([run[1] for run in runs], repeats, clock)
    picked = conv_form(layer.shape, layer.out, layer.kernel, device="cpu", **options)
    if picked == "pointwise" and picked not in names:
        return time_strided_pointwise(names, train, infer, x, weight, layer, repeats, clock)
    return [(name, a, b, name == picked) for name, a, b in zip(names, train, infer)]


def time_strided_pointwise(names, train, infer, x, weight, layer, repeats, clock):
    """The rows of a strided 1 x 1 x 1 layer, which the rule computes after leaving out what is stepped over."""
    source = x.clone(memory_format=LAST).requires_grad_()
    st, sh, sw = layer.stride

    def compute():
        return _FORMS["pointwise"](source[:, :, ::st, ::sh, ::sw].contiguous(memory_format=LAST), weight, None)

    gradient = torch.randn_like(compute()).contiguous(memory_format=LAST)

    def step():
        source.grad = weight.grad = None
        compute().backward(gradient)

    def score():
        with torch.no_grad():
            compute()

    rows = [(name, a, b, False) for name, a, b in zip(names, train, infer)]
    return [*rows, ("pointwise", *best_times([step], repeats, clock), *best_times([score], repeats, clock), True)]


def small_slowfast(backend: str) -> nn.Module:
    """SlowFast of depth 18 with basic blocks, 16 frames of 64 pixels, as in the quickstart."""
    width, beta_inv = 16, 8
    common = {"num_temporal": (2, 2, 2, 2), "strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}
    slow = plan_stages(
        18, width=width, kernels=((1,), (1,), (3,), (3,)), lateral=lateral_dims(width, beta_inv, 2), **common
    )
    fast = plan_stages(18, width=width, kernels=((3,), (3,), (3,), (3,)), shrink=beta_inv, **common)
    return SlowFast(
        list(zip(slow, fast)),
        alpha=4,
        head=HeadSpec(num_classes=8, windows=((4, 2, 2), (16, 2, 2))),
        stem_dims=(width, width // beta_inv),
        options=BlockOptions(transform="basic_transform"),
        conv_backend=backend,
    )


def slow_r50(backend: str) -> nn.Module:
    """Slow R50 for 8 frames of 224 pixels."""
    stages = plan_stages(
        50,
        width=64,
        kernels=((1,), (1,), (3,), (3,)),
        num_temporal=(3, 4, 6, 3),
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),
    )
    return ResNet(stages, head=HeadSpec(num_classes=400, windows=((8, 7, 7),)), conv_backend=backend)


NETWORKS = {
    "small SlowFast, 16 clips": (small_slowfast, (16, 3, 16, 64, 64)),
    "small SlowFast, 1 clip": (small_slowfast, (1, 3, 16, 64, 64)),
    "Slow R50, 1 clip": (slow_r50, (1, 3, 8, 224, 224)),
}


def time_network(make: Callable[[str], nn.Module], shape: tuple[int, ...], repeats: int, clock) -> list:
    """(backend, milliseconds of a training step, of inference, whether it is the rule) of both backends."""
    clips = torch.randn(shape)
    trains, infers = [], []
    for backend in ("native", "auto"):
        torch.manual_seed(0)
        model = make(backend)

        def train(model=model):
            model.train()
            model.zero_grad()
            model(clips).square().mean().backward()

        def infer(model=model):
            model.eval()
            with torch.no_grad():
                model(clips)

        trains.append(train)
        infers.append(infer)
    rows = zip(("native", "auto"), best_times(trains, repeats, clock), best_times(infers, repeats, clock))
    return [(name, a, b, name == "auto") for name, a, b in rows]


def show(name: str, rows: list[tuple[str, float, float, bool]]) -> None:
    """One line per candidate, compared with the one called "native"."""
    _, train0, infer0, _ = next(row for row in rows if row[0] == "native")
    for form, train, infer, picked in rows:
        mark = "*" if picked else " "
        print(f"{name:27s} {mark}{form:11s} {train:9.2f} {train / train0:6.2f} {infer:9.2f} {infer / infer0:6.2f}")
        name = ""


def main() -> None:
    """Time what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, {args.threads} thread(s), best of {args.repeats}; times in ms")
    print(f"{'layer':27s}  {'form':11s} {'train':>9s} {'ratio':>6s} {'infer':>9s} {'ratio':>6s}")
    for layer in LAYERS:
        if args.only in layer.name:
            show(layer.name, time_layer(layer, args.repeats, clock))
    for name, (make, shape) in NETWORKS.items():
        if args.only in name:
            show(name, time_network(make, shape, args.repeats, clock))


if __name__ == "__main__":
    main()
