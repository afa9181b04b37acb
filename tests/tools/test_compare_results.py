"""The command that compares two tests."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    return load_script(ROOT / "tools" / "compare_results.py")


@pytest.fixture
def both(tmp_path):
    """Two tests of 40 classes of 10 videos; B loses the last class and gains the first."""
    for name, lost in (("a", 0), ("b", 39)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "test_1x1.jsonl").open("w") as file:
            for row in range(400):
                label = row // 10
                guess = 1 if label == lost else label
                scores = [float(index == guess) for index in range(40)]
                line = {"path": f"{row}.mp4", "label": label, "views": 1, "top": [[guess, 1.0]], "scores": scores}
                file.write(json.dumps(line) + "\n")
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_table_csv_page_and_picture(tool, both, tmp_path, capsys):
    out = {kind: tmp_path / "new" / f"c.{kind}" for kind in ("csv", "html", "png")}
    assert tool.main([*both, *(word for kind, path in out.items() for word in (f"--{kind}", str(path)))]) == 0
    rows = list(csv.DictReader(out["csv"].open()))
    assert len(rows) == 40
    assert (rows[0]["class"], float(rows[0]["difference"])) == ("39", -100)
    assert (rows[-1]["class"], float(rows[-1]["difference"])) == ("0", 100)
    assert "400 common videos" in out["html"].read_text()
    assert Image.open(out["png"]).width > 500
    printed = capsys.readouterr().out
    assert "400 videos are in both" in printed
    (overall,) = [line.split() for line in printed.splitlines() if line.startswith("top-1")]
    assert overall[1:4] == ["97.50", "97.50", "+0.00"]
    assert "may be chance" in printed
    assert "... 10 more ..." in printed
    assert tool.main([*both, "--all"]) == 0
    assert "more ..." not in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(tool, both, tmp_path, capsys):
    assert tool.main([both[0], str(tmp_path / "gone")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([*both, "--draws", "5"])
