"""What is wrong with data is found, named, and nothing else is."""

import csv
import json
import os
import shutil

import pytest
from PIL import Image

from slowfast.datasets.check import build_data_check
from slowfast.datasets.frame_lists import HEADER
from slowfast.datasets.kinetics import wrong_lines


def found(check, kind=None):
    return [(one.split, one.level, os.path.basename(one.what)) for one in check.findings if kind in (None, one.kind)]


@pytest.fixture
def lists(video_folder, tmp_path):
    """A copy of the six videos: four to train on, one to validate, one to test."""
    folder = tmp_path / "data"
    shutil.copytree(video_folder, folder)
    (folder / "train.csv").write_text("a.mp4 0\nb.mp4 1\nc.mp4 2\nd.mp4 0\n")
    (folder / "val.csv").write_text("e.mp4 1\n")
    (folder / "test.csv").write_text("f.mp4 2\n")
    return folder


def test_good_data_have_no_findings(lists, small_cfg):
    (lists / "class_names.json").write_text('{"run": 1, "walk": 0, "sit": 2}')
    check = build_data_check(small_cfg(lists), whole=True, same_bytes=True)
    assert check.findings == []
    assert check.ok
    assert check.class_names == ["walk", "run", "sit"]
    assert [(one.split, one.rows, one.videos, one.missing, one.decoded) for one in check.splits] == [
        ("train", 4, 4, 0, 4),
        ("val", 1, 1, 0, 1),
        ("test", 1, 1, 0, 1),
    ]
    assert check.splits[0].labels == [2, 1, 1]
    assert "train 4 4 0 0 of 4 3 1-2" in " ".join(check.summary().split())


def test_only_the_splits_in_use_are_looked_at(lists, small_cfg):
    assert [one.split for one in build_data_check(small_cfg(lists, "TEST.ENABLE", False)).splits] == ["train", "val"]
    assert [one.split for one in build_data_check(small_cfg(lists, "TRAIN.ENABLE", False)).splits] == ["test"]
    with pytest.raises(ValueError, match="both off"):
        build_data_check(small_cfg(lists, "TRAIN.ENABLE", False, "TEST.ENABLE", False))


def test_every_fault_is_found(lists, small_cfg):
    (lists / "empty.mp4").write_bytes(b"")
    (lists / "noise.mp4").write_bytes(b"0123456789" * 50)
    shutil.copy(lists / "c.mp4", lists / "copy.mp4")
    (lists / "train.csv").write_text("a.mp4 0\na.mp4 0\nc.mp4 0\nempty.mp4 0\ngone.mp4 0\nnoise.mp4 0\n")
    (lists / "val.csv").write_text("a.mp4 1\ncopy.mp4 0\n")
    check = build_data_check(small_cfg(lists), sample=None, same_bytes=True, workers=2)
    assert not check.ok
    assert found(check, "missing") == [("train", "error", "gone.mp4")]
    assert sorted(found(check, "undecodable")) == [("train", "error", "empty.mp4"), ("train", "error", "noise.mp4")]
    assert found(check, "duplicate") == [("train", "warning", "a.mp4")]
    assert sorted(found(check, "leak")) == [("val", "error", "a.mp4"), ("val", "error", "copy.mp4")]
    assert found(check, "classes") == [("val", "error", "1"), ("test", "error", "2")]
    train = check.splits[0]
    assert (train.rows, train.videos, train.missing, train.decoded, train.undecodable) == (6, 5, 1, 4, 2)
    said = check.summary()
    assert "the file is empty" in said
    assert "listed 2 times" in said
    assert "has the same bytes as" in said
    assert said.endswith("7 errors, 1 warnings")


def test_a_sample_is_decoded(lists, small_cfg):
    (lists / "d.mp4").write_bytes(b"")
    check = build_data_check(small_cfg(lists), sample=0)
    assert [one.decoded for one in check.splits] == [0, 0, 0]
    assert check.ok
    assert [one.decoded for one in build_data_check(small_cfg(lists), sample=2).splits] == [2, 1, 1]
    with pytest.raises(ValueError, match="-1"):
        build_data_check(small_cfg(lists), sample=-1)


