"""docs/preparing_videos.md names options that exist, and its commands work."""

import re
import shlex
from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "preparing_videos.md").read_text()
TOOLS = ("prepare_videos", "check_data", "make_shards")


def load(name):
    return load_script(ROOT / "tools" / f"{name}.py")


@pytest.mark.parametrize("name", TOOLS)
def test_commands_are_understood(name):
    tool = load(name)
    commands = re.findall(rf"(?:python tools/)?{name}\.py ([^`\n]+)", TEXT)
    assert commands
    for command in commands:
        tool.parse_args(shlex.split(command))


def test_options_exist():
    sources = "".join((ROOT / "tools" / f"{name}.py").read_text() for name in TOOLS)
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)):
        assert f'"{option}"' in sources, option


def test_the_files_are_those_that_are_written():
    from slowfast.datasets.prepare import LEFT_OUT, MANIFEST
    from slowfast.datasets.prepare_plan import FOLDER
    from slowfast.datasets.records import CLASS_NAMES_FILE

    named = re.findall(r"^\| `([^`]+)`", TEXT[: TEXT.index("The original files")], flags=re.M)
    assert named == [f"{FOLDER}/...", "train.csv", CLASS_NAMES_FILE, MANIFEST, LEFT_OUT]
