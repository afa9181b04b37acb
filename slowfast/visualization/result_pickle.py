"""The original's result files: a pickled list of scores and labels, read without running what may be in them."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slowfast.utils.files import pathmgr


def _load_storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # NumPy 2 moved what rebuilds an array; the function is the same one.
    ("numpy.core.multiarray", "_reconstruct"): np.ones(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.ones(0).__reduce__()[0],
}


class _ResultUnpickler(pickle.Unpickler):
    """Builds tensors and arrays; every other name in the file is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only tensors and arrays are read")
        return _ALLOWED[module, name]


def read_pickle(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, K] and labels [N] or [N, K] of a file that TEST.SAVE_RESULTS_PATH wrote.

    ``ValueError`` or ``pickle.UnpicklingError`` for anything else.
    """
    with pathmgr.open(os.fspath(path), "rb") as file:
        found = _ResultUnpickler(file).load()
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise ValueError(f"it holds a {type(found).__name__}, not a list of scores and labels")
    scores, labels = (part.numpy() if isinstance(part, Tensor) else np.asarray(part) for part in found)
    if scores.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(scores):
        raise ValueError(
            f"scores {list(scores.shape)} and labels {list(labels.shape)} are not [N, K] and [N] or [N, K]"
        )
    return scores, labels
