#!/usr/bin/env python3
"""Parity certificates: our networks against other people's implementations, same weights, same clip, in float64.

Outputs, the gradient of every weight and of the clip are compared with pytorchvideo's and torchvision's networks of
the same kind, at a small clip (X3D at its published frames, XS and S at their crops too). `--write` puts the table
into MODEL_ZOO.md.
"""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from slowfast.checkpoint.convert import fit_state
from slowfast.checkpoint.hub_names import recognise
from slowfast.config import load_cfg
from slowfast.models import build_model

ROOT = Path(__file__).resolve().parents[1]
CROP, CLASSES = 64, 7


@dataclass(frozen=True)
class Witness:
    """Our network of a configuration, and how the other package builds the same."""

    name: str
    config: str
    package: str
    build: Callable[[], nn.Module]
    frames: int
    opts: tuple = ()
    crop: int = CROP
    train: bool = True
    remark: str = ""

    @property
    def row(self) -> str:
        """The first cells of its row, which no other has."""
        mode = "training" if self.train else "evaluation"
        return f"| {self.name} | {self.config} | {self.package} | {self.frames}x{self.crop} | {mode} |"


@dataclass(frozen=True)
class Certificate:
    """What a comparison found: largest differences relative to the largest value of each tensor."""

    witness: Witness
    parameters: int
    tensors: int
    output: float
    gradient: float
    worst: str

    @property
    def equal(self) -> bool:
        """Whether outputs and gradients agree to rounding in float64."""
        return self.output < 1e-9 and self.gradient < 1e-7


# ---------------------------------------------------------------- the other implementations


def _slowfast() -> nn.Module:
    from pytorchvideo.models.slowfast import create_slowfast

    return create_slowfast(
        slowfast_channel_reduction_ratio=(8,),
        slowfast_conv_channel_fusion_ratio=2,
        model_num_class=CLASSES,
        dropout_rate=0.0,
        head_pool_kernel_sizes=((2, 2, 2), (8, 2, 2)),
        slowfast_fusion_conv_kernel_size=(7, 1, 1),
    )


def _resnet(**options) -> nn.Module:
    from pytorchvideo.models.resnet import create_resnet

    return create_resnet(model_num_class=CLASSES, dropout_rate=0.0, **options)


def _slow() -> nn.Module:
    kernels = ((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1))
    return _resnet(stem_conv_kernel_size=(1, 7, 7), stage_conv_a_kernel_size=kernels, head_pool_kernel_size=(4, 2, 2))


def _i3d() -> nn.Module:
    kernels = ((3, 1, 1), [(3, 1, 1), (1, 1, 1)], [(3, 1, 1), (1, 1, 1)], [(1, 1, 1), (3, 1, 1)])
    return _resnet(
        stem_conv_kernel_size=(5, 7, 7),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=kernels,
        head_pool_kernel_size=(2, 2, 2),
    )


def _c2d() -> nn.Module:
    return _resnet(
        stem_conv_kernel_size=(1, 7, 7),
        stage1_pool=nn.MaxPool3d,
        stage_conv_a_kernel_size=((1, 1, 1),) * 4,
        head_pool_kernel_size=(2, 2, 2),
    )


def _x3d(frames: int, crop: int, depth: float, train: bool) -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d

    network = create_x3d(
        input_clip_length=frames,
        input_crop_size=crop,
        model_num_class=CLASSES,
        depth_factor=depth,
        dropout_rate=0.0,
        head_activation=None if train else nn.Softmax,
    )
    if train:
        block = network.blocks[1].res_blocks[0]
        block.branch1_norm = nn.BatchNorm3d(block.branch1_conv.out_channels)
    return network


_MVIT_GROWTH = [[1, 2.0], [3, 2.0], [14, 2.0]]
_MVIT_STRIDES = [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]]


def _mvit() -> nn.Module:
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    network = create_multiscale_vision_transformers(
        spatial_size=CROP,
        temporal_size=8,
        depth=16,
        embed_dim_mul=_MVIT_GROWTH,
        atten_head_mul=_MVIT_GROWTH,
        pool_q_stride_size=_MVIT_STRIDES,
        pool_kv_stride_adaptive=[1, 8, 8],
        pool_kvq_kernel=[3, 3, 3],
        conv_patch_embed_padding=(1, 3, 3),
        droppath_rate_block=0.0,
        head_dropout_rate=0.0,
        head_num_classes=CLASSES,
    )
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    return network


