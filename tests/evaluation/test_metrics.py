import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slowfast.evaluation import MeanAP, TopK, confusion_matrix, mean_average_precision, topks_correct

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/evaluation/metrics.json.gz").read_bytes()))


def batch(labels):
    return SimpleNamespace(labels=torch.as_tensor(labels))


def test_top_k_equals_reference():
    case = GOLDEN["topk"]
    scores, labels = torch.tensor(case["preds"]), torch.tensor(case["labels"])
    assert topks_correct(scores, labels, case["ks"]).tolist() == case["topks_correct"]
    metric = TopK(case["ks"])
    metric.update(scores[:10], batch(labels[:10]))
    metric.update(scores[10:], batch(labels[10:]))
    metric.reduce()
    assert list(metric.compute().values()) == pytest.approx(case["errors"], rel=1e-6)


@pytest.mark.parametrize("case", GOLDEN["get_map"], ids=range(len(GOLDEN["get_map"])))
def test_mean_average_precision_equals_reference(case):
    scores, labels = np.array(case["preds"], dtype=np.float32), np.array(case["labels"], dtype=np.float32)
    assert mean_average_precision(scores, labels) == pytest.approx(case["map"], abs=1e-9)
    metric = MeanAP(scores.shape[1])
    for start in range(0, len(scores), 7):
        metric.update(torch.tensor(scores[start : start + 7]), batch(labels[start : start + 7]))
    metric.reduce()
    assert metric.compute() == {"map": pytest.approx(100 * case["map"], abs=1e-7)}


def test_equal_scores_go_to_the_lower_class():
    scores = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert topks_correct(scores, torch.tensor([0, 1, 2]), (1, 2, 3)).tolist() == [1, 2, 3]


def test_k_beyond_the_classes_counts_everything_under_its_own_name():
    metric = TopK((1, 5))
    metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]), batch([1, 1, 0, 0]))
    assert metric.compute() == {"top1_err": 50.0, "top5_err": 0.0}


def test_scores_that_are_not_a_number_are_never_right():
    scores = torch.full((2, 3), torch.nan)
    assert topks_correct(scores, torch.tensor([0, 2]), (1, 5)).tolist() == [0, 0]


def test_nothing_counted_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        TopK().compute()
    with pytest.raises(ValueError, match="no samples"):
        MeanAP(3).compute()


def test_confusion_matrix_has_all_classes_with_truth_in_rows():
    matrix = confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
