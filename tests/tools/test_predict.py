"""The command that predicts: tables, files, pictures, and one bad video among good ones."""

import contextlib
import csv
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fill import fill_model
from PIL import Image
from scripts import load_script
from small_run import write_network
from zoo_server import Server

from slowfast import zoo
from slowfast.visualization.class_names import kinetics_names

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("move_left", "zoom_in", "bounce")


@pytest.fixture(scope="module")
def tool():
    return load_script(ROOT / "tools" / "predict.py")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A configuration, weights and class names in a folder, and three videos."""
    folder = tmp_path_factory.mktemp("predict_tool")
    write_network(folder, crops=1)
    return folder


@pytest.fixture
def named(job):
    """The options that name the network."""
    return ["--cfg", str(job / "small.yaml"), "--checkpoint", str(job / "small.pyth"), "--device", "cpu"]


def test_table_json_and_csv_say_the_same(tool, job, named, tmp_path, capsys):
    outs = ["--json", str(tmp_path / "new" / "r.json"), "--csv", str(tmp_path / "new" / "r.csv")]
    assert tool.main([str(job / "data"), *named, *outs, "--top-k", "2"]) == 0
    results = json.loads((tmp_path / "new" / "r.json").read_text())
    assert [Path(result["video"]).parent.name for result in results] == ["bounce", "move_left", "zoom_in"]
    assert {result["seen"] for result in results} == {"2x1 views"}
    rows = list(csv.DictReader((tmp_path / "new" / "r.csv").open()))
    assert len(rows) == 6
    printed = capsys.readouterr().out
    for result, row in zip(results, rows[::2], strict=True):
        best = result["top"][0]
        assert best["class"] == CLASSES[best["index"]]
        assert (row["video"], row["class"], float(row["score"])) == (result["video"], best["class"], best["score"])
        assert (float(row["start_s"]), float(row["end_s"])) == (0.0, 2.133)
        assert f"{result['video']}  (2.1 s, 2x1 views)" in printed
        assert f"{best['score']:.3f}" in printed


def test_windows_with_everything_that_can_be_written(tool, job, named, tmp_path, capsys):
    video = job / "data" / "test" / "zoom_in" / "00000.mp4"
    out = {name: str(tmp_path / name) for name in ("r.json", "r.csv", "t.png", "v.mp4", "f.npz")}
    arguments = ["--window", "1", "--stride", "0.5", "--json", out["r.json"], "--csv", out["r.csv"]]
    arguments += ["--timeline", out["t.png"], "--out-video", out["v.mp4"], "--features", "s5", out["f.npz"]]
    assert tool.main([str(video), *named, *arguments]) == 0
    (result,) = json.loads(Path(out["r.json"]).read_text())
    windows = [(part["start_s"], part["end_s"]) for part in result["windows"]]
    assert windows == [(0, 1), (0.5, 1.5), (1, 2), (1.133, 2.133)]
    assert result["stretches"][0]["start_s"] == 0
    assert result["stretches"][-1]["end_s"] == 2.133
    assert len(Path(out["r.csv"]).read_text().splitlines()) == 1 + 4 * 3
    assert Image.open(out["t.png"]).width > 500
    with av.open(out["v.mp4"]) as container:
        assert container.streams.video[0].frames == 32
    saved = np.load(out["f.npz"])
    assert saved["features"].shape[0] == 4
    assert saved["features"].dtype == np.float32
    assert saved["start_s"].tolist() == pytest.approx([0, 0.5, 1, 1.1333], abs=1e-3)
    assert (saved["video"].tolist(), saved["paths"].tolist(), str(saved["layer"])) == ([0] * 4, [str(video)], "s5")
    assert "timeline: " in capsys.readouterr().out


def test_one_bad_video_does_not_stop_the_others(tool, job, named, tmp_path, capsys):
    good = job / "data" / "test" / "bounce" / "00000.mp4"
    (tmp_path / "bad.mp4").write_bytes(b"nothing of a video")
    arguments = [str(tmp_path / "bad.mp4"), str(tmp_path / "gone.mp4"), str(good), "--json", str(tmp_path / "r.json")]
    for more in ([], ["--window", "1", "--timeline", str(tmp_path / "t.png")]):
        assert tool.main([*arguments, *named, *more]) == 1
        bad, gone, fine = json.loads((tmp_path / "r.json").read_text())
        assert "bad.mp4" in bad["error"]
        assert "no such file" in gone["error"]
        assert fine["top"]
        errors = capsys.readouterr().err
        assert f"{tmp_path / 'gone.mp4'} cannot be used: no such file" in errors
        assert "2 of 3 videos could not be used" in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.mp4", "r.json", "t-00000.png"]


def in_parts(handler, payload):
    """Answers as servers of videos do: any part that is asked for."""
    first = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{len(payload) - 1}/{len(payload)}")
    handler.send_header("Accept-Ranges", "bytes")
    handler.send_header("Content-Length", str(len(payload) - first))
    handler.end_headers()
    with contextlib.suppress(ConnectionError):  # the reader may have seen enough
        handler.wfile.write(payload[first:])


def test_address_is_read_like_a_file(tool, job, named, capsys):
    server = Server((job / "data" / "test" / "bounce" / "00000.mp4").read_bytes())
    server.behaviours = [in_parts] * 100
    try:
        assert tool.main([f"{server.address}/clip.mp4", *named]) == 0
    finally:
        server.close()
    assert "(2.1 s, 2x1 views)" in capsys.readouterr().out


def test_annotated_video_never_takes_the_place_of_its_source(tool, job, named, tmp_path, capsys):
    video = tmp_path / "a.mp4"
    video.write_bytes((job / "data" / "test" / "bounce" / "00000.mp4").read_bytes())
    before = video.read_bytes()
    assert tool.main([str(video), *named, "--out-video", str(video)]) == 1
    assert "is the video itself" in capsys.readouterr().err
    assert video.read_bytes() == before


def test_interrupted_list_keeps_what_is_finished(tool, job, named, tmp_path, monkeypatch, capsys):
    videos = [str(job / "data/test" / name / "00000.mp4") for name in CLASSES]
    whole = tool.predict_one

    def at_second(predictor, path, *rest):
        if path == videos[1]:
            raise KeyboardInterrupt
        return whole(predictor, path, *rest)

    monkeypatch.setattr(tool, "predict_one", at_second)
    outs = ["--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    assert tool.main([*videos, *named, *outs]) == 130
    assert [result["video"] for result in json.loads((tmp_path / "r.json").read_text())] == videos[:1]
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + 3
    assert "interrupted: 1 of 3 videos are done" in capsys.readouterr().err
    assert tool.main([*videos[1:], *named, *outs]) == 130
    assert (tmp_path / "r.json").read_text() != "[]\n"  # nothing was finished: an older file stays


def test_interrupted_loading_is_said(tool, named, monkeypatch):
    monkeypatch.setattr(tool, "build_predictor", lambda options: (_ for _ in ()).throw(KeyboardInterrupt))
    assert tool.main(["a.mp4", *named]) == 130


def test_result_that_cannot_be_written_does_not_stop_the_next(tool, job, named, tmp_path, capsys):
    video = str(job / "data/test/bounce/00000.mp4")
    assert tool.main([video, *named, "--json", "/dev/full", "--csv", str(tmp_path / "r.csv")]) == 1
    assert "/dev/full cannot be written: No space left" in capsys.readouterr().err
    assert (tmp_path / "r.csv").exists()


@pytest.mark.parametrize("option", ["--json", "--csv", "--timeline", "--out-video", "--features"])
def test_outputs_that_cannot_be_written_are_said_first(tool, named, tmp_path, option, capsys, monkeypatch):
    monkeypatch.setattr(tool, "build_predictor", lambda options: pytest.fail("a network was built"))
    suffix = {"--timeline": ".png", "--out-video": ".mp4"}.get(option, ".out")
    (tmp_path / "file").write_text("")
    (tmp_path / f"folder{suffix}").mkdir()
    words = ["s5"] if option == "--features" else []
    for name, says in (
        (tmp_path / f"folder{suffix}", "is a folder: name a file"),
        (tmp_path / "file" / f"r{suffix}", f"{tmp_path / 'file'} cannot be made a folder: File exists"),
        (tmp_path / "file" / "new" / f"r{suffix}", "cannot be made a folder: Not a directory"),
    ):
        assert tool.main(["a.mp4", *named, option, *words, str(name)]) == 2
        assert f"{option} {name}" in (said := capsys.readouterr().err)
        assert says in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cfg", "gone.yaml"], "gone.yaml: no such config file"),
        (["--zoo", "slowfast_9x9"], "no published model is called"),
        (["--zoo", "slow_4x16_r50_ava"], "give --boxes FILE.csv, or --detector"),
        (
            ["--zoo", "slow_4x16_r50_ava", "--boxes", "a.csv", "--timeline", "t.png"],
            "--timeline is for networks",
        ),
        (["NAMED", "--boxes", "a.csv"], "--boxes and --detector are for networks that score boxes"),
        (["NAMED", "--labels", "gone.json"], "no such file of class names"),
        (["NAMED", "--features", "s55", "f.npz"], "no layer 's55'"),
        (["NAMED", "--out-video", "v.gif"], "must end in one of .mp4"),
        (["NAMED", "--timeline", "t.jpg"], "must end in .png"),
        (["NAMED", "--seconds", "3"], "--seconds ends a camera or stream"),
        (["NAMED", "--opts", "MODEL.NUM_CLASES", "3"], "unknown key MODEL.NUM_CLASES"),
    ],
)
def test_wrong_options_are_answered(tool, named, arguments, says, capsys):
    arguments = [word for item in arguments for word in (named if item == "NAMED" else [item])]
    assert tool.main(["a.mp4", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--zoo", "a", "--boxes", "b", "--detector", "c"],
        ["--zoo", "a", "--cfg", "b"],
        ["--zoo", "a", "--checkpoint", "b"],
        ["--cfg", "a", "--window", "0"],
        ["--cfg", "a", "--least", "0.5"],
        ["--cfg", "a", "--boxes", "b", "--least", "0.5"],
    ],
)
def test_wrong_usage_ends_the_process(tool, arguments):
    with pytest.raises(SystemExit) as end:
        tool.main(["a.mp4", *arguments])
    assert end.value.code == 2


def test_no_video_at_all_ends_the_process(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--zoo", "a"])
    assert "name a VIDEO, or a camera with --webcam N" in capsys.readouterr().err


def test_published_model_brings_weights_and_names(tool, job, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLOWFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("SLOWFAST_OFFLINE", "1")
    entry = zoo.find("x3d_xs")
    file = zoo.Settings.from_env().path(entry)
    file.parent.mkdir(parents=True)
    torch.save({"model_state": fill_model(zoo.build_network(entry)).state_dict()}, file)
    views = ["--opts", "TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1", "DATA.TEST_CROP_SIZE", "160"]
    video = str(job / "data" / "test" / "bounce" / "00000.mp4")
    assert tool.main([video, "--zoo", "x3d_xs", "--device", "cpu", "--json", str(tmp_path / "r.json"), *views]) == 0
    (result,) = json.loads((tmp_path / "r.json").read_text())
    assert [kinetics_names()[row["index"]] for row in result["top"]] == [row["class"] for row in result["top"]]
    assert len(result["top"]) == 5
    assert "1x1 views" in capsys.readouterr().out


def test_importing_the_tool_is_light(tool):
    """Wrong options are answered before PyTorch has been loaded."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "tools" / "predict.py"), "a.mp4"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "name the network" in ended.stderr
    assert "| torch\n" not in ended.stderr
