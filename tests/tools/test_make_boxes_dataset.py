"""The command that writes the set with boxes."""

from pathlib import Path

from PIL import Image
from scripts import load_script

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_boxes_dataset.py"


def test_it_says_what_it_made_and_draws_an_overview(tmp_path, capsys):
    tool = load_script(_TOOL)
    assert tool.main([str(tmp_path / "set"), "--videos", "2", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: ")
    assert " boxes in 2 videos (move_left " in lines[0]
    assert " boxes in 1 videos (" in lines[1]
    picture = Image.open(tmp_path / "set" / "overview.png").convert("L")
    low, high = picture.getextrema()
    assert (low, high) == (low, 255)
    assert low < 60  # something is drawn
    assert len(list((tmp_path / "set" / "videos").glob("*.mp4"))) == 3
