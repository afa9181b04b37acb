"""The checks of a preflight, from plain values to findings: each names what is wrong and what to do about it.

Nothing here builds a network or reads a video; ``slowfast.engine.preflight`` gathers the values.
"""

import importlib
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Level = Literal["ok", "note", "warning", "problem"]

# Module -> what installs it.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "av": "av",
    "pytorchvideo": "pytorchvideo",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "psutil": "psutil",
}
GIB = 1024**3
LESS_MEMORY = (
    "TRAIN.ACCUMULATION_STEPS 2 (the same update in parts), TRAIN.MIXED_PRECISION True, MODEL.ACT_CHECKPOINT True "
    "(MViT), a smaller TRAIN.BATCH_SIZE with its SOLVER.BASE_LR, or MODEL.FSDP"
)
# Bytes of /dev/shm for each worker below which batches of video clips will hardly fit.
_LITTLE_SHARED_MEMORY = 64 * 1024**2


@dataclass(frozen=True)
class Found:
    """One line of a preflight. A ``problem`` stops or spoils the job; ``remedy`` says what to do."""

    topic: str
    level: Level
    text: str
    remedy: str = ""

    def lines(self, width: int = 118) -> str:
        """The finding as text below the heading of its topic."""
        head = f"  {self.level.upper() if self.level == 'problem' else self.level:<8}"
        body = [part for line in self.text.splitlines() for part in textwrap.wrap(line, width - 10) or [""]]
        remedy = textwrap.wrap(self.remedy, width - 13)
        text = [head + body[0], *(" " * 10 + line for line in body[1:])]
        text += [" " * 10 + ("-> " if number == 0 else "   ") + line for number, line in enumerate(remedy)]
        return "\n".join(text)


# ---------------------------------------------------------------- environment


def check_packages(
    packages: Mapping[str, str] = PACKAGES, load: Callable[[str], object] = importlib.import_module
) -> list[Found]:
    """Whether everything that is needed can be imported, with the versions found."""
    versions, found = [], []
    for module, package in packages.items():
        try:
            versions.append(f"{module} {getattr(load(module), '__version__', '?')}")
        except ImportError as error:
            found.append(Found("environment", "problem", f"{module}: {error}", f"python -m pip install {package}"))
    return [Found("environment", "ok", ", ".join(versions)), *found]


def check_import_path(search_path: Iterable[str], package: str | os.PathLike) -> list[Found]:
    """Whether the folder of the package itself stands in ``search_path``, where its parent should."""
    inside = os.path.realpath(package)
    return [
        Found(
            "environment",
            "problem",
            f"the import path has {entry}, which is the package itself: its folders would hide other packages",
            f"set PYTHONPATH to {os.path.dirname(inside)}, or unset it after `python -m pip install -e .`",
        )
        for entry in search_path
        if entry and os.path.realpath(entry) == inside
    ]


def check_devices(num_gpus: int, visible: int, names: Sequence[str], built_for: str | None, cores: int) -> list[Found]:
    """``num_gpus`` asked for, ``visible`` ones and what they are called; ``built_for`` is PyTorch's CUDA, if any."""
    if visible and num_gpus > visible:
        remedy = f"NUM_GPUS {visible}, or make more visible (CUDA_VISIBLE_DEVICES)"
        return [Found("environment", "problem", f"NUM_GPUS={num_gpus}, but {visible} GPUs are visible", remedy)]
    if visible:
        used = f"{max(num_gpus, 1)} of {visible} GPUs: {', '.join(sorted(set(names)))}, CUDA {built_for}"
        return [Found("environment", "ok", used)]
    if not num_gpus:
        return [Found("environment", "ok", f"the CPU ({cores} cores), as NUM_GPUS=0 asks")]
    why = "this build of PyTorch has no CUDA" if built_for is None else f"CUDA {built_for} sees none (the driver?)"
    remedy = "install a CUDA build of PyTorch and a driver for it (nvidia-smi), or set NUM_GPUS 0"
    return [Found("environment", "warning", f"NUM_GPUS={num_gpus}, but no GPU: {why}; the CPU computes", remedy)]


