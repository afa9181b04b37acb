"""What docs/self_supervised.md names is there."""

import re
from pathlib import Path

from slowfast.config import get_cfg, load_cfg
from slowfast.config.defaults import flatten
from slowfast.models.contrastive import KINDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "self_supervised.md").read_text()


def test_every_key_is_one():
    named = set(re.findall(r"\b(?:CONTRASTIVE|DATA|TRAIN|MODEL|BN|TEST|SOLVER)\.[A-Z0-9_]+\b", TEXT))
    assert len(named) > 15
    assert named <= flatten(get_cfg()).keys()


def test_every_method_has_its_row_and_its_recipe():
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) >= set(KINDS)
    for kind in KINDS:
        name = f"{kind.upper()}_SLOW_R18"
        assert name in TEXT
        assert kind == load_cfg(ROOT / "configs" / "Motion" / f"{name}.yaml").CONTRASTIVE.TYPE


def test_every_file_is_there():
    files = re.findall(r"(?:configs|tests|tools)/[\w/]+\.(?:yaml|py)", TEXT)
    assert len(files) >= 5
    assert all((ROOT / file).exists() for file in files)