def test_damage_within_a_video_is_found_by_decoding_it_whole(lists, small_cfg, make_video):
    import av

    source = make_video(lists / "long.mp4", 60, b_frames=0, gop=60)
    with av.open(source) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray((lists / "long.mp4").read_bytes())
    data[packets[20] + 5 : packets[50]] = b"\xff" * (packets[50] - packets[20] - 5)
    (lists / "long.mp4").write_bytes(data)
    (lists / "val.csv").write_text("long.mp4 1\n")
    check = build_data_check(small_cfg(lists), whole=True)
    assert found(check, "undecodable") == [("val", "error", "long.mp4")]


def test_all_wrong_lines_are_named(lists, small_cfg):
    (lists / "train.csv").write_text("a.mp4 0\nb.mp4,1\n\nc.mp4 7\nd.mp4 x\ne f g 1\n")
    check = build_data_check(small_cfg(lists))
    assert [os.path.basename(one.what) for one in check.findings if one.kind == "list"] == [
        "train.csv, line 2",
        "train.csv, line 4",
        "train.csv, line 5",
        "train.csv, line 6",
    ]
    said = check.summary()
    assert "is DATA.PATH_LABEL_SEPARATOR ','?" in said
    assert "label 7 is not 0 to 2" in said
    assert check.splits[1].rows == 1  # the other lists are looked at all the same


def test_one_video_with_two_labels_is_an_error(lists, small_cfg):
    (lists / "train.csv").write_text("a.mp4 0\na.mp4 1\nb.mp4 1\nb.mp4 1\nc.mp4 2\n")
    check = build_data_check(small_cfg(lists), sample=0)
    assert sorted(found(check, "duplicate")) == [("train", "error", "a.mp4"), ("train", "warning", "b.mp4")]
    assert "listed 2 times, with different labels (0, 1)" in check.summary()


def test_a_list_that_is_no_text_is_said_once(lists, small_cfg):
    shutil.copy(lists / "a.mp4", lists / "train.csv")
    check = build_data_check(small_cfg(lists), sample=0)
    assert [one.text for one in check.findings if one.kind == "list"] == [f"{lists / 'train.csv'} is not text"]