def _torchvision_mvit(builder: str) -> nn.Module:
    from torchvision.models.video import mvit

    made = mvit.MViT

    class Small(made):
        """Any of torchvision's networks at our clip size."""

        def __init__(self, **options):
            super().__init__(**{**options, "spatial_size": (CROP, CROP), "temporal_size": 8})

    mvit.MViT = Small
    try:
        return getattr(mvit, builder)(stochastic_depth_prob=0.0, dropout=0.0, num_classes=CLASSES)
    finally:
        mvit.MViT = made


_NO_DROP = ("MVIT.DROPPATH_RATE", 0.0, "MODEL.DROPOUT_RATE", 0.0)
_SHORTCUT = {
    False: "in evaluation mode, the norm of the shortcut that keeps its channels, which pytorchvideo lacks, made to do "
    "nothing",
    True: "in training mode, this norm added to pytorchvideo's network, and the softmax of its head taken off",
}
WITNESSES = (
    Witness("SlowFast R50", "Kinetics/SLOWFAST_8x8_R50", "pytorchvideo", _slowfast, 8, ("SLOWFAST.ALPHA", 4)),
    Witness("Slow R50", "Kinetics/SLOW_8x8_R50", "pytorchvideo", _slow, 4),
    Witness("I3D R50", "Kinetics/I3D_8x8_R50", "pytorchvideo", _i3d, 4),
    Witness("C2D R50", "Kinetics/C2D_8x8_R50", "pytorchvideo", _c2d, 4),
    *(
        Witness(
            f"X3D-{size}",
            f"Kinetics/X3D_{size}",
            "pytorchvideo",
            partial(_x3d, frames, crop, depth, train),
            frames,
            crop=crop,
            train=train,
            remark=_SHORTCUT[train],
        )
        for size, frames, crop, depth, train in (
            ("XS", 4, 160, 2.2, False),
            ("XS", 4, 160, 2.2, True),
            ("S", 13, 160, 2.2, False),
            ("M", 16, 96, 2.2, False),  # published at 224, which takes minutes
            ("L", 16, CROP, 5.0, False),  # published at 312
            ("L", 16, CROP, 5.0, True),
        )
    ),
    Witness(
        "MViT v1 B",
        "Kinetics/MVIT_B_16x4_CONV",
        "pytorchvideo",
        _mvit,
        8,
        (*_NO_DROP, "MVIT.SEPARATE_QKV", True),
        remark="epsilon of the norms after pooling set to 1e-6 there, as in the original",
    ),
    Witness(
        "MViT v1 B", "Kinetics/MVIT_B_16x4_CONV", "torchvision", lambda: _torchvision_mvit("mvit_v1_b"), 8, _NO_DROP
    ),
    Witness("MViT v2 S", "Kinetics/MVITv2_S_16x4", "torchvision", lambda: _torchvision_mvit("mvit_v2_s"), 8, _NO_DROP),
)


# ---------------------------------------------------------------- comparing


