"""Frames as they come: what is read of files, pipes and devices, and how clips are cut without looking ahead."""

import os
import threading

import av
import numpy as np
import pytest
from PIL import Image
from shared import shared

from slowfast.datasets.sources import DecodeError, open_source
from slowfast.visualization import live
from slowfast.visualization.live import FrameStream, Moment, Shot, keyed_clips, open_stream, sliding_clips
from slowfast.visualization.video_io import frame_times, sliding_windows, video_length


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Forty frames at 20 a second, as grey as their number."""
    path = tmp_path_factory.mktemp("live") / "grey.mkv"
    write(path, 40)
    return path


def write(path, frames, fps=20):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), 20 + 5 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def number_of(picture):
    return round((float(picture.mean()) - 20) / 5)


def fake(times, fps=10.0):
    frame = av.VideoFrame(16, 16, "rgb24")
    return FrameStream("fake", fps, [Shot(index, time, frame) for index, time in enumerate(times)])


def test_file_comes_frame_by_frame_with_its_times(video):
    stream = open_stream(str(video))
    shots = list(stream.shots)
    assert (stream.fps, stream.num_frames, stream.live) == (20, 40, False)
    assert [shot.index for shot in shots] == list(range(40))
    assert [shot.time_s for shot in shots] == pytest.approx(frame_times(open_source(str(video)).info, 1).tolist())
    assert [number_of(shot.picture()) for shot in shots] == list(range(40))


@pytest.mark.parametrize("short_side", [None, 24])
def test_pictures_are_those_of_a_data_set(video, short_side):
    shots = list(open_stream(str(video)).shots)
    wanted = open_source(str(video), short_side=short_side).read([3, 17]).numpy()
    found = live.read_pictures(shots, [3, 17], short_side).numpy()
    np.testing.assert_array_equal(found, wanted)


def test_pipe_is_read_once_without_a_length(video, tmp_path):
    """As a camera: nothing can be sought, and nobody says when it ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert live.is_live(str(pipe))
    writer = threading.Thread(target=lambda: pipe.write_bytes(video.read_bytes()))
    writer.start()
    stream = open_stream(str(pipe))
    assert (stream.live, stream.num_frames, stream.fps) == (True, None, 20)
    shots = list(stream.shots)
    writer.join()
    assert [number_of(shot.picture()) for shot in shots] == list(range(40))
    assert [shot.time_s for shot in shots] == pytest.approx(np.arange(40) / 20, abs=1e-3)


@pytest.mark.skipif("lavfi" not in av.formats_available, reason="this build of PyAV has no virtual device")
def test_device_gives_frames_until_told_to_stop(monkeypatch):
    monkeypatch.setattr(live, "camera_device", lambda name: ("testsrc=size=64x48:rate=10", "lavfi"))
    stream = open_stream("webcam:0").until(seconds=1.5)
    assert (stream.live, stream.fps) == (True, 10)
    shots = list(stream.shots)
    assert [shot.time_s for shot in shots] == pytest.approx(np.arange(15) / 10)
    assert shots[0].picture().shape == (48, 64, 3)
    assert shots[0].picture().std() > 30
    seen = []
    for shot in open_stream("webcam:0").until(stopped=lambda: len(seen) >= 4).shots:
        seen.append(shot.index)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("platform", "name", "device"),
    [
        ("linux", "0", ("/dev/video0", "v4l2")),
        ("linux", "/dev/v4l/by-id/usb", ("/dev/v4l/by-id/usb", "v4l2")),
        ("darwin", "1", ("1", "avfoundation")),
        ("win32", "1", ("1", "vfwcap")),
        ("win32", "USB camera", ("video=USB camera", "dshow")),
    ],
)
def test_cameras_have_a_name_on_each_system(platform, name, device):
    assert live.camera_device(name, platform) == device


def test_missing_camera_is_said(monkeypatch):
    monkeypatch.setattr(live, "camera_device", lambda name: (f"/dev/video{name}", "v4l2"))
    with pytest.raises(DecodeError, match=r"webcam:97: .*(/dev/video97|cameras)"):
        open_stream("webcam:97")
    monkeypatch.setattr(live, "camera_device", lambda name: (name, "no_such_format"))
    with pytest.raises(DecodeError, match=r"this build of PyAV cannot read cameras .*pipe one in"):
        open_stream("webcam:0")


