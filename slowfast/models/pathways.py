"""From one clip tensor to the frames that each pathway sees."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
@lru_cache(maxsize=64)
def slow_indices(num_frames: int, alpha: int) -> tuple[int, ...]:
    """Frames of the Slow pathway: ``num_frames // alpha`` even positions from the first to the last frame.

    NOTE: computed in float32 on the CPU and truncated; the rounding of ``linspace`` may differ on other devices.
    """
    if alpha < 1 or num_frames % alpha:
        raise ValueError(
            f"DATA.NUM_FRAMES={num_frames} is not a multiple of SLOWFAST.ALPHA={alpha}: the Slow pathway would be "
            "uneven; change one of them"
        )
    positions = torch.linspace(0, num_frames - 1, num_frames // alpha, dtype=torch.float32, device="cpu")
    return tuple(positions.long().tolist())


def cut_pathways(clip: Tensor, alpha: int) -> list[Tensor]:
    """[B, C, T, H, W] -> [slow [B, C, T / alpha, H, W], fast = the clip itself]."""
    index = torch.tensor(slow_indices(clip.shape[2], alpha), device=clip.device)
    return [clip.index_select(2, index), clip]


def as_pathways(clips: Tensor | Sequence[Tensor], num_pathways: int, alpha: int = 1) -> list[Tensor]:
    """The list of pathway inputs: a tensor is cut, a list is used as it is. Images [B, C, H, W] get T = 1."""
    if isinstance(clips, Tensor):
        if clips.ndim == 4:
            clips = clips.unsqueeze(2)  # [B, C, H, W] -> [B, C, 1, H, W]
        pathways = [clips] if num_pathways == 1 else cut_pathways(clips, alpha)
    else:
        pathways = [clip.unsqueeze(2) if clip.ndim == 4 else clip for clip in clips]
    if len(pathways) != num_pathways:
        raise ValueError(f"the model has {num_pathways} pathway(s) but was given {len(pathways)} inputs")
    return pathways
