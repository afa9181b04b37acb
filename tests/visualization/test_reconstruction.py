"""Pictures of what a masked network saw and predicted."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn

from slowfast.visualization.reconstruction import GAP, contact_sheet, to_pixels, write_reconstructions


def test_pixels_are_those_before_normalisation():
    frames = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    mean, std = (0.45, 0.4, 0.5), (0.2, 0.25, 0.3)
    clip = (frames / 255 - torch.tensor(mean)) / torch.tensor(std)
    clip = clip.permute(3, 0, 1, 2)  # [T, H, W, C] -> [C, T, H, W]
    assert torch.equal(to_pixels(clip, mean, std), frames)
    assert torch.equal(to_pixels(clip.flip(0), mean, std, reverse_channels=True), frames)
    assert to_pixels(clip * 100, mean, std).max() == 255


def test_sheet_has_a_row_for_each_clip():
    rows = [torch.full((2, 4, 6, 3), value, dtype=torch.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(rows)
    assert sheet.shape == (3 * 4 + 2 * GAP, 2 * 6 + GAP, 3)
    assert [sheet[row * (4 + GAP), 0, 0].item() for row in range(3)] == [10, 20, 30]
    assert sheet[4, 0, 0] == sheet[0, 6, 0] == 255


class Half(nn.Module):
    """Hides the left half of each frame and predicts a constant there."""

    def reconstruct(self, clips, mask):
        seen, whole = clips.clone(), clips.clone()
        seen[..., : clips.shape[-1] // 2] = 0.0
        whole[..., : clips.shape[-1] // 2] = mask.float().mean() + torch.rand(())
        return clips, seen, whole


class Given(SimpleNamespace):
    def to(self, device):
        return self


def test_the_first_clips_are_drawn_the_same_way_each_time(tmp_path):
    batches = [Given(clips=torch.ones(2, 3, 2, 8, 8), mask=torch.zeros(1)) for _ in range(3)]
    colours = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    paths = write_reconstructions(Half(), batches, tmp_path / "a", count=3, **colours)
    assert [path.name for path in paths] == ["000.png", "001.png", "002.png"]
    torch.rand(5)
    again = write_reconstructions(Half(), batches, tmp_path / "b", count=10, **colours)
    assert len(again) == 6
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(paths, again, strict=False))
    picture = np.asarray(Image.open(paths[0]))
    assert picture.shape == (3 * 8 + 2 * GAP, 2 * 8 + GAP, 3)
    assert picture[0, 0, 0] == picture[8 + GAP, 7, 0] == 191  # 0.75, where nothing is hidden
    assert picture[8 + GAP, 0, 0] == 128  # the mean, where hidden
