"""A folder as a job leaves it, with small real videos, for tests of what reads such folders."""

import csv
import json
import math
from pathlib import Path

import av
import numpy as np

CLASSES = ["move left", "move right", "zoom in", "zoom out", "turn <clockwise>", "turn & back", "swing", "bounce"]


def write_video(path: Path, *, frames: int = 12, side: int = 48) -> None:
    """An mp4 whose frame ``i`` is grey of value ``10 + 10 i``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for index in range(frames):
            picture = np.full((side, side, 3), 10 + 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def read_grey_frames(path: str, count: int) -> list[np.ndarray]:
    """``count`` evenly spread frames, without the package's own reader."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frames[int((part + 0.5) * len(frames) / count)] for part in range(count)]


def stats(**record) -> str:
    return "json_stats: " + json.dumps(record, sort_keys=True)


def write_training(folder: Path, *, epochs: int = 6, steps: int = 20, first: int = 1) -> None:
    """Lines of a training: iterations in stdout.log, epochs in both logs."""
    kept, all_lines = [], []
    for epoch in range(first, epochs + 1):
        place = f"{epoch}/{epochs}"
        for step in range(5, steps + 1, 5):
            done = epoch - 1 + step / steps
            loss = 2.1 * math.exp(-done / 2) + 0.1 * math.sin(9 * done)
            record = {"dt": 0.5, "dt_data": 0.1, "loss": round(loss, 5), "lr": round(0.1 * (1 - done / epochs), 5)}
            errors = {"top1_err": 87.5 * math.exp(-done / 2), "top5_err": 30 * math.exp(-done)}
            all_lines.append(stats(_type="train_iter_", epoch=place, iter=f"{step}/{steps}", **record, **errors))
        errors = {"top1_err": round(87.5 * math.exp(-epoch / 2), 5), "top5_err": round(30 * math.exp(-epoch), 5)}
        kept.append(stats(_type="train_epoch", epoch=place, dt=0.5, loss=2.1 * math.exp(-epoch / 2), lr=0.01, **errors))
        kept.append(stats(_type="val_epoch", epoch=place, time_diff=2.0, min_top1_err=errors["top1_err"], **errors))
        all_lines += kept[-2:]
    all_lines.append("SlowFast: 31.700 M parameters, 6.400 GFLOPs for 16 frames of 112 px")
    with (folder / "json_stats.log").open("a") as file:
        file.writelines(line + "\n" for line in kept)
    with (folder / "stdout.log").open("a") as file:
        file.writelines(f"[11/23 12:00:00][INFO] stats.py:  120: {line}\n" for line in all_lines)


def write_test(folder: Path, *, clips: int, crops: int, right: set[int], num_videos: int = 24) -> None:
    """A per-video file: video ``i`` is of class ``i % 8``; those not in ``right`` are taken for the next class.

    All other classes share the rest equally, so the true class of a mistake is among the best five if it is below 4.
    """
    views = clips * crops
    rows = []
    for index in range(num_videos):
        label = index % len(CLASSES)
        answer = label if index in right else (label + 1) % len(CLASSES)
        share = 0.5 + 0.4 * index / num_videos
        scores = np.full(len(CLASSES), (1 - share) / (len(CLASSES) - 1))
        scores[answer] = share
        scores *= views
        top = sorted(enumerate(scores.tolist()), key=lambda pair: -pair[1])[:5]
        path = str(folder / "videos" / f"video_{index:02d}.mp4")
        rows.append({"path": path, "label": label, "views": views, "top": top, "scores": scores.tolist()})
    rows.append({"path": str(folder / "videos" / "damaged.mp4"), "skipped": True})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"test_{clips}x{crops}.jsonl").write_text(text)


def write_multi_label_test(folder: Path) -> None:
    """Three classes of which a video may have several.

    Class 0 is ranked perfectly (average precision 100 %), class 1 has its positives at ranks 1 and 4 (75 %), class 2
    has its one positive at rank 2 (50 %).
    """
    scores = [[0.9, 0.8, 0.7], [0.8, 0.7, 0.9], [0.2, 0.6, 0.1], [0.1, 0.5, 0.2]]
    labels = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    with (folder / "test_1x1.jsonl").open("w") as file:
        for index, (row, label) in enumerate(zip(scores, labels, strict=True)):
            top = sorted(enumerate(row), key=lambda pair: -pair[1])
            classes = [k for k, value in enumerate(label) if value]
            result = {"path": f"missing_{index}.mp4", "label": classes, "views": 1, "top": top, "scores": row}
            file.write(json.dumps(result) + "\n")


def write_config(folder: Path) -> None:
    """``config.yaml`` of a small run; class names lie beside the lists of the data."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    (data / "class_names.json").write_text(json.dumps({name: index for index, name in enumerate(CLASSES)}))
    lines = [
        f"OUTPUT_DIR: {folder}",
        "MODEL:",
        f"  NUM_CLASSES: {len(CLASSES)}",
        "DATA:",
        f"  PATH_TO_DATA_DIR: {data}",
        "  NUM_FRAMES: 16",
        "SOLVER:",
        "  MAX_EPOCH: 6",
    ]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")


def write_job(folder: Path) -> Path:
    """Everything: training, two tests, a missing and a damaged video, and the list of bad ones."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder)
    write_training(folder)
    write_test(folder, clips=1, crops=1, right=set(range(16)))
    write_test(folder, clips=3, crops=3, right=set(range(20)))
    for index in range(24):
        write_video(folder / "videos" / f"video_{index:02d}.mp4")
    (folder / "videos" / "video_23.mp4").unlink()  # the most confident mistake
    (folder / "videos" / "video_22.mp4").write_bytes(b"not a video")
    with (folder / "bad_videos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "epoch", "path", "reason", "times"])
        writer.writerow(["train", 2, "/data/<odd> name.mp4", "no video stream", 3])
    return folder
