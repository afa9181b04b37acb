import shutil

import pytest

from slowfast.datasets import build_dataset
from slowfast.datasets.folders import SPLITS, drawn_split, has_class_folders, list_classes, load_class_folders


@pytest.fixture
def grow(tmp_path):
    """Make empty files ``class/video`` below a folder; gives the folder."""

    def make(*paths, under=tmp_path / "data"):
        for path in paths:
            (under / path).parent.mkdir(parents=True, exist_ok=True)
            (under / path).touch()
        return str(under)

    return make


def rows(records):
    return [("/".join(record.path.split("/")[-2:]), record.label) for record in records]


def test_split_folders_are_read_as_they_are(grow):
    folder = grow("train/swim/b.mp4", "train/run/a.avi", "train/run/c.MP4", "val/run/d.webm", "test/swim/e.mkv")
    train = load_class_folders(folder, "train", num_classes=2)
    assert rows(train) == [("run/a.avi", 0), ("run/c.MP4", 0), ("swim/b.mp4", 1)]
    assert train.class_names == ["run", "swim"]
    assert rows(load_class_folders(folder, "val")) == [("run/d.webm", 0)]
    assert rows(load_class_folders(folder, "test")) == [("swim/e.mkv", 1)]


def test_videos_are_files_and_folders_of_images_and_nothing_else(grow):
    folder = grow(
        "run/a.mp4", "run/._a.mp4", "run/notes.txt", "run/frames/1.jpg", "run/more/b.mp4", ".git/c.mp4", "x.mp4"
    )
    assert list_classes(folder) == {"run": ["a.mp4", "frames"]}
    grow("empty/readme.md")
    assert list(list_classes(folder)) == ["run"]


def test_a_class_may_be_called_train(grow):
    folder = grow(*(f"{name}/{number}.mp4" for name in ("train", "bus") for number in range(40)))
    assert load_class_folders(folder, "train").class_names == ["bus", "train"]


def test_a_drawn_split_has_every_video_once_in_the_promised_shares(grow):
    folder = grow(*(f"{name}/{number}.mp4" for name in ("a", "b") for number in range(500)))
    parts = {split: set(load_class_folders(folder, split, seed=3)) for split in SPLITS}
    assert sum(map(len, parts.values())) == 1000
    assert len(set.union(*parts.values())) == 1000
    assert 760 < len(parts["train"]) < 840
    assert 70 < len(parts["val"]) < 130
    assert set(load_class_folders(folder, "train", seed=4)) != parts["train"]


def test_new_videos_and_classes_move_no_other(grow):
    folder = grow(*(f"run/{number}.mp4" for number in range(100)))
    before = {split: {record.path for record in load_class_folders(folder, split)} for split in SPLITS}
    grow("run/new.mp4", "run/0a.mp4", *(f"a/{number}.mp4" for number in range(9)))
    for split in SPLITS:
        assert before[split] <= {record.path for record in load_class_folders(folder, split)}


def test_the_draw_is_the_same_on_every_machine():
    drawn = [drawn_split(f"run/{number}.mp4", 0) for number in range(12)]
    train, val, test = SPLITS
    assert drawn == [val, train, val, test, train, train, train, train, test, test, train, val]
    assert drawn_split("run/3.avi", 0) == drawn[3]  # a video that was converted stays where it is


def test_a_split_that_gets_no_video_names_a_seed_that_helps(grow):
    folder = grow(*(f"run/{number}.mp4" for number in range(3, 8)))
    with pytest.raises(ValueError, match=r"of the 5 videos .* RNG_SEED 0 draws none for val: RNG_SEED \d+ draws some"):
        load_class_folders(folder, "val")


def test_a_single_video_cannot_be_split(grow):
    folder = grow("run/4.mp4")
    with pytest.raises(ValueError, match=r"of the 1 videos .* for val: put the class folders into folders named train"):
        load_class_folders(folder, "val")


def test_a_missing_val_or_test_folder_is_stood_in_for(grow, tmp_path, caplog):
    folder = grow("train/run/a.mp4", "test/run/b.mp4")
    assert rows(load_class_folders(folder, "val")) == [("run/b.mp4", 0)]
    assert "the videos of test are used" in caplog.text
    shutil.move(tmp_path / "data" / "test", tmp_path / "data" / "val")
    assert rows(load_class_folders(folder, "test")) == [("run/b.mp4", 0)]
    shutil.rmtree(tmp_path / "data" / "val")
    with pytest.raises(FileNotFoundError, match=r"no class folders in .*val.* in train only"):
        load_class_folders(folder, "val")


def test_class_names_must_agree_over_splits_and_with_the_network(grow, tmp_path):
    folder = grow("train/run/a.mp4", "train/swim/a.mp4", "val/Run/b.mp4")
    with pytest.raises(ValueError, match=r"val'? that train does not have: Run. The names must agree"):
        load_class_folders(folder, "train")
    shutil.rmtree(tmp_path / "data" / "val")
    with pytest.raises(ValueError, match=r"names 2 classes \(run, swim\), but MODEL.NUM_CLASSES=400: set it to 2"):
        load_class_folders(folder, "train", num_classes=400)
    (tmp_path / "data" / "class_names.json").write_text('{"swim": 0, "run": 1}')
    assert rows(load_class_folders(folder, "train", num_classes=2)) == [("run/a.mp4", 1), ("swim/a.mp4", 0)]


def test_folders_without_videos_say_what_they_hold(grow, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no class folders with videos \(.mp4, .*which holds a.txt, run"):
        load_class_folders(grow("a.txt", "run/b.txt"), "train")
    assert not has_class_folders(str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_class_folders(str(tmp_path / "nowhere"), "train")


@pytest.fixture
def class_folders(tmp_path, make_video):
    """Three classes of videos in split folders."""
    for split, per_class in (("train", 2), ("val", 1), ("test", 1)):
        for label, name in enumerate(("dark", "grey", "light")):
            for number in range(per_class):
                folder = tmp_path / "sorted" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                make_video(folder / f"{number}.mp4", 16, offset=25 * label, gop=8)
    return tmp_path / "sorted"


def test_kinetics_reads_class_folders_where_there_are_no_lists(class_folders, small_cfg, caplog):
    caplog.set_level("INFO")
    dataset = build_dataset("kinetics", small_cfg(class_folders), "train")
    assert [record.label for record in dataset.records] == [0, 0, 1, 1, 2, 2]
    assert "class folders of" in caplog.text
    assert dataset[5].clip.shape == (3, 4, 24, 24)
    assert len(build_dataset("kinetics", small_cfg(class_folders), "test")) == 3 * 2 * 3

    (class_folders / "train.csv").write_text(f"{class_folders}/train/dark/0.mp4 2\n")
    assert [record.label for record in build_dataset("kinetics", small_cfg(class_folders), "train").records] == [2]
    with pytest.raises(FileNotFoundError, match=r"no val\.csv"):  # no guessing of what the list leaves over
        build_dataset("kinetics", small_cfg(class_folders), "val")
    assert len(build_dataset("folders", small_cfg(class_folders), "train")) == 6
