"""Published networks for ``torch.hub``: one function per model of the zoo whose network can be built.

``torch.hub.load(repo, "slowfast_8x8_r50", pretrained=True, source="local")`` gives the network in eval mode, with its
published weights. MODEL_ZOO.md lists the names; ``python tools/zoo.py list`` does, too.
"""

from collections.abc import Callable as _Callable
from pathlib import Path as _Path

from slowfast import zoo as _zoo

dependencies = ["torch", "torchvision", "numpy", "fvcore", "iopath", "yacs", "yaml", "tqdm"]


def _entry_point(entry: _zoo.Entry) -> _Callable:
    def build(pretrained: bool = False, progress: bool = True, opts=()):
        return _zoo.build_published(
            entry, pretrained=pretrained, progress=progress and None, opts=opts, root=_Path(__file__).resolve().parent
        )

    size = " ".join(filter(None, [entry.arch, entry.size, entry.frames_x_rate, entry.method]))
    build.__name__ = build.__qualname__ = entry.name
    build.__doc__ = f"""{size}, {entry.task} on {entry.dataset}.

    The network of {entry.config}, in eval mode: a clip tensor [B, 3, T, H, W] in, scores out.
    pretrained: load the published weights, downloaded once into the zoo's cache; they must fit completely.
    progress: show a bar while downloading, on a terminal.
    opts: changes to the config, [KEY, value, ...].
    """
    return build


globals().update({_entry.name: _entry_point(_entry) for _entry in _zoo.entries() if _entry.name in _zoo.records()})
