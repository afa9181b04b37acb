"""docs/decoding.md says what is so: its keys have these defaults, its files exist, and its example runs."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from slowfast.config import get_cfg, load_cfg
from slowfast.config.defaults import flatten

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "decoding.md").read_text()


def test_every_key_is_one_and_has_this_default():
    keys = flatten(get_cfg())
    rows = re.findall(r"^\| `([\w.]+)` \| (\S+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 7
    assert {key: float(text) if text.isdigit() else text for key, text in rows} == {
        key: keys[key] if type(keys[key]) in (int, float) else str(keys[key]) for key, _ in rows
    }
    assert set(re.findall(r"\b(?:DATA|DATA_LOADER|TEST)\.[A-Z_]+\b", TEXT)) <= keys.keys()


def test_every_file_is_there():
    files = re.findall(r"(?:configs|tests|tools|slowfast|benchmarks)/[\w/]+\.(?:yaml|py|md)", TEXT)
    assert len(files) >= 4
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_a_loader_goes_on_where_another_stopped(tmp_path):
    for video in range(8):
        folder = tmp_path / "run" / f"{video}"
        folder.mkdir(parents=True)
        for frame in range(4):
            Image.fromarray(np.full((16, 16, 3), 20 * video + frame, np.uint8)).save(folder / f"{frame}.png")
    lines = "".join(f"run/{video} {video % 2}\n" for video in range(8))
    (tmp_path / "train.csv").write_text(lines)
    keys = {
        "DATA.PATH_TO_DATA_DIR": str(tmp_path),
        "DATA.PATH_PREFIX": str(tmp_path),
        "DATA.NUM_FRAMES": 2,
        "DATA.TRAIN_JITTER_SCALES": [16, 16],
        "DATA.TRAIN_CROP_SIZE": 16,
        "MODEL.NUM_CLASSES": 2,
        "TRAIN.BATCH_SIZE": 2,
        "NUM_GPUS": 0,
        "DATA_LOADER.NUM_WORKERS": 1,
        "TRAIN.DATASET": "kinetics",
    }
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names = {"cfg": load_cfg(None, [item for pair in keys.items() for item in pair])}
    exec(code, names)
    assert (names["state"]["epoch"], names["state"]["batch"], len(names["rest"])) == (3, 1, 3)
    seen = [row for batch in [names["batch"], *names["rest"]] for row in batch.index.tolist()]
    assert sorted(seen) == list(range(8))
    for name in ("loader", "other"):
        names[name].close()
