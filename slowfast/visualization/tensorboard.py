"""TensorBoard: scalars from ``json_stats`` records, and pictures of how classes are told apart.

Tags are those of the original framework, so that runs of both can be compared in one board.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from slowfast.utils.files import pathmgr
from slowfast.visualization import plots
from slowfast.visualization.results import count_confusions, find_class_names

_SCALARS = {
    "train_iter": {
        "loss": "Train/loss",
        "lr": "Train/lr",
        "top1_err": "Train/Top1_err",
        "top5_err": "Train/Top5_err",
        "grad_norm": "Train/grad_norm",
        "dt": "Train/dt",
        "dt_data": "Train/dt_data",
        "clips_per_s": "Train/clips_per_s",
        "data_wait": "Train/data_wait_percent",
        "gpu_mem_gb": "Train/gpu_memory_GiB",
        "ram_gb": "Train/host_memory_GiB",
    },
    "val_epoch": {"loss": "Val/loss", "top1_err": "Val/Top1_err", "top5_err": "Val/Top5_err", "map": "Val/mAP"},
}


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Tag -> value of what a ``json_stats`` record has to show; errors also as accuracies."""
    kind = str(record.get("_type", ""))
    found: dict[str, float] = {}
    for prefix, tags in _SCALARS.items():
        if kind.startswith(prefix):
            found |= {tag: float(record[key]) for key, tag in tags.items() if isinstance(record.get(key), int | float)}
    errors = {tag: value for tag, value in found.items() if tag.endswith("_err")}
    return found | {tag.replace("_err", "_acc"): 100.0 - value for tag, value in errors.items()}


@dataclass(frozen=True)
class ClassPlots:
    """Which pictures to draw of a table of predictions; sizes in inches, subsets by class id.

    ``confusion_size`` and ``histogram_size`` None leave that kind out. ``parents`` maps the name of a group to its
    classes.
    """

    class_names: Sequence[str]
    confusion_size: tuple[float, float] | None = None
    confusion_subset: Sequence[int] = ()
    parents: Mapping[str, Sequence[int]] = field(default_factory=dict)
    histogram_size: tuple[float, float] | None = None
    histogram_subset: Sequence[int] | None = None
    topk: int = 10


def class_figures(options: ClassPlots, counts: np.ndarray) -> Iterator[tuple[str, Figure]]:
    """Tag and figure of all that ``options`` ask for, from counts [K, K] of confusions, rows true."""
    if options.confusion_size is not None:
        yield from _confusion_figures(options, counts)
    if options.histogram_size is not None:
        yield from _histograms(options, counts)


