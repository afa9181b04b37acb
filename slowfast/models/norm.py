"""Normalisation layers: plain, per sub-batch, synchronised over processes, and the rule that picks one."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slowfast.utils import distributed

Norm = Callable[[int], nn.Module]

NORM_TYPES = ("batchnorm", "sub_batchnorm", "sync_batchnorm", "sync_batchnorm_apex")


def build_norm(cfg) -> Norm:
    """The norm of a conv net as BN.* asks for it: a function of the number of channels."""
    return norm_factory(
        cfg.BN.NORM_TYPE,
        num_splits=cfg.BN.NUM_SPLITS,
        num_sync_devices=cfg.BN.NUM_SYNC_DEVICES,
        global_sync=cfg.BN.GLOBAL_SYNC,
    )


def build_mlp_norm(cfg) -> Norm | None:
    """The norm of hidden layers in the MLPs of contrastive learning; None without CONTRASTIVE.BN_MLP."""
    if not cfg.CONTRASTIVE.BN_MLP:
        return None
    if cfg.CONTRASTIVE.BN_SYNC_MLP and (cfg.BN.GLOBAL_SYNC or (cfg.BN.NUM_SYNC_DEVICES or 1) > 1):
        return partial(GroupSyncBatchNorm1d, num_sync_devices=cfg.BN.NUM_SYNC_DEVICES, global_sync=cfg.BN.GLOBAL_SYNC)
    return nn.BatchNorm1d


def norm_factory(
    norm_type: str, *, num_splits: int = 1, num_sync_devices: int | None = 1, global_sync: bool = False
) -> Norm:
    """A function from a number of channels to a norm layer for [B, C, T, H, W]; all have eps 1e-5, momentum 0.1."""
    if norm_type == "batchnorm":
        return BatchNorm3d
    if norm_type == "sub_batchnorm":
        return partial(SubBatchNorm3d, num_splits=num_splits)
    if norm_type == "sync_batchnorm":
        return partial(GroupSyncBatchNorm3d, num_sync_devices=num_sync_devices, global_sync=global_sync)
    if norm_type == "sync_batchnorm_apex":
        return nn.SyncBatchNorm
    raise ValueError(f"BN.NORM_TYPE={norm_type!r}: allowed are {', '.join(NORM_TYPES)}")


NARROW, LANES, LARGE = 8, 128, 2**17  # see ``BatchNorm3d``; the last is a number of values


class BatchNorm3d(nn.BatchNorm3d):
    """``nn.BatchNorm3d``, in training on a CPU faster for up to eight channels, as SlowFast's fast pathway has.

    PyTorch's own takes as long for each position however few channels it has. Here neighbouring positions lie side by
    side as if they were channels: statistics and sums are taken for 128 of these, then those of one channel are joined.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> same."""
        if not self._shares_lanes(x):
            return super().forward(x)
        y, mean, var = _NarrowNorm.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            count = x.numel() // x.shape[1]
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return y

    def _shares_lanes(self, x: Tensor) -> bool:
        channels = self.num_features
        return (
            self.training
            and self.affine
            and self.momentum is not None
            and channels <= NARROW
            and LANES % channels == 0
            and x.device.type == "cpu"
            and x.ndim == 5
            and x.shape[1] == channels
            and x.numel() >= LARGE
            and x.numel() % LANES == 0
            and x.dtype == self.weight.dtype
            and x.dtype in (torch.float32, torch.float64)
            and x.is_contiguous(memory_format=torch.channels_last_3d)
            and not torch.compiler.is_compiling()
        )


class _NarrowNorm(torch.autograd.Function):
    """Normalised x, scaled and shifted; mean and variance (the biased one) of the batch."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        repeat = LANES // len(weight)
        lanes = _lanes(x)
        means, variances = torch.batch_norm_update_stats(_as_images(lanes), None, None, 0.0)
        means, variances = means.view(repeat, -1), variances.view(repeat, -1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        scale = weight * torch.rsqrt(var + eps)
        y = torch.empty_like(x)
        torch.addcmul((bias - mean * scale).repeat(repeat), lanes, scale.repeat(repeat), out=_lanes(y))
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, var = ctx.saved_tensors
        repeat, count = LANES // len(weight), x.numel() // len(weight)
        lanes, slopes = _lanes(x), _lanes(grad.contiguous(memory_format=torch.channels_last_3d))
        # Of a norm with fixed statistics PyTorch gives the two sums that are needed, in one pass.
        stats = (mean.repeat(repeat), var.repeat(repeat))
        options = (weight.repeat(repeat), *stats, *stats, False, ctx.eps, [False, True, True])
        sums = torch.ops.aten.native_batch_norm_backward(_as_images(slopes), _as_images(lanes), *options)
        grad_weight, grad_bias = (total.view(repeat, -1).sum(0) for total in sums[1:])
        grad_x = None
        if ctx.needs_input_grad[0]:
            inverse = torch.rsqrt(var + ctx.eps)
            scale = weight * inverse
            of_x = -scale * grad_weight * inverse / count
            shift = -scale * grad_bias / count - of_x * mean
            grad_x = torch.empty_like(x)
            out = torch.addcmul(shift.repeat(repeat), lanes, of_x.repeat(repeat), out=_lanes(grad_x))
            out.addcmul_(slopes, scale.repeat(repeat))
        return grad_x, grad_weight, grad_bias, None


def _lanes(x: Tensor) -> Tensor:
    """[B, C, T, H, W] in channels last -> [B * T * H * W * C / 128, 128], a view."""
    return x.permute(0, 2, 3, 4, 1).view(-1, LANES)


def _as_images(lanes: Tensor) -> Tensor:
    """[N, 128] -> [1, 128, N, 1] in channels last, a view."""
    return lanes.t()[None, :, :, None]


class SubBatchNorm3d(nn.Module):
    """Batch norm whose statistics come from ``num_splits`` interleaved parts of the batch.

    In training, sample n belongs to part n mod ``num_splits``; the running statistics of the parts lie one after
    the other in ``split_bn``. ``aggregate_stats`` merges them into ``bn``, which is used in evaluation. Scale and
    shift are shared. (Multigrid training, Wu et al., https://arxiv.org/abs/1912.00998)
    """

    def __init__(self, num_features: int, *, num_splits: int):
        super().__init__()
        if num_splits < 1:
            raise ValueError(f"BN.NUM_SPLITS={num_splits}: must be at least 1")
        self.num_features = num_features
        self.num_splits = num_splits
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.bn = nn.BatchNorm3d(num_features, affine=False)
        self.split_bn = nn.BatchNorm3d(num_features * num_splits, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> same; B must be a multiple of ``num_splits`` in training."""
        if self.training:
            batch, channels, *size = x.shape
            if batch % self.num_splits:
                raise ValueError(
                    f"a batch of {batch} clips cannot be split into BN.NUM_SPLITS={self.num_splits} equal parts: "
                    "make the batch of one process a multiple of it"
                )
            parts = x.reshape(batch // self.num_splits, channels * self.num_splits, *size)
            x = self.split_bn(parts).reshape(batch, channels, *size)
        else:
            x = self.bn(x)
        return x * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)

    @torch.no_grad()
    def aggregate_stats(self) -> None:
        """Write the statistics of the whole batch, as the parts imply them, into ``bn``."""
        means = self.split_bn.running_mean.view(self.num_splits, -1)  # [splits, C]
        variances = self.split_bn.running_var.view(self.num_splits, -1)
        mean = means.mean(0)
        self.bn.running_mean.copy_(mean)
        self.bn.running_var.copy_(variances.mean(0) + (means - mean).square().mean(0))


def aggregate_sub_bn_stats(model: nn.Module) -> int:
    """Merge the statistics of every sub-batch norm of ``model``; the number of such layers."""
    layers = [module for module in model.modules() if isinstance(module, SubBatchNorm3d)]
    for layer in layers:
        layer.aggregate_stats()
    return len(layers)


class _SumOverGroup(torch.autograd.Function):
    """Sum of a vector over the processes of one group; so is its gradient.

    Every process writes into its group's row of a table that all processes add up: one collective serves all
    groups, whatever their number, and no process group has to be made.
    """

    @staticmethod
    def forward(ctx, vector: Tensor, group: int, num_groups: int) -> Tensor:
        ctx.group, ctx.num_groups = group, num_groups
        return _SumOverGroup.add(vector, group, num_groups)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _SumOverGroup.add(grad, ctx.group, ctx.num_groups), None, None

    @staticmethod
    def add(vector: Tensor, group: int, num_groups: int) -> Tensor:
        table = vector.new_zeros(num_groups, vector.numel())
        table[group] = vector
        return distributed.all_reduce_sum(table)[group].clone()


class _GroupSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the layers below share."""

    def __init__(self, num_features: int, *, num_sync_devices: int | None = None, global_sync: bool = False):
        super().__init__(num_features)
        if global_sync and num_sync_devices is not None:
            raise ValueError(
                f"BN.GLOBAL_SYNC is on, which covers all processes, but BN.NUM_SYNC_DEVICES={num_sync_devices}: "
                "set BN.NUM_SYNC_DEVICES None"
            )
        self.num_sync_devices = num_sync_devices or 0
        self.global_sync = global_sync

    def _group(self) -> tuple[int, int, int]:
        """Index of this process's group, number of groups, number of processes in this group."""
        rank, world = distributed.get_rank(), distributed.get_world_size()
        if self.global_sync:
            return 0, 1, world
        local_world = distributed.get_local_world_size()
        size = min(self.num_sync_devices, local_world) if self.num_sync_devices > 0 else local_world
        per_machine = -(-local_world // size)
        machine, local_rank = divmod(rank, local_world)
        members = min(size, local_world - local_rank // size * size)
        return machine * per_machine + local_rank // size, world // local_world * per_machine, members

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] or [B, C, T, H, W] -> same."""
        if not self.training or distributed.get_world_size() == 1:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        axes = (0, *range(2, x.ndim))
        moments = torch.cat([wide.mean(axes), wide.square().mean(axes)])  # [2C]
        group, num_groups, members = self._group()
        if members > 1 or num_groups < distributed.get_world_size():
            moments = _SumOverGroup.apply(moments, group, num_groups) / members
        mean, square = moments.chunk(2)
        variance = square - mean.square()
        if self.track_running_stats:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        shape = (-1, *[1] * (x.ndim - 2))
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)


class GroupSyncBatchNorm3d(_GroupSyncBatchNorm, nn.BatchNorm3d):
    """Batch norm over the batches of ``num_sync_devices`` neighbouring processes of one machine.

    ``num_sync_devices`` below 1 stands for the whole machine; more than there are processes does too, so a recipe
    made for eight devices also runs on one. ``global_sync`` takes all processes of all machines. In one process,
    and in evaluation, this is plain batch norm. Across processes the running variance is the biased one and
    ``num_batches_tracked`` stands still, as in the original.
    """


class GroupSyncBatchNorm1d(_GroupSyncBatchNorm, nn.BatchNorm1d):
    """The same for [B, C], in MLPs."""
