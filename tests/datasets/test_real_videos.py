"""Test views of real clips against the golden numbers: the whole way from file to network input."""

import json

import av
import numpy as np
import pytest
import torch
from shared import SHARED, shared

from slowfast.config import load_cfg
from slowfast.datasets.build import build_dataset

SETTINGS = {
    "MVITv2_S_16x4": {
        "DATA.NUM_FRAMES": 16,
        "DATA.SAMPLING_RATE": 4,
        "DATA.TEST_CROP_SIZE": 224,
        "DATA.USE_OFFSET_SAMPLING": True,
        "TEST.NUM_SPATIAL_CROPS": 1,
        "TEST.NUM_ENSEMBLE_VIEWS": 5,
    },
    "X3D_S": {
        "DATA.NUM_FRAMES": 13,
        "DATA.SAMPLING_RATE": 6,
        "DATA.TEST_CROP_SIZE": 182,
        "DATA.TRAIN_JITTER_SCALES": [182, 228],
    },
    "SLOWFAST_8x8_R50": {"DATA.NUM_FRAMES": 32, "DATA.SAMPLING_RATE": 2, "DATA.TEST_CROP_SIZE": 256},
}
# The decoder and scaler of another FFmpeg differ in the last bit of a pixel, those of an older one in more.
PIXEL_TOLERANCE = 0.02 if int(av.__version__.split(".")[0]) >= 18 else 0.25
QUICK = {
    "X3D_S|torchvision|arm_wrestling.mp4",
    "MVITv2_S_16x4|pyav|flipping_pancake.mkv",
    "X3D_S|pyav|apply_eye_makeup.avi",
}


def recorded_views():
    meta = SHARED / "golden" / "video_meta.json"
    if not meta.exists():
        return [pytest.param("", marks=pytest.mark.skip("needs the shared folder (set SLOWFAST_SHARED)"))]
    names = json.loads(meta.read_text())["views"]
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", recorded_views())
def test_views_equal_the_golden_pixels(name, tmp_path):
    setting, backend, file = name.split("|")
    with np.load(shared("golden/video.npz")) as arrays:
        stats, pixels = arrays[f"{name}|stats"], arrays[f"{name}|pixels"]
    (tmp_path / "test.csv").write_text(f"{file} 0\n")
    options = {
        **SETTINGS[setting],
        "DATA.PATH_TO_DATA_DIR": str(tmp_path),
        "DATA.PATH_PREFIX": str(shared("videos")),
        "DATA.DECODING_BACKEND": backend,
        "DATA.AUTOROTATE": False,  # the numbers were recorded so
        "MODEL.NUM_CLASSES": 400,
    }
    cfg = load_cfg(None, [item for pair in options.items() for item in pair])
    dataset = build_dataset("kinetics", cfg, "test")
    assert len(dataset) == len(stats)
    for row in range(len(dataset)):
        clip = dataset[row].clip
        pathways = [clip]
        if setting.startswith("SLOWFAST"):
            pathways = [clip[:, torch.linspace(0, 31, 8).long()], clip]
        for pathway, (mean, std), expected in zip(pathways, stats[row], pixels[row]):
            flat = pathway.flatten()
            picked = flat[torch.from_numpy(np.linspace(0, len(flat) - 1, 64).astype(np.int64))]
            np.testing.assert_allclose(picked.numpy(), expected, rtol=0, atol=PIXEL_TOLERANCE)
            assert flat.mean().item() == pytest.approx(mean, abs=2e-3)
            assert flat.std().item() == pytest.approx(std, abs=2e-3)
