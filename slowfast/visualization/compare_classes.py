"""Two tests of the same videos, class by class, and how sure their difference is.

The interval is that of a paired bootstrap (Efron and Tibshirani, 1993): videos are drawn with replacement as often as
there are some, the same ones for both tests, and the difference is taken anew; 95 % of the draws lie within.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from slowfast.visualization import page, plots
from slowfast.visualization.page import Section, element, join, note
from slowfast.visualization.result_pickle import read_pickle
from slowfast.visualization.results import ViewTest, read_job, read_test

DRAWS = 10_000
DRAWS_OF_AP = 1_000  # average precision is computed anew in each
MAX_BARS = 40
MAX_NAME = 90  # characters of the name of a test in a picture
_CHUNK = 200  # draws at once


@dataclass(frozen=True)
class ScoredVideos:
    """The videos of one test. ``keys`` tell them apart: paths, or numbers of rows where no paths are known."""

    name: str
    keys: tuple[str, ...]
    has_paths: bool
    labels: np.ndarray  # int64 [N], or bool [N, K] if multi-label
    scores: np.ndarray  # float [N, K]
    class_names: tuple[str, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether a video has any number of classes."""
        return self.labels.ndim == 2


@dataclass(frozen=True)
class Interval:
    """A number of both tests in percent, their difference B - A, and its 95 % interval."""

    name: str
    a: float
    b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ClassRow:
    """One class: its videos among the common ones, and accuracy (or average precision) of both in percent."""

    index: int
    name: str
    videos: int
    a: float
    b: float

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """What two tests say of their common videos; classes from the largest loss to the largest gain."""

    names: tuple[str, str]
    measure: str  # "accuracy" or "average precision"
    common: int
    only_a: list[str]
    only_b: list[str]
    overall: list[Interval]
    classes: list[ClassRow]
    draws: int


# ---------------------------------------------------------------- reading


def read_scored(path: str | os.PathLike) -> ScoredVideos:
    """The test in an output folder (the one with the most views), a ``test_*.jsonl`` or the original's pickle.

    ``ValueError`` where there is no such thing or it holds no scores.
    """
    path = Path(path)
    if path.is_dir():
        job = read_job(path)
        if job.main_test is None:
            raise ValueError(f"{path} holds no test result (test_<clips>x<crops>.jsonl): test first, TEST.ENABLE True")
        return _of_test(str(path), job.main_test, job.class_names)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file or folder")
    if path.suffix == ".jsonl":
        notes: list[str] = []
        test = read_test(path, (1, 1), notes)
        if test is None:
            raise ValueError(f"{path} holds no line of a tested video; {'; '.join(notes)}")
        names = read_job(path.parent).class_names
        return _of_test(str(path), test, names if len(names) == test.num_classes else ())
    try:
        scores, labels = read_pickle(path)
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is neither a .jsonl of a test nor a pickle [scores, labels]: {error}") from error
    labels = labels > 0 if labels.ndim == 2 else labels.astype(np.int64)
    rows, names = tuple(str(row) for row in range(len(scores))), read_job(path.parent).class_names
    return ScoredVideos(str(path), rows, False, labels, scores, tuple(names) if len(names) == scores.shape[1] else ())


def _of_test(name: str, test: ViewTest, class_names: Sequence[str]) -> ScoredVideos:
    if test.scores is None:
        raise ValueError(f"{name}: the lines of the test hold no scores, or not equally many")
    labels: np.ndarray = np.array([video.labels[0] if video.labels else -1 for video in test.videos])
    if test.multi_label:
        labels = np.zeros(test.scores.shape, dtype=bool)
        for row, video in enumerate(test.videos):
            labels[row, list(video.labels)] = True
    keys = _numbered([video.path for video in test.videos])
    return ScoredVideos(name, tuple(keys), True, labels, test.scores, tuple(class_names[: test.num_classes]))


def _numbered(paths: Sequence[str]) -> list[str]:
    """Paths that stand more than once in a list get a number from the second on."""
    seen: Counter[str] = Counter()
    keys = []
    for path in paths:
        seen[path] += 1
        keys.append(path if seen[path] == 1 else f"{path} ({seen[path]})")
    return keys


