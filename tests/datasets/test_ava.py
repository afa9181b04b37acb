"""AVA: box lists as the original reads them, clips and boxes that stay together, frames from images or videos."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slowfast.config import get_cfg
from slowfast.datasets import Request, build_dataset, build_loader, collate
from slowfast.datasets.ava import AtRate, Ava, BoxLists, KeyFrameRecord, KeyFrames, multi_hot
from slowfast.datasets.sampling import centered_indices
from slowfast.datasets.sources import DecodeError, VideoFile

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/evaluation/ava.json.gz").read_bytes()))
PARSING = GOLDEN["parse_bboxes_file"]


# ------------------------------ annotation ------------------------------


def golden_lists(folder, threshold):
    lists = BoxLists()
    for name in ("gt_csv", "pred_csv"):
        (folder / name).write_text(PARSING[name])
        lists.read(str(folder / name), min_score=threshold if name == "pred_csv" else None)
    return lists


@pytest.mark.parametrize("case", PARSING["cases"], ids=range(len(PARSING["cases"])))
def test_boxes_equal_the_originals(case, tmp_path):
    lists = golden_lists(tmp_path, case["detect_thresh"])
    period = case["boxes_sample_rate"] if case["boxes_sample_rate"] > 1 else 0
    table = KeyFrames(lists, PARSING["video_order"], period=period)
    rows = case["keyframe_indices"]
    assert table.videos.tolist() == [row[0] for row in rows]
    assert table.seconds.tolist() == [row[2] for row in rows]
    assert table.num_boxes == case["num_boxes_used"]
    expected = [boxes for video in case["keyframe_boxes_and_labels"] for boxes in video]
    for row, boxes in enumerate(expected):
        assert table.boxes(row).tolist() == [corners for corners, _ in boxes]
        assert table.labels(row) == [[label for label in labels if label > 0] for _, labels in boxes]
        record = KeyFrameRecord("", "", rows[row][2], None, [], files=[""], fps=30, first_second=900)
        assert record.frame(FakeSource()) == rows[row][3]


class FakeSource:
    """A list of images: it has no rate of its own."""

    class info:
        fps, num_frames = None, 1000


def test_frames_lie_around_the_key_frame(golden_sampling):
    for center, half, stride, total, indices in golden_sampling("ava_get_sequence"):
        assert centered_indices(center, 2 * half // stride, stride, total).tolist() == indices


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("v,902,0.1,0.1,0.2", "line 1: .* is not video, second, x1, y1, x2, y2, class id"),
        ("v,902,0.1,0.1,0.2,nan,1", "not finite"),
        ("v,902,0.1,0.1,0.2,0.4,walk", "line 1"),
        ("v,902,0.1,0.1,0.2,0.4,4", r"class id 4 is not 1 to 3 \(MODEL.NUM_CLASSES=3\)"),
        ("v,902,0.1,0.1,0.2,0.4,0", "class id 0 is not 1 to 3"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    (tmp_path / "boxes.csv").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        BoxLists().read(str(tmp_path / "boxes.csv"), num_classes=3)


def test_blank_lines_and_boxes_without_a_score_are_fine(tmp_path):
    (tmp_path / "boxes.csv").write_text("v,1.5,0,0,1,1,\n\nv,1.5,0,0,1,1,2,0.95\nv,2,0,0,1,1,,0.3\n")
    lists = BoxLists()
    lists.read(str(tmp_path / "boxes.csv"), min_score=0.9)
    assert lists.boxes == {("v", 1.5): {("0", "0", "1", "1"): [2]}}


def test_labels_become_a_table():
    assert multi_hot([[1, 3], []], 3).tolist() == [[1, 0, 1], [0, 0, 0]]


# ------------------------------ data set ------------------------------

SIZE = (64, 48)  # width, height of the images
CLASSES = 3


def write_list(file, videos, num_frames, folder="{}"):
    lines = ["anything may stand here"]
    for number, video in enumerate(videos):
        paths = [f"{folder.format(video)}/{video}_{frame + 1:06d}.png" for frame in range(num_frames)]
        lines += [f'{video} {number} {frame} {path} ""' for frame, path in enumerate(paths)]
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_frames):
    """Two videos of 60 images at 10 a second, from second 5 on; and the lists of AVA."""
    root = tmp_path_factory.mktemp("ava")
    for number, video in enumerate(("b", "a")):
        make_frames(root / "frames" / video, 60, size=SIZE, offset=10 * number, name=video + "_{:06d}.png")
    for name in ("train.csv", "val.csv"):
        write_list(root / name, ("b", "a"), 60)
    (root / "truth.csv").write_text(
        "a,0007,0.25,0.25,0.5,0.75,1,4\na,0007,0.25,0.25,0.5,0.75,3,4\n"
        "a,8,0.0,0.1,1.0,1.0,2,4\nb,0006,0.1,0.1,0.9,0.9,2,1\n"
    )
    (root / "found.csv").write_text(
        "a,0008,0.0,0.0,0.5,1.0,,0.95\na,0008,0.5,0.0,1.0,1.0,,0.8\nb,9,0.2,0.2,0.6,0.7,,0.99\n"
    )
    return root


def ava_cfg(folder, *options):
    cfg = get_cfg()
    size = ["DATA.TRAIN_JITTER_SCALES", [40, 44], "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 36]
    where = ["AVA.FRAME_DIR", str(folder / "frames")]
    where += ["AVA.FRAME_LIST_DIR", str(folder), "AVA.ANNOTATION_DIR", str(folder)]
    lists = ["AVA.TRAIN_GT_BOX_LISTS", ["truth.csv"], "AVA.TEST_PREDICT_BOX_LISTS", ["found.csv"]]
    rate = ["AVA.FRAME_RATE", 10.0, "AVA.FIRST_SECOND", 5.0, "DATA.NUM_FRAMES", 4, "DATA.SAMPLING_RATE", 2]
    sets = ["TRAIN.DATASET", "ava", "TEST.DATASET", "ava", "MODEL.NUM_CLASSES", CLASSES, "DETECTION.ENABLE", True]
    cfg.merge_from_list([*size, *where, *lists, *rate, *sets, "DATA_LOADER.NUM_WORKERS", 0, *options])
    return cfg


def test_training_shows_the_true_boxes(folder):
    data = build_dataset("ava", ava_cfg(folder), "train")
    assert data.key_frames == [("b", 6.0), ("a", 7.0), ("a", 8.0)]
    assert (len(data), data.num_videos, data.num_views) == (3, 3, 1)
    sample = data[Request(1, 0)]
    assert sample.clip.shape == (3, 4, 32, 32)
    assert sample.label.tolist() == [[1, 0, 1]]
    assert sample.image_boxes.tolist() == [[0.25, 0.25, 0.5, 0.75]]
    assert sample.keyframes.tolist() == [[1.0, 7.0]]


def test_a_sample_depends_on_seed_epoch_and_row_alone(folder):
    data, other = (build_dataset("ava", ava_cfg(folder), "train") for _ in range(2))
    other[Request(2, 0)]
    first, same, later = data[Request(1, 3)], other[Request(1, 3)], data[Request(1, 4)]
    assert torch.equal(first.clip, same.clip)
    assert torch.equal(first.boxes, same.boxes)
    assert not torch.equal(first.boxes, later.boxes)


def test_validation_and_testing_show_the_detected_boxes(folder):
    cfg = ava_cfg(folder)
    val, test = build_dataset("ava", cfg, "val"), build_dataset("ava", cfg, "test")
    assert (val.key_frames, val.period) == ([("a", 8.0)], 4)
    assert (test.key_frames, test.period) == ([("b", 9.0), ("a", 8.0)], 0)
    assert val[0].clip.shape == (3, 4, 36, 36)
    sample = test[1]
    assert sample.clip.shape == (3, 4, 36, 48)  # whole frames
    assert sample.boxes.tolist() == [[0.0, 0.0, 24.0, 35.0]]  # cut to the last pixel
    assert not sample.label.any()
    every = build_dataset("ava", ava_cfg(folder, "AVA.FULL_TEST_ON_VAL", True), "val")
    assert every.key_frames == test.key_frames
    assert len(build_dataset("ava", ava_cfg(folder, "AVA.DETECTION_SCORE_THRESH", 0.7), "test")[1].boxes) == 2


def test_validation_without_a_fourth_second_takes_all(folder, tmp_path, caplog):
    (tmp_path / "found.csv").write_text("b,9,0.2,0.2,0.6,0.7,,0.99\nb,9.5,0.2,0.2,0.6,0.7,,0.99\n")
    data = build_dataset("ava", ava_cfg(folder, "AVA.ANNOTATION_DIR", str(tmp_path)), "val")
    assert data.key_frames == [("b", 9.0), ("b", 9.5)]
    assert "all are validated" in caplog.text


def grey_numbers(clip, offset):
    """Frame numbers of a normalised clip of ``make_frames``."""
    grey = (clip.mean(dim=(0, 2, 3)) * 0.225 + 0.45) * 255
    return ((grey * 219 / 255 / 2).round() - offset).int().tolist()


def test_the_clip_lies_around_the_key_frame(folder):
    data = build_dataset("ava", ava_cfg(folder), "test")
    assert grey_numbers(data[1].clip, 10) == [26, 28, 30, 32]  # second 8 of a start at 5, ten frames a second


def test_a_batch_keeps_whole_frames_of_different_sizes_apart(folder, tmp_path, make_frames):
    make_frames(tmp_path / "frames" / "b", 60, size=(48, 48), name="b_{:06d}.png")
    make_frames(tmp_path / "frames" / "a", 60, size=SIZE, name="a_{:06d}.png")
    data = build_dataset("ava", ava_cfg(folder, "AVA.FRAME_DIR", str(tmp_path / "frames")), "test")
    batch = collate([data[0], data[1]])
    assert [tuple(clip.shape) for clip in batch.clips] == [(3, 4, 36, 36), (3, 4, 36, 48)]
    assert batch.boxes[:, 0].tolist() == [0, 1]
    assert batch.labels.shape == (2, CLASSES)
    alike = collate([data[1], data[1]])
    assert alike.clips.shape == (2, 3, 4, 36, 48)


def test_channels_are_those_of_the_original(folder, tmp_path):
    for video in ("a", "b"):
        (tmp_path / video).mkdir()
        for number in range(60):
            Image.new("RGB", SIZE, (255, 0, 51)).save(tmp_path / video / f"{video}_{number + 1:06d}.png")
    options = ["AVA.FRAME_DIR", str(tmp_path), "DATA.MEAN", [0.0, 0.2, 0.5], "DATA.STD", [1.0, 0.5, 0.25]]

    def colour(*more):
        clip = build_dataset("ava", ava_cfg(folder, *options, *more), "test")[0].clip
        return [round(value, 4) for value in clip[:, 0, 0, 0].tolist()]

    # The original counts mean and deviation in BGR: blue 51 with 0 and 1, red 255 with 0.5 and 0.25.
    assert colour() == [2.0, -0.4, 0.2]
    assert colour("AVA.BGR", True) == [0.2, -0.4, 2.0]
    assert colour("DATA.REVERSE_INPUT_CHANNEL", True) == [0.2, -0.4, 2.0]
    assert colour("AVA.BGR", True, "DATA.REVERSE_INPUT_CHANNEL", True) == [2.0, -0.4, 0.2]


# ------------------------------ videos ------------------------------


def test_videos_stand_in_for_images(folder, tmp_path, make_video):
    for number, video in enumerate(("b", "a")):
        make_video(str(tmp_path / f"{video}.mp4"), 60, size=SIZE, fps=10, offset=10 * number)
    images = build_dataset("ava", ava_cfg(folder), "test")
    listed = build_dataset("ava", ava_cfg(folder, "AVA.FRAME_DIR", str(tmp_path)), "test")
    alone = ["AVA.FRAME_DIR", str(tmp_path), "AVA.FRAME_LIST_DIR", str(tmp_path / "nowhere")]
    unlisted = build_dataset("ava", ava_cfg(folder, *alone), "test")
    native = build_dataset("ava", ava_cfg(folder, *alone, "AVA.FRAME_RATE", 0.0), "test")
    assert listed.key_frames == images.key_frames
    assert unlisted.key_frames == [("a", 8.0), ("b", 9.0)]  # in the order of the box list
    for data, row in ((listed, 1), (unlisted, 0), (native, 0)):
        sample = data[row]
        assert torch.equal(sample.boxes, images[1].boxes)
        assert (sample.clip - images[1].clip).abs().max() < 0.1
        assert data.key_picture(row) == (str(tmp_path / "a.mp4"), 30)
    assert images.key_picture(1) == (str(folder / "frames/a/a_000031.png"), 0)


def test_a_video_of_another_rate_is_read_at_the_rate_of_the_lists(folder, tmp_path, make_video):
    make_video(str(tmp_path / "b.mp4"), 50, size=SIZE, fps=25)
    make_video(str(tmp_path / "a.mp4"), 100, size=SIZE, fps=25)
    options = ["AVA.FRAME_DIR", str(tmp_path), "AVA.FRAME_LIST_DIR", str(tmp_path / "nowhere")]
    data = build_dataset("ava", ava_cfg(folder, *options), "test")
    assert grey_numbers(data[0].clip, 0) == [66, 71, 76, 81]  # 2.6, 2.8, 3.0, 3.2 s, each plus half of 0.1
    with pytest.raises(DecodeError, match=r"b.mp4: second 9 lies outside of the video, .* from 5 \(.*\) to 7"):
        data[1]


def test_a_rate_as_that_of_the_video_changes_nothing(tmp_path, make_video):
    source = AtRate(VideoFile(make_video(str(tmp_path / "v.mp4"), 40, fps=25)), 25)
    assert source.source_indices(range(40)).tolist() == list(range(40))
    assert source.info.num_frames == 40
    double = AtRate(VideoFile(str(tmp_path / "v.mp4")), 50)
    assert double.info.num_frames == 80
    assert double.source_indices(range(6)).tolist() == [0, 0, 1, 1, 2, 2]


# ------------------------------ what is wrong ------------------------------


def broken(folder, target):
    """The lists of ``folder``, and images of which those of video a are broken."""
    for video in ("a", "b"):
        (target / video).mkdir()
        for number in range(60):
            file = target / video / f"{video}_{number + 1:06d}.png"
            file.write_bytes(b"") if video == "a" else Image.new("RGB", SIZE).save(file)
    return ["AVA.FRAME_DIR", str(target)]


def test_bad_images_are_replaced_in_training_and_named_otherwise(folder, tmp_path):
    options = broken(folder, tmp_path)
    sample = build_dataset("ava", ava_cfg(folder, *options), "train")[Request(1, 0)]
    assert sample.index == 0
    assert {video.path for video in sample.bad} == {str(tmp_path / "a")}
    with pytest.raises(DecodeError, match=r"the file is empty; TEST.SKIP_BAD_VIDEOS True"):
        build_dataset("ava", ava_cfg(folder, *options), "test")[1]
    for data in (
        build_dataset("ava", ava_cfg(folder, *options), "val"),
        build_dataset("ava", ava_cfg(folder, *options, "TEST.SKIP_BAD_VIDEOS", True), "test"),
    ):
        row = data.key_frames.index(("a", 8.0))
        batch = collate([data[row]])
        assert (len(batch), batch.bad[0].index) == (0, row)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["AVA.ANNOTATION_DIR", "/nowhere"], FileNotFoundError, "AVA.TEST_PREDICT_BOX_LISTS.*AVA.ANNOTATION_DIR"),
        (["AVA.FRAME_DIR", "/nowhere"], FileNotFoundError, "no image .*set AVA.FRAME_DIR"),
        (["AVA.FRAME_LIST_DIR", "/nowhere"], FileNotFoundError, r"/nowhere/val.csv \(AVA.TEST_LISTS\)"),
        (["AVA.TEST_LISTS", []], FileNotFoundError, r"AVA.TEST_LISTS is empty.*e.g. a.mp4"),
        (["AVA.TEST_LISTS", ["val.csv", "train.csv"]], ValueError, "a, b stand in more than one frame list"),
        (["AVA.TEST_PREDICT_BOX_LISTS", []], ValueError, "give no box"),
        (["AVA.DETECTION_SCORE_THRESH", 0.999], ValueError, "give no box .*DETECTION_SCORE_THRESH=0.999"),
        (["AVA.FRAME_RATE", 0.0], ValueError, "images have none"),
        (["AVA.FIRST_SECOND", 900.0], ValueError, "outside of their frame list.*AVA.FIRST_SECOND=900: set these"),
        (["AVA.IMG_PROC_BACKEND", "pil"], ValueError, "'pil' is not cv2 .*or pytorch"),
    ],
)
def test_what_cannot_be_found_is_named_with_its_key(folder, options, error, message):
    with pytest.raises(error, match=message):
        build_dataset("ava", ava_cfg(folder, *options), "test")


def test_a_video_without_frames_stops_a_test_and_only_warns_in_training(folder, tmp_path, caplog):
    write_list(tmp_path / "train.csv", ("b",), 60)
    write_list(tmp_path / "val.csv", ("b",), 60)
    options = ["AVA.FRAME_LIST_DIR", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match="1 of 2 videos of the box lists have no frames: a"):
        build_dataset("ava", ava_cfg(folder, *options), "test")
    assert build_dataset("ava", ava_cfg(folder, *options), "train").key_frames == [("b", 6.0)]
    assert "1 of 2 videos" in caplog.text


def test_a_loader_gives_batches(folder):
    loader = build_loader(ava_cfg(folder, "TRAIN.BATCH_SIZE", 3, "NUM_GPUS", 0), "train")
    (batch,) = list(loader)
    assert batch.clips.shape == (3, 3, 4, 32, 32)
    assert batch.boxes.shape == (3, 5)
    assert batch.labels.sum() == 4
    assert isinstance(loader.dataset, Ava)


@pytest.mark.parametrize(
    ("split", "options", "dtype"),
    [
        ("train", (), torch.uint8),
        ("train", ("AVA.TRAIN_USE_COLOR_AUGMENTATION", True, "AVA.BGR", True), torch.uint8),
        ("train", ("AVA.TRAIN_USE_COLOR_AUGMENTATION", True, "AVA.TRAIN_PCA_JITTER_ONLY", False), torch.float32),
        ("train", ("AVA.IMG_PROC_BACKEND", "pytorch"), torch.float32),
        ("val", (), torch.uint8),
        ("test", (), torch.uint8),
        ("test", ("AVA.IMG_PROC_BACKEND", "pytorch", "DATA.TEST_CROP_SIZE", 48), torch.uint8),  # as large as frames are
    ],
)
def test_clips_travel_as_bytes_and_are_normalised_to_the_same(folder, split, options, dtype):
    cfg = ava_cfg(
        folder,
        "NUM_GPUS",
        0,
        "TRAIN.BATCH_SIZE",
        3,
        "DATA.MEAN",
        [0.1, 0.2, 0.3],
        "DATA.STD",
        [0.2, 0.3, 0.4],
        *options,
    )
    loader = build_loader(cfg, split)
    batch = next(iter(loader))
    clips = batch.clips if isinstance(batch.clips, list) else list(batch.clips)
    assert {clip.dtype for clip in clips} == {dtype}
    moved = batch.to("cpu")
    alone = build_dataset("ava", cfg, split)
    for row, index in enumerate(batch.index.tolist()):
        sample = alone[Request(index, 0)]
        assert sample.clip.dtype == torch.float32
        assert torch.allclose(moved.clips[row], sample.clip, atol=1e-5)
        assert torch.equal(batch.boxes[batch.boxes[:, 0] == row, 1:], sample.boxes)


# ------------------------------ the recipe ------------------------------


def marked(folder):
    """One image with a bright rectangle, which is also its box."""
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    picture[12:36, 16:40] = 255
    return torch.from_numpy(picture)[None].repeat(2, 1, 1, 1), torch.tensor([[16 / 64, 12 / 48, 40 / 64, 36 / 48]])


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("backend", ["cv2", "pytorch"])
def test_boxes_stay_on_what_they_show(folder, split, backend):
    from slowfast.datasets.transforms.boxes import build_box_transform

    size = ["DATA.TRAIN_CROP_SIZE", 38] if split == "train" else ["AVA.TEST_FORCE_FLIP", True]
    plain = ["DATA.MEAN", [0.0] * 3, "DATA.STD", [1.0] * 3, "AVA.IMG_PROC_BACKEND", backend, *size]
    transform = build_box_transform(ava_cfg(folder, *plain), split)
    for seed in range(8):
        clip, boxes = transform(*marked(folder), np.random.default_rng(seed))
        ys, xs = (clip[0, 0] > 0.5).nonzero(as_tuple=True)
        shown = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        assert (boxes[0] - shown).abs().max() <= 1.6, (seed, boxes, shown)


def test_training_draws_scale_place_and_flip(folder):
    from slowfast.datasets.transforms.boxes import build_box_transform

    transform = build_box_transform(ava_cfg(folder), "train")
    boxes = torch.stack([transform(*marked(folder), np.random.default_rng(seed))[1][0] for seed in range(40)])
    widths = boxes[:, 2] - boxes[:, 0]
    assert widths.max() > widths.min() + 1
    assert len(boxes[:, 0].unique()) > 10
    still = build_box_transform(ava_cfg(folder, "DATA.RANDOM_FLIP", False), "train")
    rng = np.random.default_rng(0)
    clip, _ = still(*marked(folder), rng, crop_size=16)  # short-cycle training asks for less
    assert clip.shape == (3, 2, 16, 16)


def test_rounded_values_are_whole_and_others_are_not(folder):
    from slowfast.datasets.transforms.boxes import build_box_transform

    def remainder(backend):
        options = ["AVA.IMG_PROC_BACKEND", backend, "DATA.MEAN", [0.0] * 3, "DATA.STD", [1 / 255] * 3]
        frames = torch.arange(48 * 64 * 3, dtype=torch.uint8).reshape(1, 48, 64, 3)
        clip, _ = build_box_transform(ava_cfg(folder, *options), "test")(frames, torch.zeros(1, 4))
        return (clip - clip.round()).abs().max()

    assert remainder("cv2") < 1e-3 < 0.1 < remainder("pytorch")


def test_colour_is_one_draw_per_clip_and_lighting_moves_channels_as_a_whole(folder):
    from slowfast.datasets.transforms.boxes import BoxColor

    clip = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4).repeat(3, 1, 1, 1) + 90
    vectors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    same, shift = BoxColor([0.5, 0.1, 0.0], vectors)(clip, np.random.default_rng(0))
    assert same is clip
    assert shift[2] == 0
    assert 255 * shift[0].abs() > 1
    both = BoxColor([0.0] * 3, vectors, lighting_only=False)
    assert not torch.allclose(both(clip, np.random.default_rng(0))[0], clip.float(), atol=1)
    assert torch.equal(both(clip, np.random.default_rng(1))[0], both(clip, np.random.default_rng(1))[0])
    options = ["AVA.TRAIN_USE_COLOR_AUGMENTATION", True]
    plain, coloured = (build_dataset("ava", ava_cfg(folder, *more), "train")[0] for more in ([], options))
    assert torch.equal(plain.boxes, coloured.boxes)
    assert not torch.equal(plain.clip, coloured.clip)
