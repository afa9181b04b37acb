"""Weights of pytorchvideo's hub and of torchvision under our names, recognised by the names in the file.

Facts of the two packages: how they number stages, what they call a norm, and which tensors they shape differently.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]

_BLOCK = (
    (r"branch1_conv", "branch1"),
    (r"branch1_norm", "branch1_bn"),
    (r"branch2\.conv_([abc])", r"branch2.\1"),
    (r"branch2\.norm_b\.1\.block\.0", "branch2.se.fc1"),
    (r"branch2\.norm_b\.1\.block\.2", "branch2.se.fc2"),
    (r"branch2\.norm_b\.0", "branch2.b_bn"),
    (r"branch2\.norm_([abc])", r"branch2.\1_bn"),
)
_PYTORCHVIDEO_X3D = (
    (r"^blocks\.0\.conv\.conv_t\.", "s1.pathway0_stem.conv_xy."),  # the two names are swapped there
    (r"^blocks\.0\.conv\.conv_xy\.", "s1.pathway0_stem.conv."),
    (r"^blocks\.0\.norm\.", "s1.pathway0_stem.bn."),
    (r"^blocks\.5\.pool\.pre_conv\.", "head.conv_5."),
    (r"^blocks\.5\.pool\.pre_norm\.", "head.conv_5_bn."),
    (r"^blocks\.5\.pool\.post_conv\.", "head.lin_5."),
)
_PYTORCHVIDEO_MVIT = (
    (r"^cls_positional_encoding\.", ""),
    (r"^patch_embed\.patch_model\.", "patch_embed.proj."),
    (r"^norm_embed\.", "norm."),
    (r"^head\.proj\.", "head.projection."),
    # Newer files have the pooling layers under two names.
    (r"\._attention_pool_([qkv])\.(pool|norm)\.", r".\2_\1."),
)
_TORCHVISION_RESNET = (
    (r"^conv1\.", "s1.pathway0_stem.conv."),
    (r"^bn1\.", "s1.pathway0_stem.bn."),
    (r"\.(conv|bn)1\.", r".branch2.\1_a."),
    (r"\.(conv|bn)2\.", r".branch2.\1_b."),
    (r"\.(conv|bn)3\.", r".branch2.\1_c."),
    (r"\.conv_([abc])\.", r".\1."),
    (r"\.bn_([abc])\.", r".\1_bn."),
    (r"\.downsample\.0\.", ".branch1."),
    (r"\.downsample\.1\.", ".branch1_bn."),
    *((rf"^layer{i}\.(\d+)\.", rf"s{i + 1}.pathway0_res\1.") for i in range(1, 5)),
    (r"^fc\.", "head.projection."),
)
_TORCHVISION_MVIT = (
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"^pos_encoding\.class_pos$", "pos_embed_class"),
    (r"^pos_encoding\.(spatial|temporal)_pos$", r"pos_embed_\1"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"^head\.1\.", "head.projection."),
)


@dataclass(frozen=True)
class Family:
    """One kind of file: how it is called, the names that give it away, and what each name is with us."""

    name: str
    signs: tuple[str, ...]  # begin of names that every file of the family has
    rename: Callable[[State], dict[str, str]]  # their names -> ours


def _by_rules(rules: tuple[tuple[str, str], ...]) -> Callable[[State], dict[str, str]]:
    def rename(state: State) -> dict[str, str]:
        return {name: _apply(rules, name) for name in state}

    return rename


def _apply(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _stages(state: State) -> dict[int, int]:
    """Place in ``blocks`` -> number of our stage; pooling takes places too, so only residual stages count."""
    found = (re.match(r"blocks\.(\d+)\.(?:multipathway_blocks\.\d\.)?res_blocks\.", name) for name in state)
    return {place: stage for stage, place in enumerate(sorted({int(match[1]) for match in found if match}), start=2)}


def _rename_pytorchvideo_cnn(state: State) -> dict[str, str]:
    stages = _stages(state)

    def rename(name: str) -> str:
        if match := re.match(r"blocks\.(\d+)\.(?:multipathway_blocks\.(\d)\.)?res_blocks\.(\d+)\.(.*)", name):
            place, pathway, block, rest = match.groups()
            return f"s{stages[int(place)]}.pathway{pathway or 0}_res{block}.{_apply(_BLOCK, rest)}"
        if match := re.match(r"blocks\.0\.(?:multipathway_blocks\.(\d)\.)?(conv|norm)\.(weight|bias|\w+)$", name):
            pathway, layer, leaf = match.groups()
            return f"s1.pathway{pathway or 0}_stem.{'conv' if layer == 'conv' else 'bn'}.{leaf}"
        if match := re.match(r"blocks\.(\d+)\.multipathway_fusion\.(\w+)\.(.*)", name):
            place, layer, leaf = match.groups()
            stage = stages.get(int(place), 1)
            return f"s{stage}_fuse.{'bn' if layer == 'norm' else 'conv_f2s'}.{leaf}"
        return _apply((*_PYTORCHVIDEO_X3D, (r"^(blocks\.\d+|detection_head)\.proj\.", "head.projection.")), name)

    return {name: rename(name) for name in state}


FAMILIES = (
    Family("pytorchvideo SlowFast", ("blocks.0.multipathway_blocks.0.",), _rename_pytorchvideo_cnn),
    Family("pytorchvideo X3D", ("blocks.0.conv.conv_t.", "blocks.1.res_blocks."), _rename_pytorchvideo_cnn),
    Family("pytorchvideo ResNet", ("blocks.0.conv.weight", "blocks.1.res_blocks."), _rename_pytorchvideo_cnn),
    Family("pytorchvideo MViT", ("patch_embed.patch_model.", "norm_embed."), _by_rules(_PYTORCHVIDEO_MVIT)),
    Family("torchvision ResNet", ("conv1.weight", "bn1.", "layer1.0.conv1.weight"), _by_rules(_TORCHVISION_RESNET)),
    Family("torchvision MViT", ("conv_proj.", "pos_encoding."), _by_rules(_TORCHVISION_MVIT)),
)


def recognise(state: State) -> Family | None:
    """The family whose names ``state`` has; None for our own names and for unknown ones."""
    for family in FAMILIES:
        if all(any(name.startswith(sign) for name in state) for sign in family.signs):
            return family
    return None


def from_hub(state: State, target: State) -> dict[str, Tensor]:
    """``state`` of pytorchvideo's hub or of torchvision under the names and shapes of ``target``.

    A ``PTV*`` network has pytorchvideo's names behind ``model.``, as have the package's networks for boxes; their
    weights go to and from our networks too. A state of no family is passed on as it is, where ``target`` has none.
    """
    theirs, wanted = _bare_names(state), _bare_names(target)
    family, own = recognise(theirs), recognise(wanted)
    if (family is None and own is None) or state.keys() == target.keys():
        return dict(state)
    names = dict(zip(state, family.rename(theirs).values() if family else state, strict=True))  # the file's -> ours
    ours = {name: state[given] for given, name in names.items()}
    if own is None:
        converted = ours | (_absent_norm(ours, target) if family.name == "pytorchvideo X3D" else {})
    else:
        places = dict(zip(target, own.rename(wanted).values(), strict=True))  # the target's -> ours
        ours = match_projections(ours, places.values())
        converted = {place: ours[name] for place, name in places.items() if name in ours}
        rest = ours.keys() - places.values()
        converted |= {given: state[given] for given, name in names.items() if name in rest}
    return {name: _in_shape(tensor, target.get(name)) for name, tensor in converted.items()}


def _bare_names(state: State) -> dict[str, Tensor]:
    """The entries of a ``PTV*`` network, or of pytorchvideo's for boxes, without ``model.``; others as they are."""
    if all(name.startswith(("model.", "detection_head.")) for name in state):
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return dict(state)


