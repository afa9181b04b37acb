"""Contrastive learning of video features: one short class per method over a common base.

The one idea: an update is a ``ContrastiveStep``. ``begin`` fixes what all its parts share (keys), ``forward`` gives
the loss of one part (some of the views), ``finish`` writes what the step leaves behind (queue, banks).

Methods and their use on video: Feichtenhofer et al., "A Large-Scale Study on Unsupervised Spatiotemporal
Representation Learning", https://arxiv.org/abs/2104.14558.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.memory_bank import MemoryBank, random_features
from slowfast.models.mvit import MViT
from slowfast.models.resnet import ResNet
from slowfast.models.slowfast import SlowFast
from slowfast.models.x3d import X3D
from slowfast.utils import distributed

BACKBONES = {
    **dict.fromkeys(("2d", "c2d", "i3d", "slow", "slow_c2d", "slow_i3d"), ResNet),
    "slowfast": SlowFast,
    "x3d": X3D,
    "mvit": MViT,
}
# Largest input, in numbers, that the key encoder takes in one pass: 4 clips, of a batch of 64 ones, as in the original.
LARGEST_PASS = 4 * 64 * 3 * 8 * 224 * 224


@dataclass
class ContrastiveStep:
    """What the parts of one update share."""

    views: list[Tensor]  # each [B, C, T, H, W], one per view
    index: Tensor  # int64 [B], rows of the training list
    epoch: float = 0.0  # fractional; known when the step begins
    keys: list[Tensor] | None = None  # per view [B, D], of length 1; None until the step has begun
    keyed: list[int] = field(default_factory=list)  # the views that have keys, in the order of ``keys``
    features: Tensor | None = None  # [B, D] of view 0, of length 1


@dataclass
class ContrastiveLoss:
    """The loss of one part; ``logits`` [N, 1 + negatives] have the right answer in column 0, where there are any."""

    total: Tensor
    logits: Tensor | None = None


# ---------------------------------------------------------------- losses


def instance_logits(query: Tensor, keys: Sequence[Tensor], wrong: Tensor, temperature: float) -> Tensor:
    """Similarities of ``query`` [B, D] with each of V ``keys`` [B, D], beside ``wrong`` ones [B, K].

    Gives [V * B, 1 + K], key by key, the key in column 0.
    """
    blocks = [torch.cat([(query * key).sum(1, keepdim=True), wrong], dim=1) for key in keys]
    return torch.cat(blocks) / temperature


def instance_loss(logits: Tensor) -> Tensor:
    """Cross entropy with the right answer in column 0."""
    return F.cross_entropy(wide(logits), torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Of all features [2 N, D] but itself, each has to find its other view: mean over all. (SimCLR)

    ``first`` and ``second`` [N, D] hold the two views of each sample, of length 1.
    """
    count = len(first)
    features = torch.cat([first, second])
    similar = wide(features @ features.T) / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=similar.device)
    partner = torch.arange(2 * count, device=similar.device).roll(count)
    return F.cross_entropy(similar.masked_fill(itself, -math.inf), partner)


@torch.no_grad()
def sinkhorn(scores: Tensor, *, iterations: int = 3, sharpness: float = 0.05) -> Tensor:
    """Soft assignments [B, K] of samples to prototypes that use each prototype equally often; rows sum to 1. (SwAV)

    ``scores`` [B, K] are similarities within -1..1.
    """
    codes = torch.exp(wide(scores) / sharpness).T  # [K, B]
    codes /= codes.sum()
    for _ in range(iterations):
        codes /= codes.sum(1, keepdim=True) * len(codes)
        codes /= codes.sum(0, keepdim=True) * codes.shape[1]
    return (codes / codes.sum(0, keepdim=True)).T


# ---------------------------------------------------------------- the base


def wide(x: Tensor) -> Tensor:
    """``x`` in at least single precision, whatever autocast made of it."""
    return x if x.dtype == torch.float64 else x.float()


def unit(features: Tensor) -> Tensor:
    """Each row divided by its length."""
    features = wide(features)
    return features / features.square().sum(1, keepdim=True).sqrt()


