"""Published networks for ``torch.hub``: one function per model of the zoo whose network can be built.

``torch.hub.load(repo, "slowfast_8x8_r50", pretrained=True, source="local")`` gives the network in eval mode, with its
published weights. MODEL_ZOO.md lists the names; ``python tools/zoo.py list`` does, too.
"""

from collections.abc import Callable as _Callable
from pathlib import Path as _Path

from slowfast import zoo as _zoo

dependencies = ["torch", "torchvision", "numpy", "fvcore", "iopath", "yacs", "yaml", "tqdm"]


def _calling(entry: _zoo.Entry) -> str:
    """What goes into the network of ``entry`` and what comes out."""
    clip = "a clip tensor [B, 3, T, H, W]"
    if entry.task == "detection":
        return f"{clip} and boxes [R, 5] (clip, x1, y1, x2, y2 in pixels) in, scores of each box out"
    if entry.task != "pretraining":
        return f"{clip} in, scores out"
    if not entry.config_finetune:
        return f"{clip} in, features out"
    if "MaskFeat" in entry.config:
        return f"{clip} and a mask of its tokens (bool [B, t, h, w]) in, what is hidden out: predictions and targets"
    return f"{clip} in, of which it hides a part; predictions and targets for that out"


def _entry_point(entry: _zoo.Entry) -> _Callable:
    def build(pretrained: bool = False, progress: bool = True, opts=()):
        return _zoo.build_published(
            entry, pretrained=pretrained, progress=progress and None, opts=opts, root=_Path(__file__).resolve().parent
        )

    size = " ".join(filter(None, [entry.arch, entry.size, entry.frames_x_rate, entry.method]))
    build.__name__ = build.__qualname__ = entry.name
    build.__doc__ = f"""{size}, {entry.task} on {entry.dataset}.

    The network of {entry.config}, in eval mode: {_calling(entry)}.
    pretrained: load the published weights, downloaded once into the zoo's cache; they must fit completely.
    progress: show a bar while downloading, on a terminal.
    opts: changes to the config, [KEY, value, ...].
    """
    return build


globals().update({_entry.name: _entry_point(_entry) for _entry in _zoo.entries() if _entry.name in _zoo.records()})
