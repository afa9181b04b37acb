"""docs/studio.md says what is so: options, defaults, limits and files."""

import re
from pathlib import Path

from scripts import load_script

from slowfast.visualization.studio import app, library, work

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "studio.md").read_text()


def parse_args(args):
    module = load_script(ROOT / "tools" / "studio.py")
    return vars(module.parse_args(args))


def test_every_option_is_listed_with_its_default():
    defaults = parse_args([])
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| ([^|]*?) ?\|", TEXT, re.MULTILINE))
    assert {row[2:].replace("-", "_") for row in rows} == defaults.keys() - {"folder"}
    for option in ("--port", "--host", "--max-upload-mb", "--max-seconds"):
        value = defaults[option[2:].replace("-", "_")]
        assert rows[option] == (f"{value:g}" if isinstance(value, float) else str(value))
    limits = app.Limits()
    assert (limits.upload_bytes / 2**20, limits.seconds) == (defaults["max_upload_mb"], defaults["max_seconds"])


def test_the_command_reads():
    command = re.search(r"^python tools/studio\.py (.+)$", TEXT, re.MULTILINE)[1]
    assert parse_args(command.split())["folder"] == "output"


def test_numbers_are_those_of_the_code():
    assert f"At most {work.MAX_WINDOWS} windows" in TEXT
    assert f"{work.PLAYER_SIDE} pixels high" in TEXT
    assert {4: "four"}[library.MAX_DEPTH] + " deep" in TEXT
    assert {8: "eight"}[app.MAX_COMPARED] in TEXT
    charts = (ROOT / "slowfast/visualization/studio/static/charts.js").read_text()
    cells = re.search(r"CELLS = (\d+)", charts)[1]
    assert f"more than {cells} classes" in TEXT


def test_every_file_is_there():
    files = re.findall(r"\]\(([\w./]+)\)", TEXT)
    assert "assets/studio.png" in files
    assert [file for file in files if not (ROOT / "docs" / file).exists()] == []
