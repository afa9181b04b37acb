"""The visualisation job on tiny real videos: what is asked for is in the folder, on the page and on the board."""

import json
import pickle

import pytest
import torch
from fill import fill_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slowfast import engine
from slowfast.engine.visualize import clips_of, refuse_other_tasks, visualize
from slowfast.models import build_model

PLAIN = ("TENSORBOARD.MODEL_VIS.GRAD_CAM.ENABLE", False)
VIS = ("TENSORBOARD.ENABLE", True, "TENSORBOARD.MODEL_VIS.ENABLE", True)


@pytest.fixture
def seen(tiny, tmp_path):
    """A function: overrides -> the files of the job's folder and the tags of its board, of a filled network."""

    def run(*overrides):
        cfg = tiny(*VIS, *overrides)
        state = fill_model(build_model(cfg)).state_dict()
        torch.save({"model_state": state}, tmp_path / "weights.pyth")
        cfg = tiny(*VIS, "TEST.CHECKPOINT_FILE_PATH", str(tmp_path / "weights.pyth"), *overrides)
        page = visualize(cfg)
        board = EventAccumulator(str(tmp_path / "out" / "runs-kinetics"), size_guidance={"images": 0})
        board.Reload()
        files = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*.*")}
        return files, set(board.Tags()["images"])

    return run


def test_weights_activations_clips_and_maps(seen):
    files, tags = seen(
        *("TENSORBOARD.MODEL_VIS.MODEL_WEIGHTS", True, "TENSORBOARD.MODEL_VIS.ACTIVATIONS", True),
        *("TENSORBOARD.MODEL_VIS.INPUT_VIDEO", True, "TENSORBOARD.MODEL_VIS.MAX_CLIPS", 2),
        *("TENSORBOARD.MODEL_VIS.LAYER_LIST", ["s1/pathway0_stem/conv", "s5/pathway0_res1 0,1;0"]),
    )
    inputs = {f"Input {n}/{what}" for n in (0, 1) for what in ("Pathway 1", "Pathway 1, Grad-CAM")}
    layers = ("s1/pathway0_stem/conv", "s5/pathway0_res1")
    activations = {f"Input {n}/Activations: {layer}" for n in (0, 1) for layer in layers}
    assert tags == inputs | activations | {"Layer Weights/s1/pathway0_stem/conv"}
    assert {"clips/input_0.png", "clips/input_1.png", "clips/input_1-clip.gif", "index.html"} <= files
    assert "weights/s1.pathway0_stem.conv_8_3_1_7_7.png" in files
    assert "activations/input_0-s5.pathway0_res1_256_4_1_1.png" in files


def test_mistakes_are_those_of_the_network(seen, tiny, tmp_path):
    files, tags = seen("TENSORBOARD.MODEL_VIS.ENABLE", False, "TENSORBOARD.WRONG_PRED_VIS.ENABLE", True, *PLAIN)
    one = ("TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1, "TEST.CHECKPOINT_FILE_PATH")
    engine.test(tiny(*one, str(tmp_path / "weights.pyth")))
    lines = [json.loads(line) for line in (tmp_path / "out/test_1x1.jsonl").read_text().splitlines()]
    names = ["dark", "bright", "striped"]
    wrong = sorted(names[line["label"]] for line in lines if line["top"][0][0] != line["label"])
    assert 0 < len(wrong) < len(lines)
    assert sorted(tag.rpartition(": ")[2] for tag in tags) == wrong
    assert all(tag.startswith("Incorrectly classified videos./Video ") and ", Pathway 0: " in tag for tag in tags)
    assert len([file for file in files if file.endswith(".png")]) == len(wrong)
    assert len([file for file in files if file.endswith(".gif")]) == len(wrong)


@pytest.mark.slow
def test_a_subset_of_the_mistakes(seen, tmp_path):
    _, tags = seen("TENSORBOARD.MODEL_VIS.ENABLE", False, "TENSORBOARD.WRONG_PRED_VIS.ENABLE", True)
    chosen = next(iter(tags)).rpartition(": ")[2]
    (tmp_path / "subset.txt").write_text(f"{chosen}\n")
    expected = {tag.rpartition(": ")[2] for tag in tags} - {chosen}
    for file in (tmp_path / "out" / "runs-kinetics").iterdir():
        file.unlink()
    subset = ("TENSORBOARD.WRONG_PRED_VIS.SUBSET_PATH", str(tmp_path / "subset.txt"))
    limit = ("TENSORBOARD.WRONG_PRED_VIS.MAX_CLIPS", 1)
    _, tags = seen("TENSORBOARD.MODEL_VIS.ENABLE", False, "TENSORBOARD.WRONG_PRED_VIS.ENABLE", True, *subset, *limit)
    assert {tag.rpartition(": ")[2] for tag in tags} == {chosen}
    assert not expected & {tag.rpartition(": ")[2] for tag in tags}
    assert len(tags) == 1


def test_class_plots_of_a_result_file(seen, tmp_path):
    (tmp_path / "results.pkl").write_bytes(pickle.dumps([torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2])]))
    (tmp_path / "parents.json").write_text(json.dumps({"light": ["bright", "striped"]}))
    files, tags = seen(
        *("TENSORBOARD.PREDICTIONS_PATH", str(tmp_path / "results.pkl")),
        *("TENSORBOARD.CONFUSION_MATRIX.ENABLE", True, "TENSORBOARD.CATEGORIES_PATH", str(tmp_path / "parents.json")),
        *("TENSORBOARD.HISTOGRAM.ENABLE", True, "TENSORBOARD.HISTOGRAM.TOPK", 2),
        *("TENSORBOARD.MODEL_VIS.GRAD_CAM.ENABLE", False),
    )
    histograms = {f"Top 2 predictions by classes/{name}" for name in ("dark", "bright", "striped")}
    parent = "Confusion Matrices Grouped by Parent Classes/light"
    assert tags == {"Confusion Matrix", parent} | histograms
    assert "classes/confusion_matrix.png" in files
    assert not any(file.startswith("clips/") for file in files)  # nothing but class plots was asked for
    (tmp_path / "results.pkl").write_bytes(pickle.dumps([torch.eye(4), torch.arange(4)]))
    with pytest.raises(ValueError, match="has 4 classes, the network 3"):
        seen("TENSORBOARD.PREDICTIONS_PATH", str(tmp_path / "results.pkl"), "TENSORBOARD.HISTOGRAM.ENABLE", True)


def test_wrong_layers_are_said_before_anything_is_drawn(seen, tmp_path):
    with pytest.raises(ValueError, match="no layer s9"):
        seen("TENSORBOARD.MODEL_VIS.LAYER_LIST", ["s9/conv"])
    assert not (tmp_path / "out" / "visualization").exists()
    with pytest.raises(ValueError, match="the task is Masked"):
        refuse_other_tasks("Masked")


class Numbers:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, request):
        from slowfast.datasets.batch import Sample

        return Sample(torch.zeros(3, 1, 2, 2), 0, request.index)


@pytest.mark.parametrize(("count", "rows"), [(3, [0, 4, 9]), (20, list(range(10)))])
def test_clips_are_spread_over_the_list(count, rows):
    assert [int(batch.index[0]) for batch in clips_of(Numbers(10), count, torch.device("cpu"))] == rows


def test_all_clips_come_once_and_from_everywhere():
    rows = [int(batch.index[0]) for batch in clips_of(Numbers(100), 0, torch.device("cpu"))]
    assert sorted(rows) == list(range(100))
    assert min(rows[:10]) < 30
    assert max(rows[:10]) > 70
