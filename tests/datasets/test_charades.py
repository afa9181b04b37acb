import pickle
import shutil

import numpy as np
import pytest
import torch

from slowfast.datasets import Request, build_dataset
from slowfast.datasets.charades import LabelledFrameRecords, StrideRule, label_table, union
from slowfast.datasets.frame_lists import HEADER, read_frame_lists
from slowfast.datasets.sampling import FrameChoice, View
from slowfast.datasets.sources import VideoInfo

LABELS = {"AAA": ["0"] * 10 + ["0,1"] * 5 + [""] * 15, "BBB": [""] * 8, "CCC": ["2"] * 12 + ["1"] * 12}


def frame_list(labels=LABELS):
    rows = [f"{HEADER[0]} video_id frame_id path labels"]
    for number, (video, frames) in enumerate(labels.items()):
        rows += [
            f'{video} {number} {frame} {video}/{video}-{frame + 1:06d}.png "{text}"'
            for frame, text in enumerate(frames)
        ]
    return "\n".join(rows) + "\n"


@pytest.fixture
def charades(tmp_path, make_frames):
    """Three videos of frames in folders, with labels per frame."""
    for number, (video, frames) in enumerate(LABELS.items()):
        make_frames(tmp_path / video, len(frames), offset=30 * number, name=video + "-{:06d}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text(frame_list())
    return tmp_path


@pytest.fixture
def multi_cfg(small_cfg):
    """``small_cfg`` with the options of several labels."""
    options = ["DATA.MULTI_LABEL", True, "DATA.ENSEMBLE_METHOD", "max"]
    return lambda folder, *opts: small_cfg(folder, *options, *opts)


def test_a_training_clip_has_the_labels_of_its_frames_and_those_between(charades, multi_cfg, clip_numbers):
    dataset = build_dataset("charades", multi_cfg(charades), "train")
    seen = set()
    for epoch in range(12):
        sample = dataset[Request(0, epoch)]
        numbers = clip_numbers(sample.clip)
        assert numbers == list(range(numbers[0], numbers[0] + 10, 3))  # 4 frames, stride 3
        first, last = numbers[0], numbers[-1]
        assert sample.label.tolist() == [float(first < 15), float(first < 15 and last >= 10), 0.0]
        seen.add(tuple(sample.label.tolist()))
    assert len(seen) > 1


def test_validation_and_testing_have_all_labels_of_the_video(charades, multi_cfg, clip_numbers):
    val = build_dataset("charades", multi_cfg(charades), "val")
    assert [val[row].label.tolist() for row in range(3)] == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert val[0].label.dtype == torch.float32
    assert clip_numbers(val[0].clip) == [10, 13, 16, 19]  # the middle
    test = build_dataset("charades", multi_cfg(charades), "test")
    assert len(test) == 3 * 2 * 3
    assert [clip_numbers(test[row].clip)[0] for row in (0, 2, 3)] == [0, 0, 20]
    assert test[17].label.tolist() == [0, 1, 1]


def test_one_temporal_view_lies_in_the_middle(charades, multi_cfg, clip_numbers):
    test = build_dataset("charades", multi_cfg(charades, "TEST.NUM_ENSEMBLE_VIEWS", 1), "test")
    assert clip_numbers(test[1].clip) == [10, 13, 16, 19]


def test_videos_stand_in_for_frames_of_another_rate(charades, multi_cfg, make_video, clip_numbers, caplog):
    caplog.set_level("INFO")
    for video, frames in LABELS.items():
        shutil.rmtree(charades / video)
        make_video(charades / f"{video}.mp4", 2 * len(frames), offset=0)  # twice the rate of the list
    train, val = (build_dataset("charades", multi_cfg(charades), split) for split in ("train", "val"))
    assert "read in place of the listed images" in caplog.text
    assert train.records[2].path == str(charades / "CCC.mp4")
    assert clip_numbers(val[0].clip) == [2 * number + 1 for number in (10, 13, 16, 19)]
    sample = train[0]
    first = clip_numbers(sample.clip)[0] // 2
    assert sample.label.tolist() == [float(first < 15), float(first < 15 and first + 9 >= 10), 0.0]
    (charades / "BBB.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 videos do not exist: .*BBB.mp4"):
        build_dataset("charades", multi_cfg(charades), "test")


def test_frames_equal_the_golden_table(golden_sampling):
    for total, num_frames, stride, clips, crops, row, indices in golden_sampling("charades_test_seq"):
        choice = StrideRule(num_frames, stride)(VideoInfo(total, 8, 8), View.of_row(row, clips, crops), None)
        assert choice.indices.tolist() == indices


def test_long_cycles_draw_the_stride_of_random_clips():
    rule, info = StrideRule(4, 2, max_stride=5), VideoInfo(100, 8, 8)
    strides = {int(rule(info, None, np.random.default_rng(seed)).indices.diff()[0]) for seed in range(40)}
    assert strides == {2, 3, 4, 5}
    assert set(rule(info, View(0, 1, 0, 1), None).indices.diff().tolist()) == {2}


def test_unions_equal_the_recorded_ones():
    """``labels`` of the golden metrics: a binary vector, a union over frames, unions per video."""
    table = label_table(['"1,3,3,0"', '"5,1"', '"1"', '""', '"7,5"', '"2,1"'], 8, "list")
    assert table[0, :6].tolist() == [True, True, False, True, False, False]
    assert union(np.array([1, 2, 3, 4]), table).nonzero().flatten().tolist() == [1, 5, 7]
    assert union(np.array([2, 5, 3]), table).nonzero().flatten().tolist() == [1, 2]


def test_records_are_flat_and_small(tmp_path):
    videos = {f"V{number:03d}": ["3,14"] * 200 + [""] * 300 for number in range(100)}
    (tmp_path / "train.csv").write_text(frame_list(videos))
    lists = read_frame_lists(str(tmp_path / "train.csv"))
    records = LabelledFrameRecords(lists, label_table(lists.known_texts, 157, "list"), clip_labels=True)
    assert len(pickle.dumps(records)) < 5 * 50_000  # bytes per frame, its path and its labels included
    record = records[99]
    assert (len(record.files), record.files[499]) == (500, "V099/V099-000500.png")
    assert record.label_of(FrameChoice(torch.tensor([199, 205]), 199.0, 205.0)).sum() == 2
    assert record.label_of(FrameChoice(torch.tensor([200, 205]), 200.0, 205.0)).sum() == 0
    assert record.label.nonzero().flatten().tolist() == [3, 14]


def test_wrong_annotation_is_named_before_training(charades, multi_cfg, small_cfg):
    with pytest.raises(ValueError, match=r"MULTI_LABEL=False.*LOSS_FUNC to bce_logit"):
        build_dataset("charades", small_cfg(charades), "train")
    with pytest.raises(
        ValueError, match=r"train.csv, line 12: label '1' of \"0,1\" is not 0 to 0 \(MODEL.NUM_CLASSES=1"
    ):
        build_dataset("charades", multi_cfg(charades, "MODEL.NUM_CLASSES", 1), "train")
    with pytest.raises(FileNotFoundError, match=r"3 of 3 videos do not exist.*Set DATA.PATH_PREFIX to"):
        build_dataset("charades", multi_cfg(charades, "DATA.PATH_PREFIX", "/nowhere"), "train")
    (charades / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no frame list .*val.csv; .* holds AAA, BBB, CCC, train.csv"):
        build_dataset("charades", multi_cfg(charades), "test")
