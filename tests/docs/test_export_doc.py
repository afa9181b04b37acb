"""docs/export.md says what is so: its fields, keys, tolerances, options and snippets."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch
from scripts import load_script
from torch import nn

from slowfast.config import load_cfg
from slowfast.export import PRECISIONS, Card, build_card, write_exported
from slowfast.export.card import FREE_KEYS, VERSION
from slowfast.export.compare import TOLERANCES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "export.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(r"^python (tools/\w+\.py) (.+)$", TEXT, re.MULTILINE)


def rows_after(title):
    """First cells of the table that follows ``title``."""
    return re.findall(r"^\| (`[^|]+) \|", TEXT.partition(title)[2].partition("\n## ")[0], re.MULTILINE)


def test_every_field_of_the_card_is_told():
    told = re.findall(r"`(\w+)`", " ".join(rows_after("## What is in the file")))
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(Card))
    assert f"of the card: {VERSION} |" in TEXT


def test_precisions_tolerances_and_free_keys_are_those_of_the_code():
    assert [cell.strip("`") for cell in rows_after("## Precision")] == list(PRECISIONS)
    assert "1e-4 (fp32), 0.01 (fp16) or 0.05 (bf16, int8)" in TEXT
    assert TOLERANCES == {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05, "int8": 0.05}
    for key in FREE_KEYS:
        assert f"`{key}`" in TEXT or key in ("DATA.VIDEO_DECODER", "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE")


@pytest.mark.parametrize(("tool", "arguments"), COMMANDS)
def test_commands_are_understood(tool, arguments):
    module = load_script(ROOT / tool)
    module.parse_args(shlex.split(arguments))


def test_snippets_open_the_files(tmp_path, monkeypatch):
    cfg = load_cfg(ROOT / "configs/Motion/2D_R18.yaml", ["DATA.TEST_CROP_SIZE", 8, "DATA.NUM_FRAMES", 2])
    card = build_card(cfg, ["a", "b"])
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 8 * 8, 2)).eval()
    monkeypatch.chdir(tmp_path)
    found = {}
    for name, code in zip(("model.onnx", "model.pt2"), SNIPPETS):
        write_exported(network, name, card)
        exec(compile(code, "export.md", "exec"), found)
    assert Card.from_json(found["extra"]["slowfast.json"], "model.pt2") == card
    assert found["card"] == {**dataclasses.asdict(card), "views": list(card.views)}
    clips = torch.randn(3, *card.shape)
    with torch.no_grad():
        torch.testing.assert_close(found["network"](clips), network(clips))
    compile(SNIPPETS[2], "export.md", "exec")
    assert len(SNIPPETS) == 3