@MODEL_REGISTRY.register()
class ContrastiveModel(nn.Module):
    """A video network that learns from several views of each clip's video, without labels. ``KINDS`` are the methods.

    Where there is a bank ``knn_mem``, it keeps the latest feature of every training video, for classification by
    the nearest neighbours.
    """

    min_views = 2

    def __init__(self, backbone: nn.Module, *, temperature: float, sequential: bool = False):
        super().__init__()
        self.backbone = backbone
        self.temperature = temperature
        self.sequential = sequential
        self.knn_mem: MemoryBank | None = None

    @staticmethod
    def from_cfg(cfg) -> "ContrastiveModel":
        """The method CONTRASTIVE.TYPE over the network that MODEL.ARCH names."""
        contrastive, arch = cfg.CONTRASTIVE, cfg.MODEL.ARCH
        if contrastive.TYPE not in KINDS:
            raise ValueError(f"CONTRASTIVE.TYPE={contrastive.TYPE!r}: allowed are {', '.join(KINDS)}")
        if arch not in BACKBONES:
            raise ValueError(f"MODEL.ARCH={arch!r} with a ContrastiveModel: allowed are {', '.join(BACKBONES)}")
        if contrastive.DIM != cfg.MODEL.NUM_CLASSES:
            raise ValueError(
                f"CONTRASTIVE.DIM={contrastive.DIM} and MODEL.NUM_CLASSES={cfg.MODEL.NUM_CLASSES} are both the width "
                "of the features: make them equal"
            )
        if cfg.MODEL.HEAD_ACT != "none":
            raise ValueError(f"MODEL.HEAD_ACT={cfg.MODEL.HEAD_ACT!r} with a ContrastiveModel: it has to be none")
        if arch in ("x3d", "mvit"):
            for key, value, plain in (
                ("PREDICTOR_DEPTHS", list(contrastive.PREDICTOR_DEPTHS), []),
                ("NUM_MLP_LAYERS", contrastive.NUM_MLP_LAYERS, contrastive.NUM_MLP_LAYERS if arch == "mvit" else 1),
            ):
                if value != plain:
                    raise ValueError(f"CONTRASTIVE.{key}={value}: with MODEL.ARCH={arch!r} it has to be {plain}")
        model = KINDS[contrastive.TYPE].build_kind(BACKBONES[arch].from_cfg(cfg), cfg)
        if contrastive.KNN_ON:
            model.knn_mem = MemoryBank(contrastive.LENGTH, contrastive.DIM, time_axis=True)
        return model

    @classmethod
    def build_kind(cls, backbone: nn.Module, cfg) -> "ContrastiveModel":
        """This method over ``backbone``."""
        return cls(backbone, temperature=cfg.CONTRASTIVE.T, sequential=cfg.CONTRASTIVE.SEQUENTIAL)

    # ------------------------------------------------------------ what differs between methods

    def parts(self, num_views: int) -> list[tuple[int, ...]]:
        """The views that go through the network together, for each part of an update."""
        return [(view,) for view in range(num_views)] if self.sequential else [(0,)]

    def begin(self, step: ContrastiveStep, epoch: float) -> None:
        """Before the first part, at a fractional epoch: what the parts need but no gradient goes through."""
        step.epoch, step.keys = epoch, []

    def part_loss(self, step: ContrastiveStep, part: tuple[int, ...]) -> ContrastiveLoss:
        """The loss of the views ``part``."""
        raise NotImplementedError

    def finish(self, step: ContrastiveStep) -> None:
        """After the last part: features of view 0 go into the bank."""
        if self.knn_mem is not None:
            self.knn_mem.update(step.index, step.features)

    def drop_gradients(self, epoch: float) -> None:
        """Remove the gradients of weights that rest at this fractional epoch."""

    def banks(self) -> list[MemoryBank]:
        """The banks that have a row for each training video."""
        return [module for module in self.modules() if isinstance(module, MemoryBank)]

    def replicated_buffers(self) -> list[str]:
        """Names of the buffers that are equal on all processes by themselves, so that nobody has to send them."""
        return [name for name, _ in self.named_buffers() if not name.startswith(("backbone.", "backbone_hist."))]

    # ------------------------------------------------------------ what does not

    def forward(
        self, clips: Tensor | list[Tensor] | ContrastiveStep, part: tuple[int, ...] = ()
    ) -> Tensor | list[Tensor] | ContrastiveLoss:
        """Features [B, D] of ``clips`` [B, C, T, H, W] (of each, in a list); of a step, the loss of one ``part``."""
        if isinstance(clips, ContrastiveStep):
            return self.part_loss(clips, part)
        if isinstance(clips, list):
            return [self.features(view) for view in clips]
        return self.features(clips)

    def features(self, clips: Tensor) -> Tensor:
        """What the network makes of ``clips``: [B, D]."""
        return projected(self.backbone(clips))

    def query(self, step: ContrastiveStep, view: int) -> Tensor:
        """Features [B, D] of length 1 of one view; those of view 0 are kept for the bank."""
        features = unit(projected(self.backbone(step.views[view])))
        self.note(step, view, features)
        return features

    @staticmethod
    def note(step: ContrastiveStep, view: int, features: Tensor) -> None:
        """Keep the features of view 0."""
        if view == 0:
            step.features = features.detach()


