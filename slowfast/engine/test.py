"""Testing: every view of every video exactly once, merged per video, on any number of processes."""

import json
import logging
import pickle
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slowfast.checkpoint import build_test_plan, carry_out
from slowfast.datasets import build_dataset, build_loader
from slowfast.engine.detections import save_boxes, write_detections
from slowfast.engine.evaluate import evaluate
from slowfast.engine.interrupt import Watch, dead_workers_named
from slowfast.engine.launch import get_device
from slowfast.engine.output import BadVideoLog, build_names_file, build_recorder, forget_test
from slowfast.engine.run import log_device, log_start, log_summary, share_cores
from slowfast.engine.stats import Record, Recorder, StepTimer
from slowfast.evaluation.ava import FrameMAP
from slowfast.evaluation.ensemble import VideoEnsemble
from slowfast.evaluation.metrics import Metric
from slowfast.models import build_model
from slowfast.models.fold import for_inference
from slowfast.tasks import build_task
from slowfast.utils import distributed
from slowfast.utils.memory import keep_freed_memory
from slowfast.visualization.class_summary import class_summary
from slowfast.visualization.reconstruction import write_reconstructions
from slowfast.visualization.results import read_class_names

logger = logging.getLogger(__name__)

EVERY_VIEW_COUNT = (1, 3, 5, 7, 10)
"""What TEST.NUM_ENSEMBLE_VIEWS -1 stands for."""


def test(cfg) -> dict[str, float]:
    """Test as ``cfg`` says, once per number of temporal clips; the numbers of the last one.

    Where there are several numbers of clips V, ``"VxS/top1_acc"`` and the like hold each one's result too. Leaves in
    ``OUTPUT_DIR``: a ``test_VxS.jsonl`` per number of clips with a line per video (for boxes, the files of
    ``slowfast.engine.detections``), the original's pickle where ``TEST.SAVE_RESULTS_PATH`` asks for it, a
    ``test_final`` record in json_stats.log, bad_videos.csv if any were skipped, and with ``VIS_MASK.ENABLE`` pictures
    of what a masked network predicts. Where the classes have names, class_names.json has them.
    """
    if cfg.VIS_MASK.ENABLE and (not cfg.MASK.ENABLE or cfg.MASK.PRED_HOG):
        raise ValueError("VIS_MASK.ENABLE draws predicted pixels: it needs MASK.ENABLE True and MASK.PRED_HOG False")
    recorder = build_recorder(cfg)
    torch.manual_seed(cfg.RNG_SEED)
    device = get_device()
    share_cores(cfg.DATA_LOADER.NUM_WORKERS)
    if device.type == "cpu":
        keep_freed_memory(large=True)
    log_device(device)
    network, task = build_model(cfg), build_task(cfg)
    if not task.evaluates:
        logger.warning("this task has nothing to test with, as it is configured; see TEST.ENABLE")
        recorder.close()
        return {}
    task.prepare(network, lambda: build_dataset(cfg.TRAIN.DATASET, cfg, "train"))
    started = carry_out(build_test_plan(cfg), network)
    log_start(started)
    network.to(device)
    if cfg.LOG_MODEL_INFO:
        size, boxes = cfg.DATA.TEST_CROP_SIZE, cfg.DETECTION.ENABLE
        log_summary(network, frames=cfg.DATA.NUM_FRAMES, crop_size=size, boxes=boxes)
    if cfg.MODEL.CONV_BACKEND == "auto":
        network = for_inference(network, in_place=True)  # nothing but scores is asked of it from here on
    view_counts = list(cfg.TEST.NUM_TEMPORAL_CLIPS) or [cfg.TEST.NUM_ENSEMBLE_VIEWS]
    if view_counts == [-1]:
        view_counts = list(EVERY_VIEW_COUNT)
    class_names = build_names_file(cfg, checkpoint=started.path or "")
    results: dict[str, float] = {}
    for num_clips in view_counts:
        view_cfg = cfg.clone()
        view_cfg.defrost()
        view_cfg.TEST.NUM_ENSEMBLE_VIEWS = num_clips
        view_cfg.freeze()
        loader = build_loader(view_cfg, "test")
        views = f"{getattr(loader.dataset, 'num_clips', num_clips)}x{getattr(loader.dataset, 'num_crops', 1)}"
        metric, final = test_views(
            network,
            loader,
            task,
            views=views,
            device=device,
            recorder=recorder,
            output_dir=cfg.OUTPUT_DIR,
            log_period=max(cfg.LOG_PERIOD, 1),
            hang_minutes=cfg.TRAIN.HANG_MINUTES,
            class_names=class_names,
        )
        if cfg.TEST.SAVE_RESULTS_PATH and distributed.is_main_process():
            save_pickle(metric, Path(cfg.OUTPUT_DIR) / cfg.TEST.SAVE_RESULTS_PATH)
        if len(view_counts) > 1:
            results.update({f"{views}/{name}": value for name, value in final.items()})
        results.update(final)
    if cfg.VIS_MASK.ENABLE and distributed.is_main_process():
        folder = Path(cfg.OUTPUT_DIR) / "reconstructions"
        colours = {"mean": cfg.DATA.MEAN, "std": cfg.DATA.STD, "reverse_channels": cfg.DATA.REVERSE_INPUT_CHANNEL}
        paths = write_reconstructions(network, loader, folder, device=device, **colours)
        logger.info(f"{len(paths)} pictures of clips, what is hidden of them and what is predicted are in {folder}")
    recorder.close()
    return results


