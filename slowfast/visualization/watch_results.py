"""What was found in a stream as plain values: lines of JSON, rows of a table, and who was there for how long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from slowfast.utils.tables import text_table
from slowfast.visualization.box_predictor import BoxPrediction
from slowfast.visualization.predictor import ClipPrediction, Guess, best_classes

BOX_COLUMNS = ("video", "second", "person", "x1", "y1", "x2", "y2", "rank", "class", "index", "score")


def line_of(prediction: BoxPrediction | ClipPrediction, top_k: int = 5) -> dict[str, Any]:
    """A prediction as plain values: times in seconds, boxes as fractions of the picture."""
    line: dict[str, Any] = {"start_s": round(prediction.start_s, 3), "end_s": round(prediction.end_s, 3)}
    if not isinstance(prediction, BoxPrediction):
        return {**line, "top": [plain(guess) for guess in prediction.top(top_k)]}
    found = zip(prediction.people, prediction.boxes.tolist(), prediction.box_scores.tolist())
    people = [
        {
            "person": person,
            "box": [round(side, 4) for side in box],
            "certainty": round(sure, 4),
            "top": [plain(guess) for guess in prediction.top(row, top_k)],
        }
        for row, (person, box, sure) in enumerate(found)
    ]
    return {**line, "second": round(prediction.key_s, 3), "people": people}


def plain(guess: Guess) -> dict[str, Any]:
    """A class and its score as plain values."""
    return {"class": guess.name, "index": guess.index, "score": round(guess.score, 5)}


def people_of(predictions: Sequence[BoxPrediction], top_k: int = 5) -> list[dict[str, Any]]:
    """Each person with the seconds of the first and last key frame, and the classes of the best mean scores."""
    seen: dict[int, list[tuple[float, torch.Tensor]]] = defaultdict(list)
    for prediction in predictions:
        for person, scores in zip(prediction.people, prediction.scores):
            seen[person].append((prediction.key_s, scores))
    return [
        {
            "person": person,
            "key_frames": len(moments),
            "from_s": round(moments[0][0], 3),
            "to_s": round(moments[-1][0], 3),
            "top": [
                plain(guess)
                for guess in best_classes(
                    torch.stack([scores for _, scores in moments]).mean(0), predictions[0].class_names, top_k
                )
            ],
        }
        for person, moments in sorted(seen.items())
    ]


def people_table(people: Sequence[dict[str, Any]], *, most: int, classes: int = 3) -> str:
    """Who is there from when to when, and what they do most."""
    does = [
        ", ".join(f"{guess['class']} {guess['score']:.2f}" for guess in item["top"][:classes]) for item in people[:most]
    ]
    width = max(map(len, does), default=0)  # columns of a table are flush right, text is not to be
    rows = [
        (str(item["person"]), f"{item['from_s']:.1f}", f"{item['to_s']:.1f}", text.ljust(width))
        for item, text in zip(people, does)
    ]
    return text_table(("person", "from s", "to s", "does"), rows)


def box_rows(video: str, lines: Sequence[dict[str, Any]]) -> Iterator[tuple]:
    """Rows of ``BOX_COLUMNS``, of lines of ``line_of``."""
    for line in lines:
        for person in line["people"]:
            for rank, guess in enumerate(person["top"], start=1):
                place = (video, line["second"], person["person"], *person["box"], rank)
                yield (*place, guess["class"], guess["index"], guess["score"])
