"""Data: from lists of videos to batches of clips."""

from slowfast.datasets.batch import BadVideo, Batch, Request, Sample, collate
from slowfast.datasets.build import DATASET_REGISTRY, build_dataset, build_loader
from slowfast.datasets.clips import ClipDataset
from slowfast.datasets.kinetics import Kinetics
from slowfast.datasets.sources import DecodeError

__all__ = [
    "DATASET_REGISTRY",
    "BadVideo",
    "Batch",
    "ClipDataset",
    "DecodeError",
    "Kinetics",
    "Request",
    "Sample",
    "build_dataset",
    "build_loader",
    "collate",
]
