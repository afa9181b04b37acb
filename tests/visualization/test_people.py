"""Who is in a picture: files of detectors, thresholds, and the same number for the same person."""

import numpy as np
import pytest
import torch
from torchvision.models import detection

from slowfast.visualization.people import PersonDetector, PersonLinks, load_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained weights by which every proposal is a person with a score of about 0.73."""
    torch.manual_seed(0)
    network = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=3)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.zero_()
        network.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 1.7, -1.0]))
    path = tmp_path_factory.mktemp("detector") / "mobile.pth"
    torch.save(network.state_dict(), path)
    return path


def test_boxes_are_fractions_of_the_picture_and_above_the_threshold(weights):
    picture = np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)
    sure = float(torch.tensor([0.0, 1.7, -1.0]).softmax(0)[1])
    detector = PersonDetector.from_file(weights, least_score=0.5)
    detector.network.transform.min_size = (160,)  # for the test's time: it would be 800
    ((boxes, scores),) = detector([picture])
    assert len(boxes) > 0
    assert scores.tolist() == pytest.approx([sure] * len(boxes))
    assert boxes.dtype == torch.float64
    assert 0 <= float(boxes.min()) <= float(boxes.max()) <= 1
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    network = load_detector(weights).eval()
    network.roi_heads.score_thresh, network.transform.min_size = 0.5, (160,)
    with torch.no_grad():
        (output,) = network([torch.from_numpy(picture).permute(2, 0, 1) / 255])
    people = output["boxes"][output["labels"] == 1] / torch.tensor([200, 120, 200, 120])
    torch.testing.assert_close(boxes.float(), people)
    detector = PersonDetector(detector.network, least_score=0.9)
    ((none, _),) = detector([picture])
    assert none.shape == (0, 4)


@pytest.mark.parametrize("build", [detection.fasterrcnn_resnet50_fpn, detection.fasterrcnn_resnet50_fpn_v2])
def test_kinds_of_detectors_are_told_apart(build, tmp_path):
    torch.save(build(weights=None, weights_backbone=None).state_dict(), tmp_path / "a.pth")
    network = load_detector(tmp_path / "a.pth")
    assert set(network.state_dict()) == set(build(weights=None, weights_backbone=None).state_dict())


def test_published_names_of_old_are_read_with_their_epsilon(tmp_path):
    """The file that torchvision publishes calls some layers otherwise, and its batch norms divide by no epsilon."""
    state = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    old = {}
    for name, value in state.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "fpn.inner_blocks" in name or "fpn.layer_blocks" in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        old[name] = value
    assert "backbone.fpn.inner_blocks.0.weight" in old
    torch.save(old, tmp_path / "old.pth")
    network = load_detector(tmp_path / "old.pth")
    torch.testing.assert_close(network.rpn.head.conv[0][0].weight, state["rpn.head.conv.0.0.weight"])
    assert network.backbone.body.bn1.eps == 0


def test_other_files_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="none of torchvision's fasterrcnn_mobilenet"):
        load_detector(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_detector(tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"DEMO\.DETECTRON2_THRESH"):
        PersonDetector(torch.nn.Identity(), least_score=2)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def test_people_keep_their_number_where_boxes_overlap():
    links = PersonLinks()
    left, right = (0.1, 0.1, 0.3, 0.5), (0.6, 0.1, 0.8, 0.5)
    assert links(boxes(left, right)) == [1, 2]
    moved = (0.62, 0.12, 0.82, 0.52)
    assert links(boxes(moved, left)) == [2, 1]  # whatever their order
    assert links(boxes((0.3, 0.6, 0.5, 0.9), moved)) == [3, 2]  # 1 has gone, somebody else has come
    assert links(boxes(left)) == [1]  # remembered
    assert links(boxes()) == []


def test_the_largest_overlap_wins_and_the_long_gone_are_forgotten():
    links = PersonLinks(memory=2)
    assert links(boxes((0, 0, 0.5, 0.5))) == [1]
    assert links(boxes((0.1, 0, 0.6, 0.5), (0.02, 0, 0.52, 0.5))) == [2, 1]
    for _ in range(2):
        links(boxes())
    assert links(boxes((0, 0, 0.5, 0.5))) == [3]
