"""How fast and how hungry the networks are: ours, the same written plainly, and pytorchvideo's or torchvision's.

    python benchmarks/models.py [--only X3D] [--rounds 3] [--table benchmarks/results/models.md]
    python benchmarks/models.py --device cuda --dtype bf16 --batch 8 --crop 224 [--compile]

Three forms of each network, with random weights, take turns, each in one process that trains and another that only
scores, as jobs do:

- ours: training as ``build_model`` gives the network, inference as ``slowfast.models.fold.for_inference`` does, with
  memory kept as in our jobs (``slowfast.utils.memory``);
- naive: the same network in NCDHW with plain ``conv3d``, sums that make a new tensor, and attention written out, which
  stores the weight and the bias of every pair of query and key. Its logits must equal ours, or the command stops;
- peer: pytorchvideo's implementation (``PTV*``), for MViTv2 torchvision's.

With ``--together`` each form has one process for both. Inference of the plain form and the peer is faster then: the C
library keeps freed memory after it has met the large blocks of training. Its memory then includes what training left.

A training step is forward, cross entropy and backward; inference is one forward pass without gradients. Times are
medians over ``--rounds`` turns after one that does not count; ratios are medians of the ratios within each turn,
because the speed of a shared machine drifts, but little between two steps that follow each other. Memory is the
most that a turn needs beyond weights and clips: growth of the process, which includes scratch space, on a CPU; peak of
the allocator on a GPU. "of peak" compares arithmetic per second with that of a large matrix product in the same type,
measured before the networks. On a CPU without ``--crop`` and ``--batch`` each network has the size that the table
states.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting processes must not take the cores of the one that runs

import argparse
import contextlib
import multiprocessing
import platform
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from slowfast.config import load_cfg
from slowfast.models import build_model
from slowfast.models.attention import MultiScaleAttention
from slowfast.models.fold import for_inference
from slowfast.models.layers import set_conv_backend
from slowfast.models.norm import BatchNorm3d
from slowfast.models.resnet import ResBlock
from slowfast.models.x3d import X3DBlock
from slowfast.utils.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("naive", "peer", "ours")
STEPS = ("inference", "training")
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network(NamedTuple):
    """One row pair of the table."""

    config: str  # under configs/Kinetics
    peer: str  # the same there, or the name of a torchvision builder
    batch: int  # on a CPU
    training_target: float | None  # naive over ours


NETWORKS = {
    "SlowFast 8x8 R50": Network("SLOWFAST_8x8_R50.yaml", "pytorchvideo/SLOWFAST_8x8_R50.yaml", 1, 1.5),
    "Slow 8x8 R50": Network("SLOW_8x8_R50.yaml", "pytorchvideo/SLOW_8x8_R50.yaml", 1, 1.3),
    "I3D 8x8 R50": Network("I3D_8x8_R50.yaml", "pytorchvideo/I3D_8x8_R50.yaml", 1, 1.3),
    "X3D-S": Network("X3D_S.yaml", "pytorchvideo/X3D_S.yaml", 4, 1.5),
    "X3D-M": Network("X3D_M.yaml", "pytorchvideo/X3D_M.yaml", 2, None),
    "MViT v1-B 16x4": Network("MVIT_B_16x4_CONV.yaml", "pytorchvideo/MVIT_B_16x4_CONV.yaml", 1, None),
    "MViTv2-S 16x4": Network("MVITv2_S_16x4.yaml", "mvit_v2_s", 1, 1.3),
}
INFERENCE_TARGET = 1.6


def read_config(file: str, crop: int | None):
    """The configuration, at another crop where one is given."""
    sizes = ["DATA.TRAIN_CROP_SIZE", crop] if crop else []
    cfg = load_cfg(ROOT / "configs" / "Kinetics" / file, sizes)
    return load_cfg(ROOT / "configs" / "Kinetics" / file, [*sizes, "DATA.TEST_CROP_SIZE", cfg.DATA.TRAIN_CROP_SIZE])


def make(network: Network, form: str, crop: int | None) -> nn.Module:
    """One form of ``network``, with random weights."""
    torch.manual_seed(0)
    if form == "peer" and not network.peer.endswith(".yaml"):
        from torchvision.models.video import mvit

        if crop not in (None, 224):
            raise ValueError(f"torchvision's {network.peer} is built for 224 pixels: --crop {crop} leaves no peer")
        return getattr(mvit, network.peer)(weights=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build_model(read_config(network.peer if form == "peer" else network.config, crop))
    return write_plainly(model) if form == "naive" else model


def write_plainly(model: nn.Module) -> nn.Module:
    """Undo, in ``model`` itself, what is done here for speed."""
    set_conv_backend(model, "native")
    for module in model.modules():
        if isinstance(module, MultiScaleAttention):
            module.by_definition = True
        elif isinstance(module, (ResBlock, X3DBlock)):
            module.forward = types.MethodType(add_plainly, module)
        elif isinstance(module, BatchNorm3d):
            module.forward = types.MethodType(nn.BatchNorm3d.forward, module)
    return model


def add_plainly(self: nn.Module, x: Tensor) -> Tensor:
    """A residual block whose sum is a new tensor."""
    shortcut = x if self.branch1 is None else self.branch1_bn(self.branch1(x))
    return self.relu(shortcut + getattr(self, "drop", nn.Identity())(self.branch2(x)))


def serve(pipe: Connection, network: Network, form: str, steps: Sequence[str], options: argparse.Namespace) -> None:
    """In a process of its own: build, then run and time each of ``steps`` that ``pipe`` asks for, until None."""
    torch.set_num_threads(options.threads)
    trains = "training" in steps
    if form == "ours":
        keep_freed_memory(large=not trains)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    try:
        model = make(network, form, options.crop).to(device)
        models = dict.fromkeys(steps, model)
        if form == "ours" and "inference" in steps:
            models["inference"] = for_inference(model, in_place=not trains)
        if options.compile:
            models = {step: torch.compile(net) for step, net in models.items()}
        cfg = read_config(network.config, options.crop)
        side, frames = cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.NUM_FRAMES
        batch = options.batch or network.batch
        clips = torch.randn(batch, 3, frames, side, side, device=device)
        labels = torch.arange(batch, device=device)
        precision = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

        def run(step: str) -> None:
            net = models[step]
            if step == "training":
                net.train()
                model.zero_grad(set_to_none=True)
                with precision:
                    loss = F.cross_entropy(net(clips).float(), labels)
                loss.backward()
            else:
                net.eval()
                with torch.inference_mode(), precision:
                    net(clips)
            if device.type == "cuda":
                torch.cuda.synchronize()

        clock = time.process_time if options.clock == "processor" else time.perf_counter
        memory = Memory(device)
        pipe.send((batch, frames, side))
        while (step := pipe.recv()) is not None:
            memory.reset()
            start = clock()
            run(step)
            pipe.send((clock() - start, memory.growth_mb()))
    except Exception as error:  # shown in the table; the other forms go on
        pipe.send(error)


class Memory:
    """Growth of this process, or of PyTorch's memory on a GPU, since it was made: the peak after ``reset``."""

    def __init__(self, device: torch.device):
        self.device = device
        self.base = torch.cuda.memory_allocated() if device.type == "cuda" else self._status("VmRSS")

    def reset(self) -> None:
        """Forget earlier peaks."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def growth_mb(self) -> float | None:
        """Peak since ``reset`` in MB of 1e6 bytes; None where the system does not tell."""
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else self._status("VmHWM")
        return None if peak is None or self.base is None else (peak - self.base) / 1e6

    @staticmethod
    def _status(key: str) -> int | None:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(key):
                    return 1024 * int(line.split()[1])
        return None


class Worker:
    """The process that holds one form of a network for one or both of ``STEPS``."""

    def __init__(self, network: Network, form: str, steps: Sequence[str], options: argparse.Namespace):
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, network, form, steps, options), daemon=True)
        self.process.start()
        other.close()
        self.error: Exception | None = None
        self.size = self._receive()

    def _receive(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = RuntimeError("the process ended")
        if isinstance(answer, Exception):
            self.error = answer
            return None
        return answer

    def run(self, step: str) -> tuple[float, float | None] | None:
        """Seconds and peak memory of one step; None if it failed, now or before."""
        if self.error is not None:
            return None
        self.pipe.send(step)
        return self._receive()

    def stop(self) -> None:
        """End the process."""
        if self.error is None:
            self.pipe.send(None)
        self.process.join()


def measure(network: Network, options: argparse.Namespace) -> tuple[dict, dict, tuple[int, int, int], dict]:
    """Seconds of each turn and peak memory by (step, form), the clips' (batch, frames, side), and errors by both."""
    groups = [STEPS] if options.together else [(step,) for step in STEPS]
    made = [(steps, form, Worker(network, form, steps, options)) for steps in groups for form in FORMS]
    workers = {(step, form): worker for steps, form, worker in made for step in steps}
    size = next((worker.size for worker in workers.values() if worker.size), None)
    if size is None:
        reasons = {f"{type(worker.error).__name__}: {worker.error}" for worker in workers.values()}
        raise SystemExit(f"no form of {network.config} could be built: {'; '.join(sorted(reasons))}")
    seconds, memory = {}, {}
    for turn in range(options.rounds + 1):
        for step in STEPS:
            # Each turn begins with another form.
            for form in FORMS[turn % 3 :] + FORMS[: turn % 3]:
                answer = workers[step, form].run(step)
                if answer is None:
                    continue
                if answer[1] is not None:
                    memory[step, form] = max(memory.get((step, form), 0.0), answer[1])
                if turn > 0:
                    seconds.setdefault((step, form), []).append(answer[0])
        print(".", end="", flush=True)
    print()
    errors = {key: worker.error for key, worker in workers.items() if worker.error}
    for _, _, worker in made:
        worker.stop()
    return seconds, memory, size, errors