def match_projections(state: State, target: Iterable[str]) -> dict[str, Tensor]:
    """Projections to queries, keys and values joined in one matrix or cut into three, as the target names them."""
    matched = dict(state)
    for name in target:
        found = re.fullmatch(r"(.+\.)(q|qkv)\.(weight|bias)", name)
        if found is None or name in matched:
            continue
        layer, inner, leaf = found.groups()
        whole, parts = f"{layer}qkv.{leaf}", [f"{layer}{x}.{leaf}" for x in "qkv"]
        if inner == "qkv" and all(part in matched for part in parts):
            matched[whole] = torch.cat([matched.pop(part) for part in parts])  # 3 x [D', D] -> [3 D', D]
        elif inner == "q" and whole in matched:
            matched |= zip(parts, matched.pop(whole).chunk(3), strict=True)
    return matched


def _in_shape(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    """``tensor`` in the wanted shape where the two differ by axes of length 1 only."""
    if wanted is None or tensor.shape == wanted.shape:
        return tensor
    return tensor.reshape(wanted.shape) if tensor.squeeze().shape == wanted.squeeze().shape else tensor


def _absent_norm(state: State, target: State) -> dict[str, Tensor]:
    """Norms of shortcuts that pytorchvideo's X3D lacks (where the number of channels stays), so that ours do nothing.

    A variance of 1 less the usual epsilon, 1e-5, makes batch norm the identity.
    """
    fill = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - 1e-5, "num_batches_tracked": 0}
    norms = {name: name.partition(".branch1_bn.") for name in target if ".branch1_bn." in name and name not in state}
    kernels = {name: state.get(f"{block}.branch1.weight") for name, (block, _, _) in norms.items()}
    absent = [name for name, kernel in kernels.items() if kernel is not None and kernel.shape[0] == kernel.shape[1]]
    return {name: torch.full_like(target[name], fill[norms[name][2]]) for name in absent}
