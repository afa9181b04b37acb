import pytest

from slowfast.datasets.class_names import find_class_names
from slowfast.datasets.frame_lists import HEADER
from slowfast.datasets.ssv2 import LABELS


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"swim/a.mp4": "", "run/b.avi": "", "notes/c.txt": ""}, ["run", "swim"]),
        ({"train/swim/a.mp4": "", "val/run/b.mp4": "", "val/swim/c.mp4": ""}, ["run", "swim"]),
        ({"train/n02/a.JPEG": "", "train/n01/b.JPEG": ""}, ["n01", "n02"]),
        ({"train.csv": "a.mp4,swim\nb.mp4,run\n"}, ["run", "swim"]),
        ({"train.csv": "a.mp4,1\nb.mp4,0\n", "swim/a.mp4": ""}, None),
        ({"val.csv": "a.mp4,swim\n"}, None),
        ({"train.csv": f'{HEADER[0]} video_id frame_id path labels\na 0 0 a/1.jpg "1"\n'}, None),
        ({LABELS: '{"Pushing something": "1", "Holding something": "0"}'}, ["Holding something", "Pushing something"]),
        ({LABELS: "{"}, None),
        ({}, None),
    ],
)
def test_names_are_found_in_every_kind_of_annotation(tmp_path, files, names):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert find_class_names(str(tmp_path), ",") == names
