"""Names, shapes, order and outputs of the original's networks, recorded with filled weights."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model

from slowfast.config import get_cfg
from slowfast.models import build_model

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "models"
_STORED = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
CONFIGS, STATE_DICTS = _STORED["configs"], _STORED["state_dicts"]
FORWARD = json.loads((GOLDEN / "forward.json").read_text())
OUTPUTS = np.load(GOLDEN / "forward.npz")


def make_cfg(config, opts=()):
    cfg = get_cfg()
    cfg.merge_from_list(CONFIGS[config]["opts"] + list(opts))
    return cfg


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dict_has_the_original_names_shapes_and_order(config):
    with torch.device("meta"):
        model = build_model(make_cfg(config))
    found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
    assert found == STATE_DICTS[CONFIGS[config]["state_dict"]]
    assert sum(p.numel() for p in model.parameters()) == CONFIGS[config]["params"]


def _cases():
    """Small networks by both backends; whole ones, and all of them by "native", are slow."""
    cases = []
    for name, entry in FORWARD.items():
        whole = name.startswith("config:")
        for backend in ("auto", "native"):
            if backend == "auto" or entry["seconds"] < 3:
                quick = not whole and backend == "auto"
                cases.append(pytest.param(name, backend, marks=[] if quick else [pytest.mark.slow]))
    return cases


@pytest.mark.parametrize(("name", "backend"), _cases())
def test_eval_output_equals_the_original(name, backend):
    entry = FORWARD[name]
    model = build_model(make_cfg(entry["config"], [*entry["opts"], "MODEL.CONV_BACKEND", backend]))
    fill_model(model, entry["gain"]).eval()
    clips = fill_input(entry["input_tag"], tuple(entry["frames_shape"]))
    if entry["reverse_input_channel"]:
        clips = clips.flip(1)
    boxes = [torch.tensor(entry["boxes"])] if "boxes" in entry else []
    with torch.no_grad():
        scores = model(clips, *boxes)
    expected = torch.from_numpy(OUTPUTS[name.replace("/", "|")])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


def test_list_of_pathways_gives_what_the_clip_gives():
    entry = FORWARD["variant:slowfast_a4"]
    model = build_model(make_cfg(entry["config"], entry["opts"]))
    fill_model(model, entry["gain"]).eval()
    clips = fill_input(entry["input_tag"], tuple(entry["frames_shape"]))
    with torch.no_grad():
        assert torch.equal(model([clips[:, :, index] for index in entry["pack_indices"]]), model(clips))
