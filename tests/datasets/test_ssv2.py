import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from slowfast.datasets import DecodeError, build_dataset
from slowfast.datasets.frame_lists import HEADER
from slowfast.datasets.sampling import View, segment_indices
from slowfast.datasets.sources import VideoInfo
from slowfast.datasets.ssv2 import LABELS, VIDEOS, SegmentRule, load_annotation, spread_segment_indices

TEMPLATES = {"Pushing something": "0", "Pretending to put something into something": "1", "Holding something": "2"}
NAMED = ["Pushing [something]", "Pretending to put [something] into [something]", "Holding [something]"]


def annotate(folder, split, ids):
    videos = [{"id": video, "label": "with words", "template": NAMED[int(video) % 3]} for video in ids]
    (folder / VIDEOS[split]).write_text(json.dumps(videos))
    (folder / LABELS).write_text(json.dumps(TEMPLATES))


@pytest.fixture
def frames(tmp_path, make_frames):
    """Videos 10, 11, 12 of 20 frames as frame folders; the annotation lists them in another order."""
    lines = [f"{HEADER[0]} video_id frame_id path labels"]
    for video in (10, 11, 12):
        make_frames(tmp_path / f"{video}", offset=video, name=f"{video}_{{:06d}}.png")
        lines += [f'{video} {video - 10} {frame} {video}/{video}_{frame + 1:06d}.png ""' for frame in range(20)]
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
        annotate(tmp_path, split, ["12", "10", "11"])
    return tmp_path


@pytest.fixture
def numbers(clip_numbers):
    """Frame numbers of a clip of ``frames``, whose video has the given id."""
    return lambda clip, video: [number - video for number in clip_numbers(clip)]


def test_frames_come_in_annotation_order_with_template_labels(frames, small_cfg):
    dataset = build_dataset("ssv2", small_cfg(frames), "train")
    assert [(record.path, record.label) for record in dataset.records] == [
        (str(frames / "12"), 0),
        (str(frames / "10"), 1),
        (str(frames / "11"), 2),
    ]


def test_training_takes_one_frame_of_each_part_and_validation_the_middle_ones(frames, small_cfg, numbers):
    train, val = (build_dataset("ssv2", small_cfg(frames), split) for split in ("train", "val"))
    parts = [(0, 5), (5, 10), (10, 14), (14, 19)]  # rounded quarters of 19
    chosen = numbers(train[1].clip, 10)
    assert all(low <= number <= high for number, (low, high) in zip(chosen, parts))
    assert numbers(val[0].clip, 12) == [2, 7, 12, 16]
    random = build_dataset("ssv2", small_cfg(frames, "DATA.VAL_RANDOM_VIEW", True), "val")
    assert numbers(random[0].clip, 12) == [2, 7, 12, 16]


def test_frames_equal_the_golden_table(golden_sampling):
    for length, num_frames, sequence in golden_sampling("ssv2_val_and_test_seq"):
        choice = SegmentRule(num_frames)(VideoInfo(length, 8, 8), View(0, 1, 0, 1), None)
        assert choice.indices.tolist() == sequence


def test_temporal_views_are_alike_unless_spread(frames, small_cfg, numbers, caplog):
    dataset = build_dataset("ssv2", small_cfg(frames), "test")
    assert len(dataset) == 3 * 2 * 3
    assert numbers(dataset[0].clip, 12) == numbers(dataset[3].clip, 12) == [2, 7, 12, 16]
    assert "2 temporal views" in caplog.text
    spread = build_dataset("ssv2", small_cfg(frames, "DATA.USE_OFFSET_SAMPLING", True), "test")
    assert numbers(spread[0].clip, 12) == [1, 6, 11, 15]
    assert numbers(spread[3].clip, 12) == [3, 8, 13, 17]


def test_spread_frames_are_the_middle_ones_for_one_view_and_rise_with_the_view():
    for total in (1, 5, 20, 333):
        assert torch.equal(spread_segment_indices(total, 8, View(0, 1, 0, 1)), segment_indices(total, 8))
        views = np.stack([spread_segment_indices(total, 8, View(clip, 5, 0, 1)) for clip in range(5)])
        assert (np.diff(views, axis=0) >= 0).all()
        assert views.min() >= 0
        assert views.max() < total


