import pickle

import pytest

from slowfast.datasets.frame_lists import (
    FrameRecords,
    build_frame_transform,
    find_frame_list,
    pack_names,
    read_frame_lists,
    unpack_names,
)
from slowfast.datasets.transforms.presets import build_clip_transform

HEADER = "original_vido_id video_id frame_id path labels\n"


@pytest.fixture
def listed(tmp_path):
    """Writes a frame list and gives its path."""

    def write(rows, header=HEADER):
        (tmp_path / "train.csv").write_text(header + rows)
        return str(tmp_path / "train.csv")

    return write


@pytest.mark.parametrize(
    "names",
    [
        [f"7/7_{number:06d}.jpg" for number in range(1, 300)],
        [f"v/{number}.png" for number in range(8, 103)],  # no zeros in front
        ["a/1.jpg"],
        ["a/1.jpg", "a/3.jpg", "a/2.jpg"],
        ["first.jpg", "second.jpg"],
        ["a/09.jpg", "a/10.jpg", "b/11.jpg"],
        ["a 9/frame.jp2"],
        [f"100%/{number}%d.png" for number in range(3)],
    ],
)
def test_packed_names_come_back(names):
    unpacked = unpack_names(pack_names(names))
    assert len(unpacked) == len(names)
    assert list(unpacked) == names


def test_numbered_names_take_the_room_of_one():
    assert len(pack_names([f"clip/clip_{number:06d}.jpg" for number in range(1, 10_000)])) < 40


def test_rows_of_a_video_may_be_apart_and_keep_their_order(listed):
    rows = 'b 0 0 b/1.jpg "1,2"\nb 0 1 b/2.jpg ""\na 1 0 a/1.jpg "3"\n\nb 0 2 b/3.jpg "1,2"\na 1 1 a/0.jpg "3"\n'
    lists = read_frame_lists(listed(rows))
    assert lists.ids == ["b", "a"]
    assert [list(unpack_names(packed)) for packed in lists.frames] == [
        ["b/1.jpg", "b/2.jpg", "b/3.jpg"],
        ["a/1.jpg", "a/0.jpg"],
    ]
    assert lists.starts.tolist() == [0, 3, 5]
    assert [lists.known_texts[text] for text in lists.texts] == ['"1,2"', '""', '"1,2"', '"3"', '"3"']


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (
            'a 0 0 a/1.jpg "1"\n',
            "path label\n",
            "line 1: 'path label' is not the header, which starts with original_vido",
        ),
        ('a 0 0 a/1.jpg "1"\na 0 a/2.jpg "1"\n', HEADER, "line 3: 4 columns instead of 5"),
        ('a 0 0 a/1.jpg "1, 2"\n', HEADER, "line 2: 6 columns instead of 5"),
        ("", HEADER, "lists no frame"),
        ("", "", "line 1: '' is not the header"),
    ],
)
def test_what_cannot_be_read_names_the_line(listed, rows, header, message):
    with pytest.raises(ValueError, match=message):
        read_frame_lists(listed(rows, header))


def test_records_stand_for_folders_or_for_first_images(listed):
    lists = read_frame_lists(listed('a 0 0 x/a1.jpg ""\na 0 1 x/a2.jpg ""\nb 0 0 y/b1.jpg ""\n'))
    records = FrameRecords(lists, [4, 3], "/data", [1, 0])
    assert [(record.path, record.label, list(record.files)) for record in records] == [
        ("/data/y", 4, ["/data/y/b1.jpg"]),
        ("/data/x", 3, ["/data/x/a1.jpg", "/data/x/a2.jpg"]),
    ]
    assert pickle.loads(pickle.dumps(records)).path(1) == "/data/x"
    together = read_frame_lists(listed('a 0 0 x/a1.jpg ""\na 0 1 x/a2.jpg ""\nb 0 0 x/b1.jpg ""\n'))
    assert [record.path for record in FrameRecords(together, [0, 0])] == ["x/a1.jpg", "x/b1.jpg"]


def test_a_missing_folder_is_named(tmp_path):
    assert find_frame_list(str(tmp_path), "train") is None
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_frame_list(str(tmp_path / "nowhere"), "val")
    with pytest.raises(FileNotFoundError, match="PATH_TO_DATA_DIR is empty"):
        find_frame_list("", "val")


@pytest.mark.parametrize("reverse", [False, True])
def test_means_are_those_of_bgr_and_the_network_sees_bgr_unless_reversed(small_cfg, tmp_path, reverse):
    import torch

    mean, std = [0.1, 0.2, 0.3], [1.0, 0.5, 0.25]
    cfg = small_cfg(tmp_path, "DATA.MEAN", mean, "DATA.STD", std, "DATA.REVERSE_INPUT_CHANNEL", reverse)
    frames = torch.tensor([255, 102, 0], dtype=torch.uint8).expand(4, 32, 40, 3)  # RGB
    clip = build_frame_transform(cfg, "val")(frames)
    bgr = [(value - m) / s for value, m, s in zip((0, 0.4, 1), mean, std)]
    assert clip[:, 0, 0, 0].tolist() == pytest.approx(bgr[::-1] if reverse else bgr, abs=1e-6)


def test_a_test_with_one_crop_scales_to_the_test_crop(small_cfg, tmp_path):
    cfg = small_cfg(tmp_path, "TEST.NUM_SPATIAL_CROPS", 1, "DATA.TEST_CROP_SIZE", 28)
    assert build_frame_transform(cfg, "test").scale == 28
    assert build_clip_transform(cfg, "test").scale == 32


def test_random_area_needs_augmentation(small_cfg, tmp_path):
    ranges = ["DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.1, 1.0], "DATA.TRAIN_JITTER_ASPECT_RELATIVE", [0.75, 1.33]]
    assert build_frame_transform(small_cfg(tmp_path, *ranges), "train").area_range is None
    augmented = small_cfg(tmp_path, *ranges, "AUG.ENABLE", True, "AUG.AA_TYPE", "", "AUG.RE_PROB", 0.0)
    assert build_frame_transform(augmented, "train").area_range == (0.1, 1.0)
