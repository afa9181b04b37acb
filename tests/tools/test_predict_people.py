"""The command that predicts, for what comes once and for who does what: cameras, pipes, boxes, detectors."""

import csv
import json
import os
import re
import signal
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fill import fill_model
from scripts import load_script
from torchvision.models import detection

from slowfast.config import load_cfg
from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.datasets.moving_boxes import BoxesSpec, write_boxes_dataset
from slowfast.models import build_model
from slowfast.utils.files import pathmgr
from slowfast.visualization import live, people, watch
from slowfast.visualization.video_io import find_videos

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    return load_script(ROOT / "tools" / "predict.py")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """The built-in boxes and the options that name a network for them."""
    folder = tmp_path_factory.mktemp("boxes")
    write_boxes_dataset(folder, BoxesSpec(videos=(1, 1)))
    opts = ["AVA.ANNOTATION_DIR", str(folder), "RESNET.WIDTH_PER_GROUP", "8"]
    file = str(ROOT / "configs/Boxes/SLOWFAST_R18.yaml")
    torch.save({"model_state": fill_model(build_model(load_cfg(file, opts))).state_dict()}, folder / "w.pyth")
    return folder, ["--cfg", file, "--checkpoint", str(folder / "w.pyth"), "--device", "cpu", "--opts", *opts]


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    """A video of 32 frames at 15 a second and the options that name a small network."""
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, MotionSpec(classes=("bounce",), train_per_class=0, val_per_class=0, test_per_class=1))
    opts = ["MODEL.NUM_CLASSES", "3", "RESNET.WIDTH_PER_GROUP", "8"]
    file = str(ROOT / "configs/Motion/_base/slowfast.yaml")
    network = fill_model(build_model(load_cfg(file, opts)))
    network.head.projection.weight.data *= 30
    torch.save({"model_state": network.state_dict()}, folder / "w.pyth")
    named = ["--cfg", file, "--checkpoint", str(folder / "w.pyth"), "--device", "cpu", "--opts", *opts]
    return folder / "test/bounce/00000.mp4", named


def test_people_of_a_list_with_json_csv_and_video(tool, boxes, tmp_path, capsys):
    folder, named = boxes
    video = str(folder / "videos/val_0000.mp4")
    outs = [
        "--json",
        str(tmp_path / "r.json"),
        "--csv",
        str(tmp_path / "r.csv"),
        "--out-video",
        str(tmp_path / "v.mp4"),
    ]
    assert tool.main([video, "--boxes", str(folder / "detected.csv"), "--top-k", "2", *outs, *named]) == 0
    (result,) = json.loads((tmp_path / "r.json").read_text())
    assert (result["length_s"], result["seen"]) == (2.0, "3 key frames")
    assert [frame["second"] for frame in result["key_frames"]] == [0.75, 1.0, 1.25]
    listed = [row.split(",") for row in (folder / "detected.csv").read_text().splitlines()]
    wanted = [[float(side) for side in row[2:6]] for row in listed if float(row[7]) >= 0.8]
    assert [person["box"] for frame in result["key_frames"] for person in frame["people"]] == wanted
    first = result["people"][0]
    assert (first["person"], first["from_s"], first["to_s"], first["key_frames"]) == (1, 0.75, 1.25, 3)
    mine = [person for frame in result["key_frames"] for person in frame["people"] if person["person"] == 1]
    scores = [
        guess["score"] for person in mine for guess in person["top"] if guess["class"] == first["top"][0]["class"]
    ]
    assert np.mean(scores) == pytest.approx(first["top"][0]["score"], abs=2e-5)
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert len(rows) == 2 * len(wanted)
    assert [float(rows[0][side]) for side in ("x1", "y1", "x2", "y2")] == wanted[0]
    assert rows[0]["class"] == mine[0]["top"][0]["class"]
    printed = capsys.readouterr().out
    assert f"{video}  (2.0 s, 3 key frames)" in printed
    assert re.search(r"^ *1 +0\.8 +1\.2 +\w+ 0\.\d\d, ", printed, flags=re.MULTILINE), printed
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24


def test_people_of_a_detector_in_a_pipe(tool, boxes, tmp_path, monkeypatch):
    """What comes once is watched as a file is."""
    folder, named = boxes
    torch.manual_seed(0)
    network = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=2)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 3.0]))
    network.transform.min_size = (160,)  # for the test's time: it would be 800
    monkeypatch.setattr(people, "load_detector", lambda file: {"people.pth": network}[file])
    source, pipe, results = folder / "videos/val_0000.mp4", tmp_path / "pipe.mkv", []
    as_mkv(source, tmp_path / "v.mkv")
    os.mkfifo(pipe)
    for video in (tmp_path / "v.mkv", pipe):
        if video == pipe:
            threading.Thread(target=lambda: pipe.write_bytes((tmp_path / "v.mkv").read_bytes())).start()
        outs = ["--json", str(tmp_path / "r.json"), "--stride", "0.5"]
        assert tool.main([str(video), "--detector", "people.pth", *outs, *named]) == 0
        (result,) = json.loads((tmp_path / "r.json").read_text())
        results.append(result)
    assert [frame["second"] for frame in results[0]["key_frames"]] == [0.667, 1.167, 1.333]
    assert results[0]["people"]
    for one, other in zip(*(result["key_frames"] for result in results), strict=True):
        assert (one["second"], len(one["people"])) == (other["second"], len(other["people"]))
        for person, same in zip(one["people"], other["people"], strict=True):
            assert (person["person"], person["box"]) == (same["person"], same["box"])
            assert person["top"][0]["score"] == pytest.approx(same["top"][0]["score"], abs=1e-4)  # other batches