def projected(output: Tensor | list[Tensor]) -> Tensor:
    """The features among what a backbone gives; predictions follow them."""
    return output[0] if isinstance(output, list) else output


# ---------------------------------------------------------------- methods with a slow key encoder


class MomentumModel(ContrastiveModel):
    """Base of the methods whose keys come from a second network, ``backbone_hist``, that follows the first slowly.

    In the first step it takes over the weights of the first, in each later one ``momentum`` of the old ones stays.
    With ``annealed_over`` epochs the momentum grows to 1 by a cosine. Only weights follow: batch-norm statistics
    are the key encoder's own. Clips are dealt out anew among processes before they become keys (``shuffle``: "no",
    "machine" or "world"), so that batch norm cannot tell a key by the clips around it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        momentum: float,
        queue_length: int,
        dim: int,
        annealed_over: float | None = None,
        multi_view_queue: bool = False,
        shuffle: str = "machine",
        **options,
    ):
        super().__init__(backbone, **options)
        self.register_buffer("ptr", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("queue_x", random_features(queue_length, dim))
        self.register_buffer("iter", torch.zeros(1, dtype=torch.int64))
        self.backbone_hist = copy.deepcopy(backbone).requires_grad_(False)
        self.momentum = momentum
        self.annealed_over = annealed_over
        self.multi_view_queue = multi_view_queue
        self.shuffle = shuffle

    @classmethod
    def build_kind(cls, backbone: nn.Module, cfg) -> "MomentumModel":
        """This method over ``backbone``."""
        contrastive, norm = cfg.CONTRASTIVE, cfg.BN
        is_synced = "sync" in norm.NORM_TYPE and norm.NUM_SYNC_DEVICES == cfg.NUM_GPUS
        return cls(
            backbone,
            temperature=contrastive.T,
            sequential=contrastive.SEQUENTIAL,
            momentum=contrastive.MOMENTUM,
            annealed_over=cfg.SOLVER.MAX_EPOCH if contrastive.MOMENTUM_ANNEALING else None,
            queue_length=contrastive.QUEUE_LEN,
            dim=contrastive.DIM,
            multi_view_queue=contrastive.MOCO_MULTI_VIEW_QUEUE,
            shuffle="no" if is_synced else "machine" if contrastive.LOCAL_SHUFFLE_BN else "world",
        )

    def momentum_at(self, epoch: float) -> float:
        """The share of the key encoder's old weights that stays in a step at this fractional epoch."""
        if self.annealed_over is None:
            return self.momentum
        return 1 - (1 - self.momentum) * (math.cos(math.pi * epoch / self.annealed_over) + 1) / 2

    @torch.no_grad()
    def follow(self, epoch: float) -> None:
        """Move the key encoder towards the query encoder."""
        rate = torch.where(self.iter == 0, 1.0, 1 - self.momentum_at(epoch))
        pairs = zip(self.backbone_hist.parameters(), self.backbone.parameters(), strict=True)
        for slow, quick in pairs:
            slow.lerp_(quick, rate.to(slow.dtype))
        self.iter += 1

    @torch.no_grad()
    def begin(self, step: ContrastiveStep, epoch: float) -> None:
        """Move the key encoder and let it make the keys."""
        super().begin(step, epoch)
        self.follow(epoch)
        step.keyed = self.key_views(len(step.views))
        step.keys = self.make_keys([step.views[view] for view in step.keyed])

    def key_views(self, num_views: int) -> list[int]:
        """The views whose keys a step needs."""
        return list(range(num_views))

    def make_keys(self, views: list[Tensor]) -> list[Tensor]:
        """One [B, D] of length 1 per view."""

        def encode(clips: Tensor) -> Tensor:
            return unit(projected(self.backbone_hist(clips)))

        encode = encode if self.shuffle == "no" else shuffled(encode, local=self.shuffle == "machine")
        first = views[0]
        fits = len(views) * len(first) * first.numel() <= LARGEST_PASS
        if self.sequential or not fits or any(view.shape != first.shape for view in views):
            return [encode(view) for view in views]
        return list(encode(torch.cat(views)).chunk(len(views)))


