"""What is happening in a video: files or folders of frames to classes with scores, whole or window by window.

The one idea: nothing of a test is written a second time. Frames are chosen, read, scaled and cropped by the data set
that a test of the same configuration uses, and its weights are loaded in the same way; so for the same views the
scores of a prediction are those of the test.

    predictor = Predictor.from_checkpoint("config.yaml", "checkpoint.pyth")
    prediction = predictor.predict("video.mp4")
    print(prediction.top(5))
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from slowfast.checkpoint import build_test_plan, carry_out
from slowfast.config import load_cfg
from slowfast.datasets.build import build_clip_options
from slowfast.datasets.charades import StrideRule
from slowfast.datasets.clips import FRAMES_IN_MEMORY, ClipDataset, RateRule, Record
from slowfast.datasets.frame_lists import build_frame_transform
from slowfast.datasets.kinetics import Kinetics
from slowfast.datasets.sampling import View
from slowfast.datasets.sources import ClipSource, VideoInfo
from slowfast.datasets.ssv2 import SegmentRule
from slowfast.datasets.transforms.geometry import uniform_offsets
from slowfast.datasets.transforms.presets import crop_position
from slowfast.models import build_model
from slowfast.models.fold import for_inference
from slowfast.visualization.class_names import build_class_names
from slowfast.visualization.video_io import Span, ahead, frame_times, part_of, sliding_windows, video_length

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Softmax)  # of these, the last axis of any output is C
_POOLS = (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d)
_SHOWN = 12  # names shown in a message


class Guess(NamedTuple):
    """A class and its score."""

    name: str
    index: int
    score: float


@dataclass(frozen=True)
class ClipPrediction:
    """Scores of one stretch of a video."""

    start_s: float
    end_s: float
    scores: Tensor  # float32 [K]
    class_names: Sequence[str]
    features: np.ndarray | None = None  # float32 [D]: mean over space, time and views of the layer asked for

    def top(self, k: int = 5) -> list[Guess]:
        """The ``k`` best classes, best first."""
        return best_classes(self.scores, self.class_names, k)


@dataclass(frozen=True)
class VideoPrediction:
    """Scores of a whole video, merged over its views as ``DATA.ENSEMBLE_METHOD`` says.

    With ``sum``, scores are means over the views: the sums that a test writes, divided by their number of views.
    With ``max`` they are what a test writes.
    """

    path: str
    length_s: float
    views: tuple[int, int]  # temporal clips, spatial crops
    scores: Tensor  # float32 [K]
    view_scores: Tensor  # float32 [V, K]; crops of a clip are neighbours
    class_names: Sequence[str]
    features: np.ndarray | None = None  # float32 [D]: mean over space, time and views of the layer asked for

    def top(self, k: int = 5) -> list[Guess]:
        """The ``k`` best classes, best first."""
        return best_classes(self.scores, self.class_names, k)


def best_classes(scores: Tensor, class_names: Sequence[str], k: int) -> list[Guess]:
    """The ``k`` best of ``scores`` [K], best first."""
    best = scores.topk(min(k, len(scores)))
    return [
        Guess(class_names[index], index, score) for score, index in zip(best.values.tolist(), best.indices.tolist())
    ]


def crop_part(size: tuple[int, int], clip: Tensor, view: View) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of a test's crop ``clip`` out of frames of ``size`` (H, W), as fractions of them."""
    height, width = size
    top, left = uniform_offsets(height, width, clip.shape[-1], crop_position(view))
    return top / height, left / width, (top + clip.shape[-2]) / height, (left + clip.shape[-1]) / width


def merge_scores(scores: Tensor, method: str) -> Tensor:
    """Scores [V, K] of several views to [K]: their mean ("sum") or maximum ("max")."""
    return scores.amax(0) if method == "max" else scores.double().mean(0).float()


class WindowView(NamedTuple):
    """One clip of a window as the network is shown it, and which part of the video that is."""

    clip: Tensor  # normalised, [C, T, H, W]
    times_s: np.ndarray  # float64 [T]: when its frames are shown
    part: tuple[float, float, float, float]  # top, left, bottom, right of what it shows, as fractions of the frame


