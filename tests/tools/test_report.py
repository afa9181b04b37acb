from pathlib import Path

import pytest
from fake_job import write_config, write_test
from scripts import load_script


@pytest.fixture
def tool():
    path = Path(__file__).resolve().parents[2] / "tools" / "report.py"
    return load_script(path)


def test_tool_writes_the_report_and_prints_the_table(tool, tmp_path, capsys):
    write_config(tmp_path)
    write_test(tmp_path, clips=2, crops=3, right=set(range(12)))
    assert tool.main([str(tmp_path), "--out", str(tmp_path / "page" / "r.html"), "--num-videos", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["2", "x", "3", "50.00", "66.67", "24"]
    assert lines[-1] == str(tmp_path / "page" / "r.html")
    assert (tmp_path / "page" / "r.html").is_file()


def test_tool_can_save_pictures(tool, tmp_path, capsys):
    write_test(tmp_path, clips=1, crops=1, right={1})
    assert tool.main([str(tmp_path), "--pictures", str(tmp_path / "pictures")]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()[-3:]]
    assert names == ["report.html", "classes.png", "confusion.png"]


def test_tool_explains_an_empty_folder(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert "OUTPUT_DIR" in error
