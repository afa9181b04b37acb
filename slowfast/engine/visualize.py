"""The visualisation job: what a network's weights, activations, clips, mistakes and classes look like.

Everything goes into ``OUTPUT_DIR/visualization`` (pictures, and one page with all of them) and to TensorBoard.
"""

import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slowfast.checkpoint import build_test_plan, carry_out
from slowfast.datasets import build_dataset
from slowfast.datasets.batch import Batch, Request, collate
from slowfast.datasets.transforms.presets import Normalize
from slowfast.engine.launch import get_device
from slowfast.engine.run import log_start
from slowfast.models import build_model
from slowfast.tasks import Task, build_task
from slowfast.tasks.base import task_name
from slowfast.utils import distributed
from slowfast.utils.logging import setup_logging
from slowfast.visualization import plots, sheets
from slowfast.visualization.class_names import build_class_names
from slowfast.visualization.gallery import Gallery, write_labels
from slowfast.visualization.gradcam import (
    ROLLOUT,
    Explanation,
    default_layers,
    explain,
    pathway_frames,
)
from slowfast.visualization.layers import LayerChoice, find_layers, picture, recorded, weight_tensors
from slowfast.visualization.reconstruction import to_pixels
from slowfast.visualization.result_pickle import read_pickle
from slowfast.visualization.results import count_confusions, read_job
from slowfast.visualization.tensorboard import ClassPlots, build_tensorboard, class_figures, read_subset

logger = logging.getLogger(__name__)

FOLDER = "visualization"


@dataclass(frozen=True)
class Colours:
    """How a clip was normalised, and the colour maps that are drawn with."""

    mean: Sequence[float]
    std: Sequence[float]
    reverse_channels: bool
    labels: str = "Pastel2"
    maps: str = "viridis"

    def frames(self, clip: Tensor) -> np.ndarray:
        """[C, T, H, W] as the network is fed -> uint8 [T, H, W, 3]."""
        return to_pixels(clip, self.mean, self.std, reverse_channels=self.reverse_channels).cpu().numpy()


@dataclass(frozen=True)
class Viewer:
    """A network and what is needed to show what it makes of clips."""

    network: nn.Module
    task: Task
    class_names: Sequence[str]
    colours: Colours
    topk: int
    explains: bool
    gradcam_layers: Sequence[str] | None
    true_label: bool

    @property
    def scores_boxes(self) -> bool:
        """Whether boxes rather than clips are classified."""
        return hasattr(self.task, "truth")

    def explained(self, batch: Batch, target: int | None = None) -> Explanation | None:
        """Where the network sees a class in the one clip of ``batch``; the predicted class where none is given."""
        return explain(self.network, batch.clips, target, self.gradcam_layers) if self.explains else None


def visualize(cfg) -> Path | None:
    """Show what ``TENSORBOARD.MODEL_VIS`` and ``TENSORBOARD.WRONG_PRED_VIS`` ask for; the path of the page.

    Clips are those of the test's list, one view of each: the middle one. Weights are those that are tested. Only the
    first process works.
    """
    if not distributed.is_main_process():
        return None
    setup_logging(cfg.OUTPUT_DIR, rank=0)
    refuse_other_tasks(task_name(cfg))
    torch.manual_seed(cfg.RNG_SEED)
    device, network, task = get_device(), build_model(cfg), build_task(cfg)
    started = carry_out(build_test_plan(cfg), network)
    log_start(started)
    network.eval().to(device)
    vis, wrong = cfg.TENSORBOARD.MODEL_VIS, cfg.TENSORBOARD.WRONG_PRED_VIS
    dataset = build_shown_dataset(cfg)
    viewer = build_viewer(cfg, network, task, dataset, checkpoint=started.path or "")
    choices = [LayerChoice.parse(text) for text in vis.LAYER_LIST]
    layers = find_layers(network, choices)
    subset = read_subset(wrong.SUBSET_PATH, viewer.class_names) if wrong.SUBSET_PATH else None
    board = build_tensorboard(cfg)
    gallery = Gallery(Path(cfg.OUTPUT_DIR) / FOLDER, board)
    if board is not None and board.class_plots is not None and not viewer.scores_boxes:
        show_classes(gallery, board.class_plots, Path(cfg.OUTPUT_DIR), cfg.TENSORBOARD.PREDICTIONS_PATH)
    if vis.ENABLE and vis.MODEL_WEIGHTS:
        show_weights(gallery, layers)
    if vis.ENABLE and (vis.ACTIVATIONS or vis.INPUT_VIDEO or viewer.explains):
        activations = choices if vis.ACTIVATIONS else []
        for number, batch in enumerate(clips_of(dataset, vis.MAX_CLIPS, device)):
            show_input(gallery, viewer, batch, number, activations, layers, with_clip=vis.INPUT_VIDEO)
    if wrong.ENABLE and viewer.scores_boxes:
        logger.warning("TENSORBOARD.WRONG_PRED_VIS: boxes have any number of classes, so none is simply wrong")
    elif wrong.ENABLE:
        found = show_mistakes(gallery, viewer, clips_of(dataset, 0, device), wrong.TAG, subset, wrong.MAX_CLIPS)
        logger.info(f"{found} clips that are classified wrongly are shown")
    path = gallery.close(f"Inside {type(network).__name__}", f"{cfg.TEST.DATASET}, {started.note}")
    logger.info(f"the visualisation is in {path.parent}, all of it on {path}")
    return path


