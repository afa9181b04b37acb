"""What the classes are called, for people: of a label file, a checkpoint, the folder of a run, or the data.

Names follow the network: what its training wrote stands before what lies where this job looks for data.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence

from slowfast.checkpoint import read_class_names, run_folders
from slowfast.datasets.class_names import find_class_names
from slowfast.datasets.records import CLASS_NAMES_FILE
from slowfast.evaluation.ava import read_label_map
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)


def build_class_names(
    cfg,
    labels: str | os.PathLike | None = None,
    folders: Sequence[str | os.PathLike] = (),
    *,
    checkpoint: str | os.PathLike = "",
) -> list[str]:
    """The names of the classes in order of their ids.

    Of the file ``labels``; else those of ``build_known_names``; else for 400 classes those of Kinetics; else numbers.
    ``ValueError`` where ``labels`` does not fit.
    """
    num_classes = cfg.MODEL.NUM_CLASSES
    if labels is not None:
        return load_class_names(labels, num_classes)
    names = build_known_names(cfg, folders, checkpoint=checkpoint)
    if names:
        return names
    if num_classes == 400:
        logger.info("400 classes without names: those of Kinetics-400 are taken")
        return kinetics_names()
    logger.warning("nothing names the %d classes: they are numbered", num_classes)
    return [f"class {index}" for index in range(num_classes)]


def build_box_class_names(
    cfg,
    labels: str | os.PathLike | None = None,
    folders: Sequence[str | os.PathLike] = (),
    *,
    checkpoint: str | os.PathLike = "",
) -> list[str]:
    """As ``build_class_names``, of a detection network in the order of its outputs; without names, ids of AVA.

    Of the file ``labels``, else of ``DEMO.LABEL_FILE_PATH``, which must fit; else those of ``build_known_names``. A
    label map (.pbtxt) counts from 1, a JSON file from 0. Classes that the file leaves out go by their ids.
    """
    num_classes = cfg.MODEL.NUM_CLASSES
    for file in (labels, cfg.DEMO.LABEL_FILE_PATH):
        if file:
            return _all_box_class_names(file, num_classes)
    names = build_known_names(cfg, folders, checkpoint=checkpoint)
    if names:
        return names
    logger.warning("nothing names the %d classes (DEMO.LABEL_FILE_PATH): they are numbered", num_classes)
    return [f"class {index + 1}" for index in range(num_classes)]


def build_known_names(
    cfg, folders: Sequence[str | os.PathLike] = (), *, checkpoint: str | os.PathLike = ""
) -> list[str]:
    """The names of the classes in order of their ids; empty where nothing names them, or the network has none.

    Of the first that has as many as there are classes: ``DEMO.LABEL_FILE_PATH``, ``TENSORBOARD.CLASS_NAMES_PATH``, the
    file ``checkpoint``, ``class_names.json`` in the folder of the run that wrote it or in one of ``folders``, and the
    annotation: ``AVA.LABEL_MAP_FILE``, or what is in ``DATA.PATH_TO_DATA_DIR``.
    """
    if cfg.MASK.ENABLE or cfg.MODEL.MODEL_NAME == "ContrastiveModel":
        return []
    return next(filter(None, _build_candidates(cfg, folders, os.fspath(checkpoint))), [])


def _build_candidates(cfg, folders: Sequence[str | os.PathLike], checkpoint: str) -> Iterator[list[str]]:
    """What each source gives in turn, as many names as there are classes or none; looked at only when it is asked."""
    num_classes, data = cfg.MODEL.NUM_CLASSES, cfg.DATA
    load = _all_box_class_names if cfg.DETECTION.ENABLE else load_class_names
    for file in (cfg.DEMO.LABEL_FILE_PATH, cfg.TENSORBOARD.CLASS_NAMES_PATH):
        yield _names_of(file, num_classes, load)
    if checkpoint:
        names = read_class_names(checkpoint)
        yield names if len(names) == num_classes else []
        folders = [*run_folders(checkpoint), *folders]
    for folder in folders:
        yield _names_of(os.path.join(folder, CLASS_NAMES_FILE), num_classes, load_class_names)
    if cfg.DETECTION.ENABLE:
        yield _names_of(os.path.join(cfg.AVA.ANNOTATION_DIR or "", cfg.AVA.LABEL_MAP_FILE or ""), num_classes, load)
    elif data.PATH_TO_DATA_DIR:
        yield _names_of(os.path.join(data.PATH_TO_DATA_DIR, CLASS_NAMES_FILE), num_classes, load)
        names = find_class_names(data.PATH_TO_DATA_DIR, data.PATH_LABEL_SEPARATOR)
        yield names if names is not None and len(names) == num_classes else []


def _names_of(file: str, num_classes: int, load: Callable[[str, int], list[str]]) -> list[str]:
    """The names in a file; none, and a warning, where it does not fit, and none where there is no such file."""
    if not file or not pathmgr.isfile(file):
        return []
    try:
        return load(file, num_classes)
    except ValueError as error:
        logger.warning("%s; it is passed over", error)
        return []


def kinetics_names() -> list[str]:
    """The 400 classes of Kinetics in the usual order, that of the alphabet."""
    from torchvision.models.video import R3D_18_Weights

    return list(R3D_18_Weights.KINETICS400_V1.meta["categories"])


def load_class_names(path: str | os.PathLike, num_classes: int) -> list[str]:
    """Names in order of their ids, of a JSON file (``{"name": id}``, ``{"id": "name"}``, ``["name"]``) or of lines.

    ``ValueError`` where there are not ``num_classes`` with the ids 0, 1, 2, ... each once.
    """
    path = os.fspath(path)
    if not pathmgr.isfile(path):
        raise ValueError(f"{path}: there is no such file of class names")
    with pathmgr.open(path, "r", encoding="utf-8-sig") as stream:
        text = stream.read()
    try:
        found = json.loads(text) if path.lower().endswith(".json") else text.splitlines()
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(found, dict):
        pairs = (
            found.items() if all(isinstance(value, int) for value in found.values()) else map(reversed, found.items())
        )
        try:
            by_id = {int(index): str(name) for name, index in pairs}
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path} is neither {{"name": id, ...}} nor {{"id": "name", ...}}') from error
        if sorted(by_id) != list(range(len(found))):
            raise ValueError(f"{path}: the ids are not 0 to {len(found) - 1}, each once")
        found = [by_id[index] for index in range(len(by_id))]
    if not isinstance(found, list):
        raise ValueError(f'{path} is none of {{"name": id}}, {{"id": "name"}}, ["name", ...]')
    names = [str(name).strip().strip('"') for name in found]
    if len(names) != num_classes:
        raise ValueError(f"{path} names {len(names)} classes, the network has {num_classes} (MODEL.NUM_CLASSES)")
    return names


def _all_box_class_names(path: str | os.PathLike, num_classes: int) -> list[str]:
    """As ``load_box_class_names``, with ids of AVA for the classes that the file leaves out."""
    names = {index: f"class {index + 1}" for index in range(num_classes)}
    return list({**names, **load_box_class_names(path, num_classes)}.values())


def load_box_class_names(path: str | os.PathLike, num_classes: int) -> dict[int, str]:
    """Names by output of the network, of a label map (ids from 1, or lines ``1: walk``) or other names.

    A JSON file ``{"name": id}`` need not name all: the original's file of AVA has 60 of 80.
    """
    path = os.fspath(path)
    if path.lower().endswith((".pbtxt", ".txt")) and pathmgr.isfile(path):
        with pathmgr.open(path, "r", encoding="utf-8-sig") as stream:
            text = stream.read()
        numbered = [re.fullmatch(r"(\d+): *(.+)", line.strip()) for line in text.splitlines() if line.strip()]
        if "{" in text:
            found = read_label_map(path)
        elif all(numbered):
            found = {int(match[1]): match[2] for match in numbered}
        else:
            return dict(enumerate(load_class_names(path, num_classes)))
        return _checked({id - 1: name for id, name in found.items()}, path, num_classes)
    partial = _partial_ids(path)
    return _checked(partial, path, num_classes) if partial else dict(enumerate(load_class_names(path, num_classes)))


def _partial_ids(path: str) -> dict[int, str]:
    """A JSON file of ``{"name": id}``; empty for anything else."""
    if not path.lower().endswith(".json") or not pathmgr.isfile(path):
        return {}
    with pathmgr.open(path, "r", encoding="utf-8-sig") as stream:
        try:
            found = json.load(stream)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
        return {}
    return {index: str(name) for name, index in found.items()}


def _checked(names: dict[int, str], path: str, num_classes: int) -> dict[int, str]:
    beyond = [index for index in names if not 0 <= index < num_classes]
    if beyond:
        raise ValueError(f"{path} names output {beyond[0]}, the network has {num_classes} (MODEL.NUM_CLASSES)")
    return names