def _confusion_figures(options: ClassPlots, counts: np.ndarray) -> Iterator[tuple[str, Figure]]:
    """The matrix of all classes, of the subset, and of each group of classes."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wanted = {"Confusion Matrix": range(len(counts)), "Confusion Matrix Subset": options.confusion_subset}
    for parent, children in options.parents.items():
        wanted[f"Confusion Matrices Grouped by Parent Classes/{parent}"] = children
    for tag, classes in wanted.items():
        if len(classes):
            part = shares[np.ix_(classes, classes)]
            names = [options.class_names[index] for index in classes]
            yield tag, plots.confusion_matrix(part, names, size=options.confusion_size, shares=True)


def _histograms(options: ClassPlots, counts: np.ndarray) -> Iterator[tuple[str, Figure]]:
    """For each class, what its videos were most often taken for."""
    classes = range(len(counts)) if options.histogram_subset is None else options.histogram_subset
    for index in classes:
        figure = plots.topk_histogram(
            counts[index], options.class_names, true_class=index, k=options.topk, size=options.histogram_size
        )
        yield f"Top {options.topk} predictions by classes/{options.class_names[index]}", figure


class TensorboardSink:
    """Writes records and pictures into ``log_dir``."""

    def __init__(self, log_dir: str | Path, *, class_plots: ClassPlots | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TENSORBOARD.ENABLE needs TensorBoard: python -m pip install tensorboard") from error
        self.log_dir = Path(log_dir)
        self.class_plots = class_plots
        self._writer = SummaryWriter(str(log_dir))

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """The scalars of one ``json_stats`` record that have a tag; other records and keys are left alone."""
        for tag, value in scalars_of(record).items():
            self._writer.add_scalar(tag, value, step)

    def add_predictions(self, scores: Tensor | np.ndarray, labels: Tensor | np.ndarray, step: int) -> None:
        """Draw what ``class_plots`` asks for.

        ``scores`` [N, K]; ``labels`` [N], or [N, K] if multi-label, of which the first true class counts.
        """
        if self.class_plots is None:
            return
        scores, labels = torch.as_tensor(scores).cpu().numpy(), torch.as_tensor(labels).cpu().numpy()
        if labels.ndim == 2:
            labels = labels.argmax(axis=1)
        counts = count_confusions(labels, scores.argmax(axis=1), scores.shape[1])
        for tag, figure in class_figures(self.class_plots, counts):
            self._writer.add_figure(tag, figure, step)

    def add_figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        """A figure as a picture."""
        self._writer.add_figure(tag, figure, step)

    def add_picture(self, tag: str, picture: np.ndarray, step: int = 0) -> None:
        """A picture, uint8 [H, W, 3]."""
        self._writer.add_image(tag, picture, step, dataformats="HWC")

    def add_gif(self, tag: str, data: bytes, size: tuple[int, int], step: int = 0) -> None:
        """An animation of ``size`` (height, width), given as a GIF file; it stands among the pictures."""
        # NOTE: the writer's own add_video does the same, but wants the package moviepy to make the file.
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=data)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._writer._get_file_writer().add_summary(summary, step)

    def close(self) -> None:
        """Flush and close the log."""
        self._writer.close()


def build_tensorboard(cfg) -> TensorboardSink | None:
    """The sink that ``cfg.TENSORBOARD`` asks for, in ``OUTPUT_DIR``; ``None`` where it is switched off."""
    board = cfg.TENSORBOARD
    if not board.ENABLE:
        return None
    log_dir = Path(cfg.OUTPUT_DIR) / (board.LOG_DIR or f"runs-{cfg.TRAIN.DATASET}")
    if not (board.CONFUSION_MATRIX.ENABLE or board.HISTOGRAM.ENABLE):
        return TensorboardSink(log_dir)
    data = cfg.DATA
    names = find_class_names(
        board.CLASS_NAMES_PATH, data.PATH_TO_DATA_DIR, data.PATH_LABEL_SEPARATOR, cfg.MODEL.NUM_CLASSES
    )
    confusion, histogram = board.CONFUSION_MATRIX, board.HISTOGRAM
    class_plots = ClassPlots(
        class_names=names,
        confusion_size=tuple(confusion.FIGSIZE) if confusion.ENABLE else None,
        confusion_subset=read_subset(confusion.SUBSET_PATH, names) if confusion.SUBSET_PATH else (),
        parents=read_parents(board.CATEGORIES_PATH, names) if board.CATEGORIES_PATH else {},
        histogram_size=tuple(histogram.FIGSIZE) if histogram.ENABLE else None,
        histogram_subset=read_subset(histogram.SUBSET_PATH, names) if histogram.SUBSET_PATH else None,
        topk=histogram.TOPK,
    )
    return TensorboardSink(log_dir, class_plots=class_plots)


def read_subset(path: str, class_names: Sequence[str]) -> list[int]:
    """Class ids of a text file with one name per line; a name that is no class is an error."""
    with pathmgr.open(path) as file:
        return _ids([line.strip() for line in file if line.strip()], class_names, path)


def read_parents(path: str, class_names: Sequence[str]) -> dict[str, list[int]]:
    """Class ids per group from a json file ``{group: [names]}``; names of other data sets are left out."""
    with pathmgr.open(path) as file:
        groups = json.load(file)
    known = set(class_names)
    return {
        group: _ids([name for name in names if name in known], class_names, path) for group, names in groups.items()
    }


def _ids(names: Sequence[str], class_names: Sequence[str], path: str) -> list[int]:
    ids = {name: index for index, name in enumerate(class_names)}
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise ValueError(
            f"{path}: {unknown[0]!r} is not a class (and {len(unknown) - 1} more); names must stand in "
            "TENSORBOARD.CLASS_NAMES_PATH"
        )
    return [ids[name] for name in names]
