"""From feature maps to scores: pooled heads for clips and for boxes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from slowfast.models.parts import MLPHead


def _unchanged(scores: Tensor) -> Tensor:
    return scores


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1)


# Functions with a name: a network can be pickled, and a copy of one has the same functions.
ACTIVATIONS = {"softmax": _softmax, "sigmoid": torch.sigmoid, "none": _unchanged}


def _activation(name: str):
    if name not in ACTIVATIONS:
        raise ValueError(f"MODEL.HEAD_ACT={name!r}: allowed are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse_boxes(boxes: Tensor | None) -> None:
    """An error where a classifier of clips was given ``boxes``."""
    if boxes is not None:
        raise ValueError("the model was given boxes but classifies whole clips: set DETECTION.ENABLE True or give none")


@dataclass(frozen=True)
class MLPSpec:
    """An MLP of ``num_layers``; ``norm`` makes the norm of each hidden layer from its width."""

    num_layers: int
    dim_hidden: int
    norm: Callable[[int], nn.Module] | None = None

    def make(self, dim_in: int, dim_out: int) -> nn.Module:
        """The MLP between these widths."""
        return MLPHead(dim_in, self.dim_hidden, dim_out, num_layers=self.num_layers, norm=self.norm)


@dataclass(frozen=True)
class HeadSpec:
    """What stands on the last feature maps, one per pathway."""

    num_classes: int
    windows: tuple[tuple[int, int, int] | None, ...]  # average pooling (t, h, w) per pathway; None: the whole map
    dropout: float = 0.0
    act: str = "softmax"
    detach: bool = False  # no gradient below the classifier
    roi: tuple[int, int, bool] | None = None  # boxes: resolution, pixels per cell, aligned
    mlp: MLPSpec | None = None  # an MLP in place of the linear classifier
    predictors: tuple[MLPSpec, ...] = ()  # MLPs on what the classifier gives, each from and to num_classes

    def make(self, dims: Sequence[int]) -> nn.Module:
        """The head for feature maps of ``dims`` channels."""
        return (ResNetRoIHead if self.roi else ResNetBasicHead)(dims, self)


class ResNetBasicHead(nn.Module):
    """Average pooling, dropout and a linear classifier (or an MLP) over the concatenated pathways.

    A map larger than the pooling window (testing at a larger crop than training) keeps several positions: in
    evaluation each is classified and activated, then they are averaged; in training their logits are listed one
    after the other. With predictors, what they make of the scores is given too.
    """

    def __init__(self, dims: Sequence[int], spec: HeadSpec):
        super().__init__()
        self.windows = spec.windows
        self.detach = spec.detach
        self.act = _activation(spec.act)
        self.dropout = nn.Dropout(spec.dropout)
        self.predictors = nn.ModuleList(mlp.make(spec.num_classes, spec.num_classes) for mlp in spec.predictors)
        dim = sum(dims)
        self.projection = spec.mlp.make(dim, spec.num_classes) if spec.mlp else nn.Linear(dim, spec.num_classes)

    def forward(self, features: list[Tensor], boxes: Tensor | None = None) -> Tensor | list[Tensor]:
        """One [B, C, T, H, W] per pathway -> [B, K] scores, or in training logits [B, positions * K].

        With predictors, a list of these and of each predictor's answer to them, [B, K] each.
        """
        refuse_boxes(boxes)
        # NOTE: no comprehension; Python 3.13.0 crashes where PyTorch's tracer looks at the names in one (FLOP counts).
        pooled = list(map(average_pool, features, self.windows))
        x = torch.cat(pooled, dim=1).permute(0, 2, 3, 4, 1)  # [B, C, t, h, w] -> [B, t, h, w, C]
        x = self.dropout(x)
        if self.detach:
            x = x.detach()
        x = self.projection(x)
        if not self.training:
            x = self.act(x).mean((1, 2, 3))
        x = x.flatten(1)
        return [x, *(predictor(x) for predictor in self.predictors)] if len(self.predictors) else x


class ResNetRoIHead(nn.Module):
    """Scores per box: temporal average pooling, RoIAlign, spatial max pooling and a linear classifier.

    (SlowFast, sec. 5: detection on AVA.) The activation is applied in training too. Regions are cut and scores
    activated in single precision at least: half of it places boxes of large frames some pixels beside.
    """

    def __init__(self, dims: Sequence[int], spec: HeadSpec):
        super().__init__()
        if spec.act == "none":
            raise ValueError("MODEL.HEAD_ACT='none' with DETECTION.ENABLE: allowed are softmax, sigmoid")
        self.windows = spec.windows
        self.resolution, self.cell, self.aligned = spec.roi
        self.detach = spec.detach
        self.act = _activation(spec.act)
        self.dropout = nn.Dropout(spec.dropout)
        self.projection = nn.Linear(sum(dims), spec.num_classes)

    def forward(self, features: list[Tensor], boxes: Tensor | None = None) -> Tensor:
        """Features per pathway and boxes [R, 5] (batch row, x1, y1, x2, y2 in clip pixels) -> scores [R, K]."""
        if boxes is None:
            raise ValueError("DETECTION.ENABLE is on: the model needs boxes [R, 5] beside the clips")
        regions = []
        for x, window in zip(features, self.windows, strict=True):
            x = average_pool(x, window)
            if x.shape[2] != 1:
                raise ValueError(
                    f"the detection head needs one time position but got {x.shape[2]}: "
                    "feed clips of DATA.NUM_FRAMES frames"
                )
            x = x.squeeze(2)  # [B, C, 1, H, W] -> [B, C, H, W]
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            x = roi_align(
                x,
                boxes.to(x.dtype),
                output_size=self.resolution,
                spatial_scale=1.0 / self.cell,
                sampling_ratio=0,
                aligned=self.aligned,
            )
            regions.append(x.amax((2, 3)))  # [R, C, h, w] -> [R, C]
        x = self.dropout(torch.cat(regions, dim=1))
        if self.detach:
            x = x.detach()
        x = self.projection(x)
        return self.act(x.to(torch.promote_types(x.dtype, torch.float32)))


def average_pool(x: Tensor, window: tuple[int, int, int] | None) -> Tensor:
    """Mean over ``window`` (t, h, w) at every position where it fits; over the whole map where it is None."""
    size = tuple(x.shape[2:])
    if window is None or window == size:
        return x.mean((2, 3, 4), keepdim=True)
    if any(w > s for w, s in zip(window, size, strict=True)):
        raise ValueError(
            f"the last feature map is {size} (t, h, w), smaller than the head's pooling window {window}: the window "
            "comes from DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE; give clips at least that large or change these keys"
        )
    return F.avg_pool3d(x, window, stride=1)
