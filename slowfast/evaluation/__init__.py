"""From scores to numbers: metrics that count per process and merge once."""

from slowfast.evaluation.ensemble import VideoEnsemble
from slowfast.evaluation.metrics import (
    MeanAP,
    MeanLoss,
    Metric,
    TopK,
    confusion_matrix,
    mean_average_precision,
    topks_correct,
)

__all__ = [
    "MeanAP",
    "MeanLoss",
    "Metric",
    "TopK",
    "VideoEnsemble",
    "confusion_matrix",
    "mean_average_precision",
    "topks_correct",
]
