"""A telephone's video: stored on its side, with a header that says how it is meant to be seen."""

import io
from pathlib import Path

import av
import numpy as np


def write_turned_video(path: Path, frames: int = 4) -> Path:
    """Frames of 64 x 48 pixels, red at the left edge, and a header that asks for a quarter of a turn clockwise.

    Its matrix is put in by hand.
    """
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :8] = (255, 0, 0)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv444p"
        for _ in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
    data = stream.getvalue()
    one, unit = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    upright = one + bytes(12) + one + bytes(12) + unit
    quarter = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(16) + unit
    place = data.index(b"tkhd") + 4
    place = data.index(upright, place)
    path.write_bytes(data[:place] + quarter + data[place + 36 :])
    return path