@pytest.mark.parametrize("name", ["rtsp://host/cam", "udp://0.0.0.0:5000", "-", "webcam:0"])
def test_what_is_live(name):
    assert live.is_live(name)


@pytest.mark.parametrize("name", ["a.mp4", "http://host/a.mp4", "/no/such/file"])
def test_what_is_not(name):
    assert not live.is_live(name)


def test_images_are_a_stream_at_a_given_rate(tmp_path):
    for number in range(3):
        Image.new("RGB", (32, 24), (40 * number,) * 3).save(tmp_path / f"f_{number}.png")
    stream = open_stream(str(tmp_path), fps=4)
    assert [(shot.time_s, int(shot.picture()[0, 0, 0])) for shot in stream.shots] == [(0, 0), (0.25, 40), (0.5, 80)]
    assert (stream.fps, stream.num_frames) == (4, 3)


@pytest.mark.parametrize("count", [1, 7, 10, 16, 17, 24, 25, 31])
@pytest.mark.parametrize(("span", "hop"), [(0.8, 0.8), (0.8, 0.4), (0.8, 0.5)])
def test_clips_are_the_sliding_windows_of_a_known_length(count, span, hop):
    times = np.arange(count) / 10
    clips = list(sliding_clips(fake(times), span, hop))
    windows = sliding_windows(video_length(times, 10), span, hop)
    assert [clip.moment[:2] for clip in clips] == [pytest.approx(window) for window in windows]
    assert [shot.index for clip in clips for shot in clip.fresh] == list(range(count))
    for clip, window in zip(clips, windows, strict=True):
        inside = np.flatnonzero((times >= window.start_s - 1e-6) & (times < window.end_s - 1e-6))
        assert [shot.index for shot in clip.shots][-len(inside) :] == inside.tolist()
        middle = (window.start_s + window.end_s) / 2
        assert clip.key.index == np.flatnonzero(times <= middle + 1e-6)[-1]


def test_memory_does_not_grow():
    alive = []

    def shots():
        for index in range(5000):
            yield Shot(index, index / 10, av.VideoFrame(16, 16, "rgb24"))

    stream = FrameStream("long", 10.0, shots())
    cutter = live._Cutter(stream, 2.0, 3.0)
    moments = iter([Moment(399, 401, 400)])
    for clip in cutter.cut(moments, lambda moment, length: iter([moment])):
        alive.append(len(cutter.held) + len(clip.fresh))
    assert max(alive) < 90


def test_given_moments_bring_their_frames_and_the_rest_comes_alone():
    times = np.arange(200) / 10
    moments = [Moment(key - 0.4, key + 0.4, key, key) for key in (0.1, 9.0, 9.5, 19.9)]
    clips = list(keyed_clips(fake(times), moments, 1.0))
    assert [shot.index for clip in clips for shot in clip.fresh] == list(range(200))
    found = [clip for clip in clips if clip.moment]
    assert [clip.moment.known for clip in found] == [0.1, 9.0, 9.5, 19.9]
    assert [clip.key.index for clip in found] == [1, 90, 95, 199]
    assert [[shot.index for shot in clip.shots] for clip in found] == [
        *([0, 1, 2, 3, 4], list(range(86, 94)), list(range(91, 99)), list(range(195, 200)))
    ]
    assert len(clips) > 6  # frames far from any key frame do not wait for the next


def test_key_frames_after_the_end_are_left_out_and_counted(caplog):
    moments = [Moment(key - 0.4, key + 0.4, key) for key in (1.0, 5.0, 6.0)]
    clips = list(keyed_clips(fake(np.arange(20) / 10), moments))
    assert [clip.moment.key_s for clip in clips if clip.moment] == [1.0]
    assert "2 of 3 key frames come after its end" in caplog.text


def test_turned_videos_come_upright_or_as_they_are_stored():
    video = str(shared("videos/rotated_90.mov"))
    for upright in (True, False):
        shot = next(iter(open_stream(video, upright=upright).shots))
        wanted = open_source(video, upright=upright).read([0])[0].numpy()
        np.testing.assert_array_equal(shot.picture(), wanted)
