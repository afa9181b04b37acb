import pickle
import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from shared import shared

from slowfast.datasets import sources
from slowfast.datasets.sources import DecodeError, FrameFolder, FrameList, VideoFile, open_source, scaled_size


@pytest.fixture
def count_converted(monkeypatch):
    """Number of frames converted to RGB so far."""
    counts = []
    convert = VideoFile._convert
    monkeypatch.setattr(VideoFile, "_convert", lambda self, *args: (counts.append(1), convert(self, *args))[1])
    return counts


FORMATS = [
    ("x.mp4", "libx264", {"gop": 12, "b_frames": 2}),
    ("x.mp4", "libx264", {"gop": 250, "b_frames": 0}),
    ("x.mkv", "libx264", {"gop": 7, "b_frames": 3}),
    ("x.ts", "libx264", {"gop": 12, "b_frames": 2}),
    ("x.mp4", "mpeg4", {"gop": 12, "b_frames": 0}),
    ("x.avi", "mpeg4", {"gop": 12, "b_frames": 2}),
    ("x.avi", "mjpeg", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), FORMATS)
@pytest.mark.parametrize("threads", [1, 2])
def test_any_frame_of_any_format_is_the_right_one(tmp_path, make_video, frame_numbers, name, codec, options, threads):
    source = VideoFile(make_video(tmp_path / name, 50, codec=codec, **options), threads=threads)
    assert source.info.num_frames == 50
    assert source.info.fps == 25
    assert (source.info.width, source.info.height) == (64, 48)
    for wanted in ([0], [49], [3, 17, 18, 44], [30, 5, 5, 30, 12], list(range(50)), [23, 24, 25]):
        frames = source.read(wanted)
        assert frames.dtype == torch.uint8
        assert frames.shape == (len(wanted), 48, 64, 3)
        assert frame_numbers(frames) == wanted


def test_each_wanted_frame_is_converted_once(tmp_path, make_video, count_converted):
    source = VideoFile(make_video(tmp_path / "x.mp4", 50))
    source.read([40, 10, 10, 11, 40])
    assert len(count_converted) == 3


def test_frames_are_scaled_while_they_are_converted(tmp_path, make_video, frame_numbers):
    source = VideoFile(make_video(tmp_path / "x.mp4", 12), short_side=24)
    assert (source.info.height, source.info.width) == (24, 32)
    frames = source.read([3, 9])
    assert frames.shape == (2, 24, 32, 3)
    first, second = frame_numbers(frames)
    assert second - first == 6
    assert abs(first - 3) <= 1  # the scaler may round the brightness down


@pytest.mark.parametrize(
    ("size", "short_side", "scaled"),
    [((340, 256), 182, (242, 182)), ((568, 320), 256, (454, 256)), ((320, 426), 160, (160, 213)), ((9, 9), 4, (4, 4))],
)
def test_scaled_size_rounds_to_the_nearest(size, short_side, scaled):
    assert scaled_size(*size, short_side) == scaled
    assert scaled_size(*size, None) == size


def test_a_file_too_large_for_memory_is_read_again(tmp_path, make_video, frame_numbers, monkeypatch):
    monkeypatch.setattr(sources, "PACKETS_IN_MEMORY", 0)
    source = VideoFile(make_video(tmp_path / "x.mp4", 50))
    for wanted in ([45, 46], [2, 30], [0], list(range(50))):
        assert frame_numbers(source.read(wanted)) == wanted


def test_a_frame_that_is_not_there_is_an_index_error(tmp_path, make_video):
    source = VideoFile(make_video(tmp_path / "x.mp4", 10))
    with pytest.raises(IndexError, match="10"):
        source.read([3, 10])


def test_a_video_of_one_frame(tmp_path, make_video, frame_numbers):
    source = VideoFile(make_video(tmp_path / "x.mp4", 1, offset=9))
    assert source.info.num_frames == 1
    assert frame_numbers(source.read([0, 0, 0])) == [9, 9, 9]


