"""The published YAML files mean what they meant: each merged tree equals the original's, but for listed repairs."""

import hashlib
import json
from pathlib import Path

import pytest
from shared import shared

from slowfast.config import get_cfg, load_cfg
from slowfast.config.defaults import flatten

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "config"
KEYS = list(json.loads((GOLDEN / "defaults.json").read_text()))
DIGESTS: dict[str, str] = json.loads((GOLDEN / "published.json").read_text())
YAMLS = {
    path.relative_to(ROOT).as_posix() for folder in ("configs", "demo") for path in (ROOT / folder).rglob("*.yaml")
}

# Where ours differs on purpose: file -> {key: value as published}. The reason stands in the file.
REPAIRED = {
    # No class ResNet_nopool; a C2D without temporal pooling is the architecture slow_c2d of ResNet.
    "configs/Kinetics/c2/C2D_NOPOOL_8x8_R50.yaml": {"MODEL.MODEL_NAME": "ResNet_nopool", "MODEL.ARCH": "c2d"},
    # A reversible network has no class token.
    "configs/Kinetics/REV_MVIT_B_16x4_CONV.yaml": {"MVIT.CLS_EMBED_ON": True},
    # Fixed and adaptive strides exclude each other; the published file has the default of one and a value of the other.
    "configs/Kinetics/pytorchvideo/MVIT_B_16x4_CONV.yaml": {"MVIT.POOL_KV_STRIDE": []},
    # A batch of 1 does not divide by eight GPUs.
    "configs/masked_ssl/k400_VIT_B_16x4_FT.yaml": {"TRAIN.BATCH_SIZE": 1},
    # TOPK_PREDS is the key that was meant by the unknown TOPK.
    "demo/AVA/SLOWFAST_32x2_R101_50_50.yaml": {"TENSORBOARD.MODEL_VIS.TOPK_PREDS": 1},
}


def plain(value):
    """Numbers as floats and tuples as lists, so that trees from YAML, json and Python compare equal."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return float(value) if type(value) is int else value


def tree_of(name) -> dict:
    """The original's keys in our merged tree, with our repairs undone."""
    tree = flatten(load_cfg(ROOT / name))
    return {key: plain(tree[key]) for key in KEYS} | {k: plain(v) for k, v in REPAIRED.get(name, {}).items()}


def digest(tree: dict) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def test_all_published_files_are_there():
    assert len(DIGESTS) == 111
    assert set(DIGESTS) <= YAMLS


@pytest.mark.parametrize("name", DIGESTS)
def test_merged_tree_is_the_published_one(name):
    assert digest(tree_of(name)) == DIGESTS[name]


@pytest.mark.parametrize("name", REPAIRED)
def test_repairs_change_something_and_say_so(name):
    tree = flatten(load_cfg(ROOT / name))
    assert all(plain(tree[key]) != plain(value) for key, value in REPAIRED[name].items())
    text = (ROOT / name).read_text()
    assert "# Published with" in text


def test_trees_equal_the_full_record():
    """The same against the settings of each file, where they lie at hand: this one names the keys that differ."""
    record = json.loads(shared("reference/configs.json").read_text())
    defaults = {key: plain(value) for key, value in flatten(get_cfg()).items()}
    assert set(record) == set(DIGESTS)
    for name, entry in record.items():
        expected = {key: defaults[key] for key in KEYS} | {key: plain(value) for key, value in entry["set"].items()}
        assert tree_of(name) == expected, name
        assert digest(expected) == DIGESTS[name]


def test_every_base_is_used_and_every_file_loads():
    used = set()
    for name in YAMLS:
        load_cfg(ROOT / name)
        text = (ROOT / name).read_text().partition("_BASE_:")[2]
        used |= {
            (ROOT / name).parent / base for base in text.replace(",", " ").replace("[", " ").replace("]", " ").split()
        }
    used = {path.resolve() for path in used if path.suffix == ".yaml"}
    assert [name for name in YAMLS if "/_base/" in name and ROOT / name not in used] == []
