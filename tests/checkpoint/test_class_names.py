"""pytest tests/checkpoint/test_class_names.py"""

import pickle
from pathlib import Path

import pytest
import torch

from slowfast.checkpoint import read_class_names, run_folders


def test_names_are_read_without_the_weights(tmp_path):
    path = tmp_path / "a.pyth"
    torch.save({"model_state": {"w": torch.ones(3)}, "class_names": ["run", "ü"]}, path)
    assert read_class_names(path) == ["run", "ü"]


@pytest.mark.parametrize("content", [{"model_state": {}}, {"class_names": "ab"}, {"class_names": ["a", 1]}, [1]])
def test_other_files_of_pytorch_have_none(tmp_path, content):
    torch.save(content, tmp_path / "a.pyth")
    assert read_class_names(tmp_path / "a.pyth") == []


def test_what_cannot_be_read_has_none(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": {}, "class_names": ["a"]}))
    torch.save({"class_names": ["a"], "more": Path("x")}, tmp_path / "foreign.pyth")
    torch.save({"class_names": ["a"]}, tmp_path / "cut.pyth")
    (tmp_path / "cut.pyth").write_bytes((tmp_path / "cut.pyth").read_bytes()[:300])
    for name in ("a.pkl", "foreign.pyth", "cut.pyth", "missing.pyth", "."):
        assert read_class_names(tmp_path / name) == [], name


def test_a_run_leaves_more_beside_its_checkpoints():
    assert run_folders("out/checkpoints/a.pyth") == [Path("out"), Path("out/checkpoints")]
    assert run_folders("zoo/a.pyth") == [Path("zoo")]
    assert run_folders("https://host/a.pyth") == []