def as_mkv(source, out):
    """The same packets in a file that can be read from its beginning to its end."""
    with av.open(str(source)) as old, av.open(str(out), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def test_pipe_is_classified_as_the_windows_of_the_file(tool, motion, tmp_path):
    video, named = motion
    as_mkv(video, tmp_path / "v.mkv")
    os.mkfifo(tmp_path / "pipe.mkv")
    results = []
    for name in ("v.mkv", "pipe.mkv"):
        if name == "pipe.mkv":
            data = (tmp_path / "v.mkv").read_bytes()
            threading.Thread(target=lambda data=data: (tmp_path / "pipe.mkv").write_bytes(data)).start()
        outs = ["--json", str(tmp_path / "r.json"), "--timeline", str(tmp_path / "t.png")]
        assert (
            tool.main([str(tmp_path / name), *outs, "--window", "1", "--out-video", str(tmp_path / "o.mp4"), *named])
            == 0
        )
        results += json.loads((tmp_path / "r.json").read_text())
    file, pipe = results
    assert pipe["stretches"] == file["stretches"]
    assert [part["start_s"] for part in pipe["windows"]] == [part["start_s"] for part in file["windows"]]
    for one, other in zip(pipe["windows"], file["windows"], strict=True):
        assert one["top"][0]["class"] == other["top"][0]["class"]
        assert one["top"][0]["score"] == pytest.approx(other["top"][0]["score"], abs=1e-4)


@pytest.mark.skipif("lavfi" not in av.formats_available, reason="this build of PyAV has no virtual device")
def test_camera_for_some_seconds(tool, motion, tmp_path, monkeypatch, capsys):
    _, named = motion
    monkeypatch.setattr(live, "camera_device", lambda name: (f"testsrc=size=320x240:rate=15:n={name}", "lavfi"))
    outs = ["--json", str(tmp_path / "r.json"), "--out-video", str(tmp_path / "v.mp4")]
    assert tool.main(["--webcam", "0", "--seconds", "3", *outs, *named]) == 0
    (result,) = json.loads((tmp_path / "r.json").read_text())
    assert (result["video"], result["length_s"]) == ("webcam:0", 3.0)
    assert [part["start_s"] for part in result["windows"]] == [0, 0.533, 1.067, 1.6, 1.933]
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 45
    assert "webcam:0  (3.0 s, 5 windows)" in capsys.readouterr().out


def test_camera_that_is_not_there(tool, motion, capsys):
    assert tool.main(["--webcam", "97", *motion[1]]) == 1
    assert "webcam:97 cannot be used" in capsys.readouterr().err


def test_features_need_a_file(tool, motion, capsys):
    assert tool.main(["--webcam", "0", "--features", "s5", "f.npz", *motion[1]]) == 2
    assert "a camera or stream comes once" in capsys.readouterr().err


def test_file_that_is_stopped_is_written_up_to_there(tool, boxes, tmp_path, monkeypatch, capsys):
    folder, named = boxes
    video = str(folder / "videos/val_0000.mp4")
    whole = watch.BoxWatcher.score

    def score(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return whole(self, *arguments)

    monkeypatch.setattr(watch.BoxWatcher, "score", score)
    outs = ["--json", str(tmp_path / "r.json"), "--out-video", str(tmp_path / "v.mp4")]
    assert tool.main([video, video, "--boxes", str(folder / "detected.csv"), *outs, *named]) == 130
    (result,) = json.loads((tmp_path / "r.json").read_text())
    assert result["stopped"]
    assert Path(result["annotated"]).exists()
    assert "interrupted: 1 of 2 videos are done" in capsys.readouterr().err


def test_video_without_boxes_does_not_stop_the_others(tool, boxes, tmp_path, capsys):
    folder, named = boxes
    (tmp_path / "other.mp4").symlink_to(folder / "videos/val_0000.mp4")
    videos = [str(folder / "videos/val_0000.mp4"), str(tmp_path / "other.mp4")]
    outs = ["--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    assert tool.main([*videos, "--boxes", str(folder / "detected.csv"), *outs, *named]) == 1
    fine, without = json.loads((tmp_path / "r.json").read_text())
    assert fine["people"]
    assert "has no box with a score of 0.8 or more" in without["error"]
    assert {row["video"] for row in csv.DictReader((tmp_path / "r.csv").open())} == {videos[0]}
    assert "1 of 2 videos could not be used" in capsys.readouterr().err


def test_box_list_that_cannot_be_read_is_answered(tool, boxes, tmp_path, capsys):
    folder, named = boxes
    (tmp_path / "b.csv").write_text("val_0000,1,0,0,1\n")
    for name, says in (("b.csv", "b.csv, line 1"), ("gone.csv", "gone.csv: there is no such file")):
        assert tool.main([str(folder / "videos/val_0000.mp4"), "--boxes", str(tmp_path / name), *named]) == 2
        assert says in capsys.readouterr().err


def test_addresses_that_the_path_manager_knows_are_brought_here(tmp_path):
    from iopath.common.file_io import PathHandler

    class Shelf(PathHandler):
        def _get_supported_prefixes(self):
            return ["shelf://"]

        def _get_local_path(self, path, force=False, **kwargs):
            return str(tmp_path / path.removeprefix("shelf://"))

        def _exists(self, path, **kwargs):
            return os.path.exists(self._get_local_path(path))

    (tmp_path / "a.mp4").write_bytes(b"")
    pathmgr.register_handler(Shelf(), allow_override=True)
    assert find_videos(["shelf://a.mp4", "http://host/b.mp4"]) == [str(tmp_path / "a.mp4"), "http://host/b.mp4"]