def _matched(a: ScoredVideos, b: ScoredVideos) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of both, by rows or by paths; below the folder that each list lies in, where that finds more."""
    if not (a.has_paths and b.has_paths):
        if len(a.keys) != len(b.keys):
            raise ValueError(
                f"{a.name} has {len(a.keys)} videos and {b.name} {len(b.keys)}, and a pickle does not name them: "
                "compare the test_*.jsonl beside it"
            )
        rows = tuple(f"row {row}" for row in range(len(a.keys)))
        return rows, rows
    below = tuple(tuple(os.path.relpath(key, _folder_of(t.keys)) for key in t.keys) for t in (a, b))
    return below if len(set(below[0]) & set(below[1])) > len(set(a.keys) & set(b.keys)) else (a.keys, b.keys)


def _folder_of(paths: Sequence[str]) -> str:
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # relative paths among absolute ones
        folder = ""
    return folder or "."


# ---------------------------------------------------------------- comparing


def compare(
    a: ScoredVideos, b: ScoredVideos, *, seed: int = 0, draws: int | None = None, class_names: Sequence[str] = ()
) -> Comparison:
    """Both tests over the videos that they have in common.

    ``draws`` of the bootstrap are 10,000, for several labels per video 1,000. ``ValueError`` where no video is in
    both, or the two disagree on labels or number of classes.
    """
    if a.multi_label != b.multi_label or a.scores.shape[1] != b.scores.shape[1]:
        raise ValueError(
            f"{a.name} has {a.scores.shape[1]} classes and {b.name} {b.scores.shape[1]}, of which a video has "
            f"{'any number' if a.multi_label else 'one'} and {'any number' if b.multi_label else 'one'}: these are "
            "different tasks"
        )
    keys_a, keys_b = _matched(a, b)
    in_a, in_b = set(keys_a), set(keys_b)
    common = [key for key in keys_a if key in in_b]
    if not common:
        raise ValueError(f"no video is in both: {a.name} begins with {keys_a[0]}, {b.name} with {keys_b[0]}")
    rows_a = np.array([row for row, key in enumerate(keys_a) if key in in_b])
    place = {key: row for row, key in enumerate(keys_b)}
    rows_b = np.array([place[key] for key in common])
    labels = a.labels[rows_a]
    differ = np.flatnonzero((labels != b.labels[rows_b]).reshape(len(common), -1).any(1))
    if len(differ):
        raise ValueError(f"{len(differ)} videos carry other labels in {b.name} than in {a.name}: {common[differ[0]]}")
    numbers = tuple(str(index) for index in range(a.scores.shape[1]))
    known = (names for names in (class_names, a.class_names, b.class_names) if names and tuple(names) != numbers)
    names = next(known, numbers)
    scores = (a.scores[rows_a], b.scores[rows_b])
    measure = _several if a.multi_label else _single
    draws = draws or (DRAWS_OF_AP if a.multi_label else DRAWS)
    overall, classes = measure(labels, scores, list(names), np.random.default_rng(seed), draws)
    return Comparison(
        names=(a.name, b.name),
        measure="average precision" if a.multi_label else "accuracy",
        common=len(common),
        only_a=[key for key in keys_a if key not in in_b],
        only_b=[key for key in keys_b if key not in in_a],
        overall=overall,
        classes=sorted(classes, key=lambda row: (row.difference, row.index)),
        draws=draws,
    )


def _single(
    labels: np.ndarray, scores: tuple[np.ndarray, np.ndarray], names: list[str], rng: np.random.Generator, draws: int
) -> tuple[list[Interval], list[ClassRow]]:
    """Accuracies, over all videos and per class."""
    overall = []
    for k in (1, 5):
        if k < len(names):
            hits = [_hits(part, labels, k) for part in scores]
            low, high = paired_interval(hits[1].astype(int) - hits[0], rng, draws)
            overall.append(Interval(f"top-{k}", 100 * hits[0].mean(), 100 * hits[1].mean(), low, high))
    right = [_hits(part, labels, 1) for part in scores]
    classes = []
    for index in np.unique(labels).tolist():
        of_class = labels == index
        values = (100 * float(part[of_class].mean()) for part in right)
        classes.append(ClassRow(index, names[index], int(of_class.sum()), *values))
    return overall, classes


def _hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the ``k`` best, bool [N]."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(1)


def paired_interval(differences: np.ndarray, rng: np.random.Generator, draws: int) -> tuple[float, float]:
    """95 % interval, in percent, of the mean of ``differences`` [N], each -1, 0 or 1.

    Videos drawn with replacement make the numbers of the three a draw from the multinomial distribution.
    """
    count = len(differences)
    shares = [np.mean(differences == value) for value in (-1, 0, 1)]
    losses, _, gains = rng.multinomial(count, shares, size=draws).T
    low, high = np.percentile(100.0 * (gains - losses) / count, (2.5, 97.5))
    return float(low), float(high)


def _several(
    labels: np.ndarray, scores: tuple[np.ndarray, np.ndarray], names: list[str], rng: np.random.Generator, draws: int
) -> tuple[list[Interval], list[ClassRow]]:
    """Average precisions: per class, and their mean over classes that have a video."""
    known = np.flatnonzero(labels.any(0))
    if not len(known):
        raise ValueError("no common video has a label: there is nothing to compare")
    whole = np.ones((1, len(labels)))
    values = [average_precisions(part, labels, whole)[0] for part in scores]
    differences = []
    for first in range(0, draws, _CHUNK):
        drawn = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=min(_CHUNK, draws - first))
        means = [np.nanmean(average_precisions(part, labels, drawn), axis=1) for part in scores]
        differences.append(means[1] - means[0])
    low, high = np.percentile(np.concatenate(differences), (2.5, 97.5))
    means = [float(np.nanmean(value)) for value in values]
    classes = [
        ClassRow(index, names[index], int(labels[:, index].sum()), float(values[0][index]), float(values[1][index]))
        for index in known.tolist()
    ]
    return [Interval("mAP", *means, float(low), float(high))], classes


def average_precisions(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision in percent of each class, NaN without a positive, where videos count several times: [R, K].

    ``weights`` [R, N] say how often; equal scores count as one step, as in scikit-learn.
    """
    result = np.full((len(weights), scores.shape[1]), np.nan)
    for index in np.flatnonzero(labels.any(0)):
        order = np.argsort(-scores[:, index], kind="stable")
        ranked = scores[order, index]
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        counted = np.cumsum(weights[:, order], axis=1)[:, ends]
        true = np.cumsum(weights[:, order] * labels[order, index], axis=1)[:, ends]
        steps = np.diff(true, axis=1, prepend=0)
        total = true[:, -1]
        sums = (steps * true / np.maximum(counted, 1)).sum(1)
        result[:, index] = np.where(total > 0, 100 * sums / np.maximum(total, 1), np.nan)
    return result


