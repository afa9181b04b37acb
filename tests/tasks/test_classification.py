"""pytest tests/tasks/test_classification.py"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from slowfast.config import load_cfg
from slowfast.evaluation.ensemble import VideoEnsemble
from slowfast.evaluation.metrics import MeanAP, TopK
from slowfast.tasks import Classification, build_task
from slowfast.tasks.losses import get_loss


class Fixed(nn.Module):
    """A network that answers every batch with the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, clips):
        return self.logits


def make_batch(labels):
    return SimpleNamespace(clips=None, labels=torch.tensor(labels), index=torch.arange(len(labels)))


def test_errors_are_percentages_of_the_batch_and_k_is_capped():
    task = Classification(get_loss("cross_entropy"), num_classes=3)
    model = Fixed([[9.0, 0.0, 1.0], [0.0, 9.0, 1.0], [0.0, 9.0, 1.0], [9.0, 0.0, 1.0]])
    result = task.loss(model, make_batch([0, 1, 2, 2]), epoch=0.0)
    assert {name: value.item() for name, value in result.errors.items()} == {"top1_err": 50.0, "top5_err": 0.0}
    result.total.backward()
    assert model.logits.grad is not None


def test_a_crop_that_leaves_several_positions_is_refused_in_training():
    task = Classification(get_loss("cross_entropy"), num_classes=2)
    with pytest.raises(ValueError, match=r"4 outputs for MODEL.NUM_CLASSES=2.*DATA.TRAIN_CROP_SIZE"):
        task.loss(Fixed([[0.0, 1.0, 0.0, 1.0]]), make_batch([0]), epoch=0.0)


def test_multi_label_has_a_loss_and_no_errors():
    task = Classification(get_loss("bce_logit"), num_classes=2, multi_label=True)
    result = task.loss(Fixed([[0.0, 0.0]]), make_batch([[1, 0]]), epoch=0.0)
    assert result.errors == {}
    assert result.total.item() == pytest.approx(0.693147, abs=1e-6)


def test_metrics_fit_split_and_labels():
    dataset = type("Rows", (), {"num_views": 6, "__len__": lambda self: 12})()
    single = Classification(get_loss("cross_entropy"), num_classes=3, ensemble="max")
    several = Classification(get_loss("bce_logit"), num_classes=3, multi_label=True)
    assert isinstance(single.metric("val", dataset), TopK)
    assert isinstance(several.metric("val", dataset), MeanAP)
    test = single.metric("test", dataset)
    assert isinstance(test, VideoEnsemble)
    assert test.scores.shape == (2, 3)
    assert test.method == "max"


def test_build_task_reads_the_configuration():
    task = build_task(load_cfg(None, ["MODEL.LOSS_FUNC", "bce_logit", "DATA.MULTI_LABEL", True]))
    assert isinstance(task, Classification)
    assert task.multi_label


@pytest.mark.parametrize("key", ["DETECTION.ENABLE", "MASK.ENABLE"])
def test_what_is_not_built_is_refused_by_its_key(key):
    with pytest.raises(ValueError, match=key):
        build_task(load_cfg(None, [key, True]))


def test_of_imagenet_22k_validation_judges_the_first_1000_classes():
    options = ["TRAIN.DATASET", "imagenet", "DATA.IN22k_VAL_IN1K", "in1k", "MODEL.NUM_CLASSES", 1100]
    task = build_task(load_cfg(None, options))
    scores = torch.zeros(2, 1100)
    scores[:, 1050] = 2.0  # best, and not of ImageNet-1k
    scores[0, 7], scores[1, 8], scores[1, 9] = 1.0, 1.0, 0.5
    metric = task.metric("val", None)
    metric.update(scores, make_batch([7, 9]))
    assert metric.compute() == {"top1_err": 50.0, "top5_err": 0.0}
    with pytest.raises(ValueError, match="label 1050 is not among the first 1000 classes"):
        metric.update(scores, make_batch([7, 1050]))
    test = task.metric("test", type("Rows", (), {"num_views": 1, "__len__": lambda self: 2})())
    test.update(scores, make_batch([7, 9]))
    assert test.compute()["top1_acc"] == 0  # a test looks at all
    with pytest.raises(ValueError, match=r"DATA.IN22k_VAL_IN1K .*MODEL.NUM_CLASSES=400"):
        build_task(load_cfg(None, [*options, "MODEL.NUM_CLASSES", 400]))
