import pickle

import pytest

from slowfast.datasets.build import build_dataset
from slowfast.datasets.kinetics import find_list, load_records
from slowfast.datasets.records import PathLabels, check_files


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
        ("a.mp4 3\rb.mp4 4\r", " ", [("a.mp4", 3), ("b.mp4", 4)]),
        ("a b.mp4\t3\n", "\\t", [("a b.mp4", 3)]),  # as a shell passes a tab on
        ('"my clip.mp4",3\n"x,y.mp4", 4\n', ",", [("my clip.mp4", 3), ("x,y.mp4", 4)]),
        ("a.mp4 , 3\n", ",", [("a.mp4", 3)]),
        ("a.mp4,3,\nb.mp4,4,\n", ",", [("a.mp4", 3), ("b.mp4", 4)]),
        ("a.mp4 3.0\nb.mp4 10.0\nc.mp4 +2\n", " ", [("a.mp4", 3), ("b.mp4", 10), ("c.mp4", 2)]),
        ("日本.mp4 3\n", " ", [("日本.mp4", 3)]),
        ("a.mp4 3\na.mp4 3\n", " ", [("a.mp4", 3), ("a.mp4", 3)]),
        ("clips/a.mp4 b.mp4 3\n", " ", [("clips/a.mp4", 3)]),
        ("a.mp4     3\nb.mp4  4\n", " ", [("a.mp4", 3), ("b.mp4", 4)]),
        ('a.mp4,"3"\n"b.mp4","4"\n', ",", [("a.mp4", 3), ("b.mp4", 4)]),
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
        ("my own old clip.mp4 1\n", " ", "paths and names that contain the separator"),
        ("my clip.mp4 1\n", " ", "line 1: 'my clip.mp4 1' .*paths and names that contain the separator"),
        ("a.mp4 99999999999999999999\n", " ", "line 1: label 99999999999999999999 is not 0 to 4"),
        ("a.mp4 1\nb.mp4\n", " ", "line 2: there is no label, as line 1 has one: 'b.mp4'"),
        ("a.mp4,1\nb.mp4,\n", ",", "line 2: there is no label, as line 1 has one"),
        (",3\n", ",", "line 1: ',3' is not a path and a label separated by ','"),
        ("a.mp4 1_0\nb.mp4 0\n", " ", "line 1: label '1_0' is not a number"),
        ("\n \n\r\n\t\n", " ", "lists no video"),
        ("a\0.mp4 1\n", " ", "train.csv is not text"),
        ("a.mp4 0\nb.mp4 swimming\n", " ", "line 2: label 'swimming' is not a number, as that of line 1 is"),
        ("path label\nb.mp4 1\n", " ", "line 1: label 'label' is not a number.*no header: remove that line"),
        ("path label\nb.mp4 run\n", " ", "line 1 is a header, which a list has not: remove 'path label'"),
        ("a.mp4 baby crawling\n", " ", "line 1: .* names that contain the separator"),
        ("a.mp4,baby crawling\n", " ", "line 1: .* is DATA.PATH_LABEL_SEPARATOR ','"),
        ("a.mp4,swimming\n", " ", "line 1: 'a.mp4,swimming' .* is DATA.PATH_LABEL_SEPARATOR ','"),
        ("a.mp4 run\nb.mp4 swim\n", " ", r"names 2 classes \(run, swim\), but MODEL.NUM_CLASSES=5: set it to 2"),
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


def test_a_list_of_another_encoding_and_a_folder_in_its_place_are_named(tmp_path):
    (tmp_path / "train.csv").write_bytes("a.mp4 1\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"train.csv is not text of UTF-8, but of UTF-16: save it as UTF-8"):
        load_records(str(tmp_path / "train.csv"))
    (tmp_path / "val.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val.csv is a folder, not a list \(DATA.PATH_TO_DATA_DIR"):
        find_list(str(tmp_path), "val")


def test_names_are_numbered_in_sorted_order_of_the_training_list(listed):
    train = listed("a.mp4,swim\nb.mp4,apply make-up\nc.mp4,run\n", "train.csv")
    records = load_records(train, ",", num_classes=3)
    assert [record.label for record in records] == [2, 0, 1]
    assert records.class_names == records[1:].class_names == ["apply make-up", "run", "swim"]
    assert [record.label for record in load_records(listed("d.mp4,swim\n", "val.csv"), ",", num_classes=3)] == [2]
    misspelt = listed("d.mp4,run\ne.mp4,swims\n", "test.csv")
    with pytest.raises(ValueError, match=r"test.csv, line 2: .*train.csv has no class 'swims'; did you mean 'swim'"):
        load_records(misspelt, ",", num_classes=3)


def test_a_file_of_class_names_decides_their_ids(tmp_path, listed):
    names = tmp_path / "class_names.json"
    names.write_text('{"swim": 0, "run": 1, "fly": 2}')
    file = listed("a.mp4 run\nb.mp4 swim\n")
    assert [record.label for record in load_records(file, num_classes=3)] == [1, 0]
    with pytest.raises(ValueError, match=r"class_names.json names 3 classes \(swim, run, fly\).*NUM_CLASSES=2"):
        load_records(file, num_classes=2)
    with pytest.raises(ValueError, match=r"class_names.json lacks 1 classes of .*: walk"):
        load_records(listed("a.mp4 walk\n"), num_classes=3)
    names.write_text('{"swim": 0, "run": 2}')
    with pytest.raises(ValueError, match=r"ids 0, 1, 2, .* each once"):
        load_records(file)
    names.write_text("{")
    with pytest.raises(ValueError, match=r"class_names\.json is not JSON"):
        load_records(file)


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
