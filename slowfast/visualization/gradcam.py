"""Where a network looks: Grad-CAM of every pathway, and attention roll-out of transformers.

Grad-CAM (Selvaraju et al., https://arxiv.org/abs/1610.02391): the logit of a class is differentiated by the output of
a late layer; channels of that output, weighted by their gradients averaged over space (each time step on its own), are
summed, and what is positive says where the class is seen. Roll-out: see ``slowfast.visualization.rollout``.

    explanation = explain(network, clip)                    # clip [B, 3, T, H, W] as the network is fed
    slow = explanation.maps["slow"][0]                      # [T_slow, H, W] in 0..1
    pictures = overlay(frames[list(explanation.frames["slow"])], slow)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.heads import ACTIVATIONS
from slowfast.models.mvit import MViT
from slowfast.models.pathways import slow_indices
from slowfast.models.ptv import PTVModel, PTVMViT
from slowfast.models.resnet import ResNet
from slowfast.models.slowfast import SlowFast
from slowfast.models.torchvision_nets import TorchVisionResNet
from slowfast.models.x3d import X3D
from slowfast.visualization.rollout import Grid, attention_rollout, has_class_token, recorded_attention

_SHOWN = 12  # names of layers shown in a message
_SMALLEST = 1e-5  # range of a map below which it says nothing
ROLLOUT = "rollout"


@dataclass(frozen=True)
class Explanation:
    """Scores of a batch of clips, and where in them the network saw a class.

    ``maps`` has one entry per pathway: "slow" and "fast", or "clip" where there is one; transformers have "rollout"
    too, which is of no class. Each is [B, T_p, H, W] in 0..1, in the space of the clip; slice ``i`` of the pathway
    ``p`` lies on frame ``frames[p][i]`` of the clip. A map of zeros: nothing speaks for the class.
    """

    scores: Tensor  # [B, K] as the network gives them in evaluation
    targets: tuple[int, ...]  # the class of each clip that is explained
    maps: dict[str, Tensor]
    frames: dict[str, tuple[int, ...]]
    layers: dict[str, str]  # where the map of each pathway comes from

    def on_every_frame(self, pathway: str, num_frames: int) -> Tensor:
        """The map of a pathway for each of the clip's frames, [B, num_frames, H, W]: that of the nearest slice."""
        places = torch.tensor(self.frames[pathway])
        nearest = (torch.arange(num_frames)[:, None] - places[None]).abs().argmin(1)
        return self.maps[pathway][:, nearest.to(self.maps[pathway].device)]


def explain(
    network: nn.Module,
    clip: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    layers: Sequence[str] | None = None,
) -> Explanation:
    """Scores of ``clip`` [B, 3, T, H, W] and the maps of where the network saw ``target``.

    ``clip`` is normalised as for a test, on the device of ``network``, which is in evaluation mode. ``target`` is a
    class, one per clip, or None for the best class of each. ``layers`` names one layer per pathway ("s4.pathway0_res1"
    or with slashes) or one that gives all of them ("s5"); None takes the last stage of each pathway, or what enters
    the last block of a transformer. Of layers before the activation of the head the *logits* are differentiated, also
    where the head is detached (MODEL.DETACH_FINAL_FC); of a network of somebody else's, what it gives in evaluation.

    Works for all classification networks of this package, folded ones (``for_inference``) too as long as a named layer
    is still there, and for others that give [B, K] if ``layers`` are named. Not for detectors (scores of boxes),
    MaskMViT and ContrastiveModel, which give no scores of classes. The network is left as it was; while this runs,
    it is not to be used by another thread.
    """
    if clip.ndim != 5:
        raise ValueError(f"a clip of shape {list(clip.shape)}: needed is a batch [B, 3, T, H, W]")
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() first")
    _refuse_without_classes(network)
    names = default_layers(network) if layers is None else [name.replace("/", ".") for name in layers]
    with (
        _unobstructed(network),
        _Watch(network, names) as watch,
        recorded_attention(network) as attentions,
        _record_logits(network) as kept,
    ):
        with torch.no_grad():  # a watched layer switches gradients on
            scores = network(clip)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(clip):
            raise ValueError(
                f"the network gives no scores [{len(clip)}, K] but {_shape(scores)}: it classifies no clips"
            )
        logits = _mean_logits(kept[-1], len(clip)) if kept else scores
        targets = _targets(target, scores)
        spots = watch.spots()
        gradients = _gradients(logits, targets, spots)
    maps, frames, sources = {}, {}, {}
    size = tuple(clip.shape[2:])
    for pathway, spot, gradient in zip(_pathways(len(spots)), spots, gradients):
        frames[pathway] = _frames_of(pathway, network, size[0], spot.value.shape[2])
        maps[pathway] = _spread(class_activation(spot.volume(spot.value), spot.volume(gradient)), frames[pathway], size)
        sources[pathway] = spot.layer
    if attentions:
        rolled = attention_rollout(attentions, reads_class_token=_reads_class_token(network))
        frames[ROLLOUT] = tuple(range(size[0]))
        maps[ROLLOUT] = _spread(rolled, frames[ROLLOUT], size)
        sources[ROLLOUT] = f"attention of {len(attentions)} blocks"
    return Explanation(scores.detach(), targets, maps, frames, sources)