def test_wrong_lines(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a.mp4,walk\nb.mp4,run\nc.mp4,3\n")
    assert [number for number, _ in wrong_lines(str(file), ",")] == [3]
    file.write_text("a.mp4 1\nb.mp4 2\n")
    assert wrong_lines(str(file)) == []


def test_a_missing_list_is_said(lists, small_cfg):
    (lists / "val.csv").unlink()
    check = build_data_check(small_cfg(lists))
    assert found(check, "list") == [("val", "error", "kinetics")]
    assert "no val.csv" in check.findings[0].text


def test_classes_have_their_names(video_folder, small_cfg, tmp_path):
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        for number, name in enumerate(names):
            folder = tmp_path / split / ("walk", "run")[number]
            folder.mkdir(parents=True)
            shutil.copy(video_folder / f"{name}.mp4", folder)
    check = build_data_check(small_cfg(tmp_path, "MODEL.NUM_CLASSES", 2))
    assert check.class_names == ["run", "walk"]
    assert check.splits[0].labels == [1, 1]
    assert "0 run" in check.summary()


def test_everything_is_written(lists, small_cfg, tmp_path):
    (lists / "d.mp4").unlink()
    check = build_data_check(small_cfg(lists))
    check.write(tmp_path / "a.json")
    check.write(tmp_path / "a.csv")
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["ok"] is False
    assert read["splits"][0]["missing"] == 1
    assert [one["kind"] for one in read["findings"]] == ["missing"]
    rows = list(csv.reader((tmp_path / "a.csv").open()))
    assert rows[1] == ["error", "missing", "train", str(lists / "d.mp4"), "no such file"]


# ---------------------------------------------------------------- the other formats


@pytest.fixture
def frames(tmp_path):
    """Frame lists of four videos of 6 images each, with several labels."""
    for split in ("train", "val"):
        lines = [f"{HEADER[0]} video_id frame_id path labels"]
        for number in range(2):
            video = f"{split}{number}"
            (tmp_path / video).mkdir()
            for frame in range(6):
                Image.new("RGB", (40, 32), (40 * frame, 9, 9)).save(tmp_path / video / f"{frame}.jpg")
                lines.append(f'{video} {number} {frame} {video}/{frame}.jpg "{number},2"')
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def charades(small_cfg, folder):
    names = ["TRAIN.DATASET", "charades", "TEST.DATASET", "charades", "DATA.MULTI_LABEL", True]
    return small_cfg(folder, *names)


def test_frame_lists(frames, small_cfg):
    check = build_data_check(charades(small_cfg, frames), whole=True)
    assert check.findings == []
    assert check.splits[0].labels == [1, 1, 2]
    (frames / "train0" / "3.jpg").unlink()
    (frames / "train1" / "4.jpg").write_bytes(b"not an image")
    check = build_data_check(charades(small_cfg, frames), whole=True)
    assert found(check) == [("train", "error", "train0"), ("train", "error", "train1")]
    assert check.findings[0].text == "1 of 6 images do not exist, the first: 3.jpg"
    assert "4.jpg: not an image" in check.findings[1].text


def test_something_something(frames, small_cfg):
    from slowfast.datasets.ssv2 import LABELS, VIDEOS

    (frames / LABELS).write_text('{"Doing": "0", "Undoing": "1", "Waiting": "2"}')
    for split in ("train", "val"):
        videos = [{"id": f"{split}{n}", "template": ("[Doing]", "Undoing")[n]} for n in range(2)]
        (frames / VIDEOS[split]).write_text(json.dumps(videos))
    check = build_data_check(small_cfg(frames, "TRAIN.DATASET", "ssv2", "TEST.DATASET", "ssv2"))
    assert found(check) == [("train", "warning", "2")]
    assert check.splits[0].labels == [1, 1, 0]


def test_images(tmp_path, small_cfg):
    for split in ("train", "val", "test"):
        for number in range(2):
            (tmp_path / split / f"n{number}").mkdir(parents=True)
            Image.new("RGB", (40, 32)).save(tmp_path / split / f"n{number}" / "a.jpg")
    (tmp_path / "train" / "n0" / "b.jpg").write_bytes(b"")
    flat = ["DATA.NUM_FRAMES", 1, "DATA.TEST_CROP_SIZE", 40, "MODEL.NUM_CLASSES", 2]
    check = build_data_check(small_cfg(tmp_path, "TRAIN.DATASET", "imagenet", "TEST.DATASET", "imagenet", *flat))
    assert found(check) == [("train", "error", "b.jpg")]
    assert check.splits[0].rows == 3


def test_key_frames(frames, small_cfg):
    (frames / "gt.csv").write_text("train0,0,0.1,0.1,0.9,0.9,1\ntrain0,1,0.1,0.1,0.9,0.9,2\ntrain1,0,0,0,1,1,3\n")
    (frames / "boxes.csv").write_text("val0,0,0.1,0.1,0.9,0.9,1,0.99\nval1,1,0,0,1,1,,0.99\n")
    keys = {
        "FRAME_DIR": str(frames),
        "FRAME_LIST_DIR": str(frames),
        "ANNOTATION_DIR": str(frames),
        "TRAIN_GT_BOX_LISTS": ["gt.csv"],
        "TEST_PREDICT_BOX_LISTS": ["boxes.csv"],
        "FRAME_RATE": 2.0,
        "FIRST_SECOND": 0.0,
        "FULL_TEST_ON_VAL": True,
    }
    options = [item for key, value in keys.items() for item in (f"AVA.{key}", value)]
    cfg = small_cfg(frames, "TRAIN.DATASET", "ava", "TEST.DATASET", "ava", "DETECTION.ENABLE", True, *options)
    check = build_data_check(cfg)
    assert check.findings == []
    assert [(one.rows, one.videos) for one in check.splits] == [(3, 2), (2, 2), (2, 2)]
    assert check.splits[0].labels == [1, 1, 1]
    shutil.rmtree(frames / "train1")
    assert found(build_data_check(cfg), "missing") == [("train", "error", "train1")]
