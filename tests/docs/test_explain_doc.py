"""docs/explain.md says what is so: its keys, files, options and example."""

import re
from pathlib import Path

import numpy as np
import torch
from fill import fill_model
from PIL import Image
from scripts import load_script

from slowfast.config import get_cfg, load_cfg
from slowfast.config.cli import parse_args
from slowfast.config.defaults import flatten
from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.models import build_model
from slowfast.visualization.class_summary import class_summary
from slowfast.visualization.compare_classes import DRAWS, DRAWS_OF_AP

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "explain.md").read_text()


def tool(name):
    return load_script(ROOT / "tools" / f"{name}.py")


def test_every_key_is_one_and_has_this_default():
    keys = flatten(get_cfg())
    rows = re.findall(r"^\| `([\w.]+)` \| (\S+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 19
    assert [(key, text.strip('"')) for key, text in rows] == [(key, str(keys[key])) for key, _ in rows]
    assert set(re.findall(r"\b(?:TENSORBOARD|TEST|TRAIN|DETECTION)\.[A-Z_.]*[A-Z]\b", TEXT)) <= keys.keys()
    shown = {key for key, _ in rows}
    asked = {key for key in keys if key.startswith(("TENSORBOARD.MODEL_VIS.", "TENSORBOARD.WRONG_PRED_VIS."))}
    assert asked - shown == {"TENSORBOARD.WRONG_PRED_VIS.TAG"}
    for end in ("CONFUSION_MATRIX.SUBSET_PATH", "CATEGORIES_PATH", "HISTOGRAM.SUBSET_PATH", "HISTOGRAM.TOPK"):
        assert f"TENSORBOARD.{end}" in keys
        assert f"`{end}`" in TEXT


def test_commands_read():
    commands = re.findall(r"^python tools/(\w+)\.py ((?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
    assert [name for name, _ in commands] == ["explain", "explain", "run_net", "compare_results"]
    for name, line in commands:
        words = re.findall(r'"[^"]*"|\S+', line.replace("\\\n", " "))
        words = [word.strip('"') for word in words]
        if name == "run_net":
            args = parse_args(["--cfg", str(ROOT / "configs/Motion/SLOWFAST_R18.yaml"), *words[2:]])
            assert args.load()[0].TENSORBOARD.WRONG_PRED_VIS.ENABLE
        else:
            tool(name).parse_args(words)


def test_numbers_and_picture_are_so():
    assert f"{DRAWS:,} times ({DRAWS_OF_AP:,} times for mAP)" in TEXT
    path = ROOT / "docs" / re.search(r"\((assets/\w+\.png)\)", TEXT)[1]
    assert path.stat().st_size < 200_000
    assert len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_the_table_looks_like_that():
    names = ["zoom_out", "orbit_counterclockwise", *map(str, range(10))]
    labels = np.arange(12).repeat(20)
    guesses = labels.copy()
    guesses[1:20], guesses[20:29] = 1, 0
    text = class_summary(np.eye(12)[guesses], labels, names)
    shown = TEXT.split("## After a test")[1].split("```\n")[1]
    assert text.startswith(shown.rstrip())


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = {"train_per_class": 0, "val_per_class": 0, "test_per_class": 1}
    write_dataset(tmp_path / "data", MotionSpec(classes=("zoom_in",), **sizes))
    (tmp_path / "config.yaml").write_text(
        f"_BASE_: {ROOT}/configs/Motion/_base/slowfast.yaml\n"
        "MODEL: {NUM_CLASSES: 3}\nRESNET: {WIDTH_PER_GROUP: 8}\n"
    )
    (tmp_path / "data/test/zoom_in/00000.mp4").rename(tmp_path / "video.mp4")
    network = fill_model(build_model(load_cfg(tmp_path / "config.yaml")))
    torch.save({"model_state": network.state_dict()}, tmp_path / "model.pyth")
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names = {}
    exec(code, names)
    frames = len(names["times"])
    assert capsys.readouterr().out.startswith("slow s5 (0, ")
    assert names["explanation"].maps["fast"].shape == (1, frames, *names["clip"].shape[3:])
