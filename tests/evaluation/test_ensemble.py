import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slowfast.evaluation import VideoEnsemble

METER = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/evaluation/metrics.json.gz").read_bytes()))[
    "test_meter"
]


def batch(index, labels):
    return SimpleNamespace(index=torch.as_tensor(index), labels=torch.as_tensor(labels))


@pytest.mark.parametrize("case", METER, ids=lambda case: f"{case['ensemble_method']}-{case['multi_label']}")
def test_ensemble_equals_reference(case):
    views, labels = torch.tensor(case["clip_preds_in_clip_index_order"]), torch.tensor(case["labels"])
    num_views = case["num_clips"]
    ensemble = VideoEnsemble(
        case["num_videos"],
        num_views,
        views.shape[1],
        method=case["ensemble_method"],
        multi_label=case["multi_label"],
    )
    for rows in torch.tensor(case["update_order"]).split(case["batch"]):
        ensemble.update(views[rows], batch(rows, labels[rows // num_views]))
    ensemble.reduce()

    assert ensemble.counts.tolist() == case["clip_count"]
    assert torch.equal(ensemble.labels, labels)
    results = {name: f"{value:.2f}" for name, value in ensemble.compute().items()}
    if case["multi_label"] and case["ensemble_method"] == "sum":  # the reference loses every score in this case
        by_video = views.view(case["num_videos"], num_views, -1).double().sum(1).float()
        assert torch.allclose(ensemble.scores, by_video)
        assert results["map"] != case["stats"]["map"]
        return
    assert torch.allclose(ensemble.scores, torch.tensor(case["video_preds"]), rtol=1e-6)
    assert results.items() <= case["stats"].items()


def fill(ensemble, rows, labels=(0, 1, 1)):
    rows = torch.tensor(rows)
    scores = torch.eye(3)[rows % 3]
    ensemble.update(scores, batch(rows, torch.tensor(labels)[rows // ensemble.num_views]))
    return ensemble


def test_order_of_views_does_not_change_the_scores():
    scores = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    tables = []
    for order in (range(8), reversed(range(8))):
        ensemble = VideoEnsemble(1, 8, 3)
        for row in order:
            ensemble.update(scores[row : row + 1], batch([row], [2]))
        tables.append(ensemble.scores)
    assert torch.equal(*tables)


def test_maximum_of_negative_scores_is_negative():
    ensemble = VideoEnsemble(1, 2, 2, method="max")
    ensemble.update(torch.tensor([[-3.0, -1.0], [-2.0, -4.0]]), batch([0, 1], [1, 1]))
    assert ensemble.scores.tolist() == [[-2.0, -1.0]]


def test_missing_and_repeated_views_are_named():
    ensemble = fill(VideoEnsemble(3, 2, 3), [0, 1, 2, 4, 5, 5])
    with pytest.raises(ValueError, match=r"2 of 3 videos .* 2 views .* 1 \(1\), 2 \(3\)"):
        ensemble.compute()


def test_long_lists_of_rows_are_cut():
    with pytest.raises(ValueError, match=r"20 of 20 .*: 0 \(0\), 1 \(0\), .*, 7 \(0\), and 12 more"):
        VideoEnsemble(20, 1, 2).compute()


def test_views_that_disagree_about_the_label_are_named():
    ensemble = VideoEnsemble(2, 2, 3)
    ensemble.update(torch.zeros(3, 3), batch([0, 1, 2], [1, 1, 0]))
    ensemble.update(torch.zeros(1, 3), batch([3], [2]))
    with pytest.raises(ValueError, match=r"different labels; row in the list: 1$"):
        ensemble.compute()
    ensemble = VideoEnsemble(2, 2, 2, multi_label=True)
    ensemble.update(torch.zeros(4, 2), batch([0, 1, 2, 3], [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"different labels; row in the list: 0$"):
        ensemble.compute()


def test_scores_that_are_not_finite_are_named():
    ensemble = VideoEnsemble(2, 1, 2)
    ensemble.update(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), batch([0, 1], [1, 1]))
    with pytest.raises(ValueError, match=r"not finite .* 1$"):
        ensemble.compute()


def test_skipped_video_is_left_out_even_with_some_views():
    ensemble = fill(VideoEnsemble(3, 2, 3), [0, 1, 2, 4, 5])
    assert ensemble.labels.tolist() == [0, 1, 1]
    ensemble.skip([1])
    assert ensemble.skipped.tolist() == [False, True, False]
    assert ensemble.compute() == {"top1_acc": 100.0, "top5_acc": 100.0}


def test_unseen_video_has_label_minus_one_and_zero_scores():
    for multi_label in (False, True):
        ensemble = VideoEnsemble(1, 2, 3, method="max", multi_label=multi_label)
        ensemble.skip([0])
        assert ensemble.scores.tolist() == [[0.0, 0.0, 0.0]]
        assert ensemble.labels.unique().tolist() == [-1]
        with pytest.raises(ValueError, match="no videos"):
            ensemble.compute()


def test_empty_batch_is_accepted():
    ensemble = VideoEnsemble(2, 1, 3, method="max")
    ensemble.update(torch.zeros(0, 3), batch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)))
    assert ensemble.counts.tolist() == [0, 0]


def test_unknown_method_names_its_key():
    with pytest.raises(ValueError, match=r"DATA.ENSEMBLE_METHOD='mean'.*sum or max"):
        VideoEnsemble(1, 1, 2, method="mean")
