"""The report of a job: one HTML file made from what lies in its output folder, plus the accuracy table as text.

``results`` reads the folder, ``plots`` draws, ``page`` writes markup; here it is decided what is shown and said.
Each section is a function of the results; where a part of the job is missing, its section says so.
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slowfast.visualization import page, plots
from slowfast.visualization.detections import box_figures, box_sections, read_box_test
from slowfast.visualization.page import Html, Section, element, join, note
from slowfast.visualization.results import JobResults, VideoResult, ViewTest, confused_pairs, read_job

FRAMES_PER_VIDEO = 6
FRAME_SIDE = 208  # longest side of a frame in the page, in pixels
READING_ERRORS = (OSError, ValueError, RuntimeError, IndexError)

FrameReader = Callable[[str, int], Sequence[np.ndarray]]
"""Path of a video and a number of frames -> that many RGB frames, uint8 [H, W, 3], spread over the video."""


def write_report(
    output_dir: str | Path,
    out: str | Path | None = None,
    *,
    num_videos: int = 8,
    read_frames: FrameReader | None = None,
) -> Path:
    """Write the report of the job in ``output_dir`` and return its path (``output_dir/report.html`` by default).

    Shows ``num_videos`` tested videos with their frames. Raises ``FileNotFoundError`` where no job has left anything.
    """
    job = _read_existing(output_dir)
    title = f"{job.settings.get('MODEL.MODEL_NAME', 'Model')} on {_dataset(job)}"
    sections = [
        Section("results", "Results", _results(job)),
        Section("training", "Training", _training(job)),
        *_tested_sections(job, num_videos, read_frames or read_video_frames),
        Section("bad-videos", "Unreadable videos", _bad_videos(job)),
        Section("config", "Configuration", _configuration(job)),
    ]
    header = element("div", element("h1", title), element("p", _lead(job), class_="lead"), class_="top")
    path = Path(out) if out is not None else job.folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(page.render_page(title, header, sections), encoding="utf-8")
    partial.replace(path)
    return path


def write_pictures(
    output_dir: str | Path,
    folder: str | Path,
    *,
    num_videos: int = 4,
    read_frames: FrameReader | None = None,
) -> list[Path]:
    """The figures of the report as PNG files in ``folder``, for a README or a paper; the paths that were written."""
    job = _read_existing(output_dir)
    figures: dict[str, Any] = {}
    if panels := training_panels(job):
        figures["training"] = plots.curves(panels)
    test = job.main_test
    boxes = read_box_test(job.folder)
    if boxes is not None and test is None:
        figures |= box_figures(boxes)
    if test is not None:
        title, names, values, _ = _class_scores(job, test)
        figures["classes"] = plots.class_bars(names, values, label=title)
        if not test.multi_label:
            figures["confusion"] = plots.confusion_matrix(
                test.counts, job.class_names[: test.num_classes], size=_matrix_size(test)
            )
        for number, video in enumerate(choose_videos(test, num_videos)):
            frames, _ = _try_frames(video, read_frames or read_video_frames)
            if frames:
                guesses = [(job.class_names[c], share, c in video.labels) for c, share in video.top[:3]]
                figures[f"video_{number}"] = plots.prediction_strip(frames, guesses, truth=_truth(job, video))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(plots.to_png(figure))
    return paths


def accuracy_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Plain text, one line per number of views.

    ``rows`` hold some of ``views`` ("3x3", or ``clips`` and ``crops``), ``videos``, ``top1_acc``, ``top5_acc`` and
    ``map`` (in percent) and ``loss`` (of a pre-training); a column that no row has is left out. Numbers may be given
    as text.
    """
    lines = [_accuracy_cells(row) for row in rows]
    heads = [head for head in _COLUMNS.values() if any(head in line for line in lines)]
    if not heads:
        return "no test result"
    grid = [heads, *([line.get(head, "-") for head in heads] for line in lines)]
    widths = [max(len(row[column]) for row in grid) for column in range(len(heads))]
    grid.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in grid)


