"""Parameter groups and the optimiser over them.

Which weight decays, by how much and with what share of the learning rate is decided from names and module
kinds alone, in two plain functions that return lists of groups; the order of groups and of parameters in
them is part of the checkpoint format.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from slowfast.solver.lars import LARS
from slowfast.solver.schedule import lr_at
from slowfast.utils.distributed import unwrap

_WRAPPER_NAMES = ("_checkpoint_wrapped_module.", "_orig_mod.")


def build_optimizer(model: nn.Module, cfg: Any) -> Optimizer:
    """The optimiser that ``SOLVER`` describes, over the trainable parameters of ``model``.

    A model inside DistributedDataParallel or ``torch.compile`` gives the same groups as the bare one. The names
    that ``model.no_weight_decay()`` lists, where a model has that method, do not decay.
    """
    solver = cfg.SOLVER
    model = unwrap(model)
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    if solver.LAYER_DECAY == 1.0:
        groups = kind_groups(
            model,
            weight_decay=solver.WEIGHT_DECAY,
            norm_weight_decay=cfg.BN.WEIGHT_DECAY,
            exempt=exempt,
            exempt_1d=solver.ZERO_WD_1D_PARAM,
            apply_lars=solver.LARS_ON,
        )
    elif 0.0 < solver.LAYER_DECAY < 1.0:
        groups = depth_groups(
            model,
            depth=cfg.MVIT.DEPTH,
            layer_decay=solver.LAYER_DECAY,
            weight_decay=solver.WEIGHT_DECAY,
            exempt=exempt,
            exempt_1d=solver.ZERO_WD_1D_PARAM,
        )
    else:
        raise ValueError(f"SOLVER.LAYER_DECAY={solver.LAYER_DECAY} must lie in (0, 1]")
    if not groups:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to train")

    constructor = choose_method(
        solver.OPTIMIZING_METHOD,
        momentum=solver.MOMENTUM,
        dampening=solver.DAMPENING,
        nesterov=solver.NESTEROV,
        betas=tuple(solver.BETAS),
    )
    options = {"fused": True} if can_fuse(solver.OPTIMIZING_METHOD, groups) else {}
    optimizer = keep_implementation(constructor(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **options))
    optimizer = LARS(optimizer) if solver.LARS_ON else optimizer
    set_lr(optimizer, lr_at(cfg, 0.0))
    return optimizer


def can_fuse(name: str, groups: list[dict[str, Any]]) -> bool:
    """Whether one kernel can make the whole step: all weights are floats on a GPU ("mt_adamw" has its own way)."""
    params = [param for group in groups for param in group["params"]]
    return name != "mt_adamw" and all(param.is_cuda and param.is_floating_point() for param in params)


def keep_implementation(optimizer: Optimizer) -> Optimizer:
    """``optimizer``, which after loading a state still computes the way it was made to.

    A state names the implementation (``fused``, ``foreach``) of the machine that it was saved on.
    """
    own = {key: optimizer.defaults[key] for key in ("fused", "foreach") if key in optimizer.defaults}

    def restore(loaded: Optimizer) -> None:
        for group in loaded.param_groups:
            group.update(own)

    optimizer.register_load_state_dict_post_hook(restore)
    return optimizer


def choose_method(
    name: str, *, momentum: float, dampening: float, nesterov: bool, betas: tuple[float, float]
) -> Callable[..., Optimizer]:
    """The constructor behind a value of ``SOLVER.OPTIMIZING_METHOD``, with its own options filled in."""
    adam = {"betas": betas, "eps": 1e-8}
    methods: dict[str, Callable[..., Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=momentum, dampening=dampening, nesterov=nesterov),
        "adam": partial(torch.optim.Adam, **adam),
        "adamw": partial(torch.optim.AdamW, **adam),
        "mt_adamw": partial(torch.optim.AdamW, **adam, foreach=True),
    }
    if name not in methods:
        raise ValueError(f"SOLVER.OPTIMIZING_METHOD={name!r} is unknown; choose one of {', '.join(methods)}")
    if name == "sgd" and nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(
            f"SOLVER.NESTEROV needs momentum and no dampening, but SOLVER.MOMENTUM={momentum} and "
            f"SOLVER.DAMPENING={dampening}; set SOLVER.NESTEROV False or change them"
        )
    return methods[name]


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Name, parameter and owning module of everything that requires a gradient, each once, in module order."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for leaf, param in module.named_parameters(recurse=False):
            if param.requires_grad and param not in seen:
                seen.add(param)
                name = f"{prefix}.{leaf}" if prefix else leaf
                for wrapper in _WRAPPER_NAMES:
                    name = name.replace(wrapper, "")
                yield name, param, module


def kind_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    norm_weight_decay: float,
    exempt: Collection[str] = (),
    exempt_1d: bool = False,
    apply_lars: bool = False,
) -> list[dict[str, Any]]:
    """Three groups, without the empty ones: batch norm, everything else, and what does not decay.

    A name is exempt if it *contains* one of ``exempt``. NOTE: sub-batch norm owns its affine parameters outside
    a batch norm module, so they count as "everything else"; the published recipes were trained so.
    """
    norm: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    zero: list[nn.Parameter] = []
    for name, param, module in trainable_parameters(model):
        if isinstance(module, _NormBase):
            norm.append(param)
        elif any(part in name for part in exempt) or (exempt_1d and _is_vector(name, param)):
            zero.append(param)
        else:
            other.append(param)
    groups = (
        {"params": norm, "weight_decay": norm_weight_decay, "layer_decay": 1.0, "apply_LARS": False},
        {"params": other, "weight_decay": weight_decay, "layer_decay": 1.0, "apply_LARS": apply_lars},
        {"params": zero, "weight_decay": 0.0, "layer_decay": 1.0, "apply_LARS": apply_lars},
    )
    return [group for group in groups if group["params"]]


def depth_groups(
    model: nn.Module,
    *,
    depth: int,
    layer_decay: float,
    weight_decay: float,
    exempt: Collection[str] = (),
    exempt_1d: bool = False,
) -> list[dict[str, Any]]:
    """Groups per (depth, decays or not) in order of appearance; the rate falls by ``layer_decay`` per layer down.

    A name is exempt if it *equals* one of ``exempt`` (so relative positions inside blocks do decay).
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, param, module in trainable_parameters(model):
        if isinstance(module, _NormBase):
            raise ValueError(
                f"SOLVER.LAYER_DECAY={layer_decay} is for transformers without batch norm, but {name!r} "
                f"belongs to one; set SOLVER.LAYER_DECAY 1.0"
            )
        decays = not (name in exempt or (exempt_1d and _is_vector(name, param)))
        layer = layer_index(name, depth)
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "layer_decay": layer_decay ** (depth + 1 - layer),
            },
        )
        group["params"].append(param)
    return list(groups.values())


