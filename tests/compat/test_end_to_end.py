"""Multi-view tests of real videos, start to end, against the original's: pytest tests/compat/test_end_to_end.py

Weights are a function of their names, the videos are the shared clips; the original's scores are stored here.
"""

import json
import pickle
from pathlib import Path

import pytest
import torch
from fill import fill_model
from shared import shared

from slowfast.config import load_cfg
from slowfast.engine import test as run_test
from slowfast.models import build_model

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/compat/end_to_end.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SLOWFAST_8x8_R50|pyav", "X3D_S_max_ensemble|pyav", "X3D_S|pyav"])
def test_scores_of_a_filled_checkpoint_agree(name, tmp_path):
    golden = GOLDEN[name]
    videos = shared("videos")
    (tmp_path / "test.csv").write_text(golden["csv"])
    cfg = load_cfg(
        ROOT / golden["config"],
        [
            *golden["overrides"],
            *("DATA.PATH_TO_DATA_DIR", str(tmp_path), "DATA.PATH_PREFIX", str(videos), "OUTPUT_DIR", str(tmp_path)),
            *("TEST.CHECKPOINT_FILE_PATH", str(tmp_path / "filled.pyth"), "TEST.SAVE_RESULTS_PATH", "scores.pkl"),
            *("DATA_LOADER.NUM_WORKERS", 0, "LOG_MODEL_INFO", False),
        ],
    )
    torch.save({"model_state": fill_model(build_model(cfg), golden["gain"]).state_dict()}, tmp_path / "filled.pyth")
    run_test(cfg)
    with (tmp_path / "scores.pkl").open("rb") as file:
        scores, labels = pickle.load(file)
    expected = torch.tensor(golden["preds"])
    assert labels.tolist() == [int(line.split()[1]) for line in golden["csv"].splitlines()]
    if cfg.DATA.ENSEMBLE_METHOD == "sum":
        torch.testing.assert_close(scores.sum(1), torch.full((len(scores),), float(golden["views"])), rtol=1e-5, atol=0)
    # Pixels depend a little on the FFmpeg build, so scores agree to a part in a thousand of the largest one.
    assert (scores - expected).abs().max() < 1e-3 * expected.max()
    assert torch.equal(scores.argmax(1), expected.argmax(1))
