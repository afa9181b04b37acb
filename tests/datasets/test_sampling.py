from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from slowfast.datasets.sampling import (
    ClipSpec,
    Timeline,
    View,
    centered_indices,
    choose_by_count,
    choose_by_span,
    choose_by_stride,
    clip_indices,
    clip_span,
    clip_start,
    segment_indices,
    spaced_clips,
    span_range,
    stride_range,
    strided_indices,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def timeline(num_frames, fps=30.0, ticks=512, **more):
    values = {"duration": num_frames * ticks, "header_frames": num_frames} | more
    pts = values.pop("pts", np.arange(num_frames) * ticks)
    return Timeline(pts, fps, fps, Fraction(1, round(fps * ticks)), **values)


def test_span_follows_the_rate_of_the_video():
    spec = ClipSpec(num_frames=8, stride=8, fps=30)
    assert clip_span(spec, 30) == 64
    assert clip_span(spec, 15) == 32
    assert clip_span(ClipSpec(1, 1, 30), 10) == 1  # never below one frame


# ---------------------------------------------------------------- golden tables


def test_uniform_clips_start_where_the_golden_table_says(golden_sampling):
    for total, span, clip, num_clips, use_offset, start, end, _ in golden_sampling("start_end"):
        found = clip_start(total, span, View(clip, num_clips, 0, 1), use_offset=use_offset)
        assert (found, found + span - 1) == (pytest.approx(start, abs=1e-9), pytest.approx(end, abs=1e-9))


def test_indices_equal_the_golden_table(golden_sampling):
    for total, start, end, num_frames, indices in golden_sampling("temporal_sampling"):
        assert clip_indices(start, end - start + 1, num_frames, total).tolist() == indices


def test_clips_placed_by_counting_equal_the_golden_table(golden_sampling):
    for fps, total, num_frames, stride, num_clips, clip, use_offset, span, start, end, indices in golden_sampling(
        "decode_all"
    ):
        spec = ClipSpec(num_frames, stride, 30)
        choice = choose_by_count(spec, fps, total, View(clip, num_clips, 0, 1), use_offset=use_offset)
        assert clip_span(spec, fps) == pytest.approx(span, abs=1e-9)
        assert (choice.start, choice.end) == (pytest.approx(start, abs=1e-9), pytest.approx(end, abs=1e-9))
        assert choice.indices.tolist() == indices


def test_strided_clips_equal_the_golden_table(golden_sampling):
    for total, num_frames, stride, num_clips, num_crops, row, indices in golden_sampling("charades_test_seq"):
        assert strided_indices(total, num_frames, stride, View.of_row(row, num_clips, num_crops)).tolist() == indices


def test_middle_frames_of_segments_equal_the_golden_table(golden_sampling):
    for total, num_frames, indices in golden_sampling("ssv2_val_and_test_seq"):
        assert segment_indices(total, num_frames).tolist() == indices


def test_centred_clips_equal_the_golden_table(golden_sampling):
    for center, half, stride, total, indices in golden_sampling("ava_get_sequence"):
        assert centered_indices(center, 2 * half // stride, stride, total).tolist() == indices


RULES = {"torchvision": (choose_by_span, span_range), "pyav": (choose_by_stride, stride_range)}
SETTINGS = {  # num_frames, stride, clips, use_offset
    "MVITv2_S_16x4": (16, 4, 5, True),
    "X3D_S": (13, 6, 10, False),
    "SLOWFAST_8x8_R50": (32, 2, 10, False),
}


def golden_timeline(video):
    pts = video["pts"]
    if pts is None:
        steps = [step for step, count in video["runs"] for _ in range(count)]
        pts = np.cumsum([video["first"], *steps])
    return Timeline(
        np.array(pts),
        video["fps"],
        video["guessed_fps"],
        Fraction(*video["time_base"]),
        video["duration"],
        video["header_frames"],
    )


def test_frames_of_real_videos_are_chosen_as_recorded(golden_video_frames):
    for name, recorded in golden_video_frames["views"].items():
        setting, backend, file = name.split("|")
        num_frames, stride, num_clips, use_offset = SETTINGS[setting]
        choose, range_of = RULES[backend]
        spec, shown = ClipSpec(num_frames, stride, 30), golden_timeline(golden_video_frames["videos"][file])
        assert len(recorded) == num_clips
        for clip, (pts_range, _, chosen) in enumerate(recorded):
            view = View(clip, num_clips, 0, 1)
            found = range_of(spec, shown, view, None, use_offset)
            assert (list(found[1:]) if found else None) == (pts_range if pts_range[1] not in (None, -1) else None)
            assert choose(spec, shown, view, None, use_offset).indices.tolist() == chosen, (name, clip)


# ---------------------------------------------------------------- properties


def test_a_row_of_a_video_is_its_clip_and_crop():
    assert [View.of_row(row, 2, 3)[::2] for row in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_clip_needs_a_place():
    with pytest.raises(ValueError, match="view"):
        clip_start(100, 10)
    with pytest.raises(ValueError, match="view"):
        strided_indices(100, 4, 2)


def test_random_starts_fill_the_free_room():
    starts = [clip_start(300, 64, rng=rng(seed)) for seed in range(200)]
    assert min(starts) >= 0
    assert max(starts) <= 236
    assert max(starts) - min(starts) > 200
    assert clip_start(10, 64, rng=rng()) == 0


def test_short_video_repeats_last_frame():
    assert clip_indices(0, 8, 8, 3).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert choose_by_span(ClipSpec(4, 10, 30), timeline(3), View(0, 1, 0, 1)).indices.tolist()[-1] == 2


@pytest.mark.parametrize("choose", [choose_by_span, choose_by_stride])
@pytest.mark.parametrize("seed", range(5))
def test_random_clips_are_sorted_and_within_the_video(choose, seed):
    indices = choose(ClipSpec(8, 4, 30), timeline(100), rng=rng(seed)).indices
    assert indices.shape == (8,)
    assert (indices.diff() >= 0).all()
    assert indices.min() >= 0
    assert indices.max() < 100


@pytest.mark.parametrize("choose", [choose_by_span, choose_by_stride])
def test_a_video_without_duration_is_counted(choose):
    spec, view = ClipSpec(8, 4, 30), View(1, 3, 0, 1)
    counted = choose_by_count(spec, 30, 100, view)
    found = choose(spec, timeline(100, duration=None), view)
    assert found.indices.tolist() == counted.indices.tolist()


@pytest.mark.parametrize("choose", [choose_by_span, choose_by_stride])
def test_frames_shown_elsewhere_than_the_header_says_are_counted(choose):
    late = timeline(100, pts=np.arange(100) * 512 - 10**7)
    found = choose(ClipSpec(8, 4, 30), late, View(1, 3, 0, 1))
    assert found.indices.tolist() == choose_by_count(ClipSpec(8, 4, 30), 30, 100, View(1, 3, 0, 1)).indices.tolist()


def test_a_video_without_frame_count_uses_the_frames_that_are_there():
    spec, view = ClipSpec(8, 4, 30), View(1, 3, 0, 1)
    known, unknown = timeline(100), timeline(100, header_frames=0)
    assert (
        choose_by_stride(spec, unknown, view).indices.tolist() == choose_by_stride(spec, known, view).indices.tolist()
    )


def test_time_base_may_have_any_numerator():
    # One tick per frame at 30000 / 1001 frames per second: times and frame numbers are the same.
    fps = 30000 / 1001
    shown = Timeline(np.arange(100), fps, fps, Fraction(1001, 30000), 100, 100)
    choice = choose_by_span(ClipSpec(8, 4, 30), shown, View(1, 3, 0, 1))
    assert choice.start == pytest.approx((100 - 32 / 30 * fps) / 3)
    assert choice.indices.tolist() == [22, 26, 30, 35, 39, 44, 48, 52]


def test_spaced_clips_keep_their_distance():
    for seed in range(20):
        clips = spaced_clips(300, [20, 20, 20], 5, 60, rng(seed))
        gaps = [after[0] - before[1] for before, after in pairwise(clips)]
        assert all(5 <= gap <= 60 for gap in gaps)
        assert [end - start for start, end in clips] == pytest.approx([19, 19, 19])


def test_impossible_distances_give_the_best_that_can_be_had():
    clips = spaced_clips(50, [20, 20], 100, 200, rng())
    assert len(clips) == 2
    assert clips[1][0] - clips[0][1] > 0  # as far apart as a few draws get, though never 100


def test_one_clip_of_a_strided_video_lies_in_the_middle():
    assert strided_indices(101, 3, 10, View(0, 1, 0, 3)).tolist() == [40, 50, 60]


def test_random_strided_clips_stay_inside():
    for seed in range(20):
        indices = strided_indices(50, 8, 5, rng=rng(seed))
        assert indices.diff().tolist() == [5] * 7
        assert 0 <= indices[0] <= indices[-1] <= 49
    assert strided_indices(5, 8, 5, rng=rng()).max() <= 4


def test_random_segment_frames_stay_in_their_segment():
    draws = np.array([segment_indices(41, 4, rng(seed)).tolist() for seed in range(200)])
    assert draws.min(axis=0).tolist() == [0, 10, 20, 30]
    assert draws.max(axis=0).tolist() == [10, 20, 30, 40]


def test_centred_clip_has_all_its_frames():
    assert centered_indices(5, 1, 1, 10).tolist() == [5]
    assert centered_indices(5, 5, 1, 10).tolist() == [3, 4, 5, 6, 7]
