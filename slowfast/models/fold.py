"""A network for use only: batch norms folded into the convolutions before them, one pass for what follows those.

``for_inference(model)`` gives another network with the same scores. On a CPU in float32 a convolution, its bias, the
sum with the shortcut and the activation are then one call of oneDNN; elsewhere they are plain operations.
"""

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models import long_kernels, winograd
from slowfast.models.attention import MultiScaleAttention, MultiScaleBlock
from slowfast.models.layers import Conv3d, time_as_height
from slowfast.models.nonlocal_block import Nonlocal
from slowfast.models.norm import SubBatchNorm3d
from slowfast.models.parts import Mlp, has_hooks
from slowfast.models.resnet import BasicTransform, BottleneckTransform, ResBlock, ResNetBasicStem, ResStage
from slowfast.models.slowfast import FuseFastToSlow
from slowfast.models.token_pooling import Grid
from slowfast.models.x3d import SqueezeExcite, X3DBlock, X3DHead, X3DStage, X3DStem, X3DTransform

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "swish": lambda x: F.silu(x, inplace=True),
}

# See ``FusedConv3d``; from benchmarks/layers.py.
PACK_FROM = 150  # weights per position of the output
FEW_POSITIONS = 700  # the same

# NOTE: PyTorch 2.11 refuses some shapes here ("could not create a memory"); 2.14 takes all that the tests have.
RECENT = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)
HAS_ONE_PASS = RECENT and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def for_inference(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """A copy of ``model`` for evaluation, without gradients, whose scores are equal up to rounding.

    Folded are the blocks of this package that were not derived from and carry no hooks; everything else, and so a
    user's own network, stays as it is. Later changes of ``model`` do not reach the copy. Names and shapes of the
    weights differ from those of ``model``: save that one. ``in_place`` uses ``model`` up instead of copying it.
    """
    network = model if in_place else copy.deepcopy(model)
    return _folded(network.eval().requires_grad_(False))


def _folded(module: nn.Module) -> nn.Module:
    fold = _FOLDS.get(type(module))
    if fold is not None and not has_hooks(module) and _has_statistics(module):
        return fold(module)
    for name, child in module.named_children():
        setattr(module, name, _folded(child))
    return module


def _has_statistics(block: nn.Module) -> bool:
    """Whether every batch norm of ``block`` keeps running statistics; without them it uses the batch's, always."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return all(norm.running_var is not None for norm in norms)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies each channel with in evaluation, and then adds, in float64: [C], [C]."""
    stats = norm.bn if isinstance(norm, SubBatchNorm3d) else norm
    scale = torch.rsqrt(stats.running_var.double() + stats.eps)
    shift = -stats.running_mean.double() * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    return scale, shift


class FusedConv3d(Conv3d):
    """A convolution with bias, the sum with another tensor, and an activation: "none", "relu" or "swish"."""

    def __init__(self, conv: nn.Conv3d, norm: nn.Module | None, activation: str = "none"):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.activation = activation
        weight, bias = conv.weight.double(), 0.0 if conv.bias is None else conv.bias.double()
        if norm is not None:
            scale, shift = scale_and_shift(norm)
            weight, bias = weight * scale.view(-1, 1, 1, 1, 1), bias * scale + shift
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(bias)
        self.requires_grad_(False)
        self.is_temporal = self.kernel_size[0] > 1 and (*self.kernel_size[1:], *self.stride[1:]) == (1, 1, 1, 1)
        self.packed: tuple[tuple, Tensor] | None = None  # see ``_keep``

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "packed": None}

    def forward(self, x: Tensor, add: Tensor | None = None, *, overwrite: bool = False) -> Tensor:
        """``activation(conv(x) + add)`` of x [B, C_in, T, H, W]; both results are [B, C_out, T', H', W'].

        ``overwrite``: the result may take the memory of ``add``.
        """
        if self.backend == "native" or not _has_one_pass(x):
            return self._finish(super().forward(x), add)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.saves_products(x):
            filters = self._filters(x) if self.is_temporal else None
            if filters is None:
                return self._finish(super().forward(x), add)
            return self._finish(winograd.convolve_time(x, self.weight, self.bias, filters), add)
        if add is not None:
            add = add.contiguous(memory_format=torch.channels_last_3d)
        if self.is_temporal and add is None:
            return self._in_time(x)
        if add is None and self.backend == "auto" and self._is_long(x):
            return self._finish(long_kernels.convolve(x, self.weight, self.bias, self.stride, self.padding))
        weight = self._in_order(x, self.weight, self.geometry)
        return _one_pass(x, weight, self.bias, self.geometry, self.groups, self.activation, add, overwrite)

    def _finish(self, y: Tensor, add: Tensor | None = None) -> Tensor:
        return IN_PLACE[self.activation](y if add is None else y.add_(add))

    def saves_products(self, x: Tensor) -> bool:
        """Whether there is a form with fewer multiplications, which are worth more than a single pass.

        In space its filters have four times the size of the weight and are made from it in each pass: that must pay,
        too.
        """
        if not self.is_temporal and self.weight.numel() >= FEW_POSITIONS * x.numel() // x.shape[1]:
            return False
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        is_auto = self.backend == "auto" and x.ndim == 5
        return is_auto and winograd.suits(tuple(x.shape), self.out_channels, self.kernel_size, **options)

    def _is_long(self, x: Tensor) -> bool:
        is_plain = self.groups == 1 and self.dilation == (1, 1, 1)
        return is_plain and long_kernels.suits(tuple(x.shape), tuple(self.weight.shape), self.stride, self.padding)

    @property
    def geometry(self) -> tuple[tuple[int, ...], ...]:
        """Padding, stride, dilation (t, h, w)."""
        return self.padding, self.stride, self.dilation

    def _in_order(self, x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
        """``weight`` in oneDNN's own order, if that is worth keeping; else as it is."""
        positions = x.numel() // x.shape[1] // math.prod(geometry[1])
        order = torch.ops.mkldnn._reorder_convolution_weight
        kept = self._keep("order", positions, lambda: order(weight, *geometry, self.groups, list(x.shape)))
        return weight if kept is None else kept

    def _filters(self, x: Tensor) -> Tensor | None:
        """The minimal filters of this weight in time, if they are worth keeping."""
        return self._keep("filters", x.numel() // x.shape[1], lambda: winograd.filters_in_time(self.weight))

    def _keep(self, form: str, positions: int, make: Callable[[], Tensor]) -> Tensor | None:
        """Another form of the weight, made once and for all if making it takes a good part of each pass; else None.

        That is so for large weights over few positions of the output. There is one at a time.
        """
        if self.weight.numel() < PACK_FROM * positions or self.weight.is_inference():
            return None
        key = (form, self.weight.data_ptr(), self.weight._version)
        if self.packed is None or self.packed[0] != key:
            self.packed = (key, make())
        return self.packed[1]

    def _in_time(self, x: Tensor) -> Tensor:
        """k x 1 x 1 as a 2-D convolution of one image per clip, T high and H * W wide."""
        geometry = [(size[0], int(i > 0)) for i, size in enumerate(self.geometry)]  # a padding of 0, strides of 1
        image = time_as_height(x)
        weight = self._in_order(image, self.weight.flatten(3), geometry)
        y = _one_pass(image, weight, self.bias, geometry, self.groups, self.activation)
        return y.permute(0, 2, 3, 1).unflatten(2, tuple(x.shape[3:])).permute(0, 4, 1, 2, 3)


def _has_one_pass(x: Tensor) -> bool:
    return HAS_ONE_PASS and _is_plain(x)


def _is_plain(x: Tensor) -> bool:
    """Whether ``x`` is float32 on a CPU, wants no gradient, and is not compiled or cast."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()  # a compiler joins operations itself
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
    )


def _one_pass(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    geometry: tuple,
    groups: int,
    activation: str,
    add: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """oneDNN's convolution with what follows it, in 2-D or 3-D; ``geometry`` is padding, stride, dilation."""
    if add is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, groups, activation, [], "")
    then = "relu" if activation == "relu" else None  # the only one that it joins with a sum
    options = (weight, bias, *geometry, groups, "add", None, then, [], "")
    if overwrite:
        y = torch.ops.mkldnn._convolution_pointwise_.binary(add, x, *options)
    else:
        y = torch.ops.mkldnn._convolution_pointwise.binary(x, add, *options)
    return y if activation == "relu" else IN_PLACE[activation](y)


class GatedSwish(nn.Module):
    """Squeeze-excite and Swish, written over their input."""

    def __init__(self, se: SqueezeExcite):
        super().__init__()
        self.se = se

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> same, the same memory."""
        return F.silu(x.mul_(self.se.gate(x)), inplace=True)


class FusedBlock(nn.Module):
    """A residual block: ``body``, then the last convolution with the sum and the ReLU."""

    def __init__(self, shortcut: nn.Module | None, body: list[nn.Module], last: FusedConv3d):
        super().__init__()
        self.shortcut = shortcut
        self.body = nn.Sequential(*body)
        self.last = last
        self.before: list[FusedBlock] = []  # the one whose output only this block gets, in a list: it is no child

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, dim_out, T, H / stride, W / stride]."""
        if self.shortcut is not None:
            return self.last(self.body(x), self.shortcut(x), overwrite=True)
        overwrite = any(not block._forward_hooks for block in self.before) and not x.requires_grad
        return self.last(self.body(x), x, overwrite=overwrite)


class GELUInPlace(nn.Module):
    """GELU, written over its input where no gradient asks for that."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> same."""
        return F.gelu(x) if torch.is_grad_enabled() and x.requires_grad else torch.ops.aten.gelu_(x)


def _fold_mlp(mlp: Mlp) -> nn.Module:
    if type(mlp.act) is nn.GELU and mlp.act.approximate == "none":
        mlp.act = GELUInPlace()
    return mlp


def add_linear(x: Tensor, layer: nn.Linear, y: Tensor) -> Tensor:
    """``x + layer(y)`` of x [B, N, D] and y [B, N, C]; the product adds itself to the sum of x and the bias."""
    total = (x + layer.bias).contiguous()
    total.flatten(0, 1).addmm_(y.flatten(0, 1), layer.weight.t())
    return total


class FusedMultiScaleBlock(MultiScaleBlock):
    """A block whose last layers of attention and MLP add to the shortcut themselves."""

    def _adds_itself(self, x: Tensor) -> bool:
        return _is_plain(x) and not (self.training or self.attn.by_definition or has_hooks(self))

    def add_attention(self, x: Tensor, normed: Tensor, grid: Grid, **options) -> tuple[Tensor, Grid]:
        """As the parent's."""
        if not self._adds_itself(x):
            return super().add_attention(x, normed, grid, **options)
        y, grid = self.attn.mix(normed, grid, **options)
        return add_linear(x, self.attn.proj, y), grid

    def add_mlp(self, x: Tensor, normed: Tensor) -> Tensor:
        """As the parent's."""
        if not self._adds_itself(x):
            return super().add_mlp(x, normed)
        return add_linear(x, self.mlp.fc2, self.mlp.act(self.mlp.fc1(normed)))


def _fold_multiscale(block: MultiScaleBlock) -> nn.Module:
    block.mlp, is_own = _folded(block.mlp), type(block.mlp) is Mlp and type(block.attn) is MultiScaleAttention
    layers = (block.attn.proj, block.mlp.fc2) if is_own else ()
    if not is_own or any(type(layer) is not nn.Linear or layer.bias is None for layer in layers):
        return block  # someone replaced a part
    for gamma, layer in zip((block.gamma_1, block.gamma_2), layers, strict=True):
        if gamma is not None:
            layer.weight = nn.Parameter(layer.weight * gamma[:, None], requires_grad=False)
            layer.bias = nn.Parameter(layer.bias * gamma, requires_grad=False)
    block.gamma_1 = block.gamma_2 = None
    block.__class__ = FusedMultiScaleBlock  # the same layers under the same names
    return block


def _fold_block(block: ResBlock | X3DBlock) -> nn.Module:
    branch = block.branch2
    if type(branch) is BottleneckTransform:
        body = [FusedConv3d(branch.a, branch.a_bn, "relu"), FusedConv3d(branch.b, branch.b_bn, "relu")]
        last = FusedConv3d(branch.c, branch.c_bn, "relu")
    elif type(branch) is BasicTransform:
        body = [FusedConv3d(branch.a, branch.a_bn, "relu")]
        last = FusedConv3d(branch.b, branch.b_bn, "relu")
    elif type(branch) is X3DTransform:
        gated = isinstance(branch.se, SqueezeExcite)
        body = [
            FusedConv3d(branch.a, branch.a_bn, "relu"),
            FusedConv3d(branch.b, branch.b_bn, "none" if gated else "swish"),
            *([GatedSwish(branch.se)] if gated else []),
        ]
        last = FusedConv3d(branch.c, branch.c_bn, "relu")
    else:
        return block
    shortcut = None if block.branch1 is None else FusedConv3d(block.branch1, block.branch1_bn)
    return FusedBlock(shortcut, body, last)


def _fold_stage(stage: ResStage) -> nn.Module:
    """The blocks of a stage; each may write over the output of the one before it, which nobody else reads."""
    for name, child in stage.named_children():
        setattr(stage, name, _folded(child))
    for p, spec in enumerate(stage.specs):
        blocks = [getattr(stage, f"pathway{p}_res{i}") for i in range(len(spec.kernels))]
        for i, (before, block) in enumerate(pairwise(blocks)):
            if isinstance(before, FusedBlock) and isinstance(block, FusedBlock) and i not in spec.nonlocal_at:
                block.before = [before]
    return stage


def _fold_children(*groups: tuple[str, ...]) -> Callable[[nn.Module], nn.Module]:
    """A fold that leaves the block as it is but for some children: (convolution, norm) or (convolution, norm, ReLU)."""

    def fold(block: nn.Module) -> nn.Module:
        for conv, norm, *relu in groups:
            known = getattr(block, norm)
            if isinstance(known, nn.Identity):
                known = None
            setattr(block, conv, FusedConv3d(getattr(block, conv), known, "relu" if relu else "none"))
            for name in (norm, *relu):
                setattr(block, name, nn.Identity())
        return block

    return fold


_FOLDS: dict[type, Callable] = {
    ResStage: _fold_stage,
    X3DStage: _fold_stage,
    ResBlock: _fold_block,
    X3DBlock: _fold_block,
    ResNetBasicStem: _fold_children(("conv", "bn", "relu")),
    FuseFastToSlow: _fold_children(("conv_f2s", "bn", "relu")),
    X3DStem: _fold_children(("conv", "bn", "relu")),
    X3DHead: _fold_children(("conv_5", "conv_5_bn", "conv_5_relu"), ("lin_5", "lin_5_bn", "lin_5_relu")),
    Mlp: _fold_mlp,
    MultiScaleBlock: _fold_multiscale,
    Nonlocal: _fold_children(("conv_out", "bn")),
}