def ratio(slow: list[float] | None, fast: list[float] | None) -> float | None:
    """Median over turns of ``slow`` by ``fast``; None where one is missing or failed on its way."""
    if not slow or not fast or len(slow) != len(fast):
        return None
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def logits_of(network: Network, form: str, options: argparse.Namespace) -> list[float]:
    """What the classifier of "ours" or "naive" says of one clip in inference, before its activation (CPU, float32)."""
    torch.set_num_threads(options.threads)
    model = make(network, form, options.crop).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.0)  # the last one of a block may begin at 0, which would hide the block
    model = for_inference(model) if form == "ours" else model
    heard = []
    model.head.projection.register_forward_hook(lambda module, args, output: heard.append(output))
    cfg = read_config(network.config, options.crop)
    side = cfg.DATA.TRAIN_CROP_SIZE
    torch.manual_seed(1)
    with torch.inference_mode():
        model(torch.randn(1, 3, cfg.DATA.NUM_FRAMES, side, side))
    return heard[0].flatten().tolist()


def difference(found: list[float], expected: list[float]) -> float:
    """The largest difference over the largest number."""
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / max(map(abs, expected))


def check_logits(network: Network, options: argparse.Namespace) -> None:
    """Stop where ours and the naive form are not the same function of clips: their times would not compare."""
    found = difference(*(in_process(logits_of, network, form, options) for form in ("ours", "naive")))
    if not found <= 1e-3:
        raise SystemExit(f"ours and the naive form of {network.config} differ by {found:.1e} of the largest logit")


