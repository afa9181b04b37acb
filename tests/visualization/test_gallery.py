"""Pictures in a folder, on a page and on a board."""

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slowfast.visualization.gallery import Gallery, to_gif, write_labels
from slowfast.visualization.plots import confusion_matrix
from slowfast.visualization.tensorboard import TensorboardSink


def test_one_picture_is_in_all_three_places(tmp_path):
    gallery = Gallery(tmp_path / "seen", TensorboardSink(tmp_path / "board"))
    color = np.full((4, 6, 3), 200, np.uint8)
    gallery.add_picture("Weights", "", "a/b [1, 2]", color, tag="Layer Weights/a/b")
    gallery.add_figure("Classes", "x", "<y>", confusion_matrix(np.eye(2), ["p", "q"], size=(2, 2)), tag="Confusion")
    gallery.add_animation("Clips", "Input 0", "slow", [color, color, color // 2], tag="Input 0/Pathway 1")
    gallery.add_note("Clips", "", "a < b")
    page = gallery.close("Inside", "lead").read_text()
    files = sorted(str(path.relative_to(tmp_path / "seen")) for path in (tmp_path / "seen").rglob("*.*"))
    assert files == ["classes/x-y.png", "clips/input_0-slow.gif", "index.html", "weights/a_b_1_2.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen/weights/a_b_1_2.png")), color)
    assert page.count("data:image/png;base64,") == 2
    assert "a &lt; b" in page
    assert page.index(">Clips</h2>") < page.index(">Classes</h2>") < page.index(">Weights</h2>")
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert set(board.Tags()["images"]) == {"Layer Weights/a/b", "Confusion", "Input 0/Pathway 1"}
    (shown,) = board.Images("Input 0/Pathway 1")
    assert (shown.width, shown.height) == (6, 4)
    assert Image.open(io.BytesIO(shown.encoded_image_string)).n_frames == 2


def test_an_animation_takes_its_time_for_equal_frames_too():
    picture = Image.open(io.BytesIO(to_gif([np.full((4, 4, 3), v, np.uint8) for v in (10, 10, 250)])))
    assert picture.n_frames == 2
    assert picture.info["duration"] == 500
    picture.seek(1)
    assert picture.info["duration"] == 250
    assert picture.convert("RGB").getpixel((0, 0))[0] > 240


def test_labels_have_the_colour_of_their_class():
    frames = np.zeros((2, 100, 120, 3), np.uint8)
    written = write_labels(frames, [("[0.90] a", 0.0), ("[0.05] b", 0.5)], colormap="gray")
    assert len(written) == 2
    assert written[0].shape == (300, 360, 3)
    assert written[0][1, 1].tolist() == [0, 0, 0]
    assert 120 <= written[0][24, 1, 0] <= 130  # the second line, half way from black to white
    with pytest.raises(ValueError, match="no colour map"):
        write_labels(frames, [], colormap="rainbows")
