"""What docs/masked_and_reversible.md names is there."""

import re
from pathlib import Path

import pytest

from slowfast.config import load_cfg
from slowfast.config.defaults import flatten, get_cfg

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "masked_and_reversible.md").read_text()


def test_every_key_exists():
    keys = [key.rstrip(".*") for key in re.findall(r"`([A-Z]+(?:\.[A-Z0-9_*]+)+)", TEXT)]
    known = flatten(get_cfg())
    assert len(keys) > 20
    assert [key for key in keys if not any(name.startswith(key) for name in known)] == []


COMMANDS = re.findall(r"^python tools/run_net\.py --cfg (\S+)(?: --opts (.+))?$", TEXT.replace("\\\n", " "), re.M)


@pytest.mark.parametrize(("path", "opts"), COMMANDS)
def test_every_command_loads(path, opts):
    load_cfg(ROOT / path, opts.split())


def test_every_pattern_of_files_finds_some():
    for pattern in re.findall(r"configs/[\w*/]+", TEXT):
        assert list(ROOT.glob(f"{pattern.rstrip('/*')}*")), pattern
