"""What is done for the page in processes of its own: done here in this one, to see that it is right."""

import base64
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_run import CLASSES, write_run

from slowfast.datasets import DecodeError
from slowfast.datasets.sources import open_source
from slowfast.visualization.predictor import Predictor, WindowView
from slowfast.visualization.studio import work
from slowfast.visualization.studio.app import Studio


def tell(*progress):
    tell.heard.append(progress)


tell.heard = []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    return write_run(folder / "output" / "run", folder / "data")


@pytest.fixture(scope="module")
def network(run):
    app = Studio(run.parent, device="cpu")
    (found,) = app.library.runs()
    yield app._network_of(found)
    app.close()


@pytest.fixture
def video(run):
    return str(run.parents[1] / "data" / "test" / "bounce" / "00000.mp4")


def write_codec(path, codec, *, start=0, size=(64, 48), frames=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, 10)
        for index in range(frames):
            picture = np.full((size[1], size[0], 3), 20 * index, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index + start, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


# ------------------------------------------------------------ playing


def test_h264_is_played_as_it_is(tmp_path):
    path = write_codec(tmp_path / "a.mp4", "libx264")
    ready = work.play(tell, path=path, target=str(tmp_path / "made.mp4"))
    assert ready == {"frames": 10, "fps": 10.0, "length_s": 1.0, "file": path, "width": 64, "height": 48}


@pytest.mark.parametrize(
    ("name", "codec", "start"), [("a.avi", "mpeg4", 0), ("a.mkv", "libx264", 0), ("b.mp4", "libx264", 7)]
)
def test_anything_else_is_made_playable_from_time_0(tmp_path, name, codec, start):
    path = write_codec(tmp_path / name, codec, start=start)
    target = str(tmp_path / "made.mp4")
    ready = work.play(tell, path=path, target=target)
    assert (ready["file"], ready["frames"], ready["width"], ready["height"]) == (target, 10, 64, 48)
    assert work.plays_as_it_is(target)
    made = open_source(target)
    assert made.info.num_frames == 10
    assert float(made.read([3])[0].float().mean()) == pytest.approx(60, abs=4)


def test_a_folder_of_images_is_played(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(6):
        Image.new("RGB", (32, 24), (40 * number, 0, 0)).save(tmp_path / "frames" / f"{number}.png")
    target = str(tmp_path / "made.mp4")
    assert work.play(tell, path=str(tmp_path / "frames"), target=target)["length_s"] == pytest.approx(0.2)
    assert work.plays_as_it_is(target)


def test_what_is_too_long_or_broken_is_refused(tmp_path, video):
    with pytest.raises(ValueError, match=r"2 s long, at most 1 s are taken \(start with --max-seconds\)"):
        work.play(tell, path=video, target=str(tmp_path / "made.mp4"), max_seconds=1)
    (tmp_path / "broken.video").write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(5000))
    with pytest.raises(DecodeError):
        work.play(tell, path=str(tmp_path / "broken.video"), target=str(tmp_path / "made.mp4"))
    cut = tmp_path / "cut.video"
    cut.write_bytes(Path(video).read_bytes()[:-2000])
    with pytest.raises(DecodeError):
        work.predict(tell, run={}, path=str(cut))


def test_errors_are_told_without_paths_of_uploads(tmp_path):
    assert work.describe_error(DecodeError("/tmp/x.video", "no video stream")) == "no video stream"
    assert work.describe_error(KeyError("no such key")) == "no such key"
    assert work.describe_error(ZeroDivisionError("by nothing")) == "ZeroDivisionError: by nothing"


def test_a_picture_is_small(tmp_path):
    path = write_codec(tmp_path / "a.mp4", "libx264", size=(640, 480))
    with Image.open(work.picture(tell, path=path, target=str(tmp_path / "p.jpg"))["file"]) as image:
        assert image.size == (208, 156)
        assert np.asarray(image).mean() == pytest.approx(100, abs=4)  # frame 5


# ------------------------------------------------------------ what a network sees


def test_scores_over_time_are_those_of_the_predictor(run, network, video):
    tell.heard.clear()
    found = work.predict(tell, run=network, path=video, window_s=0.8, stride_s=0.4)
    predictor = Predictor.from_checkpoint(run / "config.yaml", network["checkpoint"], device="cpu")
    windows = list(predictor.predict_windows(video, window_s=0.8, stride_s=0.4))
    order = [item["index"] for item in found["classes"]]
    assert [item["name"] for item in found["classes"]] == [CLASSES[k] for k in order]
    assert np.allclose(found["scores"], torch.stack([w.scores for w in windows])[:, order], atol=1e-5)
    assert found["whole"] == sorted(found["whole"], reverse=True)
    assert found["spans"][-1] == [pytest.approx(32 / 15 - 0.8, abs=1e-3), pytest.approx(32 / 15, abs=1e-3)]
    assert len(found["edges"]) == len(windows) + 1 == 6
    assert tell.heard[-1] == (5, 5, "looking")


def test_windows_are_those_of_a_clip_unless_said_otherwise(network, video):
    found = work.predict(tell, run=network, path=video)
    assert found["window_s"] == pytest.approx(8 * 2 / 15, abs=1e-3)
    assert found["stride_s"] == pytest.approx(found["window_s"] / 4, abs=1e-3)


def test_maps_cover_the_frame_at_the_times_of_the_slices(network, video):
    found = work.explain(tell, run=network, path=video, window_s=1.0, stride_s=1.0)
    assert found["pathways"] == ["fast", "slow"]
    assert len(found["windows"]) == 3
    for window in found["windows"]:
        for name, map_ in window["maps"].items():
            start, end = window["span"]
            assert all(start - 0.01 <= time <= end + 0.01 for time in map_["times"]), name
            cells = np.frombuffer(base64.b64decode(map_["data"]), dtype=np.uint8)
            assert cells.size == len(map_["times"]) * map_["rows"] * map_["columns"]
            assert (min(map_["rows"], map_["columns"])) == work.MAP_SIDE
    fast, slow = (found["windows"][0]["maps"][name] for name in ("fast", "slow"))
    assert len(fast["times"]) > len(slow["times"])
    assert max(base64.b64decode(fast["data"])) > 0


def test_crops_lie_where_they_were_cut(monkeypatch):
    """A map that is 1 in the left crop and 0 in the right one is 1 at the left of the frame and 0 at the right."""

    class Explained:
        def __init__(self, value):
            self.maps, self.frames = {"clip": torch.full((1, 2, 8, 8), value)}, {"clip": (0, 3)}

    views = [
        WindowView(torch.zeros(3, 4, 8, 8), np.arange(4.0), (0.0, left, 1.0, left + 0.5)) for left in (0.0, 0.25, 0.5)
    ]
    laid = work._laid_out(list(zip(views, map(Explained, (1.0, 0.5, 0.0)))))["clip"]
    cells = np.frombuffer(base64.b64decode(laid["data"]), dtype=np.uint8).reshape(2, laid["rows"], laid["columns"])
    assert (laid["times"], laid["rows"], laid["columns"]) == ([0.0, 3.0], 36, 72)
    assert set(cells[0, :, :18].flatten()) == {255}
    assert set(cells[0, :, 54:].flatten()) == {0}
    assert np.all(np.diff(cells[0, 0].astype(int)) <= 0)  # and falls smoothly between them
    assert abs(int(cells[0, 0, 36]) - 128) < 12


def test_views_are_those_that_are_scored(run, network, video):
    predictor = Predictor.from_checkpoint(run / "config.yaml", network["checkpoint"], device="cpu")
    options = {"window_s": 1.0, "stride_s": 0.5}
    scored = list(predictor.predict_windows(video, **options))
    for (span, views), window in zip(predictor.window_views(video, **options), scored, strict=True):
        assert span == (window.start_s, window.end_s)
        with torch.no_grad():
            scores = predictor.network(torch.stack([view.clip for view in views]))
        assert torch.allclose(scores.mean(0), window.scores, atol=1e-5)
        assert [view.part[1] for view in views] == sorted(view.part[1] for view in views)