def class_activation(value: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of a layer's output [B, C, t, h, w] and a logit's gradient by it: [B, t, h, w], not below 0."""
    weights = gradient.mean((3, 4), keepdim=True)  # [B, C, t, 1, 1]
    return (weights * value).sum(1).relu()


def overlay(frames: np.ndarray, maps: Tensor | np.ndarray, colormap: str = "viridis", alpha: float = 0.5) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] with ``maps`` [T, h, w] in 0..1 laid over them in colour, uint8 [T, H, W, 3].

    ``alpha`` is the share of the colours. ``colormap`` is a name known to matplotlib.
    """
    frames, maps = np.asarray(frames), torch.as_tensor(maps).detach().float().cpu()
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(maps) != len(frames):
        raise ValueError(
            f"frames of {frames.dtype} {list(frames.shape)} and maps {list(maps.shape)}: needed are uint8 [T, H, W, 3] "
            "and [T, h, w]"
        )
    if colormap not in mpl.colormaps:
        raise ValueError(f"there is no colour map {colormap!r}; allowed are those of matplotlib, such as viridis, jet")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha}: allowed is 0 (only the frame) to 1 (only the map)")
    if maps.shape[1:] != frames.shape[1:3]:
        maps = F.interpolate(maps[:, None], size=frames.shape[1:3], mode="bilinear")[:, 0]
    colors = mpl.colormaps[colormap](maps.numpy(), bytes=True)[..., :3]
    return (alpha * colors.astype(np.float32) + (1 - alpha) * frames + 0.5).astype(np.uint8)


def pathway_frames(network: nn.Module, num_frames: int) -> dict[str, tuple[int, ...]]:
    """The frames of a clip that each pathway of ``network`` sees, by the pathway's name."""
    names = _pathways(2 if isinstance(network, SlowFast) or getattr(network, "num_pathways", 1) == 2 else 1)
    return {name: _frames_of(name, network, num_frames, num_frames) for name in names}


def default_layers(network: nn.Module) -> list[str]:
    """The layers that ``explain`` looks at unless told otherwise."""
    if isinstance(network, MViT):
        if network.rev_backbone is not None:
            return ["rev_backbone"]
        return _before_last("patch_embed", "blocks", len(network.blocks))
    if isinstance(network, PTVMViT):
        return _before_last("model.patch_embed", "model.blocks", len(network.model.blocks))
    if isinstance(network, PTVModel):
        blocks = list(network.model.blocks)
        # What follows the last stage: a head, and before it, of two pathways, what puts them together.
        return [f"model.blocks.{len(blocks) - 1 - network.num_pathways}"]
    if isinstance(network, SlowFast | ResNet | X3D):
        return ["s5"]
    if isinstance(network, TorchVisionResNet):
        return ["layer4"]
    raise ValueError(f"{type(network).__name__} is no network of this package: name the layers, {_outer(network)}")


def _before_last(first: str, blocks: str, count: int) -> list[str]:
    """NOTE: nothing but the class token leaves the last block for the head, so what *enters* the block is taken."""
    return [f"{blocks}.{count - 2}" if count > 1 else first]


