"""The names of the classes that a training leaves in its checkpoints and beside them."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from slowfast.checkpoint.io import FOLDER
from slowfast.utils.files import pathmgr

KEY = "class_names"


def read_class_names(path: str | os.PathLike) -> list[str]:
    """The names in a checkpoint, in order of their ids; empty where it has none, or cannot be read.

    Weights are not read: of a large file, this takes a moment.
    """
    path = os.fspath(path)
    if not pathmgr.exists(path) or pathmgr.isdir(path):
        return []
    local = pathmgr.get_local_path(path)
    if not zipfile.is_zipfile(local):
        return []
    try:
        content = torch.load(local, map_location="meta", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError):  # who loads the weights will say why
        return []
    names = content.get(KEY) if isinstance(content, Mapping) else None
    return list(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def run_folders(path: str | os.PathLike) -> list[Path]:
    """Where the run that wrote a checkpoint may have left more: its output folder, and that of the file."""
    if "://" in os.fspath(path):
        return []
    folder = Path(path).parent
    return [folder.parent, folder] if folder.name == FOLDER else [folder]
