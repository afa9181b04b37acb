"""Pictures of what a masked network saw of a clip, and what it made of the rest."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

GAP = 4  # pixels between frames


def to_pixels(clip: Tensor, mean: Sequence[float], std: Sequence[float], *, reverse_channels: bool = False) -> Tensor:
    """A normalised clip [C, T, H, W] -> 8-bit RGB [T, H, W, C]."""
    clip = clip.flip(0) if reverse_channels else clip
    mean, std = (torch.as_tensor(values, device=clip.device)[:, None, None, None] for values in (mean, std))
    return ((clip * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0)


def contact_sheet(rows: Sequence[Tensor]) -> Tensor:
    """Clips [T, H, W, 3] of one size as rows of frames on white: uint8 [height, width, 3]."""
    frames, height, width, _ = rows[0].shape
    sheet = torch.full((len(rows) * (height + GAP) - GAP, frames * (width + GAP) - GAP, 3), 255, dtype=torch.uint8)
    for row, clip in enumerate(rows):
        for column, frame in enumerate(clip.cpu()):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet[top : top + height, left : left + width] = frame
    return sheet


def write_reconstructions(
    network: nn.Module,
    batches: Iterable[Any],
    folder: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    reverse_channels: bool = False,
    count: int = 8,
) -> list[Path]:
    """A picture for each of the first ``count`` clips: the frames, what the network sees of them, what it predicts.

    Frames are those that are predicted (one of each token, unless the network predicts all). Masks that the network
    draws depend on nothing but the number of the batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.eval()
    paths: list[Path] = []
    devices = [device] if torch.device(device).type == "cuda" else []
    for number, batch in enumerate(batches):
        batch = batch.to(device)
        with torch.random.fork_rng(devices):
            torch.manual_seed(number)
            clips = network.reconstruct(batch.clips, batch.mask)
        for rows in zip(*clips, strict=True):
            pictures = [to_pixels(row, mean, std, reverse_channels=reverse_channels) for row in rows]
            paths.append(folder / f"{len(paths):03d}.png")
            Image.fromarray(contact_sheet(pictures).numpy()).save(paths[-1])
            if len(paths) == count:
                return paths
    return paths
