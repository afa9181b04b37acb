"""Frame mAP of 700,000 detections: this package against the plain loop that the rules describe.

    python benchmarks/ava_map.py [--annotations FOLDER] [--rounds 3]

Both sides get the same arrays, alternate on one core, and must give the same mAP to twelve digits. Detections are
true boxes moved by a tenth of their size, each scored for 80 classes. ``--annotations`` is a folder with the files of
AVA v2.1 (validation); without it, key frames and boxes are drawn at random in the same numbers. The table goes to
benchmarks/results/ava_map.md.
"""

import argparse
import gzip
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from slowfast.evaluation.ava import (
    Boxes,
    GroundTruth,
    Scored,
    average_precision,
    mean_ap,
    precision_recall,
    read_label_map,
)

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 80


def read_annotations(folder: Path) -> GroundTruth:
    """The real validation annotations."""
    names = read_label_map(str(folder / "ava_action_list_v2.1_for_activitynet_2018.pbtxt"))
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "truth.csv"
        plain.write_bytes(gzip.decompress((folder / "ava_val_v2.1.csv.gz").read_bytes()))
        return GroundTruth.read(str(plain), names, str(folder / "ava_val_excluded_timestamps_v2.1.csv"))


def draw_annotations(rng: np.random.Generator) -> GroundTruth:
    """As many key frames and boxes as the real ones have."""
    frames, people = 6470, 10800
    corner = rng.uniform(0, 0.6, (people, 2))
    box = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (people, 2))], axis=1)
    image = np.concatenate([np.arange(frames), rng.integers(0, frames, people - frames)])
    person = np.repeat(np.arange(people), rng.integers(1, 5, people))
    boxes = Boxes(image[person], box[person], rng.integers(1, CLASSES + 1, len(person)))
    keys = [(f"video{row // 900}", 902.0 + row % 900) for row in range(frames)]
    return GroundTruth(keys, boxes, {id: str(id) for id in range(1, CLASSES + 1)})


def make_detections(truth: GroundTruth, count: int, rng: np.random.Generator) -> Scored:
    """``count`` detections (boxes times classes): every person of the truth, moved, until there are enough."""
    people = np.unique(np.column_stack([truth.boxes.images, truth.boxes.corners]), axis=0)
    rows = np.arange(-(-count // CLASSES)) % len(people)
    rows = rows[np.argsort(people[rows, 0], kind="stable")]
    images, corners = people[rows, 0].astype(np.int64), people[rows, 1:]
    size = np.tile(corners[:, 2:] - corners[:, :2], 2)
    return Scored(images, corners + rng.normal(0, 0.1, corners.shape) * size, rng.random((len(rows), CLASSES)))


def loop_map(truth: GroundTruth, found: Scored) -> float:
    """The rules as they are told: image by image, class by class, detection by detection."""
    true_boxes, detections, totals = defaultdict(list), defaultdict(list), defaultdict(int)
    for image, box, class_id in zip(*truth.boxes):
        true_boxes[image, class_id].append(box)
        totals[class_id] += 1
    for image, box, scores in zip(*found):
        for class_id in truth.class_names:
            if box[2] > box[0] and box[3] > box[1]:
                detections[image, class_id].append((box, scores[class_id - 1]))
    scores_of, right_of = defaultdict(list), defaultdict(list)
    for (image, class_id), rows in detections.items():
        boxes = np.array(true_boxes.get((image, class_id), [])).reshape(-1, 4)
        taken = np.zeros(len(boxes), dtype=bool)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for box, score in rows:
            right = False
            if len(boxes):
                width = np.maximum(np.minimum(boxes[:, 2], box[2]) - np.maximum(boxes[:, 0], box[0]), 0)
                height = np.maximum(np.minimum(boxes[:, 3], box[3]) - np.maximum(boxes[:, 1], box[1]), 0)
                shared = width * height
                overlap = shared / (areas + (box[2] - box[0]) * (box[3] - box[1]) - shared)
                best = int(overlap.argmax())
                right = bool(overlap[best] >= 0.5 and not taken[best])
                taken[best] |= right
            scores_of[class_id].append(score)
            right_of[class_id].append(right)
    values = [
        average_precision(*precision_recall(np.array(scores_of[id]), np.array(right_of[id]), totals[id]))
        for id in truth.class_names
        if totals[id]
    ]
    return float(np.mean(values))


def our_map(truth: GroundTruth, found: Scored) -> float:
    """The same by this package."""
    return mean_ap(truth.compare(truth.key_frames, found))


def measure(name: str, truth: GroundTruth, count: int, rounds: int, rng: np.random.Generator) -> str:
    """One line of the table: medians of processor time over alternating rounds."""
    found = make_detections(truth, count, rng)
    times, values = {our_map: [], loop_map: []}, {}
    for _ in range(rounds):
        for side in times:
            start = time.process_time()
            values[side] = side(truth, found)
            times[side].append(time.process_time() - start)
    if abs(values[our_map] - values[loop_map]) > 1e-12:
        raise SystemExit(f"{name}: the two sides differ: {values[our_map]!r} and {values[loop_map]!r}")
    ours, loop = (statistics.median(times[side]) for side in times)
    number = len(found.images) * CLASSES
    judged = len(truth.class_names)
    value, ratio = 100 * values[our_map], loop / ours
    line = f"| {name} | {number:,} | {judged} | {value:.3f} | {ours:.2f} | {loop:.1f} | {ratio:.0f}x |"
    print(line, flush=True)
    return line


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, help="folder with the AVA v2.1 validation files")
    parser.add_argument("--detections", type=int, default=700_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks" / "results" / "ava_map.md")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    rng = np.random.default_rng(0)
    heads = ["key frames and boxes", "detections", "classes judged", "mAP, %", "ours, s", "loop, s", "ratio"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    print("\n".join(lines), flush=True)
    lines.append(measure("drawn", draw_annotations(rng), args.detections, args.rounds, rng))
    if args.annotations:
        truth = read_annotations(args.annotations)
        lines.append(measure("AVA v2.1 validation", truth, args.detections, args.rounds, rng))
    text = "\n".join(lines)
    note = (
        "`python benchmarks/ava_map.py --annotations <folder of AVA v2.1>`: seconds of processor time on one core, "
        f"median of {args.rounds} alternating rounds. Both sides give the same mAP to twelve digits."
    )
    args.table.write_text(f"# Frame mAP, vectorised\n\n{note}\n\n{text}\n")


if __name__ == "__main__":
    main()
