"""The demo: what a network sees in a video or camera, drawn on its frames."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from slowfast.utils.logging import setup_logging
from slowfast.visualization.box_predictor import BoxPredictor, GivenBoxes, read_given_boxes
from slowfast.visualization.drawing import DrawStyle, LabelRule
from slowfast.visualization.live import CAMERA, FrameStream, open_stream, stopped_by_ctrl_c
from slowfast.visualization.people import PersonDetector, load_detector
from slowfast.visualization.predictor import Predictor
from slowfast.visualization.watch import BoxWatcher, ClassWatcher, Found, Watcher, check_output, watch, write_drawn
from slowfast.visualization.watch_results import line_of

logger = logging.getLogger(__name__)

LINES = "demo.jsonl"  # what was found, a line for each clip


def demo(cfg, detector: str = "") -> Path:
    """Watch what section ``DEMO`` names and write it with what was found drawn on it; the path of the video.

    ``detector`` is the file of weights of the detector of people, where one is needed (``build_detector_name``). Leaves
    ``demo.jsonl`` in ``OUTPUT_DIR`` as well. A camera is watched until Ctrl-C, which ends the video properly.
    """
    section = cfg.DEMO
    setup_logging(cfg.OUTPUT_DIR)
    out = Path(section.OUTPUT_FILE or Path(cfg.OUTPUT_DIR) / "demo.mp4")
    if not section.OUTPUT_FILE:
        logger.info(f"DEMO.OUTPUT_FILE is empty; windows are not opened here, {out} is written")
    if section.INPUT_FORMAT not in ("BGR", "RGB"):
        raise ValueError(f"DEMO.INPUT_FORMAT={section.INPUT_FORMAT!r} is not BGR or RGB (both are read rightly)")
    name = f"{CAMERA}{section.WEBCAM}" if section.WEBCAM >= 0 else section.INPUT_VIDEO
    if not name:
        raise ValueError("there is nothing to watch: set DEMO.INPUT_VIDEO, or DEMO.WEBCAM to the number of a camera")
    check_output(out, name)
    style, truth, given = build_style(cfg), [], None
    if cfg.DETECTION.ENABLE:
        truth, given = build_given_boxes(cfg, name)
    watchers = build_watchers(cfg, detector, given)
    with stopped_by_ctrl_c() as stop:
        stream = build_stream(cfg, name).until(stopped=stop.is_set)
        found = watch(
            stream,
            watchers,
            batch_size=cfg.TEST.BATCH_SIZE,
            skip=section.NUM_CLIPS_SKIP if section.THREAD_ENABLE else 0,
        )
        with tqdm(total=stream.num_frames, desc=out.name, unit="frame", leave=False, disable=None) as bar:
            number = write_drawn(
                out,
                noted(found, Path(cfg.OUTPUT_DIR) / LINES),
                style,
                fps=stream.fps,
                output_fps=section.OUTPUT_FPS,
                slow_motion=section.SLOWMO,
                painters=section.NUM_VIS_INSTANCES,
                truth=truth,
                class_names=watchers[0].predictor.class_names,
                on_frame=bar.update,
            )
    logger.info(f"{number} frames are in {out}, what was found in {Path(cfg.OUTPUT_DIR) / LINES}")
    return out


def build_detector_name(cfg) -> str:
    """The detector of people that the demo needs: "" for none, "torchvision" for the published one, or a file."""
    section = cfg.DEMO
    if not (section.ENABLE and cfg.DETECTION.ENABLE) or section.PREDS_BOXES or section.GT_BOXES:
        return ""
    weights = section.DETECTRON2_WEIGHTS or ""
    if weights.startswith("detectron2://COCO-Detection/faster_rcnn_R_50_FPN") or weights in ("", "torchvision"):
        return "torchvision"
    if "://" in weights or not Path(weights).is_file():
        raise ValueError(
            f"DEMO.DETECTRON2_WEIGHTS={weights!r}: people are found by torchvision's Faster R-CNN, not by detectron2. "
            "Leave the key as it is, name a file of such weights, or give boxes with DEMO.PREDS_BOXES"
        )
    return weights


# ---------------------------------------------------------------- from the configuration


def build_style(cfg) -> DrawStyle:
    """How predictions are drawn."""
    section, visual = cfg.DEMO, cfg.TENSORBOARD.MODEL_VIS
    if section.VIS_MODE not in ("thres", "top-k"):
        raise ValueError(f"DEMO.VIS_MODE={section.VIS_MODE!r} is not thres or top-k")
    if section.CLIP_VIS_SIZE < 0:
        raise ValueError(f"DEMO.CLIP_VIS_SIZE={section.CLIP_VIS_SIZE} is not 0 or more")
    rule = LabelRule(
        top_k=visual.TOPK_PREDS if section.VIS_MODE == "top-k" else None,
        common=section.COMMON_CLASS_THRES,
        uncommon=section.UNCOMMON_CLASS_THRES,
        common_names=frozenset(section.COMMON_CLASS_NAMES or ()),
    )
    return DrawStyle(rule, reach=section.CLIP_VIS_SIZE, colormap=visual.COLORMAP)


def build_given_boxes(cfg, name: str) -> tuple[list[GivenBoxes], list[GivenBoxes] | None]:
    """True boxes to draw, and boxes to be scored (None: those of the detector).

    The latter are of ``DEMO.PREDS_BOXES``, or the true ones where there is no such file.
    """
    section, classes = cfg.DEMO, cfg.MODEL.NUM_CLASSES
    options: dict[str, Any] = {"first_second": section.STARTING_SECOND, "num_classes": classes}
    truth = read_given_boxes(section.GT_BOXES, name, **options) if section.GT_BOXES else []
    if section.PREDS_BOXES:
        least = cfg.AVA.DETECTION_SCORE_THRESH
        return truth, read_given_boxes(section.PREDS_BOXES, name, min_score=least, **options)
    return truth, truth if section.GT_BOXES else None


def build_watchers(cfg, detector: str, given: list[GivenBoxes] | None) -> list[Watcher]:
    """The network of the configuration, once for each GPU that it asks for and that there is."""
    section, count = cfg.DEMO, min(cfg.NUM_GPUS, torch.cuda.device_count())
    devices = [torch.device("cuda", number) for number in range(count)] or [torch.device("cpu")]
    if not cfg.DETECTION.ENABLE:
        predictor, span = Predictor.from_cfg(cfg, device=devices[0]), cfg.DATA.NUM_FRAMES * cfg.DATA.SAMPLING_RATE
        return [
            ClassWatcher(copied(predictor, device), shared=section.BUFFER_SIZE, span_frames=span) for device in devices
        ]
    predictor = BoxPredictor.from_cfg(cfg, device=devices[0])
    people = load_detector(detector) if detector and given is None else None
    watchers: list[Watcher] = []
    for device in devices:
        own = copied(predictor, device)
        if people is not None:
            own.detector = PersonDetector(copy.deepcopy(people), least_score=section.DETECTRON2_THRESH, device=device)
        watchers.append(BoxWatcher(own, given=given, shared=section.BUFFER_SIZE, reach=section.CLIP_VIS_SIZE))
    return watchers


def copied(predictor: Any, device: torch.device) -> Any:
    """The same predictor on another device; itself where it is there."""
    if predictor.device == device:
        return predictor
    other = copy.copy(predictor)
    other.network, other.device = copy.deepcopy(predictor.network).to(device), device
    return other


def build_stream(cfg, name: str) -> FrameStream:
    """The frames to watch."""
    width, height = cfg.DEMO.DISPLAY_WIDTH, cfg.DEMO.DISPLAY_HEIGHT
    size = (width, height) if width > 0 and height > 0 else None
    if size and not name.startswith(CAMERA):
        logger.warning("DEMO.DISPLAY_WIDTH and DISPLAY_HEIGHT are asked of a camera; a file keeps its size")
    return open_stream(name, fps=float(cfg.DEMO.FPS), size=size, upright=cfg.DATA.AUTOROTATE)


# ---------------------------------------------------------------- beside the drawing


def noted(found: Iterable[Found], path: Path) -> Iterator[Found]:
    """The same, written down line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for clip, prediction in found:
            if prediction is not None:
                file.write(json.dumps(line_of(prediction), ensure_ascii=False) + "\n")
            yield clip, prediction
