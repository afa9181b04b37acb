"""What the processes of a lane do: everything that opens a video or a network.

Each function is given ``tell(done, total, note)`` and plain values, and gives plain values. ``serve`` runs them.
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:  # the server imports this file for its names and needs none of these
    from slowfast.datasets.sources import VideoInfo
    from slowfast.visualization.predictor import Predictor

Tell = Callable[[int, int, str], None]
Plain = dict[str, Any]

logger = logging.getLogger(__name__)

PLAYER_SIDE = 480  # pixels of the shorter side of what is made for the player
PICTURE_SIDE = 208  # pixels of the longer side of a small picture
MAX_PIXELS = 8192 * 4320  # of a frame
MAX_WINDOWS = 600
WHOLE_WINDOW_S = 4.0  # for networks that look at a whole video, whatever its length
TOP = 5  # classes of each window that are kept
MAP_SIDE = 36  # cells of the shorter side of a map that is laid over the player


# ---------------------------------------------------------------- about a video


def facts(path: str, *, max_seconds: float | None = None) -> tuple[VideoInfo, Plain]:
    """What is known of a video before it is decoded; ``ValueError`` where it is too long or its frames too large."""
    from slowfast.datasets.sources import open_source
    from slowfast.visualization.video_io import frame_times, video_length

    info = open_source(path).info
    fps = info.fps or 30.0
    length_s = video_length(frame_times(info, fps), fps)
    if max_seconds is not None and length_s > max_seconds:
        raise ValueError(f"{length_s:.0f} s long, at most {max_seconds:g} s are taken (start with --max-seconds)")
    if info.width * info.height > MAX_PIXELS:
        raise ValueError(f"its frames of {info.width} x {info.height} pixels are too large")
    return info, {"frames": info.num_frames, "fps": round(fps, 3), "length_s": round(length_s, 4)}


def play(tell: Tell, *, path: str, target: str, max_seconds: float | None = None) -> Plain:
    """A file that every browser plays from time 0 on, with the size of its pictures: the video itself or ``target``."""
    from slowfast.datasets.encode import Settings, prepare_video
    from slowfast.datasets.prepare_plan import Video
    from slowfast.datasets.sources import DecodeError, VideoFile
    from slowfast.visualization.video_io import VideoWriter, all_frames

    info, known = facts(path, max_seconds=max_seconds)
    if plays_as_it_is(path):
        return known | {"file": path, "width": info.width, "height": info.height}
    tell(0, 0, "making it playable")
    if os.path.isdir(path):
        with VideoWriter(target, fps=known["fps"]) as writer:
            for done, (time, frame) in enumerate(all_frames(path, known["fps"])):
                writer.write(frame, time)
                tell(done, info.num_frames, "making it playable")
    else:
        folder, name = os.path.split(target)
        for keep_audio in (True, False):  # sound that cannot be taken over is no reason to show nothing
            settings = Settings(short_side=PLAYER_SIDE, preset="veryfast", keep_audio=keep_audio)
            outcome = prepare_video(Video(path, name), folder, settings)
            if not outcome.reason:
                break
        else:
            raise DecodeError(path, outcome.reason)
        known["note"] = outcome.note
    made = VideoFile(target).info
    return known | {"file": target, "width": made.width, "height": made.height}


def plays_as_it_is(path: str) -> bool:
    """Whether any browser plays the file, and its clock starts at the first frame: H.264 in an mp4, upright."""
    import av

    if os.path.isdir(path):
        return False
    with av.open(path, metadata_errors="replace") as container:
        stream = container.streams.best("video")
        if "mp4" not in container.format.name or stream.codec_context is None or container.streams.video[0] != stream:
            return False
        plain = stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        if not plain or stream.start_time:
            return False
        frame = next(container.decode(stream), None)
    return frame is not None and not frame.rotation


def picture(tell: Tell, *, path: str, target: str, frame: int | None = None) -> Plain:
    """A small JPEG of one frame, the middle one unless it is said which."""
    from PIL import Image

    from slowfast.datasets.sources import open_source

    facts(path)
    source = open_source(path, short_side=PICTURE_SIDE)
    image = Image.fromarray(source.read([source.info.num_frames // 2 if frame is None else frame])[0].numpy())
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    image.save(target, format="jpeg", quality=85)
    return {"file": target}


# ---------------------------------------------------------------- what a network sees


@functools.lru_cache(maxsize=2)
def load_predictor(config: str, checkpoint: str, folder: str, device: str | None, state: tuple = ()) -> Predictor:
    """The network of a run; ``checkpoint`` may be empty: then the one that the configuration names is taken.

    With another ``state`` it is read again: somebody has written to the files.
    """
    from slowfast.visualization.predictor import Predictor

    return Predictor.from_checkpoint(config, checkpoint, opts=["NUM_GPUS", 0, "OUTPUT_DIR", folder], device=device)


def _windows(predictor: Predictor, path: str, window_s: float | None, stride_s: float | None) -> tuple[Plain, int]:
    """Length and stride of the windows as options, and how many there are: at most ``MAX_WINDOWS``."""
    from slowfast.visualization.video_io import sliding_windows

    info, known = facts(path)
    if window_s is None:
        window_s = min(predictor.clip_length(info) or WHOLE_WINDOW_S, known["length_s"])
    room = max(known["length_s"] - window_s, 0.0)
    stride_s = max(stride_s or window_s / 4, room / (MAX_WINDOWS - 1), 1e-3)
    options = {"window_s": window_s, "stride_s": stride_s}
    return options, len(sliding_windows(known["length_s"], window_s, stride_s))


def predict(
    tell: Tell,
    *,
    run: Plain,
    path: str,
    window_s: float | None = None,
    stride_s: float | None = None,
    max_seconds: float | None = None,
) -> Plain:
    """Scores over time: of each window those of all classes that are among the best of any window."""
    import torch

    from slowfast.visualization.timeline import moments

    facts(path, max_seconds=max_seconds)
    tell(0, 0, "loading the network")
    predictor = load_predictor(**run)
    options, total = _windows(predictor, path, window_s, stride_s)
    windows = []
    tell(0, total, "looking")
    for window in predictor.predict_windows(path, **options):
        windows.append(window)
        tell(len(windows), total, "looking")
    scores = torch.stack([window.scores for window in windows])  # [W, K]
    whole = predictor.merged(path, windows)
    kept = scores.topk(min(TOP, scores.shape[1])).indices.flatten().unique().tolist()
    kept = sorted({*kept, *(guess.index for guess in whole.top(TOP))}, key=lambda k: -float(whole.scores[k]))
    return {
        **{name: round(value, 4) for name, value in options.items()},
        "length_s": round(windows[-1].end_s, 4),
        "edges": [round(edge, 4) for edge in moments(windows)],
        "spans": [[round(window.start_s, 4), round(window.end_s, 4)] for window in windows],
        "classes": [{"index": k, "name": predictor.class_names[k]} for k in kept],
        "scores": [[round(value, 5) for value in row] for row in scores[:, kept].tolist()],
        "whole": [round(float(whole.scores[k]), 5) for k in kept],
        "num_classes": len(predictor.class_names),
    }


def explain(
    tell: Tell,
    *,
    run: Plain,
    path: str,
    target: int | None = None,
    window_s: float | None = None,
    stride_s: float | None = None,
    max_seconds: float | None = None,
) -> Plain:
    """Where the network looked, per pathway and window, as maps over the whole frame.

    ``target`` is the class asked about, None the best of each clip. Where crops overlap, their maps are averaged.
    """
    from slowfast.visualization.gradcam import explain as maps_of

    facts(path, max_seconds=max_seconds)
    tell(0, 0, "loading the network")
    predictor = load_predictor(**run)
    options, total = _windows(predictor, path, window_s, stride_s)
    found = []
    tell(0, total, "looking back")
    for span, views in predictor.window_views(path, **options):
        seen = [(view, maps_of(predictor.network, view.clip[None].to(predictor.device), target)) for view in views]
        found.append({"span": [round(side, 4) for side in span], "maps": _laid_out(seen)})
        tell(len(found), total, "looking back")
    return {"windows": found, "pathways": sorted({name for window in found for name in window["maps"]})}


def _laid_out(seen: list) -> Plain:
    """Maps of the views of a window as one grid per slice, in 0..255 and base64, at the slices' times.

    Two slices within a hundredth of a second are taken for one moment. Where crops overlap, one counts the less the
    nearer its edge is, so that no edge is seen.
    """
    import numpy as np
    from torch.nn import functional as F

    rows, columns = grid_size(seen[0][0])
    laid = {}
    for name in seen[0][1].maps:
        sums: dict[float, np.ndarray] = {}
        counts: dict[float, np.ndarray] = {}  # sums of weights
        for view, explanation in seen:
            top, left, bottom, right = (
                round(side * cells) for side, cells in zip(view.part, (rows, columns, rows, columns))
            )
            maps = explanation.maps[name][0].detach().float().cpu()  # [t, H, W]
            small = F.adaptive_avg_pool2d(maps[None], (max(bottom - top, 1), max(right - left, 1)))[0].numpy()
            frames = explanation.frames[name]
            for grid, frame in zip(small, frames):
                time = round(float(view.times_s[frame]), 2)
                where = (slice(top, top + grid.shape[0]), slice(left, left + grid.shape[1]))
                weights = _towards_the_middle(grid.shape)
                for store, value in ((sums, grid * weights), (counts, weights)):
                    store.setdefault(time, np.zeros((rows, columns), dtype=np.float32))[where] += value
        times = sorted(sums)
        grids = np.stack([sums[time] / np.maximum(counts[time], 1e-6) for time in times])
        data = np.round(255 * grids.clip(0, 1)).astype(np.uint8)
        laid[name] = {
            "times": times,
            "rows": rows,
            "columns": columns,
            "data": base64.b64encode(data.tobytes()).decode(),
        }
    return laid


def _towards_the_middle(shape: tuple[int, int]):
    """Weights [H, W] that grow from an edge to the middle."""
    import numpy as np

    sides = [np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)) / size for size in shape]
    return np.outer(*sides).astype(np.float32)


def grid_size(view) -> tuple[int, int]:
    """(rows, columns) of about square cells, ``MAP_SIDE`` along the shorter side of the frame that ``view`` is of."""
    top, left, bottom, right = view.part
    height, width = view.clip.shape[-2] / (bottom - top), view.clip.shape[-1] / (right - left)
    scale = MAP_SIDE / min(height, width)
    return round(height * scale), round(width * scale)


# ---------------------------------------------------------------- the process


def warm(tell: Tell, *, network: bool) -> Plain:
    """Import what takes seconds, so that the first video need not wait for it."""
    from slowfast.datasets import encode  # noqa: F401

    if network:
        from slowfast.visualization import gradcam, predictor  # noqa: F401
    return {}


FUNCTIONS = {function.__name__: function for function in (play, picture, predict, explain, warm)}


def serve(connection: Connection) -> None:
    """Do what is asked for over ``connection`` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the server's to handle
    logging.basicConfig(level=logging.ERROR)
    # NOTE: its own lock is one between processes, which stays behind when this one is ended at its work.
    tqdm.set_lock(threading.RLock())

    def tell(*progress: Any) -> None:
        connection.send(("progress", progress))

    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = ("done", FUNCTIONS[name](tell, **arguments))
        except (BrokenPipeError, ConnectionError):
            return  # the server is gone
        except Exception as error:  # whatever it is, it is the matter of this one video
            answer = ("failed", describe_error(error))
        try:
            connection.send(answer)
        except OSError:
            return


def describe_error(error: Exception) -> str:
    """What went wrong, for the page."""
    sources = sys.modules.get("slowfast.datasets.sources")  # only who has it can have its errors
    if sources is not None and isinstance(error, sources.DecodeError):
        return error.reason or "it cannot be read"
    if isinstance(error, KeyError):
        return str(error.args[0]) if error.args else "KeyError"
    if isinstance(error, ValueError | OSError):
        return str(error)
    logger.error("unexpected", exc_info=error)
    return f"{type(error).__name__}: {error}"
