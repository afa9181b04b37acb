"""Sheets of frames and maps."""

import numpy as np
import pytest
import torch

from slowfast.visualization import sheets
from slowfast.visualization.gradcam import Explanation
from slowfast.visualization.plots import to_png
from slowfast.visualization.sheets import (
    best_shares,
    captioned,
    explained_frames,
    explained_rows,
    sheet,
    side_by_side,
    spread,
)

FRAMES = np.stack([np.full((6, 8, 3), 10 * t, np.uint8) for t in range(8)])


@pytest.fixture
def explanation():
    slow, fast = torch.zeros(1, 2, 6, 8), torch.linspace(0, 1, 8).view(1, 8, 1, 1).expand(1, 8, 6, 8)
    slow[:, 1] = 1.0
    scores = torch.tensor([[0.1, 0.7, 0.2]])
    frames = {"slow": (0, 7), "fast": tuple(range(8))}
    return Explanation(scores, (1,), {"slow": slow, "fast": fast}, frames, {"slow": "s5", "fast": "s5"})


def test_spread_reaches_both_ends():
    assert spread(32, 4) == [0, 10, 21, 31]
    assert spread(3, 8) == [0, 1, 2]


def test_rows_show_the_same_frames_with_the_map_of_the_nearest_slice(explanation):
    clip, slow, fast = explained_rows(FRAMES, explanation, columns=4, colormap="gray", alpha=1.0)
    assert [picture[0, 0, 0] for picture in clip.pictures] == [0, 20, 50, 70]
    assert [picture[0, 0, 0] for picture in slow.pictures] == [0, 0, 255, 255]
    assert [picture[0, 0, 0] for picture in fast.pictures] == [0, 73, 182, 255]  # 2 / 7 and 5 / 7 of 256 colours
    assert (slow.label, fast.label) == ("Grad-CAM,\nslow", "Grad-CAM,\nfast")


def test_pathways_have_their_own_frames(explanation, monkeypatch):
    explained = explained_frames(FRAMES, explanation, colormap="gray", alpha=0.0)
    assert explained["slow"][:, 0, 0, 0].tolist() == [0, 70]
    assert np.array_equal(explained["fast"], FRAMES)
    written = []
    monkeypatch.setattr(sheets, "captioned", lambda frame, lines: written.append(lines) or frame)
    named = {"times_s": [t / 4 for t in range(8)], "class_name": "jump"}
    pictures = list(side_by_side(FRAMES, explained, explanation, **named))
    assert len(pictures) == 8
    assert pictures[2].shape == (6, 24, 3)
    assert pictures[2][0, ::8, 0].tolist() == [20, 0, 20]
    # The slow pathway has no frame of its own at 0.5 s: its first one is the nearest.
    assert written[6:9] == [("clip", "0.50 s"), ("Grad-CAM, slow", "jump, 0.00 s"), ("Grad-CAM, fast", "jump, 0.50 s")]


def test_captions_stand_below_frames_that_are_large_enough_to_read():
    frame = np.full((6, 8, 3), 100, np.uint8)
    made = captioned(frame, ("a", "word " * 100))
    assert made.shape[1] == 320  # 6 rows grow to 240
    assert (made[:240] == 100).all()
    below = (made[240:] > 200).any(axis=(0, 2))
    assert below.any()
    assert not below[-4:].any()
    assert captioned(np.zeros((240, 300, 3), np.uint8), ()).shape[1] == 300


def test_a_sheet_has_its_frames_in_order(explanation):
    rows = explained_rows(FRAMES, explanation)
    figure = sheet(rows, best_shares(explanation.scores[0], ["a", "b $", "c"], 2), heading="a $ heading " * 20)
    assert to_png(figure).startswith(b"\x89PNG")
    images = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert len(images) == 24
    assert all(np.array_equal(image, picture) for image, picture in zip(images, [p for r in rows for p in r.pictures]))


def test_best_shares_know_what_is_right():
    scores = torch.tensor([0.1, 0.7, 0.2])
    assert [guess[0::2] for guess in best_shares(scores, "abc", 2, true=[2])] == [("b", False), ("c", True)]
    assert best_shares(scores, "abc", 9)[0][2] is None
