"""What a test of boxes leaves in its output folder: the official csv files, AP per class as a table and a picture,
and some key frames with what was found and what is true, for people and for the report.
"""

import csv
import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slowfast.datasets.sources import DecodeError
from slowfast.evaluation.ava import FrameMAP, detection_lines, mean_ap, truth_lines
from slowfast.visualization import plots
from slowfast.visualization.detections import KEY_FRAMES, TABLE, BoxTest, ClassAP, class_figure

logger = logging.getLogger(__name__)

DETECTIONS, GROUND_TRUTH = "detections_latest.csv", "groundtruth_latest.csv"
PICTURE = "ap_per_class.png"
TOP = 5  # classes shown of each box


def write_detections(metric: FrameMAP, dataset: Any, folder: Path, *, num_key_frames: int = 24) -> None:
    """Write all files of a test; ``num_key_frames`` are shown, spread over the data set."""
    found, truth = metric.found(), metric.judged_truth
    with (folder / DETECTIONS).open("w") as file:
        file.writelines(detection_lines(metric.key_frames, found, truth.class_names))
    with (folder / GROUND_TRUTH).open("w") as file:
        file.writelines(truth_lines(truth))
    write_class_table(metric, folder)
    with (folder / KEY_FRAMES).open("w") as file:
        for line in key_frame_lines(metric, dataset, num_key_frames):
            file.write(json.dumps(line) + "\n")
    logger.info("AP per class at IoU 0.5:\n%s", class_table(metric))
    logger.info(f"detections, ground truth and AP per class are in {folder} ({DETECTIONS}, {TABLE}, {PICTURE})")


def write_class_table(metric: FrameMAP, folder: Path) -> None:
    """``ap_per_class.csv`` and ``ap_per_class.png``."""
    results = metric.results()
    with (folder / TABLE).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "true_boxes", "ap_percent"])
        for result in results:
            ap = "" if math.isnan(result.ap) else f"{100 * result.ap:.4f}"
            writer.writerow([result.id, result.name, result.num_truth, ap])
    test = BoxTest([ClassAP(result.name, result.num_truth, 100 * result.ap) for result in results], [])
    (folder / PICTURE).write_bytes(plots.to_png(class_figure(test)))


def class_table(metric: FrameMAP) -> str:
    """Plain text: id, name, true boxes and AP of every class, and the mean."""
    results = metric.results()
    rows = [
        (str(r.id), r.name[:60], f"{r.num_truth:,}", "-" if math.isnan(r.ap) else f"{100 * r.ap:.2f}") for r in results
    ]
    rows += [("", "mean", f"{sum(r.num_truth for r in results):,}", f"{100 * mean_ap(results):.2f}")]
    heads = ("id", "class", "true boxes", "AP %")
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(4)]

    def line(row: tuple[str, ...]) -> str:
        number, name, *values = (
            cell.ljust(w) if c == 1 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths))
        )
        return "  ".join([number, name, *values])

    return "\n".join([line(heads), line(tuple("-" * width for width in widths)), *map(line, rows)])


def key_frame_lines(metric: FrameMAP, dataset: Any, count: int) -> list[dict[str, Any]]:
    """``count`` key frames, evenly spread: where their picture is, each box with its best classes, each true box."""
    found, truth = metric.found(), metric.judged_truth
    names, judged = truth.class_names, np.array(sorted(truth.class_names)) - 1
    true_rows = {key: row for row, key in enumerate(truth.key_frames)}
    rows = np.unique(found.images)
    both = np.array([row for row in rows.tolist() if metric.key_frames[row] in true_rows], dtype=np.int64)
    rows = both if len(both) else rows
    lines = []
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))].tolist():
        video, second = metric.key_frames[row]
        try:
            file, frame = dataset.key_picture(row)
        except DecodeError as error:
            logger.warning(f"{error}: this key frame is not shown")
            continue
        boxes = []
        for box in np.flatnonzero(found.images == row):
            scores = found.scores[box, judged]
            best = np.argsort(-scores, kind="stable")[:TOP]
            top = [[names[int(judged[k]) + 1], round(float(scores[k]), 4)] for k in best]
            boxes.append({"box": np.round(found.corners[box], 4).tolist(), "top": top})
        true: dict[tuple[float, ...], list[str]] = {}
        for box in np.flatnonzero(truth.boxes.images == true_rows.get((video, second), -1)):
            corners = tuple(np.round(truth.boxes.corners[box], 4).tolist())
            true.setdefault(corners, []).append(names[int(truth.boxes.classes[box])])
        lines.append(
            {
                "video": video,
                "second": second,
                "file": file,
                "frame": frame,
                "found": boxes,
                "true": [{"box": list(corners), "classes": classes} for corners, classes in true.items()],
            }
        )
    return lines


def save_boxes(metric: FrameMAP, path: Path) -> None:
    """A pickled list of scores [R, K], boxes [R, 4] (fractions of the image) and key frames (video, second) of each."""
    found = metric.found()
    keys = [metric.key_frames[row] for row in found.images.tolist()]
    with path.open("wb") as file:
        pickle.dump([torch.from_numpy(found.scores), torch.from_numpy(found.corners), keys], file)