def test_a_single_crop_is_the_centre_one(frames, small_cfg, make_frames):
    one = build_dataset("ssv2", small_cfg(frames, "TEST.NUM_SPATIAL_CROPS", 1, "TEST.NUM_ENSEMBLE_VIEWS", 1), "test")
    three = build_dataset("ssv2", small_cfg(frames, "TEST.NUM_ENSEMBLE_VIEWS", 1), "test")
    for name in ("12_000003.png", "12_000008.png", "12_000013.png", "12_000017.png"):  # a ramp from left to right
        ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (24, 1, 3))
        Image.fromarray(ramp).save(frames / "12" / name)
    (frames / "12" / "12_000001.png").write_bytes((frames / "12" / "12_000003.png").read_bytes())
    assert torch.equal(one[0].clip, three[1].clip)
    assert not torch.equal(one[0].clip, three[0].clip)


def test_videos_stand_in_for_frames(frames, small_cfg, make_video, numbers, caplog):
    caplog.set_level("INFO")
    for split in ("train", "val"):
        (frames / f"{split}.csv").unlink()
    for video, suffix in ((10, "webm"), (11, "mp4"), (12, "mkv")):
        shutil.rmtree(frames / f"{video}")
        codec = "libx264" if suffix != "webm" else "libvpx"
        make_video(frames / f"{video}.{suffix}", 20, offset=video, codec=codec)
    dataset = build_dataset("ssv2", small_cfg(frames), "val")
    assert "videos are read" in caplog.text
    assert [record.path[-7:] for record in dataset.records] == ["/12.mkv", "10.webm", "/11.mp4"]
    assert numbers(dataset[0].clip, 12) == [2, 7, 12, 16]
    (frames / "10.webm").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 videos do not exist: .*10.webm"):
        build_dataset("ssv2", small_cfg(frames), "test")
    with pytest.raises(FileNotFoundError, match=r"3 of 3 videos do not exist.*DATA.PATH_PREFIX, which is '/nowhere'"):
        build_dataset("ssv2", small_cfg(frames, "DATA.PATH_PREFIX", "/nowhere"), "val")


def test_videos_that_one_side_lacks_are_left_out_of_training_with_a_warning(frames, small_cfg, caplog):
    annotate(frames, "train", ["12", "10", "13"])
    dataset = build_dataset("ssv2", small_cfg(frames), "train")
    assert len(dataset) == 2
    assert "1 have no frames (13), 1 no label (11): they are left out" in caplog.text


def test_wrong_annotation_is_named_before_training(frames, small_cfg):
    def build(*opts):
        return build_dataset("ssv2", small_cfg(frames, *opts), "train")

    with pytest.raises(ValueError, match=r"'Holding something' has the id '2', which is not 0 to 1"):
        build("MODEL.NUM_CLASSES", 2)
    annotate(frames, "val", ["12", "10", "13"])
    with pytest.raises(
        ValueError, match=r"lists 3 videos, the annotation 3: 1 have no frames \(13\), 1 no label \(11\)\. Both"
    ):
        build_dataset("ssv2", small_cfg(frames), "test")
    annotate(frames, "train", ["13"])
    with pytest.raises(ValueError, match=r"1 have no frames \(13\), 3 no label .* same release"):
        build()
    annotate(frames, "train", ["12", "12"])
    with pytest.raises(ValueError, match="the id 12 is there twice"):
        build()
    (frames / VIDEOS["train"]).write_text('[{"id": "10", "template": "Pusing [something]"}]')
    with pytest.raises(
        ValueError, match=r"video 1 \(id 10\): .* no template 'Pusing something'; the nearest .*'Pushing s"
    ):
        build()
    (frames / VIDEOS["train"]).write_text('[{"id": "10", "template": null}]')
    with pytest.raises(ValueError, match=r"video 1 \(id 10\): the template is None, no text"):
        build()
    (frames / VIDEOS["train"]).write_text('[{"id": "10"}]')
    with pytest.raises(ValueError, match=r'video 1: .* has no "id" or no "template"'):
        build()
    (frames / VIDEOS["train"]).write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        build()
    (frames / VIDEOS["train"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no annotation .*-train.json; .* holds 10, 11, 12, s"):
        build()


def test_damaged_frames_are_replaced_and_named(frames, small_cfg):
    for frame in (frames / "12").iterdir():
        frame.write_bytes(b"")
    sample = build_dataset("ssv2", small_cfg(frames), "train")[0]
    assert sample.index in (1, 2)
    assert sample.bad[0].path == str(frames / "12")
    assert "12_000001.png" in sample.bad[0].reason
    with pytest.raises(DecodeError, match=r"12: 12_000001.png: the file is empty \(clip 0 of 2"):
        build_dataset("ssv2", small_cfg(frames), "test")[0]


def test_annotation_may_number_its_templates(frames):
    assert load_annotation(str(frames), "train", 3) == {"12": 0, "10": 1, "11": 2}