def check_processes(
    num_shards: int, init_method: str | None, *, launched_by_torchrun: bool, num_gpus: int = 0, local: int | None = None
) -> list[Found]:
    """Whether the processes of several machines would find each other; ``local`` is torchrun's number per machine."""
    topic = "processes"
    if launched_by_torchrun:
        if local is not None and max(num_gpus, 1) != local:
            text = f"torchrun starts {local} processes per machine, NUM_GPUS says {num_gpus}; torchrun decides"
            return [Found(topic, "warning", text, f"torchrun --nproc-per-node {max(num_gpus, 1)}, or NUM_GPUS {local}")]
        return [Found(topic, "ok", "started by torchrun, which knows the other machines")]
    if num_shards == 1:
        return [Found(topic, "ok", f"{max(num_gpus, 1)} on one machine")]
    how = "start each machine with --shard_id I --init_method tcp://FIRST_MACHINE:PORT, or use torchrun"
    how += " (docs/multi-node.md)"
    if init_method is None:
        text = f"NUM_SHARDS={num_shards} machines, and nothing says where they meet: they would wait for each other"
        return [Found(topic, "problem", text, how)]
    if any(word in init_method for word in ("//localhost", "//127.", "//[::1]")):
        text = f"--init_method {init_method}: each of the {num_shards} machines would wait for the others on itself"
        return [Found(topic, "problem", text, how)]
    return [Found(topic, "ok", f"{num_shards} machines meet at {init_method}")]