# ---------------------------------------------------------------- one pass through the network


@dataclass
class _Spot:
    """The output of a layer that is explained; ``grid`` of its tokens, or None for a volume [B, C, t, h, w]."""

    layer: str
    value: Tensor
    grid: Grid | None = None

    def volume(self, x: Tensor) -> Tensor:
        """[B, C, t, h, w] of ``value`` or its gradient; a class token has no place and is left out."""
        if self.grid is None:
            return x
        body = x[:, x.shape[1] - int(np.prod(self.grid)) :]
        return body.unflatten(1, self.grid).permute(0, 4, 1, 2, 3)  # [B, N, D] -> [B, D, t, h, w]


@dataclass
class _Watch:
    """Keeps what the named layers give. From the first of them on, operations are recorded for gradients.

    NOTE: the network goes on with a copy, so that operations in place (ReLU, sums) leave alone what is kept.
    """

    network: nn.Module
    names: Sequence[str]
    found: dict[str, list[_Spot]] = field(default_factory=dict)
    grid: Grid | None = None  # of the tokens, as the last module said that gave one

    def __enter__(self) -> _Watch:
        modules = dict(self.network.named_modules())
        self.handles = []
        for name in self.names:
            name = name.removeprefix("module.")
            if name not in modules or not name:
                close = difflib.get_close_matches(name, modules, n=3)
                hint = f"did you mean {', '.join(close)}?" if close else _outer(self.network)
                raise ValueError(f"the network has no layer {name!r}; {hint}")
            self.handles.append(modules[name].register_forward_hook(self._keeper(name)))
        for module in modules.values():
            self.handles.append(module.register_forward_hook(self._note_grid, prepend=True))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def spots(self) -> list[_Spot]:
        """What was kept, in the order of the names."""
        missing = [name for name in self.names if name.removeprefix("module.") not in self.found]
        if missing:
            raise ValueError(f"the layer {missing[0]!r} takes no part in the scores of a clip: name another one")
        spots = [spot for name in self.names for spot in self.found[name.removeprefix("module.")]]
        for spot in spots:
            if spot.grid is None and spot.value.ndim != 5:
                raise ValueError(
                    f"the layer {spot.layer!r} gives {list(spot.value.shape)}, which has no places in the clip: needed "
                    "are [B, C, t, h, w] or tokens [B, N, D]"
                )
        return spots

    def _note_grid(self, module: nn.Module, args: tuple, output: object) -> None:
        grid = _grid_in(output)
        if grid is not None:
            self.grid = grid
        elif hasattr(module, "patch_embed_shape"):  # pytorchvideo's positions know it and give tokens only
            self.grid = tuple(int(n) for n in module.patch_embed_shape)

    def _keeper(self, name: str) -> Callable:
        def keep(module: nn.Module, args: tuple, output: object) -> object:
            torch.set_grad_enabled(True)
            spots: list[_Spot] = []
            output = self._kept(name, output, spots)
            self.found.setdefault(name, spots)
            return output

        return keep

    def _kept(self, name: str, output: object, spots: list[_Spot]) -> object:
        if isinstance(output, Tensor) and output.is_floating_point():
            value = output if output.requires_grad else output.detach().requires_grad_()
            grid = self.grid
            if value.ndim != 3 or grid is None or value.shape[1] - int(np.prod(grid)) not in (0, 1):
                grid = None
            spots.append(_Spot(name, value, grid))
            return value.clone()
        if isinstance(output, list | tuple):
            return type(output)([self._kept(name, item, spots) for item in output])
        return output


def _grid_in(output: object) -> Grid | None:
    """The (t, h, w) in the output (tokens, (t, h, w)) of a transformer's layer."""
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[1], list | tuple):
        return None
    grid = tuple(output[1])
    return grid if len(grid) == 3 and all(isinstance(n, int) for n in grid) else None


@contextmanager
def _unobstructed(network: nn.Module) -> Iterator[None]:
    """Inside, no head is detached and no activations are computed a second time."""
    switches = ("detach", "checkpoint_early", "checkpoint_blocks", "checkpoint_transitions")
    changed = [(m, key) for m in network.modules() for key in switches if vars(m).get(key) is True]
    for module, key in changed:
        setattr(module, key, False)
    try:
        yield
    finally:
        for module, key in changed:
            setattr(module, key, True)


