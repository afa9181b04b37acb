"""The command that draws a contact sheet of augmented training clips."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from slowfast.config import get_cfg

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "show_augmentation.py"


@pytest.fixture(scope="module")
def tool():
    return load_script(_TOOL)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A list of two folders of 12 frames, one red and one green, and a configuration for it."""
    folder = tmp_path_factory.mktemp("data")
    for name, color in (("red", (250, 0, 0)), ("green", (0, 250, 0))):
        (folder / name).mkdir()
        for number in range(12):
            Image.new("RGB", (40, 32), color).save(folder / name / f"{number}.png")
    (folder / "train.csv").write_text("red 0\ngreen 1\n")
    (folder / "a.yaml").write_text(
        f"DATA: {{PATH_TO_DATA_DIR: {folder}, PATH_PREFIX: {folder}, NUM_FRAMES: 4, SAMPLING_RATE: 2, "
        "TRAIN_JITTER_SCALES: [32, 40], TRAIN_CROP_SIZE: 24, REVERSE_INPUT_CHANNEL: True}\n"
        "MODEL: {NUM_CLASSES: 3}\nNUM_GPUS: 0\n"
    )
    return folder


def rows_of(picture, width):
    """Mean colours [rows, columns, 3] of a sheet with square frames of ``width``."""
    pixels = np.asarray(picture).astype(float)
    tops = range(3 + 14, pixels.shape[0] - width, width + 14 + 3)
    lefts = range(3, pixels.shape[1] - width, width + 3)
    return np.array([[pixels[t : t + width, x : x + width].mean((0, 1)) for x in lefts] for t in tops])


def test_the_sheet_has_a_row_for_each_clip(tool, data, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    shown = ["--out", str(out), "--epochs", "2", "--frames", "3", "--width", "20"]
    assert tool.main(["--cfg", str(data / "a.yaml"), "AUG.NUM_SAMPLE", "2", *shown]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        colors = rows_of(picture, 20)
    assert colors.shape == (10, 3, 3)  # two videos: as decoded, and 2 epochs x 2 copies
    assert np.abs(colors[:5] - [250, 0, 0]).max() < 3  # channels in the right order
    assert np.abs(colors[5:] - [0, 250, 0]).max() < 3


def test_masks_and_mixtures_are_drawn(tool, data):
    opts = ["AUG.GEN_MASK_LOADER", True, "AUG.MASK_FRAMES", True, "AUG.MASK_RATIO", 0.5]
    opts += ["AUG.MASK_WINDOW_SIZE", [4, 2, 2], "MIXUP.ENABLE", True, "MIXUP.CUTMIX_ALPHA", 0.0]
    cfg = tool.load_cfg(str(data / "a.yaml"), opts)
    rows = tool.build_rows(cfg, [0, 1], 1, 4)
    assert [row.text.split(", ")[0] for row in rows] == [str(data / "red"), "row 0", str(data / "green"), "row 1"]
    assert " of 0" in rows[1].text
    assert " of 1" in rows[1].text
    frames = rows[1].frames.float().mean((1, 2))  # [T, 3]
    assert (frames.sum(1) < 60).sum() == 2  # two of four steps are hidden
    assert (frames[:, :2] > 0).all()  # red and green


def test_every_view_of_contrastive_learning_is_drawn(tool, data):
    opts = ["MODEL.MODEL_NAME", "ContrastiveModel", "DATA.TRAIN_CROP_NUM_TEMPORAL", 2]
    rows = tool.build_rows(tool.load_cfg(str(data / "a.yaml"), opts), [1], 2, 4)
    assert [row.text.split(", ")[1] for row in rows] == ["decoded"] + ["epoch 0"] * 2 + ["epoch 1"] * 2
    assert [row.text.split(", ")[2] for row in rows[1:]] == ["clip 1 of 2", "clip 2 of 2"] * 2
    assert all(row.frames.shape[0] == 4 and row.frames[..., 1].float().mean() > 200 for row in rows)


def test_errors_are_said(tool, data, capsys):
    assert tool.main(["--cfg", str(data / "a.yaml"), "--first", "5"]) == 1
    assert "2 rows" in capsys.readouterr().err
    assert tool.main(["--cfg", str(data / "a.yaml"), "AUG.NUM_SMAPLE", "2"]) == 1
    assert "AUG.NUM_SAMPLE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["--cfg", str(data / "a.yaml"), "--frames", "0"])


def test_boxes_are_drawn_into_the_key_frame(tool, tmp_path):
    """Black frames 64x48 with a white square; only the key frame of the sheet has a yellow outline, and around it."""
    frames = tmp_path / "a"
    frames.mkdir()
    for number in range(60):
        picture = Image.new("RGB", (64, 48))
        picture.paste((255, 255, 255), (16, 12, 40, 36))
        picture.save(frames / f"{number:02d}.png")
    rows = "".join(f'a 0 {number} a/{number:02d}.png ""\n' for number in range(60))
    (tmp_path / "frames.csv").write_text("original_vido_id video_id frame_id path labels\n" + rows)
    (tmp_path / "boxes.csv").write_text("a,1,0.25,0.25,0.625,0.75,1\n")
    cfg = get_cfg()
    changes = {"FRAME_DIR": tmp_path, "FRAME_LIST_DIR": tmp_path, "ANNOTATION_DIR": tmp_path}
    cfg.merge_from_list([item for key, value in changes.items() for item in (f"AVA.{key}", str(value))])
    cfg.merge_from_list(["AVA.TRAIN_LISTS", ["frames.csv"], "AVA.TRAIN_GT_BOX_LISTS", ["boxes.csv"]])
    cfg.merge_from_list(["AVA.TRAIN_PREDICT_BOX_LISTS", [], "AVA.FIRST_SECOND", 0.0, "TRAIN.DATASET", "ava"])
    cfg.merge_from_list(["DATA.TRAIN_JITTER_SCALES", [48, 60], "DATA.TRAIN_CROP_SIZE", 48, "DATA.NUM_FRAMES", 8])
    decoded, *augmented = tool.build_rows(cfg, [0], epochs=3, num_frames=3)
    assert decoded.text == f"{frames}, second 1, decoded"
    assert decoded.boxes == [[16, 12, 40, 36]]
    assert (decoded.key, len(decoded.frames)) == (1, 3)
    for row in (decoded, *augmented):
        ys, xs = (row.frames[row.key].float().mean(-1) > 127).nonzero(as_tuple=True)
        shown = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(shown - row.boxes[0]).max() <= 1.6
    sheet = np.asarray(tool.draw_sheet([decoded], 64)).astype(int)
    yellow = (sheet[..., 0] > 200) & (sheet[..., 1] > 200) & (sheet[..., 2] < 50)
    columns = yellow.any(0).nonzero()[0]
    assert (columns.min(), columns.max()) == (3 + 67 + 16, 3 + 67 + 40)