# ---------------------------------------------------------------- shown


def difference_figure(comparison: Comparison) -> Figure:
    """A bar per class from no change to B - A; the largest losses and gains where there are many classes.

    The title says which tests A and B are.
    """
    rows = shown_rows(comparison.classes, MAX_BARS)
    figure = plots.Figure(figsize=(7.2, 1.5 + 0.235 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    values = [0.0 if row is None else row.difference for row in rows]
    colors = [plots.GOOD if value >= 0 else plots.BAD for value in values]
    axes.barh(range(len(rows)), values, color=colors, height=0.66)
    hidden = len(comparison.classes) - sum(row is not None for row in rows)
    names = [f"... {hidden} more ..." if row is None else row.name.replace("$", r"\$")[:40] for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8.5, color=plots.INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0, color=plots.MUTED, linewidth=0.8)
    limit = 1.15 * max([abs(value) for value in values] + [1.0])
    axes.set_xlim(-limit, limit)
    for place, (row, value) in enumerate(zip(rows, values)):
        if row is not None:
            side = "left" if value >= 0 else "right"
            text = f" {value:+.1f} "
            axes.text(value, place, text, va="center", ha=side, color=plots.MUTED, fontsize=8)
    axes.set_xlabel(f"{comparison.measure}, B - A in points", color=plots.MUTED, fontsize=9)
    tests = "\n".join(f"{letter}: {_end_of(name)}" for letter, name in zip("AB", comparison.names))
    figure.suptitle(tests, x=0.01, ha="left", color=plots.INK, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(plots.GRID)
    axes.grid(axis="x", color=plots.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5)
    return figure


def _end_of(path: str) -> str:
    """The end of a long path: that is where two differ."""
    shown = path if len(path) <= MAX_NAME else "…" + path[1 - MAX_NAME :]
    return shown.replace("$", r"\$")


def shown_rows(rows: Sequence[ClassRow], most: int) -> list[ClassRow | None]:
    """All rows, or the first and last of them with None for those between."""
    if len(rows) <= most:
        return list(rows)
    return [*rows[: most // 2], None, *rows[-(most - most // 2) :]]


def comparison_page(comparison: Comparison) -> str:
    """All of it as one HTML page."""
    intervals = [
        [
            row.name,
            f"{row.a:.2f}",
            f"{row.b:.2f}",
            f"{row.difference:+.2f}",
            f"{row.low:+.2f} to {row.high:+.2f}",
            "yes" if row.clear else "no",
        ]
        for row in comparison.overall
    ]
    heads = ["", "A, %", "B, %", "B - A", "95 % interval", "Leaves out 0"]
    table = page.table(heads, intervals, numeric=range(1, 5), id="overall")
    rows = [
        [row.name, str(row.videos), f"{row.a:.1f}", f"{row.b:.1f}", f"{row.difference:+.1f}"]
        for row in comparison.classes
    ]
    classes = page.table(
        ["Class", "Videos", "A, %", "B, %", "B - A"], rows, numeric=range(1, 5), id="classes", class_="sortable"
    )
    svg = page.themed(plots.to_svg(difference_figure(comparison), "difference"))
    picture = element("div", svg, class_="plot", role="img", aria_label="Difference per class")
    parts: list[str | None] = [
        table,
        note(f"Paired bootstrap over the {comparison.common} common videos, {comparison.draws:,} draws."),
        *(note(text) for text in missing_notes(comparison)),
    ]
    sections = [
        Section("overall", "Overall", join(parts)),
        Section("difference", "Difference per class", picture),
        Section("per-class", "Classes", element("div", classes, class_="tall")),
    ]
    lead = f"A: {comparison.names[0]}, B: {comparison.names[1]}"
    header = element("div", element("h1", "Two tests compared"), element("p", lead, class_="lead"), class_="top")
    return page.render_page("Two tests compared", header, sections)


def missing_notes(comparison: Comparison, shown: int = 5) -> list[str]:
    """What is said of videos that only one of the tests has."""
    notes = []
    for letter, keys in (("A", comparison.only_a), ("B", comparison.only_b)):
        if keys:
            more = f", and {len(keys) - shown} more" if len(keys) > shown else ""
            notes.append(f"{len(keys)} videos are in {letter} only and left out: {', '.join(keys[:shown])}{more}")
    return notes