def test_times_start_at_zero_whatever_the_container_says(tmp_path, make_video):
    pts = VideoFile(make_video(tmp_path / "x.ts", 20)).info.timeline.pts
    assert pts[0] == 0
    assert np.diff(pts).tolist() == [3600] * 19


# ---------------------------------------------------------------- what cannot be decoded


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for _ in range(20):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_unusable_files_say_why(tmp_path, make_video):
    good = make_video(tmp_path / "good.mp4", 40)
    data = Path(good).read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])  # the index lies at the end
    audio_only(tmp_path / "audio.mp4")
    reasons = {
        "empty": "empty",
        "text": "Invalid data",
        "cut": "Invalid data",
        "audio": "no video",
        "gone": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(DecodeError, match=reason) as caught:
            VideoFile(tmp_path / f"{name}.mp4")
        assert caught.value.path == str(tmp_path / f"{name}.mp4")
        assert str(caught.value).count(str(tmp_path)) == 1


def test_a_cover_picture_is_not_a_video(tmp_path):
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100)
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic.value  # PyAV 17 takes no flag
        container.mux(picture.encode(av.VideoFrame(32, 32, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for _ in range(5):
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    with pytest.raises(DecodeError, match="no video stream"):
        VideoFile(path)


def test_a_title_in_an_unknown_encoding_does_no_harm(tmp_path, make_video, frame_numbers):
    path = Path(make_video(tmp_path / "x.mkv", 5))
    data = path.read_bytes()
    assert b"Lavf" in data
    path.write_bytes(data.replace(b"Lavf", b"\xdc\xe9\xff\xc5"))
    assert frame_numbers(VideoFile(path).read([4])) == [4]


def test_a_truncated_stream_gives_the_frames_that_are_there(tmp_path, make_video, frame_numbers):
    data = Path(make_video(tmp_path / "whole.mkv", 60, gop=10)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    source = VideoFile(tmp_path / "cut.mkv")
    assert 20 < source.info.num_frames < 60
    wanted = list(range(source.info.num_frames - 3))
    assert frame_numbers(source.read(wanted)) == wanted


def test_damage_ends_in_frames_or_in_an_error(tmp_path, make_video):
    data = Path(make_video(tmp_path / "whole.mkv", 60, gop=10, size=(128, 96))).read_bytes()
    outcomes = []
    for seed in range(12):
        chance = random.Random(seed)
        broken = bytearray(data)
        for _ in range(chance.choice([1, 10, 200])):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path = tmp_path / f"{seed}.mkv"
        path.write_bytes(broken)
        try:
            source = VideoFile(path)
            frames = source.read(range(source.info.num_frames))
            assert frames.shape[0] == source.info.num_frames
            outcomes.append("frames")
        except DecodeError:
            outcomes.append("error")
    assert "frames" in outcomes


def test_a_decode_error_survives_its_way_to_another_process():
    error = pickle.loads(pickle.dumps(DecodeError("a/b.mp4", "no frames")))
    assert (error.path, error.reason) == ("a/b.mp4", "no frames")
    assert str(DecodeError("text of an error that a loader raises again")).startswith("text")


# ---------------------------------------------------------------- frame folders


@pytest.fixture
def frame_folder(tmp_path):
    """Twelve red images whose red tells their number, named without leading zeros."""
    for number in range(12):
        Image.new("RGB", (24, 16), (20 * number, 0, 0)).save(tmp_path / f"frame_{number}.jpg", quality=100)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_is_a_source_like_a_file(frame_folder):
    source = open_source(str(frame_folder))
    assert isinstance(source, FrameFolder)
    assert (source.info.num_frames, source.info.fps, source.info.timeline) == (12, None, None)
    frames = source.read([0, 10, 2, 2])
    assert frames.shape == (4, 16, 24, 3)
    assert (frames[..., 0].float().mean(dim=(1, 2)) / 20).round().tolist() == [0, 10, 2, 2]  # RGB, natural order
    assert frames[..., 2].max() < 20


def test_hidden_files_of_a_folder_are_no_frames(frame_folder):
    for name in ("._frame_0.jpg", "._frame_3.jpg", ".thumbnail.png"):  # macOS leaves such on foreign disks
        (frame_folder / name).write_bytes(b"not an image")
    assert FrameFolder(frame_folder).read(range(12)).shape == (12, 16, 24, 3)
    for file in frame_folder.glob("frame_*"):
        file.unlink()
    with pytest.raises(DecodeError, match="no image"):
        FrameFolder(frame_folder)


def test_a_folder_may_be_scaled(frame_folder):
    assert FrameFolder(frame_folder, short_side=8).read([3]).shape == (1, 8, 12, 3)


def test_broken_folders_say_why(frame_folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DecodeError, match="no image"):
        FrameFolder(tmp_path / "none")
    Image.new("RGB", (8, 8)).save(frame_folder / "frame_5.jpg")
    with pytest.raises(DecodeError, match=r"frame_5\.jpg: 8x8 pixels, the first has 24x16"):
        FrameFolder(frame_folder).read([5])
    (frame_folder / "frame_5.jpg").write_bytes(b"broken")
    with pytest.raises(DecodeError, match=r"frame_5\.jpg"):
        FrameFolder(frame_folder).read([5])
    (frame_folder / "frame_0.jpg").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"frame_0\.jpg: the file is empty"):
        FrameFolder(frame_folder)
    with pytest.raises(DecodeError, match="no such folder"):
        FrameFolder(tmp_path / "nowhere")


def test_listed_images_keep_their_order(frame_folder):
    files = [str(frame_folder / f"frame_{number}.jpg") for number in (7, 2, 10)]
    frames = FrameList(files, path="clip").read([0, 1, 2])
    assert (frames[..., 0].float().mean(dim=(1, 2)) / 20).round().tolist() == [7, 2, 10]
    missing = FrameList([*files, str(frame_folder / "frame_99.jpg")], path="clip")
    with pytest.raises(DecodeError, match=r"^clip: frame_99\.jpg: no such file"):
        missing.read([3])
    with pytest.raises(DecodeError, match="clip: no frame is listed"):
        FrameList([], path="clip")


def test_an_image_is_a_source_of_one_frame(frame_folder):
    file = frame_folder / "frame_3.jpg"
    assert open_source(str(file)).read([0, 0]).shape == (2, 16, 24, 3)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DecodeError, match=r"(?i)frame_3\.jpg: [^:]*truncated"):
        open_source(str(file)).read([0])


# ---------------------------------------------------------------- real files


REAL = ["arm_wrestling.mp4", "archery.avi", "apply_eye_makeup.avi", "flipping_pancake.mkv", "hevc_10bit.mp4"]
REAL_SLOW = ["cleaning_pool.mp4", "yoga.mp4", "making_cake.mp4", "training_dog.mp4", "yuv444.mp4", "hevc_128.mp4"]


@pytest.mark.parametrize("name", [*REAL, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL_SLOW)])
def test_single_frames_of_real_files_equal_decoding_everything(name):
    path = shared(f"videos/{name}")
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    source = VideoFile(path)
    assert source.info.num_frames == len(everything)
    for wanted in ([len(everything) - 1], [0, 1, 9], list(range(3, len(everything), len(everything) // 7 + 1))):
        for frame, index in zip(source.read(wanted), wanted):
            np.testing.assert_array_equal(frame.numpy(), everything[index])


def test_the_damaged_real_file_gives_the_frames_that_can_be_had(caplog):
    source = VideoFile(shared("videos/corrupted.mp4"), short_side=90)
    frames = source.read(range(50))
    assert frames.shape == (50, 90, 160, 3)
    assert "48 of 50 frames can be decoded" in caplog.text
