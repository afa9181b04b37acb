"""The command that looks at a configuration's data."""

import json
import logging
import sys
from pathlib import Path

import pytest
from PIL import Image
from scripts import load_script

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_data.py"


@pytest.fixture(scope="module")
def tool():
    return load_script(_TOOL)


@pytest.fixture
def config(tmp_path):
    """A configuration of four folders of images, three of them to train on."""
    for number in range(4):
        (tmp_path / f"v{number}").mkdir()
        for frame in range(3):
            Image.new("RGB", (40, 32)).save(tmp_path / f"v{number}" / f"{frame}.png")
    (tmp_path / "train.csv").write_text("v0 0\nv1 1\nv2 0\n")
    (tmp_path / "val.csv").write_text("v3 1\n")
    file = tmp_path / "a.yaml"
    file.write_text(
        f"DATA: {{PATH_TO_DATA_DIR: {tmp_path}, PATH_PREFIX: {tmp_path}}}\nMODEL: {{NUM_CLASSES: 2}}\n"
        "TEST: {ENABLE: False}\nNUM_GPUS: 0\n"
    )
    return file


def test_exit_status_says_what_was_found(tool, config, tmp_path, capsys):
    out = ["--out", str(tmp_path / "found.json"), "--workers", "1"]
    assert tool.main(["--cfg", str(config), *out]) == 0
    said = capsys.readouterr().out
    assert "0 errors, 0 warnings" in said
    assert said.rstrip().endswith("found.json")
    assert tool.main(["--cfg", str(config), *out, "MODEL.NUM_CLASSES", "3"]) == 0
    assert "class" in capsys.readouterr().out
    assert tool.main(["--cfg", str(config), *out, "--strict", "MODEL.NUM_CLASSES", "3"]) == 1
    (tmp_path / "v1" / "1.png").write_bytes(b"")
    assert tool.main(["--cfg", str(config), *out, "--all"]) == 1
    assert "1.png: the file is empty" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["ok"] is False


def test_wrong_configurations(tool, config, capsys):
    assert tool.main(["--cfg", str(config), "DATA.PATH_PREFIKS", "x"]) == 2
    assert "DATA.PATH_PREFIX" in capsys.readouterr().err
    assert tool.main(["--cfg", str(config), "TRAIN.ENABLE", "False"]) == 2
    assert "both off" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["--cfg", str(config), "--workers", "0"])


def test_names_that_are_no_text_are_shown_escaped(tool, config, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL, "slowfast")  # pytest's workers cannot hand on a log of such names
    (tmp_path / "train.csv").write_bytes(b"v0 0\nv\xfc 1\nv2 0\n")
    with open(tmp_path / "said", "w", encoding="utf-8", errors="strict") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert tool.main(["--cfg", str(config), "--out", str(tmp_path / "found.json"), "--sample", "0"]) == 1
    assert "v\\udcfc: no such file" in (tmp_path / "said").read_text("utf-8")
