import math

import pytest
import torch

from slowfast.evaluation.knn import nearest, vote


def test_the_nearest_rows_come_first():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    similar, rows = nearest(torch.tensor([[0.0, 3.0]]), bank, 2)
    assert rows.tolist() == [[1, 2]]
    assert similar[0].tolist() == pytest.approx([1.0, 0.8])


def test_a_small_bank_gives_all_it_has():
    similar, rows = nearest(torch.randn(2, 4), torch.randn(3, 4))
    assert similar.shape == rows.shape == (2, 3)


def test_votes_weigh_by_similarity():
    similar = torch.tensor([[1.0, 0.5, 0.5], [0.2, 0.1, 0.0]])
    classes = torch.tensor([[2, 0, 0], [1, 1, 1]])
    scores = vote(similar, classes, 3, 0.5)
    expected = [[2 * math.e, 0.0, math.e**2], [0.0, math.exp(0.4) + math.exp(0.2) + 1.0, 0.0]]
    torch.testing.assert_close(scores, torch.tensor(expected))
