"""What is drawn where, and when: labels, boxes, and that nothing is drawn farther from a key frame."""

import av
import numpy as np
import pytest
import torch

from slowfast.visualization import drawing
from slowfast.visualization.box_predictor import BoxPrediction, GivenBoxes
from slowfast.visualization.drawing import (
    DrawStyle,
    Label,
    LabelRule,
    Overlay,
    Rectangle,
    draw,
    free_row,
    overlaid,
    overlays_of,
    timed,
)
from slowfast.visualization.live import LiveClip, Moment, Shot
from slowfast.visualization.predictor import ClipPrediction

NAMES = ["walk", "jump", "sit", "wave"]
GREY = np.full((300, 400, 3), 128, dtype=np.uint8)


def shots(count):
    picture = av.VideoFrame.from_ndarray(GREY, format="rgb24")
    return [Shot(index, index / 10, picture) for index in range(count)]


def boxed(key_s, box=(0.25, 0.5, 0.5, 0.9), scores=(0.9, 0.1, 0.5, 0.35), people=(1,)):
    return BoxPrediction(
        key_s - 0.4,
        key_s + 0.4,
        key_s,
        torch.tensor([box], dtype=torch.float64),
        torch.ones(1),
        torch.tensor([scores]),
        NAMES,
        people,
    )


def test_thresholds_of_common_and_other_classes():
    rule = LabelRule(common=0.7, uncommon=0.3, common_names=frozenset({"sit"}))
    scores = torch.tensor([0.9, 0.1, 0.5, 0.35])
    assert [NAMES[index] for index in rule.choose(scores, NAMES)] == ["walk", "wave"]
    assert rule.choose(torch.tensor([0.0, 0.0, 0.7, 0.0]), NAMES) == [2]
    assert LabelRule(top_k=3).choose(scores, NAMES) == [0, 2, 3]


def test_labels_say_score_and_name_and_have_the_colour_of_the_class():
    from matplotlib import colormaps

    style = DrawStyle(LabelRule(top_k=2), colormap="viridis")
    (overlay,) = overlays_of(boxed(1.0), style)
    assert [label.text for label in overlay.labels] == ["[0.90] walk", "[0.50] sit"]
    expected = tuple(round(255 * value) for value in colormaps["viridis"](2 / 4)[:3])
    assert overlay.labels[1].color == expected
    assert overlay.number == "1"
    whole = ClipPrediction(0, 1, torch.tensor([0.1, 0.8, 0.05, 0.05]), NAMES)
    (overlay,) = overlays_of(whole, style)
    assert overlay.outline is None
    assert overlay.labels[0].text == "[0.80] jump"


def test_people_have_colours_of_their_own_by_their_number():
    style = DrawStyle()
    first, again = (overlays_of(boxed(t, people=(3,)), style)[0].outline for t in (1.0, 2.0))
    assert first == again
    assert first != overlays_of(boxed(1.0, people=(4,)), style)[0].outline


def test_the_box_is_drawn_at_its_edges_and_fades():
    overlay = Overlay((0.25, 0.5, 0.5, 0.9), (), (255, 0, 0))
    whole = draw(GREY, [(overlay, 1.0)])
    assert whole[150, 150].tolist() == [255, 0, 0]  # top edge: row 0.5 * 299
    assert whole[200, 100].tolist() == [255, 0, 0]  # left edge: column 0.25 * 399
    changed = np.argwhere((whole != GREY).any(axis=2))
    assert changed.min(axis=0).tolist() == [150, 100]
    assert changed.max(axis=0).tolist() == [269, 200]
    assert not (whole[160:260, 110:190] != GREY[160:260, 110:190]).any()
    half = draw(GREY, [(overlay, 0.5)])
    assert half[150, 150].tolist() == pytest.approx([192, 64, 64], abs=2)
    assert (GREY == 128).all()


def test_labels_stand_above_the_box_or_within_where_there_is_no_room():
    label = Label("[0.90] walk", (200, 30, 30))
    above = draw(GREY, [(Overlay((0.25, 0.5, 0.5, 0.9), (label,), (0, 255, 0)), 1.0)])
    assert tuple(above[148, 104]) == pytest.approx(blend((200, 30, 30)), abs=2)
    assert (above[:100] == 128).all()
    within = draw(GREY, [(Overlay((0.25, 0.0, 0.5, 0.9), (label,), (0, 255, 0)), 1.0)])
    assert tuple(within[6, 104]) == pytest.approx(blend((200, 30, 30)), abs=2)
    right = draw(GREY, [(Overlay((0.9, 0.5, 1.0, 0.9), (label,), (0, 255, 0)), 1.0)])
    columns = np.flatnonzero((right[140] != 128).any(axis=1))
    assert columns.min() < 0.85 * 400  # begins before the box and ends with it
    assert columns.max() <= 399


def test_labels_of_neighbours_do_not_cover_each_other():
    red, blue = Label("[0.90] walk", (250, 0, 0)), Label("[0.80] jump", (0, 0, 250))
    boxes = [(0.25, 0.5, 0.5, 0.9), (0.3, 0.5, 0.55, 0.9)]
    overlays = [(Overlay(box, (label,), (0, 255, 0)), 1.0) for box, label in zip(boxes, (red, blue))]
    alone = [area(draw(GREY, [overlay]), label) for overlay, label in zip(overlays, (red, blue))]
    both = draw(GREY, overlays)
    assert [area(both, label) for label in (red, blue)] == alone
    same = draw(GREY, [overlays[0], (Overlay(boxes[0], (blue,), None), 1.0)])
    assert [area(same, label) for label in (red, blue)] == alone