def layer_index(name: str, depth: int) -> int:
    """0 for the embedding, i + 1 for transformer block i, ``depth + 1`` for all that is neither."""
    if name in ("cls_token", "mask_token") or name.startswith(("pos_embed", "patch_embed")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def _is_vector(name: str, param: nn.Parameter) -> bool:
    return param.ndim == 1 or name.endswith(".bias")


def carry_state(source: Optimizer, source_model: nn.Module, target: Optimizer, target_model: nn.Module) -> None:
    """Give each parameter of ``target`` what ``source`` remembers (momenta) of the one with the same name and shape.

    Groups may differ: batch norm and sub-batch norm, for one, lie in different ones.
    """
    old = {name: param for name, param, _ in trainable_parameters(unwrap(source_model))}
    for name, param, _ in trainable_parameters(unwrap(target_model)):
        if name in old and old[name].shape == param.shape and old[name] in source.state:
            target.state[param] = source.state[old[name]]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group the rate ``lr`` times its ``layer_decay``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("layer_decay", 1.0)


def clip_gradients(parameters: Iterable[Tensor], *, value: float | None = None, l2norm: float | None = None) -> Tensor:
    """Global L2 norm of the gradients before clipping, as a tensor on their device (no host sync).

    ``value`` limits every component to [-value, value]; else ``l2norm`` limits the global norm; with neither
    (or 0) the gradients stay as they are.
    """
    parameters = [param for param in parameters if param.grad is not None]
    norm = nn.utils.get_total_norm([param.grad for param in parameters])
    if hasattr(norm, "full_tensor"):  # of weights that are cut up over processes
        norm = norm.full_tensor()
    if value:
        nn.utils.clip_grad_value_(parameters, value)
    elif l2norm:
        nn.utils.clip_grads_with_norm_(parameters, l2norm, norm)
    return norm