def refuse_other_tasks(name: str) -> None:
    """``ValueError`` for the name of a task that gives no scores of classes."""
    if name not in ("Classification", "Detection"):
        raise ValueError(
            f"TENSORBOARD.MODEL_VIS and TENSORBOARD.WRONG_PRED_VIS show what is classified, but the task is {name}: "
            "switch them off"
        )


def build_viewer(cfg, network: nn.Module, task: Task, dataset: Any, *, checkpoint: str = "") -> Viewer:
    """What ``TENSORBOARD.MODEL_VIS`` says about looking at clips of ``dataset``; ``checkpoint`` names the classes."""
    vis, data = cfg.TENSORBOARD.MODEL_VIS, cfg.DATA
    # A data set of the user's may know nothing of this; then clips are normalised as the keys say.
    named = Normalize(tuple(data.MEAN), tuple(data.STD), data.REVERSE_INPUT_CHANNEL)
    used = getattr(getattr(dataset, "transform", None), "normalize", named)
    if cfg.DETECTION.ENABLE:
        names = [task.truth.class_names.get(index + 1, str(index + 1)) for index in range(cfg.MODEL.NUM_CLASSES)]
    else:
        names = build_class_names(cfg, folders=[cfg.OUTPUT_DIR], checkpoint=checkpoint)
    gradcam_layers = list(vis.GRAD_CAM.LAYER_LIST) or None
    explains = vis.GRAD_CAM.ENABLE and not cfg.DETECTION.ENABLE
    if explains and gradcam_layers is None:
        try:
            default_layers(network)
        except ValueError as error:  # of a network of the user's
            logger.warning(f"TENSORBOARD.MODEL_VIS.GRAD_CAM is left out: {error} (GRAD_CAM.LAYER_LIST)")
            explains = False
    return Viewer(
        network,
        task,
        names,
        Colours(used.mean, used.std, used.reverse_channels, vis.COLORMAP, vis.GRAD_CAM.COLORMAP),
        topk=vis.TOPK_PREDS,
        explains=explains,
        gradcam_layers=gradcam_layers,
        true_label=vis.GRAD_CAM.USE_TRUE_LABEL,
    )


def build_shown_dataset(cfg) -> Any:
    """The data set of the test with one view of each video."""
    one = cfg.clone()
    one.defrost()
    one.TEST.NUM_ENSEMBLE_VIEWS = one.TEST.NUM_SPATIAL_CROPS = 1
    one.freeze()
    return build_dataset(cfg.TEST.DATASET, one, "test")


def clips_of(dataset: Any, count: int, device: torch.device) -> Iterator[Batch]:
    """Batches of one clip each, ``count`` of them spread evenly over the data set.

    All of them for 0, in an order that soon has been everywhere: lists are often sorted by class.
    """
    rows = range(len(dataset))
    if 0 < count < len(dataset):
        rows = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
    elif not count:
        rows = np.random.default_rng(0).permutation(len(dataset)).tolist()
    for row in rows:
        batch = collate([dataset[Request(row, 0)]])
        for video in batch.bad:
            logger.warning(f"{video.path}: {video.reason}; it is left out")
        if len(batch):
            yield batch.to(device)


