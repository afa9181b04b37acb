"""The command that prepares videos: tables, exit status, and that it survives every way of ending."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from scripts import load_script

from slowfast.datasets.encode import hash_of

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "prepare_videos.py"


@pytest.fixture(scope="module")
def tool():
    return load_script(_TOOL)


def write_video(path, seed, frames=12, size=64):
    """Noise, which takes an encoder some time."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "20", "preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def videos(tmp_path):
    for place, split in enumerate(("train", "val")):
        for label, kind in enumerate(("jump", "sit down")):
            folder = tmp_path / "in" / split / kind
            folder.mkdir(parents=True)
            for number in range(3):
                write_video(folder / f"{number}.mp4", seed=100 * place + 10 * label + number)
    return tmp_path / "in"


def test_tables_at_the_end(tool, videos, tmp_path, capsys):
    (videos / "train/jump/bad.mp4").write_text("oops, not a video")
    (videos / "val/jump/0.mp4").write_bytes((videos / "train/jump/0.mp4").read_bytes())
    options = ["--short-side", "32", "--preset", "ultrafast", "--speed-sample", "2", "--workers", "1"]
    assert tool.main([str(videos), str(tmp_path / "out"), *options]) == 3
    said = capsys.readouterr().out
    assert "train       7     6         1        2" in said
    assert "val         6     6         0        2" in said
    assert "short side, pixels      64     32" in said
    assert "PSNR, dB" in said
    assert "8 frames, every 8th" in said
    assert "left_out.csv" in said
    assert "1 videos are in two splits with the same bytes" in said
    assert f"DATA.PATH_TO_DATA_DIR {tmp_path}/out DATA.PATH_PREFIX {tmp_path}/out MODEL.NUM_CLASSES 2" in said


def test_lists_of_sources(tool, videos, tmp_path, capsys):
    assert tool.main([str(videos), str(tmp_path / "out"), "--no-encode", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "not encoded" in said
    assert said.rstrip().endswith("DATA.PATH_PREFIX DATA.PATH_LABEL_SEPARATOR ',' MODEL.NUM_CLASSES 2")


def test_wrong_input(tool, videos, tmp_path, capsys):
    assert tool.main([str(videos), str(videos / "out")]) == 1
    assert "lie in one another" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert tool.main([str(videos), str(tmp_path / "out"), "--crf", "70"]) == 1
    assert "crf 70 is not" in capsys.readouterr().err
    assert tool.main([str(videos), str(tmp_path / "out"), "--preset", "quick"]) == 1
    assert "'quick' is not one of" in capsys.readouterr().err


@pytest.fixture
def heeds_interrupts():
    """Processes begin with Ctrl-C at work, also where these tests are run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_next_run_goes_on(tool, videos, tmp_path, end):
    """Ended in the middle of its work, it leaves no process and no half file, and the result is that of one run."""
    for split in ("train", "val"):
        for number in range(3):
            write_video(videos / split / "jump" / f"{number}.mp4", number, frames=150, size=128)
    quick = ["--workers", "2", "--speed-sample", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command = [sys.executable, str(_TOOL), str(videos), str(broken), *quick]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as first:
        manifest = broken / "manifest.jsonl"
        while not (manifest.exists() and manifest.read_text().count("\n") >= 2):
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(end)
        said = first.communicate(timeout=600)[1]
    assert 2 <= manifest.read_text().count("\n") < 12
    if end != signal.SIGKILL:
        assert first.returncode == 130
        assert "the same command goes on" in said
        assert not (broken / ".partial").exists()
    recorded = [
        json.loads(line)["target"] for line in manifest.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]
    made = {path: path.stat().st_mtime_ns for path in map(broken.joinpath, recorded)}
    for out in (broken, whole):
        assert tool.main([str(videos), str(out), *quick]) == 0
    # A file without its line in the manifest, as an end between the two may leave one, is made again.
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())
    assert not (broken / ".partial").exists()
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.suffix in (".mp4", ".csv", ".json"))
    assert len(names) == 12 + 5
    for name in names:
        assert hash_of(broken / name) == hash_of(whole / name), name