def fill(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics from ``seed`` that keep activations of ordinary size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                tensor.copy_(1.0 + 0.5 * noise.tanh())
            elif tensor.ndim > 1:
                tensor.copy_(noise * (0.5 / max(tensor[0].numel(), 1)) ** 0.5)
            else:
                tensor.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
    return network


def certify(witness: Witness) -> Certificate:
    """Give our network the witness's weights and compare output and every gradient of the two, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = fill(witness.build().double())
    shape = (
        "DATA.NUM_FRAMES",
        witness.frames,
        "DATA.TRAIN_CROP_SIZE",
        witness.crop,
        "DATA.TEST_CROP_SIZE",
        witness.crop,
    )
    opts = (*shape, "MODEL.NUM_CLASSES", CLASSES, "MODEL.DROPOUT_RATE", 0.0, *witness.opts)
    ours = build_model(load_cfg(ROOT / "configs" / f"{witness.config}.yaml", list(opts))).double()
    state, target = theirs.state_dict(), ours.state_dict()
    ours.load_state_dict(fit_state(state, target))
    names = recognise(state).rename(state)
    for network in (ours, theirs):
        network.train(witness.train)
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(2, 3, witness.frames, witness.crop, witness.crop, generator=generator, dtype=torch.float64)
    slope = torch.randn(2, CLASSES, generator=generator, dtype=torch.float64)
    mine = _run(ours, clip, slope)
    other = _run(theirs, clip, slope, pathways=witness.frames // 4 if "SlowFast" in witness.name else 0)
    parameters = dict(ours.named_parameters())
    pairs = {names[name]: (parameters[names[name]].grad, p.grad) for name, p in theirs.named_parameters()}
    # A gradient that is zero but for rounding (a bias before a softmax) is measured by the others' size.
    floor = 1e-6 * max(float(theirs.abs().max()) for _, theirs in pairs.values())
    gradients = {name: difference(*pair, floor) for name, pair in pairs.items()}
    gradients["clip"] = difference(mine[1], other[1])
    worst = max(gradients, key=gradients.get)
    return Certificate(
        witness,
        parameters=sum(parameter.numel() for parameter in theirs.parameters()),
        tensors=len(gradients) - 1,
        output=difference(mine[0], other[0]),
        gradient=gradients[worst],
        worst=worst,
    )


def _run(network: nn.Module, clip: Tensor, slope: Tensor, pathways: int = 0) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the clip; ``pathways`` > 0 is the number of frames of the slow pathway, cut here."""
    clip = clip.clone().requires_grad_()
    if pathways:
        index = torch.linspace(0, clip.shape[2] - 1, pathways).long()
        output = network([clip[:, :, index], clip])
    else:
        output = network(clip)
    (output * slope).sum().backward()
    return output.detach(), clip.grad


def difference(one: Tensor, two: Tensor, floor: float = 0.0) -> float:
    """Largest absolute difference over the largest absolute value of ``two``, which counts as ``floor`` at least."""
    return float((one.reshape(two.shape) - two).abs().max()) / max(float(two.abs().max()), floor)


def table(certificates: Sequence[Certificate]) -> str:
    """The certificates as a Markdown table."""
    rows = [
        "| network | configuration | against | clip | mode | tensors | parameters (M) | output | gradients | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for item in certificates:
        rows.append(
            f"{item.witness.row} {item.tensors} | {item.parameters / 1e6:.2f} "
            f"| {item.output:.1e} | {item.gradient:.1e} | {'equal' if item.equal else f'DIFFERS at {item.worst}'} |"
        )
    remarks = {item.witness.remark: [] for item in certificates if item.witness.remark}
    for item in certificates:
        if item.witness.remark:
            remarks[item.witness.remark].append(item.witness.name)
    return "\n".join([*rows, "", *(f"{', '.join(names)}: {remark}." for remark, names in remarks.items())]).rstrip()


MARKS = ("<!-- parity: written by `python tools/parity.py --write` -->", "<!-- /parity -->")


def with_table(page: str, text: str) -> str:
    """``page`` with ``text`` between the two marks; ``ValueError`` where it has none."""
    pattern = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no place for the certificates: {MARKS[0]} ... {MARKS[1]}")
    return pattern.sub(lambda _: f"{MARKS[0]}\n\n{text}\n\n{MARKS[1]}", page)


def main(args: Sequence[str] | None = None) -> int:
    """Compare, print, and write where asked; 1 if any network differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of network names, say X3D; all without")
    parser.add_argument("--write", action="store_true", help="put the table into MODEL_ZOO.md")
    given = parser.parse_args(args)
    chosen = [w for w in WITNESSES if not given.names or any(n.lower() in w.name.lower() for n in given.names)]
    if not chosen:
        parser.error(f"no network is called {' or '.join(given.names)}: {', '.join({w.name for w in WITNESSES})}")
    if given.write and len(chosen) < len(WITNESSES):
        parser.error("--write takes all networks: leave the names out")
    certificates = [certify(witness) for witness in tqdm(chosen, desc="certificates", disable=None)]
    print(table(certificates))
    if given.write:
        path = ROOT / "MODEL_ZOO.md"
        path.write_text(with_table(path.read_text(), table(certificates)))
        print(f"\nwritten to {path.name}")
    return 0 if all(item.equal for item in certificates) else 1


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if __name__ == "__main__":
    sys.exit(main())
