"""What the page shows of runs, as plain values: nothing here opens a video or knows of HTTP."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slowfast.visualization import plots
from slowfast.visualization.compare import compare_panels
from slowfast.visualization.detections import LEAST_SCORE
from slowfast.visualization.report import training_panels
from slowfast.visualization.results import JobResults, VideoResult, ViewTest, confused_pairs
from slowfast.visualization.studio.library import Library, Run, RunVideo, test_name

Plain = dict[str, Any]

SMOOTH_OVER = 20  # parts of a curve that its smooth course is a mean of about
BOX_CLASSES = 2  # shown at a box
DETECTIONS, GROUND_TRUTH = "detections_latest.csv", "groundtruth_latest.csv"
_ALWAYS_OTHER = ("OUTPUT_DIR",)


# ---------------------------------------------------------------- runs


def summary(library: Library, run: Run) -> Plain:
    """One line of the table of runs."""
    return library.kept(run, lambda: _summary(library, run))


def _summary(library: Library, run: Run) -> Plain:
    job, boxes = library.results(run), library.boxes(run)
    rows, epochs = job.accuracy_rows(), job.history("train_epoch")
    row = rows[-1] if rows else {}
    kind = next((kind for kind in ("top1_acc", "map", "loss") if row.get(kind) is not None), None)
    return {
        "id": run.id,
        "name": run.name,
        "network": network(job),
        "data": data_set(job),
        "measure": {"top1_acc": "top-1", "map": "mAP", "loss": "loss", None: ""}[kind],
        "result": number(row[kind]) if kind else None,
        "epochs": epochs[-1][0] if epochs else None,
        "of_epochs": job.settings.get("SOLVER.MAX_EPOCH") if epochs else None,
        "changed_at": run.changed_at(),
        "why_not": why_not(job),
        "boxes": boxes is not None,
        "parameters": job.model_size.get("params"),
    }


def network(job: JobResults) -> str:
    """The network in a word or two."""
    name, depth = job.settings.get("MODEL.MODEL_NAME", ""), job.settings.get("RESNET.DEPTH")
    arch = str(job.settings.get("MODEL.ARCH", ""))
    return f"{name} R{depth}" if name and depth and arch in ("slow", "slowfast", "c2d", "i3d") else name or "unknown"


def data_set(job: JobResults) -> str:
    """The data set in a word or two: its folder tells more than its kind."""
    settings = job.settings
    kind = str(settings.get("TRAIN.DATASET" if job.history("train") else "TEST.DATASET", ""))
    folder = Path(str(settings.get("AVA.ANNOTATION_DIR" if kind == "ava" else "DATA.PATH_TO_DATA_DIR") or "")).name
    return f"{folder} ({kind})" if folder and kind and folder.lower() != kind.lower() else folder or kind


def why_not(job: JobResults) -> str:
    """Why its network cannot be shown a video; empty where it can."""
    from slowfast.checkpoint.io import CheckpointTooLarge, find_last_checkpoint

    setting = job.settings.get
    if not job.settings:
        return "it has no config.yaml"
    if setting("DETECTION.ENABLE"):
        return "it scores boxes"
    if setting("MASK.ENABLE") or setting("MODEL.MODEL_NAME") == "ContrastiveModel":
        return "it was only pre-trained"
    if str(setting("TEST.DATASET")).lower() == "imagenet":
        return "it looks at images"
    try:
        last = find_last_checkpoint(job.folder, str(setting("TASK", "")))
    except CheckpointTooLarge:
        return "its checkpoint needs more memory than there is"
    if last or setting("TEST.CHECKPOINT_FILE_PATH"):
        return ""
    return "it has no checkpoint"


def details(library: Library, run: Run) -> Plain:
    """All that the page of a run shows, but for its videos."""
    job, boxes = library.results(run), library.boxes(run)
    return {
        **summary(library, run),
        "folder": str(run.folder),
        "panels": [panel(item) for item in training_panels(job)],
        "accuracy": [{key: number(value) for key, value in row.items()} for row in job.accuracy_rows()],
        "tests": [test_of(job, test) for test in job.tests],
        "class_names": job.class_names,
        "config": [
            {"key": key, "value": value, "default": job.defaults.get(key)}
            for key, value in sorted(job.changed_settings.items())
        ],
        "num_settings": len(job.settings),
        "notes": job.notes,
        "bad_videos": job.bad_videos[:200],
        "box_classes": []
        if boxes is None
        else [{"name": c.name, "truth": c.num_truth, "ap": number(c.ap)} for c in boxes.classes],
        "box_videos": [
            {"id": RunVideo(run, "boxes", row, "", name).id, "title": Path(name).name}
            for row, name in enumerate(library.box_videos(run))
        ],
    }


def test_of(job: JobResults, test: ViewTest) -> Plain:
    """A test, with its confusion as triples (true, predicted, videos)."""
    shown: Plain = {
        "name": test_name(test),
        "videos": len(test.videos),
        "skipped": test.skipped,
        "classes": test.num_classes,
        "multi_label": test.multi_label,
    }
    if test.multi_label:
        shown["per_class"] = [number(value) for value in test.average_precision]
        return shown
    counts = test.counts
    totals = counts.sum(axis=1)
    shown["per_class"] = [float(100 * counts[k, k] / totals[k]) if totals[k] else None for k in range(test.num_classes)]
    shown["counts"] = [[int(r), int(c), int(counts[r, c])] for r, c in zip(*np.nonzero(counts), strict=True)]
    shown["pairs"] = [list(pair) for pair in confused_pairs(counts, 12)]
    return shown


def panel(item: plots.Panel) -> Plain:
    """A pair of axes with its curves, thinned, noisy ones with their smooth course."""
    shown = []
    for curve in item.curves:
        step = max(1, -(-len(curve.x) // plots.MAX_POINTS))
        smooth = plots.smooth(curve.y, len(curve.y) / SMOOTH_OVER) if curve.noisy else None
        shown.append(
            {
                "label": curve.label,
                "validation": curve.role == "val",
                "dashed": curve.dashed,
                "x": [number(x) for x in curve.x[::step]],
                "y": [number(y) for y in curve.y[::step]],
                "smooth": None if smooth is None else [number(y) for y in smooth[::step]],
            }
        )
    return {"title": item.title, "curves": shown, "limits": list(item.limits)}


def compared(library: Library, runs: Sequence[Run]) -> Plain:
    """Runs side by side: their lines, curves, and the keys in which they differ."""
    jobs = [library.results(run) for run in runs]
    keys = sorted({key for job in jobs for key in job.settings} - set(_ALWAYS_OTHER))
    rows = []
    for key in keys:
        values = [job.settings.get(key) for job in jobs]
        if any(value != values[0] for value in values):
            rows.append({"key": key, "values": values, "default": jobs[0].defaults.get(key)})
    return {
        "runs": [summary(library, run) for run in runs],
        "panels": [panel(item) for item in compare_panels(jobs)],
        "differences": rows,
        "same": len(keys) - len(rows),
    }


# ---------------------------------------------------------------- videos


def videos_of(
    library: Library,
    run: Run,
    name: str,
    *,
    true: int | None = None,
    predicted: int | None = None,
    wrong: bool = False,
    offset: int = 0,
    limit: int = 60,
) -> Plain:
    """The videos behind a cell of the confusion matrix, or of a row, a column or the whole; the surest first."""
    job, test = library.results(run), library.test(run, name)
    rows = [
        row
        for row, video in enumerate(test.videos)
        if (true is None or true in video.labels)
        and (predicted is None or video.predicted == predicted)
        and not (wrong and video.right)
    ]
    rows.sort(key=lambda row: (-test.videos[row].top[0][1], test.videos[row].path))
    shown = [video_line(job, RunVideo(run, name, row, "", test.videos[row].path), test.videos[row]) for row in rows]
    return {"total": len(rows), "videos": shown[offset : offset + limit]}


def video_line(job: JobResults, video: RunVideo, result: VideoResult) -> Plain:
    """What the test said of one video."""
    names = dict(enumerate(job.class_names))
    return {
        "id": video.id,
        "title": "/".join(Path(result.path).parts[-2:]),
        "truth": [names.get(k, str(k)) for k in result.labels],
        "right": result.right,
        "top": [{"index": k, "name": names.get(k, str(k)), "score": round(share, 4)} for k, share in result.top],
    }


def video_of_run(library: Library, video: RunVideo) -> Plain:
    """What is known of a video of a run before anybody plays it."""
    shown: Plain = {
        "id": video.id,
        "title": "/".join(Path(video.name).parts[-2:]),
        "run": {"id": video.run.id, "name": video.run.name},
        "test": video.test,
        "there": bool(video.path),
    }
    if video.test != "boxes":
        result = library.test(video.run, video.test).videos[video.row]
        shown |= {"truth": None, "right": None} | video_line(library.results(video.run), video, result)
    else:
        shown["boxes"] = boxes_of(library, video)
    return shown


def boxes_of(library: Library, video: RunVideo) -> Plain:
    """Boxes of a video at its key frames, found and true, with corners as fractions of the frame.

    ``frame`` is that of the picture at ``second``: whoever knows the rate knows where seconds begin in the file.
    """
    test = library.boxes(video.run)
    lines = [line for line in test.key_frames if line["file"] == video.name]
    name, folder = lines[0]["video"], video.run.folder
    class_names = _class_names(folder)
    found = _read_boxes(folder / DETECTIONS, name, class_names)
    true = _read_boxes(folder / GROUND_TRUTH, name, class_names, scored=False)
    for line in lines:  # what the csv files, where they are missing, do not tell
        found.setdefault(line["second"], [{"box": item["box"], "top": item["top"]} for item in line["found"]])
        true.setdefault(
            line["second"], [{"box": item["box"], "top": [[n, None] for n in item["classes"]]} for item in line["true"]]
        )
    return {
        "second": lines[0]["second"],
        "frame": lines[0]["frame"],
        "key_frames": [
            {"second": second, "found": found.get(second, []), "true": true.get(second, [])}
            for second in sorted({*found, *true})
        ],
    }


def _class_names(folder: Path) -> dict[int, str]:
    with (folder / "ap_per_class.csv").open(encoding="utf-8", newline="") as file:
        return {int(row["id"]): row["name"] for row in csv.DictReader(file)}


def _read_boxes(
    path: Path, video: str, class_names: dict[int, str], *, scored: bool = True
) -> dict[float, list[Plain]]:
    """By second, the boxes of a video in a file of lines ``video,second,x1,y1,x2,y2,class[,score]``."""
    boxes: dict[float, dict[tuple[float, ...], list]] = {}
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            if len(row) < 7 + scored or row[0] != video or int(row[6]) not in class_names:
                continue
            score = float(row[7]) if scored else None
            if score is None or score >= LEAST_SCORE:
                corners = tuple(round(float(corner), 4) for corner in row[2:6])
                boxes.setdefault(float(row[1]), {}).setdefault(corners, []).append([class_names[int(row[6])], score])
    return {
        second: [
            {
                "box": list(corners),
                "top": sorted(top, key=lambda pair: -(pair[1] or 0))[: BOX_CLASSES if top[0][1] else 5],
            }
            for corners, top in at.items()
        ]
        for second, at in boxes.items()
    }


def number(value: Any) -> Any:
    """A number as JSON has it: six digits, None where it is none; other values as they are."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