def shuffled(encode: Callable[[Tensor], Tensor], *, local: bool) -> Callable[[Tensor], Tensor]:
    """``encode`` over clips dealt out anew among the processes (``local``: of this machine); each gets its own back."""

    def run(clips: Tensor) -> Tensor:
        count = len(clips)
        world = distributed.get_local_world_size() if local else distributed.get_world_size()
        if world == 1:
            return encode(clips)
        rank = distributed.get_local_rank() if local else distributed.get_rank()
        mine = slice(rank * count, (rank + 1) * count)
        order = distributed.broadcast(torch.randperm(world * count).to(clips.device))
        dealt = distributed.all_gather_rows(clips, local=local)[order[mine]]
        features = distributed.all_gather_rows(encode(dealt), local=local)
        return features[order.argsort()[mine]]

    return run


class MoCo(MomentumModel):
    """A query has to find the keys of the same video among those of a queue of earlier ones.

    Momentum Contrast (He et al., https://arxiv.org/abs/1911.05722; v2: https://arxiv.org/abs/2003.04297). In
    sequence, each view is the query once and all others are its keys; else the first view is the query. The keys
    of all processes enter the queue (in the original each kept its own, and the first one's won).
    """

    def key_views(self, num_views: int) -> list[int]:
        """All views; without sequence, all but the query."""
        return list(range(0 if self.sequential else 1, num_views))

    def part_loss(self, step: ContrastiveStep, part: tuple[int, ...]) -> ContrastiveLoss:
        """See ``ContrastiveModel``."""
        (view,) = part
        keys = [key for other, key in zip(step.keyed, step.keys, strict=True) if other != view]
        query = self.query(step, view)
        logits = instance_logits(query, keys, query @ self.queue_x.T, self.temperature)
        return ContrastiveLoss(instance_loss(logits), logits.detach())

    @torch.no_grad()
    def finish(self, step: ContrastiveStep) -> None:
        """The keys of all views, or of the first, enter the queue."""
        super().finish(step)
        for keys in step.keys if self.multi_view_queue else step.keys[:1]:
            keys = distributed.all_gather_rows(keys)[-len(self.queue_x) :]
            rows = (self.ptr + torch.arange(len(keys), device=keys.device)) % len(self.queue_x)
            self.queue_x[rows] = keys.to(self.queue_x.dtype)
            self.ptr.copy_((self.ptr + len(keys)) % len(self.queue_x))


