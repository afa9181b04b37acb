"""The certificates: pytest tests/tools/test_parity.py"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


def load_tool():
    return load_script(ROOT / "tools" / "parity.py")


TOOL = load_tool()
WITNESSES = {f"{w.package} {w.name} {'training' if w.train else 'evaluation'}": w for w in TOOL.WITNESSES}


def test_no_two_certificates_are_of_one_computation():
    assert len(WITNESSES) == len({w.row for w in TOOL.WITNESSES}) == len(TOOL.WITNESSES)
    shapes = {(w.frames, w.crop) for w in TOOL.WITNESSES if w.name in ("X3D-XS", "X3D-S", "X3D-M")}
    assert len(shapes) == 3  # the three differ by their clips alone


@pytest.mark.slow
@pytest.mark.parametrize("name", WITNESSES)
def test_outputs_and_gradients_are_equal(name):
    certificate = TOOL.certify(WITNESSES[name])
    assert certificate.equal, TOOL.table([certificate])
    assert certificate.tensors > 100


@pytest.mark.slow
def test_another_network_gets_no_certificate():
    """Slow with another pooling window in its head is not the same network."""

    def build():
        network = TOOL._slow()
        network.blocks[-1].pool = torch.nn.MaxPool3d((4, 2, 2), stride=1)
        return network

    certificate = TOOL.certify(replace(WITNESSES["pytorchvideo Slow R50 training"], build=build))
    assert not certificate.equal
    assert "DIFFERS at" in TOOL.table([certificate])


def test_difference_is_relative_and_has_a_floor():
    two = torch.tensor([2.0, -4.0])
    assert TOOL.difference(two + 1, two) == 0.25
    assert TOOL.difference(torch.full((2,), 1e-9), torch.zeros(2), floor=1e-3) == pytest.approx(1e-6)
    with pytest.raises(ZeroDivisionError):
        TOOL.difference(torch.zeros(2), torch.zeros(2))


def test_page_needs_its_marks():
    begin, end = TOOL.MARKS
    assert TOOL.with_table(f"a\n{begin}\nold\n{end}\nb", "new") == f"a\n{begin}\n\nnew\n\n{end}\nb"
    with pytest.raises(ValueError, match="no place"):
        TOOL.with_table("a page", "new")


def test_the_page_of_the_repository_has_every_network():
    page = (ROOT / "MODEL_ZOO.md").read_text()
    certificates = page.split(TOOL.MARKS[0])[1].split(TOOL.MARKS[1])[0]
    for witness in TOOL.WITNESSES:
        assert witness.row in certificates
    assert "DIFFERS" not in certificates


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        TOOL.main(["resnext"])
    assert "SlowFast R50" in capsys.readouterr().err
