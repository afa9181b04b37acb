"""pytest tests/tasks/test_losses.py"""

import math

import pytest
import torch

from slowfast.tasks.losses import get_loss


def test_soft_cross_entropy_is_the_weighted_sum_of_log_probabilities():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.5]])
    expected = (math.log(2.0) + math.log(4 / 3) + 0.5 * math.log(4.0)) / 2
    assert get_loss("soft_cross_entropy")(logits, targets).item() == pytest.approx(expected)


def test_soft_cross_entropy_takes_class_indices():
    logits, labels = torch.randn(4, 7), torch.tensor([1, 0, 6, 3])
    torch.testing.assert_close(
        get_loss("soft_cross_entropy")(logits, labels), get_loss("cross_entropy")(logits, labels)
    )


@pytest.mark.parametrize("name", ["bce", "bce_logit"])
def test_binary_losses_take_multi_hot_labels_of_any_type(name):
    values = torch.full((1, 2), 0.5) if name == "bce" else torch.zeros(1, 2)
    labels = torch.tensor([[1, 0]], dtype=torch.int32)
    assert get_loss(name)(values, labels).item() == pytest.approx(math.log(2.0))


def test_an_unknown_loss_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"MODEL.LOSS_FUNC='focal' is unknown; known: bce, bce_logit, cross_entropy"):
        get_loss("focal")