class _Views(NamedTuple):
    """Clips of one thing that is predicted: a video, or one window of it."""

    span: Span | None
    clips: list[Tensor]  # normalised, [C, T, H, W] each


class Predictor:
    """A classification network with everything it needs to be shown a video.

    ``clips`` is a test data set without records: its rule, transform and views are used. ``merge`` is "sum" or
    "max". ``features`` names a layer of the network whose output is kept beside the scores. ``fps`` counts the time
    of frame folders, which know none.
    """

    def __init__(
        self,
        network: nn.Module,
        clips: ClipDataset,
        class_names: Sequence[str],
        *,
        merge: str = "sum",
        batch_size: int = 8,
        fps: float = 30.0,
        device: torch.device | str = "cpu",
        features: str | None = None,
        fold: bool = True,
    ) -> None:
        if merge not in ("sum", "max"):
            raise ValueError(f"DATA.ENSEMBLE_METHOD={merge!r} is unknown; choose sum or max")
        if batch_size < 1:
            raise ValueError(f"a batch size of {batch_size} is not 1 or more")
        self.clips = clips
        self.class_names = list(class_names)
        self.merge = merge
        self.batch_size = batch_size
        self.fps = fps
        self.device = torch.device(device)
        self._features: list[tuple[Tensor, bool]] = []
        self._layer_name, self._has_features = features, features is not None
        network.eval().to(self.device)
        if features is not None:
            layer = _layer(network, features)
            self._channels_last = has_channels_last(network, layer)
            layer.register_forward_hook(self._keep_features)
        # After the hook: what somebody looks into is not folded.
        self.network = for_inference(network, in_place=True) if fold else network

    # ------------------------------------------------------------ made from

    @classmethod
    def from_cfg(
        cls,
        cfg,
        checkpoint: str | os.PathLike = "",
        *,
        labels: str | os.PathLike | None = None,
        folders: Sequence[str | os.PathLike] = (),
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        features: str | None = None,
    ) -> Predictor:
        """The network, weights, transform and views that a test of ``cfg`` uses.

        ``checkpoint`` stands in front of ``TEST.CHECKPOINT_FILE_PATH`` and of what is in ``OUTPUT_DIR``. Names of
        classes: see ``build_class_names``. ``device`` is a GPU where there is one. ``batch_size`` counts clips,
        ``TEST.BATCH_SIZE`` where it is not given.
        """
        _check_kind(
            detection=cfg.DETECTION.ENABLE,
            masked=cfg.MASK.ENABLE,
            contrastive=cfg.MODEL.MODEL_NAME == "ContrastiveModel",
            dataset=cfg.TEST.DATASET,
        )
        plan = build_test_plan(cfg, checkpoint)
        class_names = build_class_names(cfg, labels, folders, checkpoint=plan.path or "")
        clips = build_clips(cfg)
        network = build_model(cfg)
        carry_out(plan, network)
        return cls(
            network,
            clips,
            class_names,
            merge=cfg.DATA.ENSEMBLE_METHOD,
            batch_size=cfg.TEST.BATCH_SIZE if batch_size is None else batch_size,
            fps=float(cfg.DATA.TARGET_FPS),
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            features=features,
            fold=cfg.MODEL.CONV_BACKEND == "auto",
        )

    @classmethod
    def from_checkpoint(
        cls, config: str | os.PathLike, checkpoint: str | os.PathLike, *, opts: Sequence = (), **options: Any
    ) -> Predictor:
        """From a YAML file and a file of weights; ``opts`` change keys, ``options`` are those of ``from_cfg``.

        A ``class_names.json`` beside the YAML file names the classes unless the checkpoint or its folder does.
        """
        options.setdefault("folders", [Path(config).parent])
        return cls.from_cfg(load_cfg(config, opts), checkpoint, **options)

    # ------------------------------------------------------------ a whole video

    @property
    def views(self) -> tuple[int, int]:
        """Temporal clips and spatial crops of a whole video."""
        return self.clips.num_clips, self.clips.num_crops

    def predict(self, path: str | os.PathLike, *, progress: bool | None = False) -> VideoPrediction:
        """The scores of a video file or frame folder, seen as a test sees it.

        ``progress`` shows a bar, None only on a terminal. ``DecodeError`` where the video cannot be used.
        """
        path = os.fspath(path)
        dataset = self._dataset_of(path)
        source = self._open(path)
        length_s = video_length(frame_times(source.info, self.fps), self.fps)
        del source
        rows = (_Views(None, [dataset[row].clip]) for row in range(len(dataset)))
        scored = list(_bar(self._score(rows), len(dataset), path, progress, unit="view"))
        scores = torch.cat([scores for _, scores, _ in scored])
        return VideoPrediction(
            path,
            length_s,
            self.views,
            merge_scores(scores, self.merge),
            scores,
            self.class_names,
            torch.cat([kept for _, _, kept in scored]).mean(0).numpy() if self._has_features else None,
        )

    # ------------------------------------------------------------ window by window

    def predict_windows(
        self,
        path: str | os.PathLike,
        *,
        window_s: float | None = None,
        stride_s: float | None = None,
        progress: bool | None = False,
    ) -> Iterator[ClipPrediction]:
        """The scores of windows that slide over a video of any length, in order, with the memory of a few of them.

        A window is ``window_s`` seconds long (as long as a clip if None), the next one begins ``stride_s`` later (half
        a window if None) and the last one ends with the video. Each is seen as a video of its own: with as many
        temporal clips as it takes to cover it, at most those of a test, and with the test's crops.
        """
        path = os.fspath(path)
        source = self._open(path)
        times = frame_times(source.info, self.fps)
        spans = self._spans(source.info, times, window_s, stride_s)
        scored = self._score(self._window_views(source, times, spans))
        for span, scores, features in _bar(scored, len(spans), path, progress, unit="window"):
            yield ClipPrediction(
                *span,
                merge_scores(scores, self.merge),
                self.class_names,
                features.mean(0).numpy() if features is not None else None,
            )

    def window_views(
        self, path: str | os.PathLike, *, window_s: float | None = None, stride_s: float | None = None
    ) -> Iterator[tuple[Span, list[WindowView]]]:
        """What ``predict_windows`` shows the network: the clips of each window, and what of the video they are."""
        source = self._open(os.fspath(path))
        times = frame_times(source.info, self.fps)
        num_crops = self.clips.num_crops
        for span in self._spans(source.info, times, window_s, stride_s):
            indices = self._choose(source.info, times, span)
            frames = source.read(torch.cat(indices)).split([len(wanted) for wanted in indices])
            views = []
            for wanted, part in zip(indices, frames):
                scaled = self.clips.transform.scaled(part)
                for crop in range(num_crops):
                    place = View(0, 1, crop, num_crops)
                    clip = self.clips.transform.cropped(scaled, place)
                    views.append(WindowView(clip, times[wanted.numpy()], crop_part(scaled.shape[-2:], clip, place)))
            yield span, views

    def _spans(self, info: VideoInfo, times: np.ndarray, window_s: float | None, stride_s: float | None) -> list[Span]:
        if window_s is None:
            window_s = self._clip_length(info)
        return sliding_windows(video_length(times, self.fps), window_s, window_s / 2 if stride_s is None else stride_s)

    def merged(self, path: str | os.PathLike, windows: Sequence[ClipPrediction]) -> VideoPrediction:
        """One prediction of the video that ``windows`` cover; each of them is a view."""
        scores = torch.stack([window.scores for window in windows])
        return VideoPrediction(
            os.fspath(path),
            windows[-1].end_s,
            (len(windows), 1),
            merge_scores(scores, self.merge),
            scores,
            self.class_names,
            np.mean([window.features for window in windows], axis=0) if self._has_features else None,
        )

    def clip_length(self, info: VideoInfo) -> float | None:
        """Seconds that one clip covers; None where a clip is spread over the video, however long that is."""
        rule = self.clips.rule
        if isinstance(rule, RateRule):
            return rule.spec.num_frames * rule.spec.stride / rule.spec.fps
        if isinstance(rule, StrideRule):
            return rule.num_frames * rule.stride / (info.fps or self.fps)
        return None

    def _clip_length(self, info: VideoInfo) -> float:
        length_s = self.clip_length(info)
        if length_s is None:
            raise ValueError(
                "this network looks at a whole video at once, whatever its length: say how long a window is"
            )
        return length_s

    def _window_views(self, source: ClipSource, times: np.ndarray, spans: Sequence[Span]) -> Iterator[_Views]:
        """The clips of every window. Frames of neighbouring windows are read together, as many as memory is for."""
        room = max(1, FRAMES_IN_MEMORY // (source.info.width * source.info.height * 3))
        waiting: list[tuple[Span, list[Tensor]]] = []
        union = torch.empty(0, dtype=torch.int64)
        for span in spans:
            indices = self._choose(source.info, times, span)
            more = torch.cat([union, *indices]).unique()
            if waiting and len(more) > room:
                yield from self._read(source, waiting, union)
                waiting, more = [], torch.cat(indices).unique()
            waiting.append((span, indices))
            union = more
        yield from self._read(source, waiting, union)

    def _choose(self, info: VideoInfo, times: np.ndarray, span: Span, num_clips: int | None = None) -> list[Tensor]:
        """Frame indices [T] of each temporal clip of a window: of so many, or of as many as cover it."""
        first, last = np.searchsorted(times, [span.start_s - 1e-6, span.end_s - 1e-6]).tolist()
        first = min(first, info.num_frames - 1)
        part = part_of(info, first, max(last, first + 1))
        length_s = span.end_s - span.start_s
        return [indices + first for indices in self._choose_within(part, length_s, num_clips=num_clips)]

    def _choose_within(self, part: VideoInfo, length_s: float, *, num_clips: int | None = None) -> list[Tensor]:
        """Frame indices [T] of each temporal clip of a part of a video, ``length_s`` long."""
        rule = self.clips.rule
        if isinstance(rule, RateRule):
            rule = replace(rule, use_offset=True)  # clips reach both ends of the window; one lies in its middle
        if num_clips is None and isinstance(rule, SegmentRule):
            num_clips = 1
        elif num_clips is None:
            covering = int(np.ceil(length_s / self._clip_length(part) - 1e-6))
            num_clips = min(max(covering, 1), self.clips.num_clips)
        places = [View(clip, num_clips, 0, self.clips.num_crops) for clip in range(num_clips)]
        return [rule(part, place, None).indices for place in places]

    def _read(
        self, source: ClipSource, windows: Sequence[tuple[Span, list[Tensor]]], union: Tensor
    ) -> Iterator[_Views]:
        frames = source.read(union)
        for span, indices in windows:
            yield _Views(span, self._crops(frames, union, indices))

    def _crops(self, frames: Tensor, union: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
        """Normalised clips of every crop of the temporal clips ``indices``; ``frames`` are those of ``union``."""
        transform, num_crops = self.clips.transform, self.clips.num_crops
        views: list[Tensor] = []
        for wanted in indices:
            scaled = transform.scaled(frames[torch.searchsorted(union, wanted)])
            views += [transform.cropped(scaled, View(0, 1, crop, num_crops)) for crop in range(num_crops)]
        return views

    # ------------------------------------------------------------ a part whose frames somebody else has

    def clip_seconds(self, info: VideoInfo) -> float:
        """Seconds that one clip covers; ``ValueError`` for a network that looks at a whole video, however long."""
        return self._clip_length(info)

    @property
    def short_side(self) -> int | None:
        """The short side that frames are scaled to while they are decoded; None where they are not."""
        return self.clips.transform.short_side() if self.clips.decode_scaled else None

    def look(self, part: VideoInfo, length_s: float, read: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The normalised clips that are seen of a part of a video; ``read`` gives frames of it by index, scaled."""
        indices = self._choose_within(part, length_s)
        union = torch.cat(indices).unique()
        return self._crops(read(union), union, indices)

    def score(self, parts: Sequence[list[Tensor]]) -> list[Tensor]:
        """Scores [K] of each part, merged over the clips that ``look`` gave of it."""
        scored = self._run([_Views(None, clips) for clips in parts])
        return [merge_scores(scores, self.merge) for _, scores, _ in scored]

    # ------------------------------------------------------------ one clip, to look into

    def clip_of(
        self, path: str | os.PathLike, *, start_s: float = 0.0, end_s: float | None = None
    ) -> tuple[Tensor, np.ndarray]:
        """The clip in the middle of a video, or of a stretch of it, as the network is fed: [1, C, T, H, W].

        It is the centre crop; the times of its T frames in seconds come with it.
        """
        source = self._open(os.fspath(path))
        times = frame_times(source.info, self.fps)
        span = Span(start_s, video_length(times, self.fps) if end_s is None else end_s)
        (indices,) = self._choose(source.info, times, span, num_clips=1)
        (views,) = self._read(source, [(span, [indices])], indices.unique())
        clip = views.clips[self.clips.num_crops // 2]
        return clip[None].to(self.device), times[indices.clamp(max=len(times) - 1).numpy()]

    # ------------------------------------------------------------ both

    def _dataset_of(self, path: str) -> ClipDataset:
        dataset = copy.copy(self.clips)
        dataset.records, dataset.skip_bad = [Record(path, 0)], False
        return dataset

    def _open(self, path: str) -> ClipSource:
        return Record(path, 0).open(short_side=self.short_side, **self.clips.open_options)

    def _score(self, items: Iterable[_Views]) -> Iterator[tuple[Span | None, Tensor, Tensor | None]]:
        """Span, scores [V, K] and features [V, D] of each item, read ahead and run through the network in batches."""
        waiting: list[_Views] = []
        for item in ahead(items):
            waiting.append(item)
            if sum(len(views.clips) for views in waiting) >= self.batch_size:
                yield from self._run(waiting)
                waiting = []
        if waiting:
            yield from self._run(waiting)

    @torch.no_grad()
    def _run(self, items: Sequence[_Views]) -> list[tuple[Span | None, Tensor, Tensor | None]]:
        counts = [len(item.clips) for item in items]
        scores, features = [], []
        for clips in torch.stack([clip for item in items for clip in item.clips]).split(self.batch_size):
            self._features.clear()
            found = self.network(clips.to(self.device, non_blocking=True)).float().cpu()
            if found.ndim != 2 or found.shape[1] != len(self.class_names):
                raise ValueError(
                    f"the network gives scores of shape {list(found.shape)} for {len(clips)} clips and "
                    f"{len(self.class_names)} classes (MODEL.NUM_CLASSES)"
                )
            scores.append(found)
            if self._has_features:
                features.append(self._features_of(len(clips)))
        kept = torch.cat(features).split(counts) if features else [None] * len(items)
        return [(item.span, *rest) for item, *rest in zip(items, torch.cat(scores).split(counts), kept)]

    def _keep_features(self, layer: nn.Module, args: Any, output: Any) -> None:
        rows = pooled(output, channels_last=self._channels_last).float().cpu()
        self._features.append((rows, isinstance(output, Tensor) and output.ndim == 2))

    def _features_of(self, num_clips: int) -> Tensor:
        """What the layer gave for a batch: [B, D].

        Of several rows for each clip, those of single places are averaged and maps, as of heads, put side by side.
        """
        if not self._features:
            raise ValueError(f"the layer {self._layer_name!r} takes no part in a prediction: name another one")
        rows, are_places = self._features[-1]
        if len(rows) % num_clips:
            raise ValueError(
                f"the layer {self._layer_name!r} gives {len(rows)} rows for {num_clips} clips, which cannot be told "
                "apart: name another one"
            )
        rows = rows.unflatten(0, (num_clips, -1))
        return rows.mean(1) if are_places else rows.flatten(1)


def pooled(output: Tensor | Sequence, *, channels_last: bool = False) -> Tensor:
    """What a layer gives, as one vector per clip: [B, D], the mean over space and time or over tokens.

    Tokens [B, N, D] and, with ``channels_last``, all outputs have their channels at the end, others [B, C, ...] after
    the clip. Several pathways are put one after another.
    """
    if not isinstance(output, Tensor):
        tensors = [item for item in output if isinstance(item, Tensor)] if isinstance(output, list | tuple) else []
        if not tensors:
            raise ValueError(f"this layer gives a {type(output).__name__} without tensors: name another one")
        return torch.cat([pooled(item, channels_last=channels_last) for item in tensors], dim=1)
    if output.ndim == 3 or channels_last:
        return output.flatten(1, -2).mean(1) if output.ndim > 2 else output
    return output.flatten(2).mean(2) if output.ndim > 2 else output


def has_channels_last(network: nn.Module, layer: nn.Module) -> bool:
    """Whether the outputs of ``layer`` end with their channels, as far as its parts tell.

    The last of them with weights decides; of an activation, which has none, the one before it in the network.
    """
    if isinstance(layer, _CHANNELS_LAST):
        return True
    *_, last = layer.modules()
    found = False
    for part in network.modules():
        if isinstance(part, _POOLS) or next(part.parameters(recurse=False), None) is not None:
            found = isinstance(part, _CHANNELS_LAST)
        if part is last:
            break
    return found


def _layer(network: nn.Module, name: str) -> nn.Module:
    layers = dict(network.named_modules())
    layers.pop("")
    if name in layers and type(layers[name]).forward is nn.Module.forward:
        inner = [layer for layer in layers if layer.startswith(f"{name}.")][:_SHOWN]
        raise ValueError(
            f"the layer {name!r} takes no part in a prediction, it only holds {', '.join(inner) or 'nothing'}: "
            "name another one"
        )
    if name in layers:
        return layers[name]
    close = difflib.get_close_matches(name, layers, n=3)
    outer = [layer for layer in layers if "." not in layer][:_SHOWN]
    raise ValueError(
        f"the network has no layer {name!r}; "
        + (f"did you mean {', '.join(close)}? " if close else "")
        + f"Its outer ones are {', '.join(outer)}"
    )


def _bar(items: Iterable[Any], total: int, path: str, progress: bool | None, unit: str) -> Iterable[Any]:
    hidden = None if progress is None else not progress
    return tqdm(items, total=total, desc=Path(path).name, unit=unit, leave=False, disable=hidden)


# ---------------------------------------------------------------- from a configuration


def _check_kind(*, detection: bool, masked: bool, contrastive: bool, dataset: str) -> None:
    kinds = {
        "DETECTION.ENABLE True scores boxes": detection,
        "MASK.ENABLE True predicts what is hidden": masked,
        "MODEL.MODEL_NAME ContrastiveModel compares clips": contrastive,
        f"TEST.DATASET {dataset} is of images": dataset.lower() == "imagenet",
    }
    for kind, is_so in kinds.items():
        if is_so:
            raise ValueError(f"{kind}: videos are classified here. Use the configuration of a classification network")


class GivenVideos(Kinetics):
    """Videos that somebody names, in place of those of a list."""

    @classmethod
    def build_records(cls, cfg, split: str) -> list[Record]:
        """None yet."""
        return []


def build_clips(cfg) -> ClipDataset:
    """The test data set of ``cfg`` without records: its rule, transform, views and way of reading."""
    kind = cfg.TEST.DATASET.lower().removeprefix("ptv")
    if kind not in ("ssv2", "charades"):
        return GivenVideos.from_cfg(cfg, "test")
    data = cfg.DATA
    rules = {
        "ssv2": SegmentRule(data.NUM_FRAMES, spread=data.USE_OFFSET_SAMPLING),
        "charades": StrideRule(data.NUM_FRAMES, data.SAMPLING_RATE),
    }
    transform, options = build_frame_transform(cfg, "test"), build_clip_options(cfg, "test")
    return ClipDataset([], rules[kind], transform, decode_scaled=False, **options)
