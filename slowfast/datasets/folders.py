"""A folder of class folders: what people have before they have lists.

``<folder>/<class>/<video>``, or ``<folder>/{train,val,test}/<class>/<video>``. A video is a file or a folder of
images; data sets of images take these in place of videos. Without split folders the split of a video follows from
its name and the seed, so that videos which are added later move none of the others.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable

from slowfast.datasets.records import CLASS_NAMES_FILE, VIDEO_SUFFIXES, PathLabels, class_ids, contents, some
from slowfast.datasets.sources import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# Where a split has no folder of its own, this one stands in for it.
STAND_IN = {"val": "test", "test": "val"}
TRAIN_SHARE, VAL_SHARE = 0.8, 0.1  # of the videos of a class, where the split is drawn; the rest is for testing

Classes = dict[str, list[str]]
Accept = Callable[[os.DirEntry], bool]


def is_video(item: os.DirEntry) -> bool:
    """Whether ``item`` is a video file or a folder with images in it."""
    if item.is_dir():
        return any(is_image(frame) for frame in os.scandir(item.path))
    return item.name.lower().endswith(VIDEO_SUFFIXES)


def is_image(item: os.DirEntry) -> bool:
    """Whether ``item`` is an image file."""
    return item.name.lower().endswith(IMAGE_SUFFIXES)


def list_classes(folder: str, accept: Accept = is_video) -> Classes:
    """The videos of each class folder in ``folder``, both in sorted order; folders without any are left out."""
    classes = {}
    for item in _entries(folder):
        if item.is_dir():
            videos = [entry.name for entry in _entries(item.path) if accept(entry)]
            if videos:
                classes[item.name] = videos
    return classes


def has_class_folders(folder: str) -> bool:
    """Whether ``folder`` can be read by ``load_class_folders``."""
    return bool(list_classes(folder)) or bool(_split_folders(folder))


def load_class_folders(
    folder: str, split: str, seed: int = 0, num_classes: int | None = None, accept: Accept = is_video
) -> PathLabels:
    """The videos of ``split`` under ``folder``, labelled by their class folders.

    Ids are those of ``class_names.json`` in ``folder`` where it exists, else the place in the sorted names.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder!r} (DATA.PATH_TO_DATA_DIR)")
    splits = _split_folders(folder, accept)
    if splits:
        part = _find_split(splits, split, folder)
        ids = _ids_of_splits(splits, folder, num_classes)
        root, classes = os.path.join(folder, part), splits[part]
    else:
        root, classes = folder, list_classes(folder, accept)
        if not classes:
            raise FileNotFoundError(
                f"no class folders with {_accepted(accept)} in {folder!r} (DATA.PATH_TO_DATA_DIR), "
                f"which holds {contents(folder)}"
            )
        ids = class_ids(classes, folder, num_classes)
        classes = _drawn(classes, split, seed, folder)
    names = sorted(ids, key=ids.__getitem__)
    rows = [(os.path.join(root, name, video), ids[name]) for name, videos in classes.items() for video in videos]
    absent = [name for name in names if not classes.get(name)]
    if absent:
        logger.warning("%s: %d classes have no video for %s: %s", folder, len(absent), split, some(absent))
    drawn = "" if splits else f" (drawn by RNG_SEED {seed})"
    logger.info("class folders of %s: %d videos of %d classes for %s%s", root, len(rows), len(names), split, drawn)
    return PathLabels((path for path, _ in rows), (label for _, label in rows), names)


def drawn_split(name: str, seed: int) -> str:
    """The split of a video, from its name (``class/video``, the suffix does not count) and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{os.path.splitext(name)[0]}".encode(errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if place < TRAIN_SHARE else "val" if place < TRAIN_SHARE + VAL_SHARE else "test"


def _drawn(classes: Classes, split: str, seed: int, folder: str) -> Classes:
    chosen = _of_split(classes, split, seed)
    if any(chosen.values()):
        return chosen
    total = sum(map(len, classes.values()))
    useful = (s for s in range(1000) if all(any(_of_split(classes, part, s).values()) for part in SPLITS))
    better = next(useful, None)
    remedy = f"RNG_SEED {better} draws some for each, or put" if better is not None else "put"
    raise ValueError(
        f"of the {total} videos in the class folders of {folder!r}, RNG_SEED {seed} draws none for {split}: {remedy} "
        "the class folders into folders named train, val and test"
    )


def _of_split(classes: Classes, split: str, seed: int) -> Classes:
    return {
        name: [video for video in videos if drawn_split(f"{name}/{video}", seed) == split]
        for name, videos in classes.items()
    }


def _split_folders(folder: str, accept: Accept = is_video) -> dict[str, Classes]:
    """The class folders of each split that has a folder. A class called "train" holds videos, not class folders."""
    splits = {split: list_classes(os.path.join(folder, split), accept) for split in SPLITS}
    return {split: classes for split, classes in splits.items() if classes}


def _find_split(splits: dict[str, Classes], split: str, folder: str) -> str:
    if split in splits:
        return split
    stand_in = STAND_IN.get(split)
    if stand_in not in splits:
        raise FileNotFoundError(
            f"no class folders in {os.path.join(folder, split)!r}; {folder!r} (DATA.PATH_TO_DATA_DIR) has them "
            f"in {', '.join(splits)} only"
        )
    logger.warning("%s has no folder %s: the videos of %s are used for it", folder, split, stand_in)
    return stand_in


def _ids_of_splits(splits: dict[str, Classes], folder: str, num_classes: int | None):
    first = "train" if "train" in splits else next(iter(splits))
    named = os.path.isfile(os.path.join(folder, CLASS_NAMES_FILE))
    for split, classes in splits.items():
        foreign = [name for name in classes if name not in splits[first]]
        if foreign and not named:
            raise ValueError(
                f"class folders of {os.path.join(folder, split)!r} that {first} does not have: {some(foreign)}. "
                f"The names must agree, or stand in {CLASS_NAMES_FILE}"
            )
    return class_ids((name for classes in splits.values() for name in classes), folder, num_classes)


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return sorted((item for item in found if not item.name.startswith(".")), key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _accepted(accept: Accept) -> str:
    return f"images ({', '.join(IMAGE_SUFFIXES)})" if accept is is_image else f"videos ({', '.join(VIDEO_SUFFIXES)})"
