"""What a test says about its classes, in a few lines of text."""

from collections.abc import Sequence

import numpy as np

from slowfast.utils.tables import text_table
from slowfast.visualization.results import average_precisions, confused_pairs, count_confusions

LIMIT = 5  # classes and pairs shown


def class_summary(scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, limit: int = LIMIT) -> str:
    """The weakest classes of a test and the pairs that are confused most often, as text.

    ``scores`` [N, K]; ``labels`` int [N], or [N, K] if multi-label, whose classes go by average precision and have no
    pairs. Classes without a video are left out.
    """
    if labels.ndim == 2:
        return _by_precision(scores, labels > 0, class_names, limit)
    counts = count_confusions(labels, scores.argmax(1), scores.shape[1])
    totals = counts.sum(1)
    known = np.flatnonzero(totals)
    accuracy = 100 * counts.diagonal()[known] / totals[known]
    order = np.argsort(accuracy, kind="stable")[:limit]
    rows = [(class_names[known[i]], totals[known[i]], f"{accuracy[i]:.1f}") for i in order]
    title = "all classes" if len(rows) == len(known) else f"{len(rows)} weakest of {len(known)} classes"
    text = text_table((title, "videos", "top-1 %"), rows)
    pairs = confused_pairs(counts, limit)
    if not pairs:
        return f"{text}\nno video was taken for another class"
    rows = [(class_names[true], class_names[found], count, f"{100 * share:.0f}") for true, found, count, share in pairs]
    return f"{text}\n\n" + text_table(("most confused", "taken for", "videos", "% of class"), rows)


def _by_precision(scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str], limit: int) -> str:
    precision = average_precisions(scores, labels)
    known = np.flatnonzero(labels.any(0))
    order = known[np.argsort(precision[known], kind="stable")][:limit]
    rows = [(class_names[i], labels[:, i].sum(), f"{precision[i]:.1f}") for i in order]
    title = "all classes" if len(rows) == len(known) else f"{len(rows)} weakest of {len(known)} classes"
    return text_table((title, "videos", "AP %"), rows)
