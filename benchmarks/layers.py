"""Where the time of a convolutional network goes in inference: each shape of convolution, alone.

    python benchmarks/layers.py [--network "Slow 8x8 R50"] [--rounds 7] [--threads 2]

Runs the folded network of benchmarks/models.py on one random clip and prints, for each shape, how often it occurs,
the median time of one, and the operations per second of a direct convolution in that time, beside those of a large
matrix product. Minimal filters need fewer operations than are counted, so they may stand above it.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import time
from collections import defaultdict

import torch
from models import NETWORKS, make, matrix_peak, read_config

from slowfast.models.fold import FusedConv3d, for_inference


def time_layers(model: torch.nn.Module, clips: torch.Tensor, rounds: int) -> dict[tuple, tuple[list[float], float]]:
    """Seconds of every call, and operations of one, by (input, channels, kernel, stride, minimal filters)."""
    found: dict[tuple, tuple[list[float], float]] = defaultdict(lambda: ([], 0.0))
    began: dict[torch.nn.Module, float] = {}

    def before(module, args):
        began[module] = time.perf_counter()

    def after(module, args, output):
        seconds = time.perf_counter() - began[module]
        key = tuple(args[0].shape[1:]), module.out_channels, module.kernel_size, module.stride
        key += (module.saves_products(args[0]),)
        found[key] = [*found[key][0], seconds], 2.0 * output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, FusedConv3d):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
    with torch.inference_mode():
        for _ in range(rounds):
            model(clips)
    return dict(found)


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="Slow 8x8 R50", choices=[name for name in NETWORKS if "MViT" not in name])
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
    for (size, channels, kernel, stride, minimal), (seconds, operations) in found.items():
        number, each = len(seconds) // options.rounds, statistics.median(seconds)
        shape = (
            f"{' x '.join(map(str, size))} -> {channels}, {'x'.join(map(str, kernel))} / {'x'.join(map(str, stride))}"
        )
        rows.append((number * each, number, each, operations / each, shape + (", minimal filters" if minimal else "")))
    print(f"{options.network}, {options.threads} thread(s), matrix product {peak / 1e9:.0f} GFLOPS")
    for total, number, each, speed, shape in sorted(rows, reverse=True):
        print(f"{1e3 * total:7.1f} ms = {number} x {1e3 * each:6.2f}  {speed / 1e9:4.0f} GFLOPS  {shape}")
    print(f"{1e3 * sum(row[0] for row in rows):7.1f} ms in all")


if __name__ == "__main__":
    main()
