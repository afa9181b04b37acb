"""docs/demo.md says what is so: its keys are those there are, its files exist, its example and its code run."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from fill import fill_model
from scripts import load_script

from slowfast.config import get_cfg, load_cfg
from slowfast.datasets.moving_boxes import BoxesSpec, write_boxes_dataset
from slowfast.models import build_model
from slowfast.visualization import people, watch_results

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "demo.md").read_text()


@pytest.fixture
def example(tmp_path, monkeypatch):
    """What the first two commands of the example leave, in less time: two videos, and weights that are not trained."""
    write_boxes_dataset(tmp_path / "data/boxes", BoxesSpec(videos=(1, 1)))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    cfg = load_cfg("configs/Boxes/SLOWFAST_R18.yaml")
    folder = tmp_path / cfg.OUTPUT_DIR / "checkpoints"
    folder.mkdir(parents=True)
    weights = fill_model(build_model(cfg)).state_dict()
    torch.save({"model_state": weights, "epoch": 3}, folder / "checkpoint_epoch_00004.pyth")
    return tmp_path


def test_the_example_runs(example):
    (command,) = re.findall(r"^python (tools/predict\.py data/boxes.*)$", TEXT, flags=re.MULTILINE)
    file, *arguments = shlex.split(command)
    tool = load_script(ROOT / file)
    assert tool.main([*arguments, "--device", "cpu"]) == 0
    assert (example / "out.mp4").stat().st_size > 1000
    (result,) = json.loads((example / "out.json").read_text())
    assert len(result["key_frames"]) == 3


def test_the_code_runs(example, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(code, "demo.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.75", "1.0", "1.25"]
    assert "(1, '" in lines[0]


def test_every_key_is_explained_and_exists():
    cfg = get_cfg()
    table = TEXT[TEXT.index("## The keys") :]
    explained = set(re.findall(r"`DEMO\.([A-Z0-9_]+)`", table))
    assert explained == set(cfg.DEMO)
    for path in re.findall(r"`((?:AVA|DETECTION|DATA|MODEL|TEST|TENSORBOARD)(?:\.[A-Z0-9_]+)+)`", TEXT):
        node = cfg
        for name in path.split("."):
            assert name in node, path
            node = node[name]


def test_files_and_numbers_are_those_there_are():
    for path in re.findall(r"--cfg (\S+)|python (tools/\S+\.py)", TEXT):
        assert (ROOT / next(filter(None, path))).exists(), path
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / path).exists(), path
    links = people.PersonLinks()
    assert (links.least_overlap, links.memory) == (0.3, 3)
    for name in ("person", "box", "certainty", "top"):
        assert f'"{name}"' in Path(watch_results.__file__).read_text()