def test_views(
    network: nn.Module,
    loader: Any,
    task: Any,
    *,
    views: str,
    device: torch.device,
    recorder: Recorder,
    output_dir: str | Path,
    log_period: int,
    hang_minutes: float,
    class_names: Sequence[str],
) -> tuple[Metric, dict[str, float]]:
    """Score every video of ``loader`` with all its ``views`` ("10x3"), record and save the result.

    A signal stops it; nothing is kept then, and the same command tests from the beginning.
    """
    timer = StepTimer()
    bad_videos = BadVideoLog(output_dir)
    metric = task.metric("test", loader.dataset)

    def on_bad(bad: list) -> None:
        bad_videos.add(bad)
        metric.skip(entry.index // loader.dataset.num_views for entry in bad)

    with Watch(hang_minutes=hang_minutes) as watch, dead_workers_named():
        evaluate(
            network,
            loader,
            task,
            metric,
            device=device,
            recorder=recorder,
            on_bad=on_bad,
            name=f"test {views}",
            header={"split": "test_iter"},
            log_period=log_period,
            watch=watch,
        )
    bad_videos.flush("test")
    timer.step_done()
    final = metric.compute()
    record = {"split": "test_final", "views": views, **count_tested(metric), "time": timer.step}
    if distributed.is_main_process():
        forget_test(output_dir, views)  # of the same command, killed before it had tested all numbers of views
    recorder.write({**record, **final_strings(final)}, 0)
    show_predictions(metric, recorder)
    if distributed.is_main_process():
        save_test(metric, loader.dataset, Path(output_dir), views)
        describe_classes(metric, class_names)
    return metric, final


# What is counted, shown and saved after a test depends on the kind of metric.


@singledispatch
def count_tested(metric: Metric) -> Record:
    """How much was tested, for the final record."""
    return {}


@singledispatch
def show_predictions(metric: Metric, recorder: Recorder) -> None:
    """Hand the predictions to TensorBoard and its like, where they have a picture for them."""


@singledispatch
def save_test(metric: Metric, dataset: Any, folder: Path, views: str) -> None:
    """Write the results of every video into ``folder``."""


@singledispatch
def describe_classes(metric: Metric, class_names: Sequence[str]) -> None:
    """Log how the classes fared, where the metric tells them apart and ``save_test`` has not done so."""


@singledispatch
def save_pickle(metric: Metric, path: Path) -> None:
    """Write the original's result file, where the metric has one."""
    raise ValueError(f"TEST.SAVE_RESULTS_PATH: {type(metric).__name__} keeps no scores to save; leave it empty")


@count_tested.register
def _(metric: VideoEnsemble) -> Record:
    return {"videos": int((~metric.skipped).sum())}


@show_predictions.register
def _(metric: VideoEnsemble, recorder: Recorder) -> None:
    recorder.show_predictions(metric.scores[~metric.skipped], metric.labels[~metric.skipped], 0)


@save_test.register
def _(metric: VideoEnsemble, dataset: Any, folder: Path, views: str) -> None:
    path = folder / f"test_{views}.jsonl"
    write_videos(metric, dataset.records, path)
    logger.info(f"the scores of every video are in {path}")


@describe_classes.register
def _(metric: VideoEnsemble, class_names: Sequence[str]) -> None:
    scores, labels = metric.scores[~metric.skipped].numpy(), metric.labels[~metric.skipped].numpy()
    num_classes = scores.shape[1]
    names = class_names if len(class_names) == num_classes else read_class_names(None, num_classes)
    logger.info("how the classes fared:\n%s", class_summary(scores, labels, names))


@count_tested.register
def _(metric: FrameMAP) -> Record:
    images = metric.found().images
    return {"key_frames": len(set(images.tolist())), "boxes": len(images)}


@save_test.register
def _(metric: FrameMAP, dataset: Any, folder: Path, views: str) -> None:
    write_detections(metric, dataset, folder)


def final_strings(results: dict[str, float]) -> dict[str, str]:
    """The original's form of final numbers: percentages as text with two decimals; a map stands for both errors.

    A loss has five decimals, as in the lines of training.
    """
    texts = {name: f"{value:.{5 if name == 'loss' else 2}f}" for name, value in results.items()}
    return {**texts, "top1_acc": texts["map"], "top5_acc": texts["map"]} if "map" in texts else texts


def write_videos(ensemble: VideoEnsemble, records: Sequence[Any], path: Path, top: int = 5) -> None:
    """One JSON line per video: path, label, number of views, the best classes, and all scores.

    Scores are the merged ones (sums or maxima over views); with several labels per video ``label`` lists them.
    """
    scores, labels = ensemble.scores, ensemble.labels
    counts, skipped = ensemble.counts.tolist(), ensemble.skipped.tolist()
    best = scores.topk(min(top, scores.shape[1]), dim=1)
    with path.open("w") as file:
        for row, record in enumerate(records):
            if skipped[row]:
                line: dict[str, object] = {"path": str(record.path), "skipped": True}
            else:
                label = labels[row]
                line = {
                    "path": str(record.path),
                    "label": label.nonzero().flatten().tolist() if label.ndim else int(label),
                    "views": counts[row],
                    "top": [
                        [int(index), round(float(score), 5)]
                        for index, score in zip(best.indices[row], best.values[row], strict=True)
                    ],
                    "scores": [round(value, 5) for value in scores[row].tolist()],
                }
            file.write(json.dumps(line) + "\n")


@save_pickle.register
def _(metric: VideoEnsemble, path: Path) -> None:
    """A pickled list of scores [videos, K] and labels [videos] (or [videos, K])."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump([metric.scores, metric.labels], file)
    logger.info(f"scores and labels are in {path}")


@save_pickle.register
def _(metric: FrameMAP, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_boxes(metric, path)
    logger.info(f"scores, boxes and key frames are in {path}")
