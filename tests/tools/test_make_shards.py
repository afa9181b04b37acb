"""The command that writes shards."""

import json
from pathlib import Path

import pytest
from scripts import load_script

from slowfast.datasets.shards import load_index

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_shards.py"


@pytest.fixture(scope="module")
def tool():
    return load_script(_TOOL)


def test_lists_and_class_folders(tool, tmp_path, capsys):
    for split in ("train", "val"):
        for kind in ("a b", "c"):
            (tmp_path / "in" / split / kind).mkdir(parents=True)
            (tmp_path / "in" / split / kind / "1.mp4").write_bytes(bytes(3000))
    (tmp_path / "train.csv").write_text("in/train/a b/1.mp4,4\nin/train/c/1.mp4,2\ngone.mp4,1\n")
    folders, lists = str(tmp_path / "s1"), str(tmp_path / "s2")
    assert tool.main([str(tmp_path / "in"), folders, "--megabytes", "0.002"]) == 0
    assert "train       2        0       2" in capsys.readouterr().out
    records = load_index(folders, "train", 2)
    assert records.class_names == ["a b", "c"]
    assert json.loads((tmp_path / "s1" / "class_names.json").read_text()) == {"a b": 0, "c": 1}
    assert load_index(folders, "val").path(0).endswith("val-000000.tar/val/a b/1.mp4")
    assert tool.main([str(tmp_path), lists, "--prefix", str(tmp_path), "--separator", ","]) == 0
    assert "train       2        1       1" in capsys.readouterr().out
    assert sorted(load_index(lists, "train").labels.tolist()) == [2, 4]


def test_nothing_is_overwritten_unasked(tool, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"0")
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    command = [str(tmp_path), str(tmp_path / "s"), "--prefix", str(tmp_path)]
    assert tool.main(command) == 0
    assert tool.main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert tool.main([*command, "--overwrite"]) == 0
