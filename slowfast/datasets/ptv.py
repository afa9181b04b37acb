"""The names of the data sets that the original reads with pytorchvideo: the same files, read by our own data sets."""

from __future__ import annotations

import logging

from fvcore.common.config import CfgNode

from slowfast.datasets.build import DATASET_REGISTRY
from slowfast.datasets.charades import Charades
from slowfast.datasets.clips import ClipDataset
from slowfast.datasets.kinetics import Kinetics
from slowfast.datasets.ssv2 import Ssv2

logger = logging.getLogger(__name__)


class _Native:
    """In front of a data set of ours: says which one it is."""

    @classmethod
    def from_cfg(cls, cfg: CfgNode, split: str) -> ClipDataset:
        """The data set of ``split``."""
        logger.info("%s: read by %s", cls.__name__, cls.__mro__[2].__name__)
        return super().from_cfg(cfg, split)


@DATASET_REGISTRY.register()
class Ptvkinetics(_Native, Kinetics):
    """``Kinetics``."""


@DATASET_REGISTRY.register()
class Ptvssv2(_Native, Ssv2):
    """``Ssv2``."""


@DATASET_REGISTRY.register()
class Ptvcharades(_Native, Charades):
    """``Charades``."""
