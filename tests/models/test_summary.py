import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from slowfast.config import get_cfg
from slowfast.models import build_model
from slowfast.models.attention import BlockOptions, BlockSpec, MultiScaleAttention
from slowfast.models.layers import Conv3d
from slowfast.models.summary import count_products, summarize

STORED = Path(__file__).resolve().parents[1] / "golden" / "models" / "state_dicts.json.gz"


def test_convolutions_are_counted_by_hand():
    model = nn.Sequential(
        Conv3d(3, 4, (3, 3, 3), (1, 2, 2), padding=1), Conv3d(4, 5, 1), nn.Flatten(), nn.Linear(160, 7)
    )
    summary = summarize(model, torch.zeros(1, 3, 2, 8, 8))
    positions = 2 * 4 * 4
    assert summary.parameters == 4 * 3 * 27 + 4 + 5 * 4 + 5 + 160 * 7 + 7
    assert summary.gflops * 1e9 == pytest.approx(positions * (4 * 3 * 27 + 5 * 4) + 160 * 7)
    assert summary.mactivations * 1e6 == pytest.approx(positions * (4 + 5) + 7)


def test_attention_is_counted():
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    sizes = [torch.zeros(2, 5, 8), torch.zeros(2, 7, 8), torch.zeros(2, 7, 3)]
    assert summarize(Attention(), *sizes).gflops * 1e9 == pytest.approx(2 * 5 * 7 * (8 + 3))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    summarize(model, torch.zeros(1, 3, 2, 8, 8))
    assert model.training
    assert model[0].backend == "auto"
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "frames", "published"),
    [
        ("C2D_8x8_R50", 8, 25.89),
        ("I3D_8x8_R50", 8, 37.53),
        ("SLOW_4x16_R50", 4, 27.55),
        ("SLOWFAST_4x16_R50", 32, 36.69),
    ],
)
def test_published_costs_are_met_within_one_percent(config, frames, published):
    """The table counts the same networks in PyTorchVideo's form, at 256 pixels."""
    cfg = get_cfg()
    cfg.merge_from_list(
        json.loads(gzip.decompress(STORED.read_bytes()))["configs"][f"configs/Kinetics/{config}.yaml"]["opts"]
    )
    assert summarize(build_model(cfg), torch.zeros(1, 3, frames, 256, 256)).gflops == pytest.approx(
        published, rel=0.011
    )


def test_products_are_counted_without_computing_them():
    with torch.device("meta"):
        model = nn.Sequential(Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(512, 7))
        clip = torch.zeros(1, 3, 2, 8, 8)
    assert count_products(model, clip) * 1e9 == pytest.approx(128 * 4 * 3 * 27 + 512 * 7)
    assert model.training


def test_relative_positions_are_counted_as_papers_do():
    """What folding them into attention adds is not counted."""
    spec = BlockSpec(8, 8, 2, (2, 4, 4), (2, 4, 4))
    attention = MultiScaleAttention(spec, BlockOptions(rel_pos_spatial=True, has_cls=False))
    tokens = torch.zeros(1, 32, 8)
    products = 32 * 8 * 8 * 4 + 2 * 32 * 32 * 8  # four maps; weights and weighted sum
    positions = 32 * 2 * (4 + 4) * 4
    assert count_products(attention, tokens, (2, 4, 4)) * 1e9 == pytest.approx(products + positions)
    assert not attention.by_definition