# ---------------------------------------------------------------- what is shown


def show_classes(gallery: Gallery, options: ClassPlots, output_dir: Path, predictions: str) -> None:
    """Confusion matrices and histograms, of the pickle ``predictions`` or, without one, of the test in the folder."""
    num_classes = len(options.class_names)
    if predictions:
        path = predictions if Path(predictions).is_file() else output_dir / predictions
        try:
            scores, labels = read_pickle(path)
        except (pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
            raise ValueError(f"TENSORBOARD.PREDICTIONS_PATH={predictions!r} cannot be read: {error}") from error
        if scores.shape[1] != num_classes:
            raise ValueError(
                f"TENSORBOARD.PREDICTIONS_PATH={predictions!r} has {scores.shape[1]} classes, the network {num_classes}"
            )
        labels = labels.argmax(1) if labels.ndim == 2 else labels
        counts = count_confusions(labels, scores.argmax(1), num_classes)
    else:
        test = read_job(output_dir).main_test
        if test is None or test.multi_label or test.num_classes != num_classes:
            logger.warning("no confusion matrix: TENSORBOARD.PREDICTIONS_PATH is empty and there is no test to take")
            return
        counts = test.counts
    for tag, figure in class_figures(options, counts):
        group, _, name = tag.rpartition("/")
        gallery.add_figure("Classes", group, name, figure, tag=tag)


def show_weights(gallery: Gallery, layers: dict[str, nn.Module]) -> None:
    """The weights of each layer in grey."""
    for name, layer in layers.items():
        tensors = weight_tensors(layer)
        if not tensors:
            gallery.add_note("Weights", "", f"{name} has no weights of its own: name a layer within it")
        for kind, tensor in tensors.items():
            text = name if kind == "weight" else f"{name} {kind}"
            tag = f"Layer Weights/{text.replace('.', '/')}"
            gallery.add_picture("Weights", "", f"{text} {list(tensor.shape)}", picture(tensor, "gray"), tag=tag)


def show_input(
    gallery: Gallery,
    viewer: Viewer,
    batch: Batch,
    number: int,
    activations: Sequence[LayerChoice],
    layers: dict[str, nn.Module],
    *,
    with_clip: bool,
) -> None:
    """One clip: what layers make of it, the clip with its predictions, and where they come from."""
    watched = {choice.name: layers[choice.name] for choice in activations}
    with recorded(watched) as kept, torch.no_grad():
        scores = viewer.task.predict(viewer.network, batch).float().cpu()
    subject = f"Input {number}"
    for choice in activations:
        outputs = kept.get(choice.name, [])
        for part, output in enumerate(outputs):
            text = choice.name if len(outputs) == 1 else f"{choice.name} {part}"
            shown = picture(choice.select(output[0]))
            tag = f"{subject}/Activations: {text.replace('.', '/')}"
            gallery.add_picture("Activations", subject, f"{text} {list(output[0].shape)}", shown, tag=tag)
    if viewer.scores_boxes:
        if with_clip:
            show_boxes(gallery, viewer, batch, scores, subject)
        return
    true = true_classes(batch)
    explanation = viewer.explained(batch, true[0] if viewer.true_label and true else None)
    if with_clip or explanation is not None:
        show_clip(gallery, viewer, batch, scores[0], explanation, subject, "Clips", with_clip=with_clip)


def show_clip(
    gallery: Gallery,
    viewer: Viewer,
    batch: Batch,
    scores: Tensor,
    explanation: Explanation | None,
    subject: str,
    section: str,
    *,
    with_clip: bool = True,
    tag: str = "",
    caption: str = "",
) -> None:
    """The sheet of one clip, and an animation of each pathway with its best predictions written on it.

    ``tag`` names the animations of pathways, "{}" stands for the number from 0; by default as the original does.
    """
    frames = viewer.colours.frames(batch.clips[0])
    true = true_classes(batch)
    guesses = sheets.best_shares(scores, viewer.class_names, viewer.topk, true)
    best = scores.topk(min(viewer.topk, len(scores)))
    labels = [
        (f"[{score:.2f}] {viewer.class_names[index]}", index / len(scores))
        for score, index in zip(best.values.tolist(), best.indices.tolist())
    ]
    truth = ", ".join(viewer.class_names[index] for index in true) or "no class"
    rows = [sheets.Row("clip", list(frames[sheets.spread(len(frames))]))]
    if explanation is not None:
        rows = sheets.explained_rows(frames, explanation, colormap=viewer.colours.maps)
    heading = f"{caption or subject}: {truth}"
    if explanation is not None:
        heading += f"; maps of {viewer.class_names[explanation.targets[0]]}"
    gallery.add_figure(section, subject, "", sheets.sheet(rows, guesses, heading=heading))
    if with_clip:
        for place, (pathway, indices) in enumerate(pathway_frames(viewer.network, len(frames)).items()):
            drawn = write_labels(frames[list(indices)], labels, colormap=viewer.colours.labels)
            shown = tag.format(place) if tag else f"{subject}/Pathway {place + 1}"
            gallery.add_animation(section, subject, pathway, drawn, tag=shown)
    if explanation is not None and not tag:
        explained = sheets.explained_frames(frames, explanation, colormap=viewer.colours.maps)
        for place, (pathway, pictures) in enumerate(explained.items()):
            drawn = write_labels(pictures, labels, colormap=viewer.colours.labels)
            shown = "Attention roll-out" if pathway == ROLLOUT else f"Pathway {place + 1}, Grad-CAM"
            gallery.add_animation(section, subject, f"{pathway} explained", drawn, tag=f"{subject}/{shown}")


def show_mistakes(
    gallery: Gallery, viewer: Viewer, clips: Iterator[Batch], tag: str, subset: Sequence[int] | None, most: int
) -> int:
    """Clips whose best class is not a true one (of ``subset``, where that is given), ``most`` of them; how many."""
    found = 0
    for batch in clips:
        true = true_classes(batch)
        if subset is not None and not set(true) & set(subset):
            continue
        with torch.no_grad():
            scores = viewer.task.predict(viewer.network, batch).float().cpu()[0]
        if int(scores.argmax()) in true:
            continue
        truth = ", ".join(viewer.class_names[index] for index in true) or "no class"
        show_clip(
            gallery,
            viewer,
            batch,
            scores,
            viewer.explained(batch),
            f"Video {found}",
            "Misclassified",
            tag=f"{tag}/Video {found}, Pathway {{}}: {truth}",
            caption=f"row {int(batch.index[0])} of the list",
        )
        found += 1
        if found == most:
            break
    if not found:
        gallery.add_note("Misclassified", "", "None of the clips that were looked at is classified wrongly.")
    return found


def show_boxes(gallery: Gallery, viewer: Viewer, batch: Batch, scores: Tensor, subject: str) -> None:
    """The key frame with its boxes and their best classes, and the clip as an animation."""
    clip = batch.clips[0]
    frames = viewer.colours.frames(clip)
    height, width = frames.shape[1:3]
    scale = torch.tensor([width, height, width, height])
    found, true = [], []
    for box, row, labels in zip(batch.boxes[:, 1:].cpu() / scale, scores, batch.labels.cpu()):
        best = row.topk(min(viewer.topk, len(row)))
        lines = [f"[{s:.2f}] {viewer.class_names[i]}" for s, i in zip(best.values.tolist(), best.indices.tolist())]
        found.append((box.tolist(), "\n".join(lines)))
        names = [viewer.class_names[index] for index in labels.nonzero().flatten().tolist()]
        if names:
            true.append((box.tolist(), "\n".join(names)))
    boxed = plots.BoxedFrame(frames[len(frames) // 2], found, true)
    figure = plots.boxed_frames([boxed], [f"{subject}, key frame"], width=7.0)
    gallery.add_figure("Clips", subject, "", figure, tag=f"{subject}/Key frame")
    for place, (pathway, indices) in enumerate(pathway_frames(viewer.network, len(frames)).items()):
        gallery.add_animation(
            "Clips", subject, pathway, list(frames[list(indices)]), tag=f"{subject}/Pathway {place + 1}"
        )


def true_classes(batch: Batch) -> list[int]:
    """The classes of the first clip of a batch."""
    label = batch.labels[0].cpu()
    return label.nonzero().flatten().tolist() if label.ndim else [int(label)]
