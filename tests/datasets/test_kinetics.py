import pickle

import pytest

from slowfast.datasets.build import build_dataset
from slowfast.datasets.kinetics import PathLabels, check_files, find_list, load_records


@pytest.fixture
def listed(tmp_path):
    """Writes a list file and gives its path."""

    def write(text, name="train.csv"):
        (tmp_path / name).write_bytes(text.encode())
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("text", "separator", "rows"),
    [
        ("a.mp4 3\nb/c.mp4 0\n", " ", [("a.mp4", 3), ("b/c.mp4", 0)]),
        ("a.mp4 x 3", " ", [("a.mp4", 3)]),
        ("a.mp4\nb.mp4\n", " ", [("a.mp4", 0), ("b.mp4", 0)]),
        ("my clip.mp4,3\r\nb.mp4,1\r\n", ",", [("my clip.mp4", 3), ("b.mp4", 1)]),
        ("a b.mp4\t3\n", "\t", [("a b.mp4", 3)]),
        ("a.mp4 ||| 3\n", " ||| ", [("a.mp4", 3)]),
        ("\ufeffa.mp4 3\n", " ", [("a.mp4", 3)]),
        ("grün.mp4 3\n", " ", [("grün.mp4", 3)]),
        ("a.mp4 3  \n", " ", [("a.mp4", 3)]),
    ],
)
def test_lists_in_all_their_forms(listed, text, separator, rows):
    assert [tuple(record) for record in load_records(listed(text), separator)] == rows


def test_paths_are_joined_to_the_prefix_and_absolute_ones_stay(listed):
    records = load_records(listed("a.mp4 1\n/b/c.mp4 2\n"), prefix="/data")
    assert [record.path for record in records] == ["/data/a.mp4", "/b/c.mp4"]


def test_blank_lines_are_left_out_with_a_warning(listed, caplog):
    assert len(load_records(listed("a.mp4 1\n\n  \nb.mp4 2\n"))) == 2
    assert "2 blank lines" in caplog.text


@pytest.mark.parametrize(
    ("text", "separator", "message"),
    [
        ("a.mp4 1\nb.mp4 7\n", " ", r"line 2: label 7 is not 0 to 4 \(MODEL.NUM_CLASSES=5\): 'b.mp4 7'"),
        ("a.mp4 -1\n", " ", "line 1: label -1 is not 0 to 4"),
        ("a.mp4,1\n", " ", "line 1: 'a.mp4,1' .* is DATA.PATH_LABEL_SEPARATOR ','"),
        ("a.mp4 1\n", ",", "line 1: 'a.mp4 1' .* is DATA.PATH_LABEL_SEPARATOR ' '"),
        ("a.mp4\t1\n", " ", r"is DATA.PATH_LABEL_SEPARATOR '\\t'"),
        ("my own clip.mp4,1\n", " ", "is DATA.PATH_LABEL_SEPARATOR ','"),
        ("my own old clip.mp4 1\n", " ", "paths that contain the separator"),
        ("a.mp4 swimming\n", " ", "line 1: 'a.mp4 swimming'"),
        ("", " ", "lists no video"),
        ("\n\n", " ", "lists no video"),
        ("a.mp4 1\n", "", "PATH_LABEL_SEPARATOR is empty"),
    ],
)
def test_what_cannot_be_read_names_line_and_remedy(listed, text, separator, message):
    with pytest.raises(ValueError, match=message):
        load_records(listed(text), separator, num_classes=5)


def test_a_missing_list_says_what_there_is(tmp_path, listed):
    listed("a.mp4 1", "training.csv")
    with pytest.raises(FileNotFoundError, match=r"no train.csv in .* holds training.csv"):
        find_list(str(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_list(str(tmp_path / "nowhere"), "train")
    with pytest.raises(FileNotFoundError, match="PATH_TO_DATA_DIR is empty"):
        find_list("", "train")


def test_missing_videos_are_counted_and_named(tmp_path, listed, caplog):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    file = listed("a.mp4 0\nb.mp4 0\nc.mp4 0\n")
    assert check_files(load_records(file, prefix=str(tmp_path)), file, may_miss=True) == 1
    assert "1 of 3 videos do not exist" in caplog.text
    assert "c.mp4" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"1 of 3 videos do not exist: .*c.mp4.*SKIP_BAD_VIDEOS"):
        check_files(load_records(file, prefix=str(tmp_path)), file, may_miss=False)
    with pytest.raises(FileNotFoundError, match=r"Set DATA\.PATH_PREFIX to"):
        check_files(load_records(file, prefix="/nowhere"), file, may_miss=True, prefix="/nowhere")
    elsewhere = listed("x.mp4 0\ny.mp4 0\n")
    with pytest.raises(FileNotFoundError, match=r"2 of 2 videos .* DATA.PATH_PREFIX, which is ''"):
        check_files(load_records(elsewhere), elsewhere, may_miss=True)


def test_records_are_a_sequence_in_flat_arrays():
    records = PathLabels(["a", "bc", "def"], [3, 1, 2])
    assert records[1] == ("bc", 1)
    assert records[-1].path == "def"
    assert [record.label for record in records] == [3, 1, 2]
    assert list(records[1:]) == [("bc", 1), ("def", 2)]
    with pytest.raises(IndexError):
        records[3]
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


def test_a_long_list_takes_little_memory(listed):
    text = "".join(f"class_{number % 400}/video_{number:06d}.mp4 {number % 400}\n" for number in range(50_000))
    records = load_records(listed(text), num_classes=400)
    assert len(records) == 50_000
    assert records[49_999] == ("class_399/video_049999.mp4", 399)
    assert len(pickle.dumps(records)) < 50 * len(records)  # bytes per row, path included


def test_wrong_keys_are_found_before_anything_is_read(video_folder, small_cfg):
    with pytest.raises(ValueError, match="DECODING_BACKEND='decord' is not one of torchvision, pyav"):
        build_dataset("kinetics", small_cfg(video_folder, "DATA.DECODING_BACKEND", "decord"), "train")
    with pytest.raises(ValueError, match="NUM_ENSEMBLE_VIEWS=-1"):
        build_dataset("kinetics", small_cfg(video_folder, "TEST.NUM_ENSEMBLE_VIEWS", -1), "test")
    with pytest.raises(ValueError, match="label 2"):
        build_dataset("kinetics", small_cfg(video_folder, "MODEL.NUM_CLASSES", 2), "train")


def test_the_chunk_key_is_accepted(video_folder, small_cfg, caplog):
    caplog.set_level("INFO")
    assert len(build_dataset("kinetics", small_cfg(video_folder, "DATA.LOADER_CHUNK_SIZE", 2), "train")) == 6
    assert "LOADER_CHUNK_SIZE is not needed" in caplog.text
