"""The command that writes the motion data set."""

from pathlib import Path

import pytest
from PIL import Image
from scripts import load_script

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_motion_dataset.py"
SMALL = ["--videos-per-class", "2", "1", "1", "--classes", "move_up", "swing", "--size", "64x48", "--frames", "4"]


@pytest.fixture(scope="module")
def tool():
    return load_script(_TOOL)


def test_run_ends_with_a_table_of_what_it_made(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path / "set"), *SMALL, "--workers", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["train", "4", "2", "16"],
        ["val", "2", "1", "8"],
        ["test", "2", "1", "8"],
    ]
    assert lines[-1].startswith("2 classes, 64x48, 4 frames at 15/s")
    assert len(list((tmp_path / "set").rglob("*.mp4"))) == 8


def test_other_parameters_end_with_an_error(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path), *SMALL, "--workers", "1"]) == 0
    assert tool.main([str(tmp_path), *SMALL, "--fps", "25"]) == 1
    assert "fps 15 -> 25" in capsys.readouterr().err
    assert tool.main([str(tmp_path), *SMALL, "--fps", "25", "--overwrite", "--workers", "1"]) == 0


def test_contact_sheet_needs_no_folder(tool, tmp_path):
    file = tmp_path / "sheet.png"
    assert tool.main(["--contact-sheet", str(file), *SMALL]) == 0
    with Image.open(file) as picture:
        assert picture.width > 6 * 64 * 2


@pytest.mark.parametrize(
    "argv", [[], ["out", "--size", "96"], ["out", "--size", "axb"], ["out", "--videos-per-class", "3"]]
)
def test_wrong_command_line_is_refused(tool, argv):
    with pytest.raises(SystemExit):
        tool.main(argv)