@contextmanager
def _record_logits(network: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what goes into the activation of a head of this package is put into the list."""
    kept: list[Tensor] = []
    changed = [(m, m.act) for m in network.modules() if vars(m).get("act") in ACTIVATIONS.values()]

    def recording(act: Callable) -> Callable:
        def activate(logits: Tensor) -> Tensor:
            kept.append(logits)
            return act(logits)

        return activate

    for module, act in changed:
        module.act = recording(act)
    try:
        yield kept
    finally:
        for module, act in changed:
            module.act = act


def _mean_logits(logits: Tensor, batch: int) -> Tensor:
    """Logits [B, ..., K] of several positions -> [B, K]."""
    return logits.reshape(batch, -1, logits.shape[-1]).mean(1)


def _targets(target: int | Sequence[int] | Tensor | None, scores: Tensor) -> tuple[int, ...]:
    batch, num_classes = scores.shape
    if target is None:
        return tuple(scores.argmax(1).tolist())
    listed = torch.as_tensor(target).flatten().tolist()
    listed = listed * batch if len(listed) == 1 else listed
    if len(listed) != batch or not all(isinstance(i, int) and 0 <= i < num_classes for i in listed):
        raise ValueError(
            f"target={target}: needed is a class from 0 to {num_classes - 1}, or one for each of {batch} clips"
        )
    return tuple(listed)


def _gradients(logits: Tensor, targets: Sequence[int], spots: Sequence[_Spot]) -> list[Tensor]:
    if not logits.requires_grad:
        raise ValueError(f"the scores do not follow from the layer {spots[0].layer!r} by differentiable steps")
    chosen = logits[torch.arange(len(targets), device=logits.device), list(targets)].sum()
    found = torch.autograd.grad(chosen, [spot.value for spot in spots], allow_unused=True)
    return [torch.zeros_like(spot.value) if grad is None else grad for spot, grad in zip(spots, found)]


# ---------------------------------------------------------------- from the layer to the clip


def _pathways(count: int) -> tuple[str, ...]:
    known = {1: ("clip",), 2: ("slow", "fast")}
    return known.get(count, tuple(f"pathway {i + 1}" for i in range(count)))


def _frames_of(pathway: str, network: nn.Module, num_frames: int, steps: int) -> tuple[int, ...]:
    """The frames of the clip that a pathway sees. A network that does not say sees as many as the layer has steps."""
    if pathway != "slow":
        return tuple(range(num_frames))
    if isinstance(getattr(network, "alpha", None), int):
        return slow_indices(num_frames, network.alpha)
    return tuple(torch.linspace(0, num_frames - 1, steps).long().tolist())


def _spread(maps: Tensor, frames: Sequence[int], size: Grid) -> Tensor:
    """[B, t, h, w] -> [B, frames, H, W], linearly interpolated; the least value of each clip 0, the largest 1."""
    maps = maps.detach().float()
    maps = F.interpolate(maps[:, None], size=(len(frames), *size[1:]), mode="trilinear")[:, 0]
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    span = high - low
    # NOTE: relative to the largest value, so that a network of small logits has a map all the same.
    return torch.where(span > _SMALLEST * high, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def _reads_class_token(network: nn.Module) -> bool:
    return has_class_token(network) and not getattr(network, "mean_pooling", False)


def _refuse_without_classes(network: nn.Module) -> None:
    kind = type(network).__name__
    boxes = getattr(network, "scores_boxes", False) or getattr(network, "detection_head", None) is not None
    if boxes or type(getattr(network, "head", None)).__name__ == "ResNetRoIHead":
        raise ValueError(f"{kind} with DETECTION.ENABLE scores boxes: only networks that classify clips are explained")
    if kind == "MaskMViT" or hasattr(network, "knn_mem"):
        raise ValueError(f"{kind} gives no scores of classes: only networks that classify clips are explained")


def _outer(network: nn.Module) -> str:
    outer = [name for name, _ in network.named_modules() if name and "." not in name][:_SHOWN]
    return f"for example of {', '.join(outer)}"


def _shape(output: object) -> str:
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__