class BYOL(MomentumModel):
    """A predictor has to say, from one view, the key of another; there are no negatives.

    Bootstrap Your Own Latent (Grill et al., https://arxiv.org/abs/2006.07733). In sequence, each view predicts the
    mean over all others; else two views predict each other.
    """

    def __init__(self, backbone: nn.Module, **options):
        super().__init__(backbone, **{**options, "shuffle": "no"})
        predictors = getattr(getattr(backbone, "head", None), "predictors", ())
        if len(predictors) != 1:
            raise ValueError(
                f"CONTRASTIVE.TYPE='byol' needs one predictor, CONTRASTIVE.PREDICTOR_DEPTHS asks for {len(predictors)}"
            )

    def parts(self, num_views: int) -> list[tuple[int, ...]]:
        """Each view by itself, or two at once."""
        if self.sequential:
            return super().parts(num_views)
        if num_views != 2:
            raise ValueError(
                f"CONTRASTIVE.TYPE='byol' with {num_views} views (DATA.TRAIN_CROP_NUM_TEMPORAL times copies): without "
                "CONTRASTIVE.SEQUENTIAL there have to be 2"
            )
        return [(0, 1)]

    def part_loss(self, step: ContrastiveStep, part: tuple[int, ...]) -> ContrastiveLoss:
        """See ``ContrastiveModel``."""
        losses = []
        for view in part:
            features, prediction = self.backbone(step.views[view])
            self.note(step, view, unit(features))
            prediction = unit(prediction)
            others = [key for other, key in enumerate(step.keys) if other != view]
            losses.append(-torch.stack([(prediction * key).sum(1).mean() for key in others]).mean() / self.temperature)
        return ContrastiveLoss(torch.stack(losses).sum())


# ---------------------------------------------------------------- methods without


class SimCLR(ContrastiveModel):
    """Each of two views has to find the other among the views of all samples of all processes.

    A Simple Framework for Contrastive Learning (Chen et al., https://arxiv.org/abs/2002.05709). In sequence, views
    0 and 1, then 1 and 2, and so on; else 0 and 1 alone.
    """

    def parts(self, num_views: int) -> list[tuple[int, ...]]:
        """Pairs of neighbours."""
        return [(view, view + 1) for view in range(num_views - 1 if self.sequential else 1)]

    def features(self, clips: Tensor) -> Tensor:
        """Of length 1."""
        return unit(super().features(clips))

    def part_loss(self, step: ContrastiveStep, part: tuple[int, ...]) -> ContrastiveLoss:
        """See ``ContrastiveModel``."""
        first, second = (distributed.all_gather_rows(self.query(step, view)) for view in part)
        return ContrastiveLoss(nt_xent(first, second, self.temperature))


class SwAV(ContrastiveModel):
    """Each view has to tell the soft cluster of another; clusters are the nearest of learnt prototypes.

    Swapping Assignments between Views (Caron et al., https://arxiv.org/abs/2006.09882). Clusters come from the
    first two views of a part, over the batches of all processes (the original took each process alone, unless there
    were several machines). With ``queue_length``, features of earlier steps join from ``queue_epoch`` on, once there
    are enough. Prototypes rest in the first epoch.
    """

    num_prototypes = 1000
    queue_epoch = 15

    def __init__(self, backbone: nn.Module, *, dim: int, queue_length: int = 0, **options):
        super().__init__(backbone, **options)
        self.swav_prototypes = nn.Linear(dim, self.num_prototypes, bias=False)
        if queue_length:
            self.register_buffer("queue_swav", torch.zeros(2, queue_length, dim))

    @classmethod
    def build_kind(cls, backbone: nn.Module, cfg) -> "SwAV":
        """This method over ``backbone``."""
        contrastive = cfg.CONTRASTIVE
        return cls(
            backbone,
            temperature=contrastive.T,
            sequential=contrastive.SEQUENTIAL,
            dim=contrastive.DIM,
            queue_length=contrastive.SWAV_QEUE_LEN,
        )

    def parts(self, num_views: int) -> list[tuple[int, ...]]:
        """Pairs of neighbours in sequence, else all views at once."""
        return [(view, view + 1) for view in range(num_views - 1)] if self.sequential else [tuple(range(num_views))]

    def features(self, clips: Tensor) -> Tensor:
        """Of length 1."""
        return F.normalize(super().features(clips), dim=1)

    def part_loss(self, step: ContrastiveStep, part: tuple[int, ...]) -> ContrastiveLoss:
        """See ``ContrastiveModel``."""
        with torch.no_grad():
            self.swav_prototypes.weight.copy_(F.normalize(self.swav_prototypes.weight, dim=1))
        features = [wide(self.features(step.views[view])) for view in part]
        if part[0] == 0:
            self.note(step, 0, features[0])
        scores = [self.swav_prototypes(view) for view in features]  # [B, K] each
        losses = []
        for target in (0, 1):
            codes = self.codes(scores[target].detach(), features[target].detach(), target, step.epoch)
            others = [view for number, view in enumerate(scores) if number != target]
            swapped = [soft_loss(wide(view) / self.temperature, codes) for view in others]
            losses.append(torch.stack(swapped).mean())
        return ContrastiveLoss(torch.stack(losses).mean())

    @torch.no_grad()
    def codes(self, scores: Tensor, features: Tensor, target: int, epoch: float) -> Tensor:
        """Assignments [B, K] of this process's clips, balanced over those of all processes and the queue."""
        first = distributed.get_rank() * len(scores)
        mine = slice(first, first + len(scores))
        scores, features = distributed.all_gather_rows(scores), distributed.all_gather_rows(features)
        if hasattr(self, "queue_swav") and epoch >= self.queue_epoch:
            queue = self.queue_swav[target]
            if queue[-1].any():  # full
                scores = torch.cat([scores, self.swav_prototypes(queue).to(scores)])
            queue.copy_(torch.cat([features.to(queue), queue])[: len(queue)])
        return sinkhorn(scores)[mine]

    def drop_gradients(self, epoch: float) -> None:
        """The prototypes rest in the first epoch."""
        if epoch <= 1:
            self.swav_prototypes.weight.grad = None


