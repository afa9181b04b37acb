"""Every YAML file trains: load, build, one forward pass, one step at a small input. Slow: some minutes in all.

Files that mean the same network, task and optimizer at the small input are computed once, whatever their schedules.
"""

import json
from pathlib import Path

import pytest
import torch
from small import batch_for, small

from slowfast.config import load_cfg
from slowfast.config.defaults import flatten
from slowfast.models import build_model
from slowfast.solver import build_optimizer, lr_at, set_lr
from slowfast.tasks import build_task
from slowfast.tasks.base import task_name

ROOT = Path(__file__).parents[2]
YAMLS = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("configs", "demo") for path in (ROOT / folder).rglob("*.yaml")
)
YAMLS = [name for name in YAMLS if "/_base/" not in name]
SCHEDULE = ("BASE_LR", "LRS", "STEPS", "MAX_EPOCH", "WARMUP", "COSINE", "LR_POLICY")
NOT_DECIDING = ("MODEL.SINGLE_PATHWAY_ARCH", *(f"SOLVER.{name}" for name in SCHEDULE))
SEEN: dict[str, str] = {}  # what decides a step -> the first file of it
LARGE = 150_000_000  # weights; above (ten files: ViT-L and -H, MViTv2-L), one is stepped after another to save memory
DECIDES = [
    "BN",
    "DETECTION",
    "RESNET",
    "X3D",
    "MVIT",
    "SLOWFAST",
    "NONLOCAL",
    "MODEL",
    "SOLVER",
    "CONTRASTIVE",
    "MASK",
    "MIXUP",
    "TASK",
    "DATA.NUM_FRAMES",
    "DATA.INPUT_CHANNEL_NUM",
    "DATA.TRAIN_CROP_SIZE",
    "DATA.TRAIN_CROP_NUM_TEMPORAL",
    "AUG.GEN_MASK_LOADER",
    "AUG.MASK",
]


def step_one_by_one(optimizer):
    """As ``optimizer.step()``, without keeping what it remembers of each weight for a next step."""
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in params]
    for p in params:
        p.grad = None
    for p in reversed(params):
        p.grad = grads.pop()
        optimizer.step()
        p.grad = None
        optimizer.state.clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", YAMLS)
def test_it_builds_and_trains(name, tmp_path):
    opts = small(name)
    cfg = load_cfg(ROOT / name, opts)
    task_kind = task_name(cfg)
    if task_kind == "Detection":
        truth = tmp_path / "truth.csv"
        truth.write_text("v,0902,0.1,0.1,0.5,0.9,3,1\n")
        cfg = load_cfg(ROOT / name, [*opts, "AVA.GROUNDTRUTH_FILE", str(truth)])
    flat = flatten(cfg)
    keys = [key for key in flat if key.startswith(tuple(DECIDES)) and not key.startswith(NOT_DECIDING)]
    first = SEEN.setdefault(json.dumps({key: str(flat[key]) for key in keys}), name)
    assert all(lr_at(cfg, epoch) >= 0 for epoch in (0.0, cfg.SOLVER.MAX_EPOCH / 2, cfg.SOLVER.MAX_EPOCH))
    if first != name:
        return  # computed as `first`
    torch.manual_seed(0)
    model, task = build_model(cfg).train(), build_task(cfg)
    optimizer = build_optimizer(model, cfg)
    set_lr(optimizer, max(lr_at(cfg, 0.5), 1e-6))
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: float(p.detach().double().norm()) for n, p in learning.items()}
    batch = batch_for(cfg, task_kind)
    steps = 0
    for part in task.split(model, batch):
        result = task.loss(model, part, 0.5)
        assert torch.isfinite(result.total), name
        result.total.backward()
        steps += 1
    assert steps
    if sum(p.numel() for p in learning.values()) > LARGE:
        step_one_by_one(optimizer)
    else:
        optimizer.step()
    # A frozen backbone trains its last layer alone; a last norm that begins at 0 hides its block from the gradient.
    moved = [n for n, p in learning.items() if float(p.detach().double().norm()) != before[n]]
    assert len(moved) >= 2, f"{len(moved)} of {len(before)} weights moved"
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if task_kind == "Masked":
        assert len(moved) > 0.9 * len(before)
        with torch.no_grad():
            assert torch.isfinite(task.predict(model.eval(), batch)).all()
    if task_kind in ("Classification", "Detection"):
        with torch.no_grad():
            scores = task.predict(model.eval(), batch)
        assert scores.shape == (3 if task_kind == "Detection" else 2, 7)
        assert torch.isfinite(scores).all()
