"""The command that shows where a network looks."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scripts import load_script
from small_run import write_network

from slowfast.config import load_cfg

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("move_left", "zoom_in", "bounce")


@pytest.fixture(scope="module")
def tool():
    return load_script(ROOT / "tools" / "explain.py")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A configuration, weights and class names in a folder, and videos."""
    folder = tmp_path_factory.mktemp("explain_tool")
    write_network(folder, crops=3)
    return folder


@pytest.fixture
def named(job):
    """A video and the options that name the network."""
    video = str(job / "data" / "test" / "zoom_in" / "00000.mp4")
    return [video, "--cfg", str(job / "small.yaml"), "--checkpoint", str(job / "small.pyth"), "--device", "cpu"]


def test_sheet_and_video(tool, named, tmp_path, capsys):
    out, video = tmp_path / "new" / "sheet.png", tmp_path / "see.mp4"
    assert tool.main([*named, "--out", str(out), "--video", str(video), "--target", "bounce", "--top-k", "2"]) == 0
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[1] == 1056
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        frames = load_cfg(ROOT / "configs/Motion/_base/slowfast.yaml").DATA.NUM_FRAMES
        assert (stream.frames, float(stream.average_rate)) == (frames, 4.0)
        assert stream.width == 3 * 256  # the clip, and both pathways, enlarged
    printed = capsys.readouterr().out
    assert "explained is 'bounce'" in printed
    assert len([line for line in printed.splitlines() if line.split(" ")[0] in CLASSES]) == 2


def test_a_stretch_is_explained_by_what_lies_in_it(tool, named, tmp_path, capsys):
    assert tool.main([*named, "--out", str(tmp_path / "s.png"), "--from", "0", "--to", "1.2", "--target", "1"]) == 0
    start, end = map(float, capsys.readouterr().out.split(": ")[1].split(" s,")[0].split(" to "))
    assert 0 <= start < end < 1.2


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--target", "zoomin"], 2, "did you mean zoom_in"),
        (["--target", "3"], 2, "there are 3, such as move_left"),
        (["--layers", "s7"], 2, "has no layer 's7'"),
        (["--out", "sheet.jpg"], 2, "must end in .png"),
        (["--colormap", "rainbows"], 2, "no colour map 'rainbows'"),
    ],
)
def test_wrong_options_are_answered(tool, named, arguments, status, says, tmp_path, capsys):
    assert tool.main([*named, "--out", str(tmp_path / "a.png"), *arguments]) == status
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_a_video_that_cannot_be_read_is_status_1(tool, named, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"nothing of a video")
    for name in ("bad.mp4", "gone.mp4"):
        assert tool.main([str(tmp_path / name), *named[1:], "--out", str(tmp_path / "a.png")]) == 1
        assert "cannot be used" in capsys.readouterr().err


def test_wrong_usage_ends_the_process(tool):
    for arguments in ([], ["--zoo", "a", "--cfg", "b"], ["--cfg", "a", "--from", "3", "--to", "2"]):
        with pytest.raises(SystemExit) as end:
            tool.main(["a.mp4", *arguments])
        assert end.value.code == 2
