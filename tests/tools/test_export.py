"""The command that exports: what it writes, that predictions need no configuration, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from fill import fill_model
from scripts import load_script

from slowfast.config import load_cfg
from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.models import build_model

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("move_left", "zoom_in", "bounce")


def load_tool(name):
    return load_script(ROOT / "tools" / f"{name}.py")


@pytest.fixture(scope="module")
def export():
    return load_tool("export")


@pytest.fixture(scope="module")
def predict():
    return load_tool("predict")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A configuration, weights and class names in a folder, and three videos."""
    folder = tmp_path_factory.mktemp("export_tool")
    sizes = {"train_per_class": 0, "val_per_class": 0, "test_per_class": 1}
    write_dataset(folder / "data", MotionSpec(classes=CLASSES, **sizes))
    (folder / "small.yaml").write_text(
        f"_BASE_: {ROOT}/configs/Motion/2D_R18.yaml\n"
        f"DATA: {{NUM_FRAMES: 4, PATH_TO_DATA_DIR: {folder}/data, PATH_PREFIX: {folder}/data}}\n"
        "MODEL: {NUM_CLASSES: 3, ARCH: slow}\nRESNET: {WIDTH_PER_GROUP: 8}\n"
        "TEST: {NUM_ENSEMBLE_VIEWS: 2, NUM_SPATIAL_CROPS: 3}\n"
    )
    network = fill_model(build_model(load_cfg(folder / "small.yaml")))
    network.head.projection.weight.data *= 3  # filled weights alone score all videos nearly alike
    torch.save({"model_state": network.state_dict()}, folder / "small.pyth")
    return folder


@pytest.fixture(scope="module")
def named(job):
    """The options that name the network."""
    return ["--cfg", str(job / "small.yaml"), "--checkpoint", str(job / "small.pyth")]


@pytest.fixture(scope="module")
def file(export, named, job):
    """The exported network."""
    assert export.main([*named, "--out", str(job / "out" / "net.pt2"), "--rounds", "1", "--clips", "4"]) == 0
    return job / "out" / "net.pt2"


def test_report_lies_beside_the_file(file):
    report = json.loads(file.with_name("net.pt2.json").read_text())
    assert report["accepted"]
    assert report["largest_difference"] < 1e-5
    assert report["size_bytes"] == file.stat().st_size
    assert (report["clips"], report["same_best"], report["precision"]) == (4, 4, "fp32")
    assert report["latency_ms"] > 0
    assert report["eager_latency_ms"] > 0


def predictions(predict, job, out, *options):
    assert predict.main([str(job / "data"), *options, "--device", "cpu", "--json", str(out)]) == 0
    return json.loads(out.read_text())


def same(found, wanted):
    assert [result["seen"] for result in found] == [result["seen"] for result in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert [row["class"] for row in one["top"]] == [row["class"] for row in other["top"]]
        assert [row["score"] for row in one["top"]] == pytest.approx([row["score"] for row in other["top"]], abs=2e-5)


def test_prediction_without_a_configuration_is_the_same(predict, file, job, named, tmp_path):
    wanted = predictions(predict, job, tmp_path / "a.json", *named)
    assert {result["seen"] for result in wanted} == {"2x3 views"}
    assert len({tuple(row["score"] for row in result["top"]) for result in wanted}) == 3
    alone = tmp_path / "elsewhere.pt2"
    alone.write_bytes(file.read_bytes())
    same(predictions(predict, job, tmp_path / "b.json", "--exported", str(alone)), wanted)
    fewer = ["--opts", "TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1"]
    wanted = predictions(predict, job, tmp_path / "c.json", *named, *fewer)
    same(predictions(predict, job, tmp_path / "d.json", "--exported", str(alone), *fewer), wanted)


def test_windows_and_drawings_need_no_configuration_either(predict, file, job, named, tmp_path):
    window = ["--window", "1", "--stride", "0.5", "--timeline", str(tmp_path / "t.png")]
    wanted = predictions(predict, job, tmp_path / "a.json", *named, *window)
    found = predictions(predict, job, tmp_path / "b.json", "--exported", str(file), *window)
    same(found, wanted)
    assert [result["stretches"] for result in found] == [result["stretches"] for result in wanted]
    assert len(list(tmp_path.glob("t-*.png"))) == 3


@pytest.mark.slow
def test_onnx_is_predicted_with_too(export, predict, job, named, tmp_path):
    out = tmp_path / "net.onnx"
    assert export.main([*named, "--out", str(out), "--precision", "int8", "--check-accuracy", "--rounds", "1"]) == 0
    report = json.loads((tmp_path / "net.onnx.json").read_text())
    assert report["videos"] == 3
    assert report["accuracy"]["original"] == pytest.approx(report["accuracy"]["exported"])
    wanted = predictions(predict, job, tmp_path / "a.json", *named)
    found = predictions(predict, job, tmp_path / "b.json", "--exported", str(out))
    for one, other in zip(found, wanted, strict=True):
        assert one["top"][0]["class"] == other["top"][0]["class"]
        assert one["top"][0]["score"] == pytest.approx(other["top"][0]["score"], abs=0.05)


def test_worse_file_is_removed(export, named, job, tmp_path, monkeypatch, capsys):
    from slowfast import export as library

    monkeypatch.setattr(library, "percent_right", lambda *args, **options: {"original": 90.0, "exported": 88.5})
    arguments = [*named, "--out", str(tmp_path / "net.pt2"), "--check-accuracy", "--rounds", "1"]
    assert export.main(arguments) == 1
    assert "lost 1.50 points of accuracy, more than --max-drop 1: it was removed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2.json"]
    assert export.main([*arguments, "--max-drop", "2"]) == 0
    assert (tmp_path / "net.pt2").exists()


def test_unknown_cost_of_8_bits_is_said(export, named, tmp_path, capsys):
    arguments = [*named, "--out", str(tmp_path / "net.pt2"), "--precision", "int8", "--rounds", "1"]
    assert export.main(arguments) in (0, 1)
    assert "--check-accuracy tells" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cfg", "gone.yaml", "--out", "a.onnx"], "gone.yaml: no such config file"),
        (["--zoo", "slow_4x16_r50_ava", "--out", "a.onnx"], "is for detection"),
        (["NAMED", "--out", "a.pth"], "ends in .onnx (ONNX) or .pt2"),
        (["NAMED", "--out", "a.pt2", "--precision", "int4"], "allowed are fp32, fp16, bf16, int8"),
        (["NAMED", "--out", "a.pt2", "--labels", "gone.json"], "no such file of class names"),
    ],
)
def test_wrong_options_are_answered(export, named, arguments, says, capsys):
    arguments = [word for item in arguments for word in (named if item == "NAMED" else [item])]
    assert export.main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--exported", "gone.onnx"], "gone.onnx: there is no such file"),
        (["FILE", "--opts", "DATA.NUM_FRAMES", "8"], "DATA.NUM_FRAMES is fixed in an exported file"),
    ],
)
def test_predict_answers_wrong_files_and_keys(predict, file, arguments, says, capsys):
    arguments = [word for item in arguments for word in (["--exported", str(file)] if item == "FILE" else [item])]
    assert predict.main(["a.mp4", *arguments, "--device", "cpu"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--exported", "a.onnx", "--cfg", "b.yaml"],
        ["--exported", "a.onnx", "--checkpoint", "b.pyth"],
        ["--exported", "a.onnx", "--features", "s5", "f.npz"],
    ],
)
def test_predict_names_what_does_not_go_together(predict, arguments):
    with pytest.raises(SystemExit) as end:
        predict.main(["a.mp4", *arguments])
    assert end.value.code == 2