def area(picture, label):
    """Pixels on which the colour of a label, red or blue, is the strongest."""
    first, *_, last = np.sort(picture.astype(int), axis=2).transpose(2, 0, 1)
    return int(((picture.argmax(axis=2) == np.argmax(label.color)) & (last - first > 40)).sum())


def test_the_nearest_free_row_is_found():
    wanted = Rectangle(10, 50, 60, 70)
    assert free_row(wanted, [], 100) == 50
    assert free_row(wanted, [Rectangle(60, 50, 90, 70)], 100) == 50  # beside it
    assert free_row(wanted, [Rectangle(0, 45, 20, 55)], 100) == 55
    assert free_row(wanted, [Rectangle(0, 45, 20, 55), Rectangle(30, 60, 40, 80)], 100) == 25
    assert free_row(wanted, [Rectangle(0, 10, 20, 55), Rectangle(30, 60, 40, 80)], 100) == 80
    assert free_row(wanted, [Rectangle(0, 10, 20, 55), Rectangle(30, 60, 40, 90)], 100) == 50  # nowhere


def blend(color, weight=1.0):
    opacity = drawing.GROUND * weight
    return [opacity * value + (1 - opacity) * 128 for value in color]


def test_every_frame_comes_once_and_only_those_near_a_key_frame_are_drawn_on():
    frames = shots(40)
    found = [
        (LiveClip(Moment(0, 2, 1), key=frames[10], fresh=frames[:20]), boxed(1.0)),
        (LiveClip(None, fresh=frames[20:22]), None),
        (LiveClip(Moment(2, 4, 3), key=frames[30], fresh=frames[22:]), boxed(3.0)),
    ]
    drawn = list(overlaid(iter(found), DrawStyle(reach=3), fps=10))
    assert [frame.shot.index for frame in drawn] == list(range(40))
    weights = {frame.shot.index: frame.overlays[0][1] for frame in drawn if frame.overlays}
    assert weights == pytest.approx(
        {7: 0.25, 8: 0.5, 9: 0.75, 10: 1, 11: 0.75, 12: 0.5, 13: 0.25}
        | {27: 0.25, 28: 0.5, 29: 0.75, 30: 1, 31: 0.75, 32: 0.5, 33: 0.25}
    )
    changed = [bool((frame.picture() != GREY).any()) for frame in drawn]
    assert np.flatnonzero(changed).tolist() == sorted(weights)


def test_between_two_key_frames_the_nearer_one_is_drawn():
    frames = shots(20)
    found = [
        (LiveClip(Moment(0, 1, 0.5), key=frames[5], fresh=frames[:10]), boxed(0.5, people=(1,))),
        (LiveClip(Moment(0.5, 1.5, 1.0), key=frames[10], fresh=frames[10:]), boxed(1.0, people=(2,))),
    ]
    drawn = list(overlaid(iter(found), DrawStyle(reach=10), fps=10))
    assert [frame.overlays[0][0].number for frame in drawn] == ["1"] * 8 + ["2"] * 12


def test_true_boxes_are_drawn_around_their_own_key_frames_with_or_without_predictions():
    truth = [GivenBoxes(1.0, torch.tensor([[0.1, 0.1, 0.4, 0.6]], dtype=torch.float64), torch.ones(1), [[2, 1]])]
    frames = shots(20)
    drawn = list(
        overlaid([(LiveClip(None, fresh=frames), None)], DrawStyle(reach=1), fps=10, truth=truth, class_names=NAMES)
    )
    near = [frame for frame in drawn if frame.overlays]
    assert [frame.shot.index for frame in near] == [9, 10, 11]
    assert [label.text for label in near[0].overlays[0][0].labels] == ["[GT] walk", "[GT] jump"]
    picture = near[1].picture()
    row = picture[round(0.6 * 299)]
    assert (row == np.array(drawing.TRUTH)).all(axis=1).sum() > 40  # dashes
    assert (row == 128).all(axis=1).sum() > 280


def test_small_pictures_grow_by_a_whole_number():
    small = np.zeros((64, 96, 3), dtype=np.uint8)
    assert drawing.enlarged(small).shape == (512, 768, 3)
    assert drawing.enlarged(GREY) is GREY


def test_slow_motion_repeats_what_is_near_a_key_frame():
    frames = shots(6)
    near = [(Overlay((0, 0, 1, 1), ()), 1.0)]
    drawn = [(drawing.Drawn(shot, near if shot.index in (2, 3) else []), GREY) for shot in frames]
    times = [time for time, _ in timed(iter(drawn), fps=10, slow_motion=3)]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert [time for time, _ in timed(iter(drawn), fps=10, output_fps=20)] == pytest.approx(np.arange(6) / 20)
    with pytest.raises(ValueError, match=r"DEMO\.SLOWMO=0"):
        list(timed(iter(drawn), fps=10, slow_motion=0))


def test_unknown_colormap_is_said():
    with pytest.raises(ValueError, match=r"TENSORBOARD\.MODEL_VIS\.COLORMAP='rainbowish'"):
        DrawStyle(colormap="rainbowish")
