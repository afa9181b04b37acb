"""The names of the classes, from whatever annotation a folder holds; for people, not for training."""

from __future__ import annotations

import json
import os

from slowfast.datasets.folders import SPLITS, is_image, is_video, list_classes
from slowfast.datasets.frame_lists import HEADER
from slowfast.datasets.kinetics import has_lists, load_records
from slowfast.datasets.ssv2 import LABELS
from slowfast.utils.files import pathmgr


def find_class_names(folder: str, separator: str = " ") -> list[str] | None:
    """The names in order of their ids; None where the annotation in ``folder`` has numbers only, or is none."""
    templates, train = os.path.join(folder, LABELS), os.path.join(folder, "train.csv")
    try:
        if pathmgr.isfile(templates):
            with pathmgr.open(templates, "r") as stream:
                ids = json.load(stream)
            return sorted(ids, key=lambda name: int(ids[name]))
        if has_lists(folder):
            return None if _is_frame_list(train) else load_records(train, separator).class_names
        return _folder_names(folder) or None
    except (OSError, ValueError):
        return None


def _is_frame_list(file: str) -> bool:
    with pathmgr.open(file, "r", errors="surrogateescape") as stream:
        return stream.readline().startswith(HEADER)


def _folder_names(folder: str) -> list[str]:
    kinds = (is_video, is_image)
    in_splits = ({name for s in SPLITS for name in list_classes(os.path.join(folder, s), kind)} for kind in kinds)
    in_folder = (set(list_classes(folder, kind)) for kind in kinds)
    return sorted(next(filter(None, (*in_splits, *in_folder)), ()))