def count_flops(network: Network, size: tuple[int, int, int], crop: int | None) -> float:
    """Floating-point operations of inference, twice the multiply-adds; nothing is computed."""
    batch, frames, side = size
    with torch.device("meta"):
        model = make(network, "naive", crop).eval()
        clips = torch.empty(batch, 3, frames, side, side)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(clips)
    return counter.get_total_flops()


def in_process(function: Callable, *args):
    """``function(*args)`` in a process of its own, so that this one starts no threads and no GPU."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, args)


def matrix_peak(options: argparse.Namespace) -> float:
    """Floating-point operations per second of the best of several large matrix products."""
    torch.set_num_threads(options.threads)
    side = 8192 if options.device == "cuda" else 2048
    dtype = DTYPES[options.dtype] or torch.float32
    a, b = (torch.randn(side, side, device=options.device).to(dtype) for _ in range(2))
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    best = float("inf")
    for _ in range(6):
        start = clock()
        a @ b
        if options.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 2 * side**3 / best


# channels, frames, side, stride of X3D-M's middle convolutions, all 3 x 3 x 3
DEPTHWISE = [(54, 16, 112, 2), (54, 16, 56, 1), (108, 16, 28, 1), (216, 16, 14, 1), (432, 16, 7, 1)]


def time_depthwise(options: argparse.Namespace) -> list[str]:
    """Rows of a table: forward and backward of X3D's depthwise convolution in each form, in milliseconds."""
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype] or torch.float32
    last = torch.channels_last_3d
    lines = [
        "| channels, frames, side, stride | conv3d NCDHW | conv3d channels last | sum of 2-D |",
        "|---|---|---|---|",
    ]

    def sum_of_planes(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        frames = x.permute(0, 2, 1, 3, 4).flatten(0, 1)  # [B*T, C, H, W]
        batch, length = x.shape[0], x.shape[2]
        total = 0.0
        for step in range(3):
            y = F.conv2d(frames, weight[:, :, step], None, stride, 1, 1, len(weight)).unflatten(0, (batch, length))
            total = total + F.pad(y, (0, 0, 0, 0, 0, 0, 1, 1))[:, step : step + length]
        return total.transpose(1, 2)

    for channels, length, side, stride in DEPTHWISE:
        shape = (options.batch or 1, channels, length, side, side)
        x = torch.randn(shape, device=options.device, dtype=dtype).requires_grad_()
        weight = torch.randn(channels, 1, 3, 3, 3, device=options.device, dtype=dtype).requires_grad_()
        steps = (1, stride, stride)
        x_last = x.detach().contiguous(memory_format=last).requires_grad_()
        forms = [
            lambda x=x, w=weight, s=steps: F.conv3d(x, w, None, s, 1, 1, len(w)),
            lambda x=x_last, w=weight, s=steps: F.conv3d(x, w, None, s, 1, 1, len(w)),
            lambda x=x, w=weight, s=stride: sum_of_planes(x, w, s),
        ]
        times = [[] for _ in forms]
        for _ in range(options.rounds + 1):
            for taken, form in zip(times, forms, strict=True):
                start = time.perf_counter()
                form().sum().backward()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                taken.append(1e3 * (time.perf_counter() - start))
        cells = " | ".join(f"{statistics.median(taken[1:]):.2f}" for taken in times)
        lines.append(f"| {channels}, {length}, {side}, {stride} | {cells} |")
    return lines


def describe_machine(options: argparse.Namespace) -> str:
    """What computes, with how many threads, in which type."""
    if options.device == "cuda":
        what = in_process(torch.cuda.get_device_name)
    else:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        what = f"{names[0].split(': ')[1] if names else platform.processor()}, {options.threads} thread(s)"
    compiled = ", compiled" if options.compile else ""
    return f"{what}, {options.dtype}{compiled}, PyTorch {torch.__version__}"


HEADER = [
    "| network | step | naive, ms | peer, ms | ours, ms | naive / ours | wanted | peer / ours | naive, MB | peer, MB "
    "| ours, MB | ours, of peak |",
    "|---" * 12 + "|",
]


def table_rows(title: str, network: Network, options: argparse.Namespace, peak: float) -> tuple[list[str], bool]:
    """The two lines of one network, and whether every form ran; if one did not, a note says why."""
    print(f"{title} ", end="", flush=True)
    check_logits(network, options)
    seconds, memory, size, errors = measure(network, options)
    flops = in_process(count_flops, network, size, options.crop)
    batch, frames, side = size
    rows = []
    for step in STEPS:
        turns = {form: seconds.get((step, form)) for form in FORMS}
        taken = {form: statistics.median(values) if values else None for form, values in turns.items()}
        ours = taken["ours"]
        target = network.training_target if step == "training" else INFERENCE_TARGET
        share = flops * (3 if step == "training" else 1) / ours / peak if ours else None
        cells = [
            f"{title}, {batch} x {frames} x {side}²" if step == STEPS[0] else "",
            step,
            *(show(taken[form] and 1e3 * taken[form], ".0f") for form in FORMS),
            show(ratio(turns["naive"], turns["ours"]), ".2f"),
            show(target, ".1f"),
            show(ratio(turns["peer"], turns["ours"]), ".2f"),
            *(show(memory.get((step, form)), ".0f") for form in FORMS),
            show(share and 100 * share, ".0f", " %"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    for (step, form), error in errors.items():
        print(f"{title}, {step}, {form}: {type(error).__name__}: {error}", file=sys.stderr)
    return rows, not errors


def show(value: float | None, pattern: str, unit: str = "") -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:{pattern}}{unit}"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=DTYPES, help="bf16 and fp16 by autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile of every form")
    parser.add_argument("--batch", type=int, help="clips; default: what the table states")
    parser.add_argument("--crop", type=int, help="pixels of a side; default: the configuration's training crop")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=("wall", "processor"), help="processor: on a busy machine")
    parser.add_argument("--depthwise", action="store_true", help="only X3D's depthwise convolution in its forms")
    parser.add_argument("--together", action="store_true", help="train and score in the same process")
    parser.add_argument("--table", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    machine = describe_machine(options)
    print(machine)
    all_ran = True
    if options.depthwise:
        lines = in_process(time_depthwise, options)
        print("\n".join(lines))
    else:
        peak = in_process(matrix_peak, options)
        machine += f". Matrix product: {peak / 1e9:.0f} GFLOPS"
        print(machine)
        lines = list(HEADER)
        for title, network in NETWORKS.items():
            if options.only in title:
                rows, is_whole = table_rows(title, network, options, peak)
                lines += rows
                all_ran &= is_whole
        print("\n".join(["", *lines]))
    if options.table:
        command = " ".join(["python", "benchmarks/models.py", *sys.argv[1:]])
        title = "# Speed and memory of the networks"
        options.table.write_text("\n".join([title, "", f"`{command}`: {machine}.", "", *lines, ""]))
    if not all_ran:
        raise SystemExit("a form of a network failed, see above")


if __name__ == "__main__":
    main()