def check_workers(workers: int, processes: int, cores: int, shared_memory: int | None) -> list[Found]:
    """Loader workers of each process against the cores and the bytes of shared memory of the machine."""
    topic = "loading"
    if workers == 0:
        text = "DATA_LOADER.NUM_WORKERS=0: each step waits until its videos are decoded, and a crash ends the job"
        return [Found(topic, "warning", text, f"DATA_LOADER.NUM_WORKERS {max(1, cores // processes)}")]
    found = []
    own = max(1, cores // processes)
    if workers > own:
        text = f"DATA_LOADER.NUM_WORKERS={workers} for each of {processes} processes, {cores} cores: {own} are used"
        found.append(Found(topic, "note", text))
    if shared_memory is not None and shared_memory < _LITTLE_SHARED_MEMORY * processes * min(workers, own):
        text = f"/dev/shm has {shared_memory / 1024**2:.0f} MiB, in which workers hand batches on: a bus error is near"
        found.append(Found(topic, "problem", text, "docker run --shm-size 16g (or --ipc host), or fewer NUM_WORKERS"))
    return found or [Found(topic, "ok", f"{workers} workers for each of {processes} processes, {cores} cores")]


# ---------------------------------------------------------------- paths and lists

_LIST_REMEDIES = {
    "list": "set DATA.PATH_TO_DATA_DIR to the folder of the lists; correct the lines, or say what separates path and "
    "label: DATA.PATH_LABEL_SEPARATOR (docs/datasets.md shows every format); class ids begin with 0 and end below "
    "MODEL.NUM_CLASSES",
    "missing": "DATA.PATH_PREFIX goes before each path of a list: set it to the folder of the videos",
    "undecodable": "python tools/prepare_videos.py re-encodes what can be saved; training replaces and counts the "
    "rest, TEST.SKIP_BAD_VIDEOS True leaves them out of a test",
    "damaged": "python tools/prepare_videos.py re-encodes them",
    "duplicate": "take repeated rows out of the list, unless they are meant",
    "leak": "take them out of one of the lists: results on them mean nothing",
    "classes": "set MODEL.NUM_CLASSES to the number of classes of the lists, or complete the lists",
}


class DataFinding(NamedTuple):
    """What was found about the data: several of one kind are one line."""

    level: str  # error, warning
    kind: str
    text: str


def check_data(findings: Iterable[DataFinding], classes_key: str = "MODEL.NUM_CLASSES") -> list[Found]:
    """Findings of ``slowfast.datasets.check``, one line per kind with the first few of them and the remedy.

    ``classes_key`` holds the number of classes of the lists.
    """
    by_kind: dict[tuple[str, str], list[str]] = {}
    for one in findings:
        by_kind.setdefault((one.level, one.kind), []).append(one.text)
    rows = []
    for (level, kind), texts in by_kind.items():
        more = [f"and {len(texts) - 3} more"] if len(texts) > 3 else []
        text = "\n".join([f"{kind} ({len(texts)}):", *texts[:3], *more])
        texts = [text.replace("MODEL.NUM_CLASSES", classes_key) for text in (text, _LIST_REMEDIES.get(kind, ""))]
        rows.append(Found("data", "problem" if level == "error" else "warning", *texts))
    return rows


def check_output(folder: str | os.PathLike, needed: int, free: int) -> list[Found]:
    """Whether checkpoints of ``needed`` bytes in all can be written to ``folder``, where ``free`` bytes are left."""
    parent = Path(folder).absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return [Found("output", "problem", f"OUTPUT_DIR={folder} cannot be written ({parent})", "set OUTPUT_DIR")]
    size = f"{needed / GIB:.2f} GiB of checkpoints, {free / GIB:.1f} GiB free in OUTPUT_DIR={folder}"
    if needed > free:
        remedy = "TRAIN.CHECKPOINT_KEEP 3 keeps the newest only; TRAIN.CHECKPOINT_PERIOD makes them rarer"
        return [Found("output", "problem", size, remedy)]
    return [Found("output", "ok", size)]


# ---------------------------------------------------------------- numbers


class Recipe(NamedTuple):
    """What a learning rate was chosen for."""

    batch: int  # clips of a step on one machine (TRAIN.BATCH_SIZE)
    rate: float


def check_batch(
    *, batch: int, processes: int, shards: int, accumulation: int, rate: float, clips: int, published: Recipe | None
) -> list[Found]:
    """How many clips make a step, and whether the learning rate belongs to that many.

    ``batch`` is that of one machine; ``published`` the file's own, before options changed it; ``rate`` is the
    learning rate as it will be used; ``clips`` those of an epoch.
    """
    topic = "batch"
    together = batch * shards
    if batch < processes:
        text = f"TRAIN.BATCH_SIZE={batch} for {processes} processes: less than one clip for each"
        return [Found(topic, "problem", text, f"TRAIN.BATCH_SIZE {processes} or a multiple, or a lower NUM_GPUS")]
    text = f"{together} clips per step"
    if processes * shards > 1:
        text += f" = {shards} machines x {processes} processes x {batch // processes}"
    if accumulation > 1:
        text += f", in {accumulation} parts of {max(batch // processes // accumulation, 1)}"
    found = [Found(topic, "ok", f"{text}; SOLVER.BASE_LR {rate:g}")]
    if clips < together:
        text = f"an epoch has {clips} clips, a step {together}: there is not one whole step"
        return [*found, Found(topic, "problem", text, f"TRAIN.BATCH_SIZE {max(clips // shards, 1)} or less")]
    if published is not None and together != published.batch:
        scaled = published.rate * together / published.batch
        if not 0.75 < rate / scaled < 1.34:
            text = (
                f"SOLVER.BASE_LR={rate:g}, but the file has {published.rate:g} for {published.batch} clips per step, "
                f"and here there are {together}"
            )
            remedy = f"scale both alike: SOLVER.BASE_LR {scaled:g}"
            remedy += " (SOLVER.BASE_LR_SCALE_NUM_SHARDS True does it for machines)" if shards > 1 else ""
            found.append(Found(topic, "warning", f"{text}: accuracy will differ from the recipe's", remedy))
    return found


def check_norm(*, has_batch_norm: bool, clips: int, norm: str, frozen: bool) -> list[Found]:
    """Whether a process has enough clips for the statistics of batch norm."""
    if not has_batch_norm or frozen or norm == "sync_batchnorm" or clips >= 4:
        return []
    text = f"batch norm takes its statistics from {clips} clip{'s' * (clips > 1)} per process: they are very noisy"
    remedy = "more clips per process, BN.NORM_TYPE sync_batchnorm, or, to fine-tune, MODEL.FROZEN_BN True"
    return [Found("batch", "warning", text, remedy)]


def check_labels(
    *, multi_label: bool, loss: str, activation: str, ensemble: str, classes: int, tests: bool
) -> list[Found]:
    """Whether loss, head and merging of views belong to the kind of labels."""
    topic, found = "labels", []
    if multi_label and loss not in ("bce", "bce_logit"):
        text = f"DATA.MULTI_LABEL=True with MODEL.LOSS_FUNC={loss}, which takes one class per clip"
        found.append(Found(topic, "problem", text, "MODEL.LOSS_FUNC bce_logit MODEL.HEAD_ACT sigmoid"))
    if multi_label and activation == "softmax":
        text = "DATA.MULTI_LABEL=True with MODEL.HEAD_ACT=softmax: the classes of a clip would compete"
        found.append(Found(topic, "problem", text, "MODEL.HEAD_ACT sigmoid"))
    if multi_label and tests and ensemble == "sum":
        text = "DATA.ENSEMBLE_METHOD=sum with several labels: an action that fills one view is averaged away"
        found.append(Found(topic, "warning", text, "DATA.ENSEMBLE_METHOD max, as the recipes of Charades have it"))
    if not multi_label and classes <= 5:
        text = f"{classes} classes: top-5 is always right; look at top-1, and at the report for each class"
        found.append(Found(topic, "note", text))
    return found or [Found(topic, "ok", f"{classes} classes, {'several' if multi_label else 'one'} per clip, {loss}")]


def check_memory(needed: int, available: int, *, where: str, measured: bool) -> list[Found]:
    """Bytes that the training needs on ``where`` ("the GPU") against those there are."""
    how = "measured" if measured else "estimated"
    text = f"{needed / GIB:.2f} GiB {how} for a training process, {where} has {available / GIB:.1f} GiB"
    level = "problem" if needed > available else "warning" if needed > 0.9 * available else "ok"
    return [Found("memory", level, text, "" if level == "ok" else LESS_MEMORY)]


def check_start(
    note: str, *, problems: int, loaded: int, table: str, epoch: int, max_epoch: int, resumed: bool
) -> list[Found]:
    """How the start of a training came out: ``note`` says from where, ``problems`` how many weights did not fit."""
    topic, found = "checkpoint", []
    if epoch >= max_epoch:
        text = f"{note}: all {max_epoch} epochs are trained, so nothing will be learnt"
        remedy = "TRAIN.CHECKPOINT_EPOCH_RESET True takes its weights only"
        if resumed:
            remedy = "choose another OUTPUT_DIR, raise SOLVER.MAX_EPOCH, or set TRAIN.AUTO_RESUME False"
        return [Found(topic, "problem" if not resumed else "warning", text, remedy)]
    if problems:
        share = loaded / max(loaded + problems, 1)
        remedy = "a new classifier (head) is meant when fine-tuning; else the file belongs to another network: compare "
        remedy += "MODEL.* of its config (tools/zoo.py lists which config belongs to which weights)"
        level: Level = "warning" if share > 0.5 else "problem"
        found.append(Found(topic, level, f"{note}\n{table}", remedy))
    return found or [Found(topic, "ok", f"{note}{f'; all {loaded} weights fit' if loaded else ''}")]


def check_speed(share_waiting: float, advice: str, text: str) -> list[Found]:
    """``text`` about speed, and ``advice`` where more than a fifth of the time goes by waiting for data."""
    slow = share_waiting > 0.2
    return [Found("speed", "warning" if slow else "ok", text, advice if slow else "")]


def check_idle(idle: Mapping[str, str]) -> list[Found]:
    """Keys that were set and have no effect."""
    found = [Found("keys", "warning", f"{key} has no effect: {reason}", "take it out") for key, reason in idle.items()]
    return found or [Found("keys", "ok", "every key that was set has an effect")]