def choose_videos(test: ViewTest, count: int) -> list[VideoResult]:
    """A mix for people to look at: half of them the most confident mistakes, half right ones of varied classes.

    Where there are too few of one kind, the other fills up. The choice depends on the results only.
    """
    wrong = sorted((v for v in test.videos if not v.right), key=lambda v: (-v.top[0][1], v.path))
    by_class: dict[int, list[VideoResult]] = {}
    for video in sorted((v for v in test.videos if v.right), key=lambda v: (-v.top[0][1], v.path)):
        by_class.setdefault(video.predicted, []).append(video)
    right = [group[turn] for turn in range(len(test.videos)) for group in by_class.values() if turn < len(group)]
    num_wrong = min(len(wrong), max(count // 2, count - len(right)))
    return right[: count - num_wrong] + wrong[:num_wrong]


def read_video_frames(path: str, count: int) -> list[np.ndarray]:
    """``count`` frames of a video file or a folder of images, each from the middle of an equal part of it."""
    from slowfast.datasets.sources import open_source

    source = open_source(path, short_side=FRAME_SIDE)
    indices = [int((part + 0.5) * source.info.num_frames / count) for part in range(count)]
    return list(source.read(indices).numpy())


def training_panels(job: JobResults) -> list[plots.Panel]:
    """Loss, error (or mAP) and learning rate over epochs, as far as they were logged."""
    steps, epochs, checks = job.history("train_iter"), job.history("train_epoch"), job.history("val_epoch")

    def curve(label: str, history: list, key: str, **style: Any) -> list[plots.Curve]:
        points = [(x, float(record[key])) for x, record in history if isinstance(record.get(key), int | float)]
        return [plots.Curve(label, *zip(*points, strict=True), **style)] if points else []

    def train_curve(key: str, label: str, *, noisy: bool = True) -> list[plots.Curve]:
        return curve(label, steps, key, noisy=noisy) or curve(label, epochs, key)

    val = {"role": "val"}
    panels = [
        plots.Panel("Loss", train_curve("loss", "train") + curve("validation", checks, "loss", **val), (None, None)),
        plots.Panel(
            "Top-1 error, %",
            train_curve("top1_err", "train") + curve("validation", checks, "top1_err", **val),
            (0, None),
        ),
        plots.Panel("Top-5 error, %", curve("validation", checks, "top5_err", **val), (0, None)),
        plots.Panel("Validation mAP", curve("validation", checks, "map", **val), (0, None)),
        plots.Panel("Learning rate", train_curve("lr", "learning rate", noisy=False), (0, None)),
    ]
    shown = [panel for panel in panels if panel.curves]
    if len(job.class_names) <= 5:
        shown = [panel for panel in shown if not panel.title.startswith("Top-5")]
    return shown


# ------------------------------ sections ------------------------------


def _results(job: JobResults) -> Html:
    rows = job.accuracy_rows()
    parts: list[Html] = []
    if cards := _cards(job, rows):
        parts.append(element("div", *cards, class_="cards"))
    if rows:
        cells = [_accuracy_cells(row) for row in rows]
        heads = [head for head in _COLUMNS.values() if any(head in line for line in cells)]
        body = [[line.get(head, "-") for head in heads] for line in cells]
        parts.append(page.table(heads, body, numeric=range(1, len(heads)), id="accuracy"))
    else:
        parts.append(note("No test result in this folder: the job did not test, or has not got there yet."))
    parts += [note(text) for text in job.notes]
    return join(parts)


def _training(job: JobResults) -> Html:
    panels = training_panels(job)
    if not panels:
        return note("No training in this folder: only what was tested is shown.")
    columns = 3 if len(panels) == 3 else 2
    width, height = (3.7, 2.6) if columns == 3 else (4.5, 2.5)  # small figures, so that their text is large enough
    figures = []
    for index, panel in enumerate(panels):
        figure = plots.curves([panel], width=width, height=height)
        data = [
            {"label": c.label, "x": [round(v, 4) for v in x], "y": [float(f"{v:.4g}") for v in y]}
            for c in panel.curves
            for x, y in [_thin(c.x, c.y)]
        ]
        svg = page.themed(plots.to_svg(figure, f"curve{index}"))
        figures.append(
            element(
                "div",
                svg,
                class_="plot",
                role="img",
                aria_label=f"{panel.title} over epochs",
                data_frame=json.dumps(plots.axes_frame(figure)),
                data_curves=json.dumps(data),
            )
        )
    return element("div", *figures, class_=f"plots columns-{columns}")


def _tested_sections(job: JobResults, num_videos: int, read_frames: FrameReader) -> list[Section]:
    boxes = read_box_test(job.folder)
    if boxes is not None and job.main_test is None:
        return box_sections(boxes)
    return [*_class_sections(job), Section("videos", "Test videos", _videos(job, num_videos, read_frames))]


def _class_sections(job: JobResults) -> list[Section]:
    test = job.main_test
    if test is None:
        return [Section("classes", "Classes", note("No test results per video in this folder, so nothing per class."))]
    sections = []
    if not test.multi_label:
        sections.append(Section("confusion", "Confusion matrix", _confusion(job, test)))
    return [*sections, Section("classes", "Classes", _classes(job, test))]


def _confusion(job: JobResults, test: ViewTest) -> Html:
    figure = plots.confusion_matrix(test.counts, job.class_names[: test.num_classes], size=_matrix_size(test))
    svg = page.themed(plots.to_svg(figure, "confusion"))
    cells = [[int(r), int(c), int(test.counts[r, c])] for r, c in zip(*np.nonzero(test.counts), strict=True)]
    matrix = element(
        "div",
        svg,
        class_="plot",
        role="img",
        aria_label="Confusion matrix",
        data_frame=json.dumps(plots.axes_frame(figure)),
        data_names=json.dumps(job.class_names[: test.num_classes]),
        data_counts=json.dumps(cells, separators=(",", ":")),
    )
    pairs = confused_pairs(test.counts, 10)
    if pairs:
        rows = [
            [job.class_names[true], job.class_names[predicted], str(count), f"{100 * share:.0f} %"]
            for true, predicted, count, share in pairs
        ]
        side = page.table(["True class", "Taken for", "Videos", "of class"], rows, numeric=(2, 3), id="confused-pairs")
    else:
        side = note("None: every video was recognised.")
    legend = note("Percent of the videos of each true class (row). Blue is right, red is taken for another class.")
    return element(
        "div",
        element("div", matrix),
        element("div", element("h3", "Most confused"), side, element("h3", "How to read it"), legend),
        class_="split",
    )


def _classes(job: JobResults, test: ViewTest) -> Html:
    label, names, values, counts = _class_scores(job, test)
    heads, extra = ["Class", "Videos", label], []
    if not test.multi_label:
        heads.append("Most often taken for")
        mistakes = test.counts * (1 - np.eye(test.num_classes, dtype=np.int64))
        extra = [f"{job.class_names[row.argmax()]} ({row.max()})" if row.any() else "" for row in mistakes]
    rows = []
    for index, (name, value, count) in enumerate(zip(names, values, counts, strict=True)):
        meter = element("div", page.bar(value / 100), element("b", f"{value:.1f}"), class_="meter")
        shown = element("td", meter if count else "-", data_key=f"{value if count else -1:.4f}")
        rows.append([name, str(count), shown, *extra[index : index + 1]])
    order = sorted(range(len(rows)), key=lambda index: (counts[index] == 0, values[index], names[index]))
    table = page.table(heads, [rows[i] for i in order], numeric=(1,), id="class-table", class_="sortable")
    many = len(rows) > 14
    search = element(
        "input", type="search", placeholder="Find a class", aria_label="Find a class", data_filter="class-table"
    )
    seen = [value for value, count in zip(values, counts, strict=True) if count]
    text = (
        f"{len(seen)} of {len(rows)} classes occur in the test, the weakest first; their mean is {np.mean(seen):.1f} %."
    )
    return join(
        [
            note(text),
            element("div", search, class_="tools js-only") if many else None,
            element("div", table, class_="tall") if many else table,
        ]
    )


def _videos(job: JobResults, num_videos: int, read_frames: FrameReader) -> Html:
    test = job.main_test
    if test is None:
        return note("No test results per video in this folder (test_<clips>x<crops>.jsonl), so no examples.")
    chosen = choose_videos(test, num_videos)
    buttons = [
        element("button", text, type="button", data_show=kind, aria_pressed="true" if kind == "all" else "false")
        for kind, text in (("all", "All"), ("right", "Right"), ("wrong", "Wrong"))
    ]
    both = len({video.right for video in chosen}) > 1
    intro = "Recognised videos and the most confident mistakes, with the three best predictions of each."
    return join(
        [
            note(intro if both else "The three best predictions of some tested videos."),
            element("div", *buttons, class_="tools js-only") if both else None,
            *(_video(job, video, read_frames) for video in chosen),
        ]
    )


def _video(job: JobResults, video: VideoResult, read_frames: FrameReader) -> Html:
    kind = "good" if video.right else "bad"
    frames, problem = _try_frames(video, read_frames)
    truth = _truth(job, video)
    if frames:
        images = [
            page.png_image(_png(frame), alt=f"{truth}, frame {number} of {len(frames)}")
            for number, frame in enumerate(frames, start=1)
        ]
        strip = element("div", *images, class_="frames")
    else:
        strip = note("This video cannot be read any more: ", element("code", problem))
    guesses = [
        element(
            "div",
            element("span", job.class_names[index], title=job.class_names[index]),
            element("span", f"{100 * share:.1f} %", class_="number"),
            page.bar(share, "good" if index in video.labels else "bad"),
            class_=f"guess {'good' if index in video.labels else 'bad'}",
        )
        for index, share in video.top[:3]
    ]
    head = element(
        "div",
        element("strong", truth),
        element("span", "right" if video.right else "wrong", class_=f"badge {kind}"),
        element("code", video.path),
        class_="head",
    )
    return element(
        "article",
        head,
        strip,
        element("div", *guesses, class_="guesses"),
        class_="video",
        data_kind="right" if video.right else "wrong",
    )


def _bad_videos(job: JobResults) -> Html:
    if not job.bad_videos:
        return note("None: every video that was asked for could be decoded.")
    heads = list(job.bad_videos[0])
    limit = 200
    rows = [
        [element("td", row.get(head, ""), class_="path" if head == "path" else None) for head in heads]
        for row in job.bad_videos[:limit]
    ]
    table = page.table([head.capitalize() for head in heads], rows, id="bad-table", class_="sortable")
    count = len({row.get("path", "") for row in job.bad_videos})
    text = f"{count} videos could not be decoded: replaced in training, left out of the test."
    more = note(f"The first {limit} lines; all are in bad_videos.csv.") if len(job.bad_videos) > limit else None
    return join([note(text), element("div", table, class_="tall") if len(rows) > 14 else table, more])


def _configuration(job: JobResults) -> Html:
    if not job.settings:
        return note("No config.yaml in this folder.")
    changed = job.changed_settings
    rows = [
        [
            element("td", element("code", key)),
            element("td", element("code", _show(value))),
            element("td", element("code", _show(job.defaults[key]) if key in job.defaults else "unknown key")),
        ]
        for key, value in sorted(changed.items())
    ]
    every = "\n".join(f"{key}: {_show(value)}" for key, value in sorted(job.settings.items()))
    differences = page.table(["Key", "Value", "Default"], rows, id="config-changes") if rows else note("None.")
    return join(
        [
            element(
                "details", element("summary", f"{len(changed)} keys differ from the defaults"), differences, open=True
            ),
            element("details", element("summary", f"All {len(job.settings)} keys"), element("pre", every)),
        ]
    )


# ------------------------------ pieces ------------------------------

_COLUMNS = {
    "views": "views",
    "top1_acc": "top-1 %",
    "top5_acc": "top-5 %",
    "map": "mAP %",
    "loss": "loss",
    "videos": "videos",
    "key_frames": "key frames",
    "boxes": "boxes",
}


def _accuracy_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Column heading -> text."""
    cells = {}
    if "clips" in row and "crops" in row:
        cells[_COLUMNS["views"]] = f"{row['clips']} x {row['crops']}"
    elif "views" in row:
        cells[_COLUMNS["views"]] = str(row["views"]).replace("x", " x ")
    for key in ("top1_acc", "top5_acc", "map"):
        if row.get(key) is not None:
            cells[_COLUMNS[key]] = f"{float(row[key]):.2f}"
    if row.get("loss") is not None:
        cells[_COLUMNS["loss"]] = f"{float(row['loss']):.5f}"
    for key in ("videos", "key_frames", "boxes"):
        if key in row:
            cells[_COLUMNS[key]] = str(row[key])
    return cells


def _cards(job: JobResults, rows: list[dict[str, Any]]) -> list[Html]:
    cards = []
    if rows:
        best, test, num_classes = rows[-1], job.main_test, len(job.class_names)
        views = f"{best['clips']} clips x {best['crops']} crops" if "clips" in best else "test"
        if best.get("top1_acc") is not None:
            cards.append(page.card("Top-1 accuracy", f"{best['top1_acc']:.1f} %", views))
            if best.get("top5_acc") is not None and num_classes > 5:
                cards.append(page.card("Top-5 accuracy", f"{best['top5_acc']:.1f} %", views))
            if num_classes > 1:
                cards.append(page.card("Chance", f"{100 / num_classes:.3g} %", f"{num_classes} classes"))
        elif best.get("map") is not None:
            cards.append(page.card("mAP", f"{best['map']:.1f} %", views))
        if test is not None:
            right = sum(video.right for video in test.videos)
            detail = "" if test.multi_label else f"{right} right, {len(test.videos) - right} wrong"
            if test.skipped:
                detail = f"{detail}, {test.skipped} skipped".removeprefix(", ")
            cards.append(page.card("Test videos", f"{len(test.videos):,}", detail))
    size = job.model_size
    if "params" in size:
        cards.append(page.card("Parameters", f"{size['params'] / 1e6:.2f} M"))
    if "flops" in size:
        cards.append(page.card("FLOPs per view", f"{size['flops'] / 1e9:.3g} G", "multiply-add counts once"))
    epochs = job.history("train_epoch")
    if epochs:
        cards.append(page.card("Epochs trained", f"{epochs[-1][0]:.0f}", _best_epoch(job)))
    seconds = training_seconds(job)
    if seconds:
        cards.append(page.card("Training time", _duration(seconds), "steps and validation"))
    return cards


def _best_epoch(job: JobResults) -> str:
    errors = [(record["top1_err"], epoch) for epoch, record in job.history("val_epoch") if "top1_err" in record]
    return f"best validation at {min(errors)[1]:.0f}" if errors else ""


def training_seconds(job: JobResults) -> float | None:
    """Time spent in training steps and validation, from the step times in the log; ``None`` where it has none."""
    per_epoch: dict[int, list[tuple[float, int]]] = {}
    for position, record in job.history("train_iter"):
        steps = int(str(record["iter"]).partition("/")[2])
        per_epoch.setdefault(int(np.ceil(position - 1e-9)), []).append((float(record["dt"]), steps))
    if not per_epoch:
        return None
    training = sum(float(np.mean([dt for dt, _ in lines])) * lines[0][1] for lines in per_epoch.values())
    return training + sum(float(record.get("time_diff", 0)) for _, record in job.history("val_epoch"))


def _class_scores(job: JobResults, test: ViewTest) -> tuple[str, list[str], list[float], list[int]]:
    """What is measured per class, and for each class its name, value in percent and number of videos."""
    names = job.class_names[: test.num_classes]
    if test.multi_label:
        positives = [0] * test.num_classes
        for video in test.videos:
            for index in video.labels:
                positives[index] += 1
        return "Average precision, %", names, [float(v) for v in np.nan_to_num(test.average_precision)], positives
    totals = test.counts.sum(axis=1)
    values = 100.0 * np.diag(test.counts) / np.maximum(totals, 1)
    return "Accuracy, %", names, values.tolist(), totals.tolist()


def _try_frames(video: VideoResult, read_frames: FrameReader) -> tuple[list[np.ndarray], str]:
    """Frames of the video, or no frames and the reason."""
    if not Path(video.path).exists():
        return [], "the file is not there"
    try:
        return [np.asarray(frame) for frame in read_frames(video.path, FRAMES_PER_VIDEO)], ""
    except READING_ERRORS as error:
        return [], f"{type(error).__name__}: {error}"


def _png(frame: np.ndarray) -> bytes:
    """A frame, uint8 [H, W, 3], as a small PNG file."""
    image = Image.fromarray(frame)
    image.thumbnail((FRAME_SIDE, FRAME_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(256).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _matrix_size(test: ViewTest) -> tuple[float, float]:
    """Inches: large enough for class names as long as they can be shown at all."""
    side = min(7.6, 5.2 + 0.06 * test.num_classes) if test.num_classes <= 55 else 6.0
    return side, side


def _truth(job: JobResults, video: VideoResult) -> str:
    return ", ".join(job.class_names[index] for index in video.labels) or "no label"


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    step = max(1, -(-len(x) // plots.MAX_POINTS))
    return x[::step], y[::step]


def _lead(job: JobResults) -> str:
    setting = job.settings.get
    facts = [str(job.folder.resolve())]
    if "DATA.NUM_FRAMES" in job.settings:
        facts.append(f"{setting('DATA.NUM_FRAMES')} frames, stride {setting('DATA.SAMPLING_RATE')}")
        facts.append(f"{setting('DATA.TEST_CROP_SIZE')} px")
    if setting("MODEL.ARCH") not in (None, "mvit", "maskmvit", "x3d"):
        facts.append(f"depth {setting('RESNET.DEPTH')}")
    return "  ·  ".join(facts)


def _dataset(job: JobResults) -> str:
    key = "TRAIN.DATASET" if job.history("train") else "TEST.DATASET"
    return str(job.settings.get(key, "its data"))


def _duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if unit == 3600 else 0}f} {name}"
    return f"{seconds / 86400:.1f} days"


def _show(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def _read_existing(output_dir: str | Path) -> JobResults:
    job = read_job(output_dir)
    if not job.found_anything:
        raise FileNotFoundError(
            f"{output_dir}: no job has left its results here (config.yaml, json_stats.log or "
            "test_<clips>x<crops>.jsonl); give the OUTPUT_DIR of a job that has started"
        )
    return job
