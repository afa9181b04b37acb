"""Runs side by side, and the tool that draws them: pytest tests/visualization/test_compare.py"""

import json
import runpy
import sys
from pathlib import Path

import pytest
from fake_job import stats, write_config, write_training

from slowfast.visualization import plots
from slowfast.visualization.compare import compare_panels, compare_rows, run_names
from slowfast.visualization.results import read_job

TOOL = Path(__file__).parents[2] / "tools" / "plot_run.py"


@pytest.fixture
def runs(tmp_path):
    """Two trainings of 6 and 3 epochs; the second has no configuration and no single steps."""
    one, two = tmp_path / "first" / "out", tmp_path / "second" / "out"
    for folder, epochs in ((one, 6), (two, 3)):
        folder.mkdir(parents=True)
        write_training(folder, epochs=epochs)
    write_config(one)
    (one / "config.yaml").write_text((one / "config.yaml").read_text() + "NUM_SHARDS: 2\nTRAIN:\n  BATCH_SIZE: 16\n")
    (two / "stdout.log").unlink()
    return one, two


def run_tool(*words):
    argv, sys.argv = sys.argv, [str(TOOL), *map(str, words)]
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
    finally:
        sys.argv = argv
    return end.value.code


def test_names_of_runs_differ(runs):
    jobs = [read_job(folder) for folder in runs]
    assert run_names(jobs) == ["first/out", "second/out"]
    assert run_names(jobs[:1]) == ["out"]
    assert len(set(run_names([jobs[0], jobs[0]]))) == 2


def test_one_run_in_clips_per_second(runs):
    panels = {panel.title: panel.curves for panel in compare_panels([read_job(runs[0])])}
    assert list(panels) == [
        "Loss",
        "Top-1 error in percent",
        "Learning rate",
        "Clips per second",
        "Waiting for data, percent of the time",
    ]
    (pace,) = panels["Clips per second"]
    assert set(pace.y) == {64.0}  # 2 x 16 clips in half a second
    assert (pace.x[0], len(pace.x)) == (0.25, 24)
    assert set(panels["Waiting for data, percent of the time"][0].y) == {20.0}
    train, validation = panels["Top-1 error in percent"]
    assert (train.noisy, validation.dashed, validation.x) == (True, True, [1, 2, 3, 4, 5, 6])


def test_runs_of_which_one_has_an_unknown_batch_are_compared_in_steps(runs):
    panels = compare_panels([read_job(folder) for folder in runs])
    paces = next(panel for panel in panels if panel.title == "Steps per second")
    assert [set(curve.y) for curve in paces.curves] == [{2.0}, {2.0}]
    assert [curve.noisy for curve in paces.curves] == [True, False]


def test_long_cycles_have_no_clips_per_step(runs):
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text() + "MULTIGRID:\n  LONG_CYCLE: True\n")
    assert "Steps per second" in [panel.title for panel in compare_panels([read_job(runs[0])])]


def test_the_table_has_last_and_best_values(tmp_path, runs):
    with (runs[1] / "json_stats.log").open("a") as file:
        file.write(stats(_type="val_epoch", epoch="4/4", top1_err=77.0) + "\n")
    heads, rows = compare_rows([read_job(folder) for folder in runs])
    first, second = (dict(zip(heads, row, strict=True)) for row in rows)
    assert (first["run"], first["epoch"], first["clips/s"], first["waiting"]) == ("first/out", "6", "64.0", "-")
    assert (second["epoch"], second["val error"], second["best"]) == ("3", "77.00", "19.52")
    assert second["clips/s"] == "-"


def test_runs_share_colours_over_the_panels(runs):
    figure = plots.curves_of_runs(compare_panels([read_job(folder) for folder in runs]))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["first/out", "second/out", "first/out, validation", "second/out, validation"]
    errors = figure.axes[1].get_lines()
    assert {line.get_color() for line in errors} == set(plots.RUNS[:2])


def test_the_tool_draws_and_prints(runs, tmp_path, capsys):
    assert run_tool(*runs, "--out", tmp_path / "two.png") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("first/out ")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    assert run_tool(runs[0]) == 0
    assert (runs[0] / "curves.png").exists()


def test_the_tool_says_where_there_is_no_training(tmp_path, capsys):
    (tmp_path / "json_stats.log").write_text("json_stats: " + json.dumps({"split": "test_final"}) + "\n")
    assert run_tool(tmp_path) == 1
    assert "no training here" in capsys.readouterr().err
