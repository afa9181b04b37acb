"""Every published recipe of contrastive learning, and every one that uses its weights, makes a training step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slowfast.config import load_cfg
from slowfast.models import build_model
from slowfast.solver import build_optimizer, set_lr
from slowfast.tasks import build_task

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "contrastive_ssl"
SHRUNK = [
    *("NUM_GPUS", 0, "DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32),
    *("RESNET.WIDTH_PER_GROUP", 8, "CONTRASTIVE.LENGTH", 6, "CONTRASTIVE.QUEUE_LEN", 8, "CONTRASTIVE.MLP_DIM", 16),
    *("TRAIN.BATCH_SIZE", 4, "TEST.BATCH_SIZE", 4),
]
PRETRAINING = {path.stem: path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(("finetune", "linear"))}
DOWNSTREAM = {path.stem: path for path in CONFIGS.glob("*.yaml") if path.stem.startswith(("finetune", "linear"))}


def test_all_are_there():
    assert (len(PRETRAINING), len(DOWNSTREAM)) == (4, 8)


def one_step(cfg, model, batch):
    """Which weights a step in the third epoch changes."""
    task, optimizer = build_task(cfg), build_optimizer(model, cfg)
    before = {name: value.clone() for name, value in model.named_parameters()}
    set_lr(optimizer, 0.1)
    optimizer.zero_grad()
    for part in task.split(model.train(), batch):
        task.loss(model, part, 2.0).total.backward()
    assert task.after_backward(model, 2.0, 0)
    optimizer.step()
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_recipe_trains(name):
    cfg = load_cfg(PRETRAINING[name], SHRUNK)
    model = build_model(cfg)
    views = [torch.randn(4, 3, 8, 32, 32) for _ in range(cfg.DATA.TRAIN_CROP_NUM_TEMPORAL)]
    changed = one_step(cfg, model, SimpleNamespace(clips=views, index=torch.tensor([5, 0, 1, 3])))
    learning = {name for name, param in model.named_parameters() if param.requires_grad}
    assert {name for name in learning if name.endswith("conv.weight")} <= changed
    assert len(changed & learning) > 0.6 * len(learning)
    torch.testing.assert_close(model.knn_mem.features[[5, 0, 1, 3]].norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", [name for name in DOWNSTREAM if "ava" not in name])
def test_a_recipe_for_pretrained_weights_trains(name):
    cfg = load_cfg(DOWNSTREAM[name], SHRUNK)
    labels = torch.tensor([0, 3, 1, 2])
    changed = one_step(cfg, build_model(cfg), SimpleNamespace(clips=torch.randn(4, 3, 8, 32, 32), labels=labels))
    head = {"head.projection.weight", "head.projection.bias"}
    assert changed == head if name.startswith("linear") else changed > head
