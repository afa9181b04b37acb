"""Data: from lists of videos to batches of clips."""

from slowfast.datasets.ava import Ava
from slowfast.datasets.batch import BadVideo, Batch, Request, Sample, collate
from slowfast.datasets.build import DATASET_REGISTRY, build_dataset, build_loader
from slowfast.datasets.charades import Charades
from slowfast.datasets.clips import ClipDataset
from slowfast.datasets.imagenet import Imagenet
from slowfast.datasets.kinetics import Folders, Kinetics
from slowfast.datasets.ptv import Ptvcharades, Ptvkinetics, Ptvssv2
from slowfast.datasets.shards import Shards
from slowfast.datasets.sources import DecodeError
from slowfast.datasets.ssv2 import Ssv2

__all__ = [
    "DATASET_REGISTRY",
    "Ava",
    "BadVideo",
    "Batch",
    "Charades",
    "ClipDataset",
    "DecodeError",
    "Folders",
    "Imagenet",
    "Kinetics",
    "Ptvcharades",
    "Ptvkinetics",
    "Ptvssv2",
    "Request",
    "Sample",
    "Shards",
    "Ssv2",
    "build_dataset",
    "build_loader",
    "collate",
]
