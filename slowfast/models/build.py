"""The door to the models: their registry and ``build_model(cfg)``. Knows no model itself."""

from collections.abc import Callable

from torch import Tensor, nn

from slowfast.models.pathways import as_pathways
from slowfast.utils.registry import Registry

MODEL_REGISTRY = Registry("MODEL")


def build_model(cfg) -> nn.Module:
    """The model that MODEL.MODEL_NAME names, on the CPU and unwrapped.

    A registered class with ``from_cfg`` makes its own instance. Anything else is called as ``Model(cfg)``, as users
    of the original wrote it; such a model keeps receiving the list of pathway tensors that it was written for.
    """
    entry = MODEL_REGISTRY.get(cfg.MODEL.MODEL_NAME)
    if hasattr(entry, "from_cfg"):
        return entry.from_cfg(cfg)
    model = entry(cfg)
    if cfg.MODEL.ARCH in cfg.MODEL.MULTI_PATHWAY_ARCH:
        model.register_forward_pre_hook(pack_clips(num_pathways=2, alpha=cfg.SLOWFAST.ALPHA))
    else:
        model.register_forward_pre_hook(pack_clips(num_pathways=1))
    return model


def pack_clips(num_pathways: int, alpha: int = 1) -> Callable:
    """A forward pre-hook that turns a clip tensor, the first argument, into the list of its pathways."""

    def pack(module: nn.Module, args: tuple) -> tuple:
        if args and isinstance(args[0], Tensor):
            return (as_pathways(args[0], num_pathways, alpha), *args[1:])
        return args

    return pack
