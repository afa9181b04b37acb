"""Where the time of a network goes in inference: each shape of convolution, linear layer and attention, alone.

    python benchmarks/layers.py [--network "Slow 8x8 R50"] [--rounds 7] [--threads 2]

Runs the network that benchmarks/models.py uses for inference on one random clip and prints, for each shape, how often
it occurs, the median time of one, and its operations per second, beside those of a large matrix product. Of a
convolution the operations of a direct one are counted: minimal filters need fewer, so they may stand above the
product. What the layers take together is less than any arrangement of the same layers can take. (Layers that are looked
into get all tokens: keys, values and the last block, of which MViT otherwise leaves out what nobody needs, are whole.)
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import time
from collections import defaultdict
from unittest import mock

import torch
from models import NETWORKS, make, matrix_peak, read_config
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.fold import FusedConv3d, for_inference
from slowfast.models.layers import Conv3d


def describe(module: nn.Module, x: Tensor, y: Tensor) -> tuple[str, float]:
    """The shape of a layer in words, and its operations."""
    if isinstance(module, nn.Linear):
        rows = x.numel() // x.shape[-1]
        return f"linear, {rows} x {module.in_features} -> {module.out_features}", 2.0 * rows * module.weight.numel()
    name = f"{' x '.join(map(str, x.shape[1:]))} -> {module.out_channels}, "
    name += f"{'x'.join(map(str, module.kernel_size))} / {'x'.join(map(str, module.stride))}"
    name += ", minimal filters" if isinstance(module, FusedConv3d) and module.saves_products(x) else ""
    return name, 2.0 * y.numel() * module.weight[0].numel()


def time_layers(model: nn.Module, clips: Tensor, rounds: int) -> dict[str, tuple[list[float], float]]:
    """Seconds of every call, and operations of one, by shape."""
    found: dict[str, tuple[list[float], float]] = defaultdict(lambda: ([], 0.0))
    began: dict[nn.Module, float] = {}
    plain_attention = F.scaled_dot_product_attention

    def note(name: str, seconds: float, operations: float) -> None:
        found[name] = [*found[name][0], seconds], operations

    def before(module, args):
        began[module] = time.perf_counter()

    def after(module, args, output):
        seconds = time.perf_counter() - began[module]
        name, operations = describe(module, args[0], output)
        note(name, seconds, operations)

    def attention(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
        start = time.perf_counter()
        y = plain_attention(q, k, v, **options)
        seconds = time.perf_counter() - start
        name = f"attention, {q.shape[1]} heads, {q.shape[2]} x {k.shape[2]} of {q.shape[3]}"
        note(name, seconds, 2.0 * q.shape[:3].numel() * k.shape[2] * (q.shape[3] + v.shape[3]))
        return y

    for module in model.modules():
        if isinstance(module, (Conv3d, nn.Linear)):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
    with torch.inference_mode(), mock.patch.object(F, "scaled_dot_product_attention", attention):
        for _ in range(rounds):
            model(clips)
    return dict(found)


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="Slow 8x8 R50", choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args(namespace=argparse.Namespace(device="cpu", dtype="fp32", clock="wall"))
    peak = matrix_peak(options)
    network = NETWORKS[options.network]
    model = for_inference(make(network, "ours", None))
    cfg = read_config(network.config, None)
    side = cfg.DATA.TRAIN_CROP_SIZE
    found = time_layers(model, torch.randn(network.batch, 3, cfg.DATA.NUM_FRAMES, side, side), options.rounds)
    rows = []
    for shape, (seconds, operations) in found.items():
        number, each = len(seconds) // options.rounds, statistics.median(seconds)
        rows.append((number * each, number, each, operations / each, shape))
    print(f"{options.network}, {options.threads} thread(s), matrix product {peak / 1e9:.0f} GFLOPS")
    for total, number, each, speed, shape in sorted(rows, reverse=True):
        print(f"{1e3 * total:7.1f} ms = {number} x {1e3 * each:6.2f}  {speed / 1e9:4.0f} GFLOPS  {shape}")
    print(f"{1e3 * sum(row[0] for row in rows):7.1f} ms in all")


if __name__ == "__main__":
    main()