def soft_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of ``logits`` [B, K] with soft ``targets`` [B, K], averaged over the batch."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()


class InstanceMemory(ContrastiveModel):
    """A clip has to find its own video among others in a memory of features. View 0 alone is used.

    Instance discrimination (Wu et al., https://arxiv.org/abs/1805.01978): ``num_negatives`` videos are drawn anew
    for each clip; the video's feature then moves towards the clip's by ``rate``.
    """

    min_views = 1

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int,
        length: int,
        num_negatives: int,
        rate: float,
        time_axis: bool = False,
        **options,
    ):
        super().__init__(backbone, **options)
        self.memory = MemoryBank(length, dim, time_axis=time_axis)
        self.num_negatives = num_negatives
        self.rate = rate

    @classmethod
    def build_kind(cls, backbone: nn.Module, cfg) -> "InstanceMemory":
        """This method over ``backbone``."""
        contrastive = cfg.CONTRASTIVE
        for key, plain in (("SEQUENTIAL", False), ("INTERP_MEMORY", False)):
            if contrastive[key] != plain:
                raise ValueError(
                    f"CONTRASTIVE.{key}={contrastive[key]} with CONTRASTIVE.TYPE='mem', which uses one view of a "
                    f"video and remembers one feature of it: set it {plain}"
                )
        return cls(
            backbone,
            temperature=contrastive.T,
            dim=contrastive.DIM,
            length=contrastive.LENGTH,
            num_negatives=contrastive.QUEUE_LEN,
            rate=contrastive.MOMENTUM,
            time_axis=contrastive.MEM_TYPE != "1d",
        )

    def part_loss(self, step: ContrastiveStep, part: tuple[int, ...]) -> ContrastiveLoss:
        """See ``ContrastiveModel``."""
        query = self.query(step, *part)
        drawn = torch.randint(len(self.memory), (len(query), self.num_negatives), device=query.device)
        bank = self.memory.features
        wrong = (query @ bank.T).gather(1, drawn)  # [B, N] -> [B, K]; cheaper than B * K features of width D
        logits = instance_logits(query, [bank[step.index]], wrong, self.temperature)
        return ContrastiveLoss(instance_loss(logits), logits.detach())

    def finish(self, step: ContrastiveStep) -> None:
        """The memory takes in what was seen."""
        super().finish(step)
        self.memory.update(step.index, step.features, self.rate)


KINDS: dict[str, type[ContrastiveModel]] = {
    "moco": MoCo,
    "byol": BYOL,
    "simclr": SimCLR,
    "swav": SwAV,
    "mem": InstanceMemory,
}
