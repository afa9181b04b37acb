"""What an exported network is shown and what it answers: the JSON that its file carries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slowfast.config import load_cfg
from slowfast.config.defaults import flatten
from slowfast.config.load import option_pairs
from slowfast.datasets.clips import ClipDataset
from slowfast.visualization.predictor import build_clips

VERSION = 1

# Keys that decide how a test chooses and makes clips; with them alone the same clips are made again.
CLIP_KEYS = (
    "DATA.NUM_FRAMES",
    "DATA.SAMPLING_RATE",
    "DATA.TARGET_FPS",
    "DATA.DECODING_BACKEND",
    "DATA.VIDEO_DECODER",
    "DATA.AUTOROTATE",
    "DATA.USE_OFFSET_SAMPLING",
    "DATA.TEST_CROP_SIZE",
    "DATA.TRAIN_JITTER_SCALES",
    "DATA.MEAN",
    "DATA.STD",
    "DATA.REVERSE_INPUT_CHANNEL",
    "DATA.ENSEMBLE_METHOD",
    "TEST.DATASET",
    "TEST.BATCH_SIZE",
    "TEST.NUM_ENSEMBLE_VIEWS",
    "TEST.NUM_SPATIAL_CROPS",
)
# What a user of the file may still change.
FREE_KEYS = (
    "DATA.ENSEMBLE_METHOD",
    "DATA.VIDEO_DECODER",
    "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE",
    "TEST.BATCH_SIZE",
    "TEST.NUM_ENSEMBLE_VIEWS",
    "TEST.NUM_SPATIAL_CROPS",
)


@dataclass(frozen=True)
class Card:
    """What is written down beside the weights.

    The input is ``clips``, float32 [B, 3, num_frames, side, side] with any B: ``stride`` frames apart at ``fps`` frames
    a second, the short side scaled to ``short_side``, values of 0 to 1 minus ``mean``, divided by ``std``. The output
    is ``scores``, float32 [B, K], activated, in the order of ``labels``.
    """

    labels: list[str]
    num_frames: int
    stride: int  # without effect where ``sampling`` is "spread"
    fps: float
    side: int
    short_side: int
    mean: list[float]  # in the order of ``channels``
    std: list[float]
    channels: str  # RGB or BGR
    sampling: str  # rate: frames by the clock; stride: every so many frames; spread: over the whole video
    views: tuple[int, int]  # temporal clips, spatial crops
    merge: str  # of the views' scores: sum (their mean) or max
    precision: str
    multi_label: bool
    network: str
    config: dict[str, Any]  # the values of CLIP_KEYS; defaults stand in for keys that an older card lacks
    version: int = VERSION

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """One clip: [3, T, H, W]."""
        return 3, self.num_frames, self.side, self.side

    def to_json(self) -> str:
        """As text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, origin: str) -> Card:
        """From text; ``ValueError`` names ``origin`` where it is none, or of a later version."""
        try:
            values: Mapping[str, Any] = json.loads(text)
            version = values["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{origin} has no card: it was not written by tools/export.py") from error
        if version != VERSION:
            raise ValueError(f"{origin} has a card of version {version}, known here is {VERSION}: update slowfast")
        return cls(**{**values, "views": tuple(values["views"])})


def build_card(cfg, labels: Sequence[str], *, precision: str = "fp32") -> Card:
    """The card of the network that ``cfg`` describes, with one of ``labels`` for each class."""
    clips = build_clips(cfg)
    normalize, data = clips.transform.normalize, cfg.DATA
    if len(set(data.INPUT_CHANNEL_NUM)) != 1 or data.INPUT_CHANNEL_NUM[0] != 3:
        raise ValueError(f"DATA.INPUT_CHANNEL_NUM={list(data.INPUT_CHANNEL_NUM)}: exported are networks of 3 channels")
    samplings = {"ssv2": "spread", "charades": "stride"}
    values = flatten(cfg)
    order = slice(None, None, -1 if normalize.reverse_channels else 1)  # the data set turns channels around last
    return Card(
        labels=list(labels),
        num_frames=data.NUM_FRAMES,
        stride=data.SAMPLING_RATE,
        fps=float(data.TARGET_FPS),
        side=data.TEST_CROP_SIZE,
        short_side=clips.transform.short_side(),
        mean=list(normalize.mean[order]),
        std=list(normalize.std[order]),
        channels="BGR" if normalize.reverse_channels else "RGB",
        sampling=samplings.get(cfg.TEST.DATASET.lower().removeprefix("ptv"), "rate"),
        views=(clips.num_clips, clips.num_crops),
        merge=data.ENSEMBLE_METHOD,
        precision=precision,
        multi_label=bool(data.MULTI_LABEL),
        network=f"{cfg.MODEL.MODEL_NAME} {cfg.MODEL.ARCH}",
        config={key: values[key] for key in CLIP_KEYS},
    )


def build_clips_of(card: Card, opts: Sequence = ()) -> tuple[ClipDataset, dict[str, Any]]:
    """The data set without records that makes the clips of ``card``, and the values of its keys.

    ``opts`` change keys, KEY, value, ...; only those of ``FREE_KEYS``, because the rest is fixed in the network.
    """
    for key, _ in option_pairs(opts):
        if key not in FREE_KEYS:
            raise ValueError(f"{key} is fixed in an exported file; what can be changed is {', '.join(FREE_KEYS)}")
    fixed = [item for pair in card.config.items() for item in pair]
    cfg = load_cfg(None, [*fixed, *opts])
    return build_clips(cfg), flatten(cfg)
