"""What people have on their disks: every input decodes rightly, or says what is wrong with it."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from shared import shared
from turned_video import write_turned_video

from slowfast.config import load_cfg
from slowfast.datasets.build import build_dataset
from slowfast.datasets.sampling import ClipSpec, View, choose_by_span, choose_by_stride
from slowfast.datasets.sources import DecodeError, TorchcodecFile, VideoFile, check_decoder, open_source

LENGTH, SIZE = 20, (64, 48)
X264 = {"x264-params": "log-level=none", "crf": "1"}


def picture(number, pix_fmt="yuv420p", size=SIZE):
    """A frame of the brightness that ``frame_numbers`` reads."""
    grey = round(2 * number * 255 / 219)
    return av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), grey, np.uint8), "rgb24").reformat(format=pix_fmt)


def add_stream(container, codec="libx264", pix_fmt="yuv420p", size=SIZE, rate=25, options=None, gop=8):
    """A video stream that is ready to encode."""
    stream = container.add_stream(codec, rate=rate, options=X264 if options is None else options)
    stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
    stream.gop_size = gop
    if codec in ("mpeg4", "mpeg2video", "mjpeg"):
        stream.bit_rate = 4_000_000
    return stream


def encode(target, codec="libx264", *, format=None, times=None, count=LENGTH, shift=0, **options):
    """``count`` numbered frames; at ``times`` (in 1/1000 s) where given, all times moved by ``shift``."""
    pix_fmt = options.get("pix_fmt", "yuv420p")
    with av.open(target, "w", format=format) as container:
        stream = add_stream(container, codec, **options)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = picture(number, pix_fmt, options.get("size", SIZE))
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            mux(container, stream.encode(frame), shift)
        mux(container, stream.encode(), shift)


def mux(container, packets, shift=0):
    for packet in packets:
        if shift:
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        container.mux(packet)


def encoded(**options):
    stream = io.BytesIO()
    encode(stream, **options)
    return stream.getvalue()


# ---------------------------------------------------------------- what decodes


def several_streams(path):
    """A preview behind the stream that matters."""
    with av.open(path, "w") as container:
        large, small = add_stream(container), add_stream(container, size=(32, 24))
        for number in range(LENGTH):
            container.mux(small.encode(picture(50, size=(32, 24))))
            container.mux(large.encode(picture(number)))
        container.mux(small.encode())
        container.mux(large.encode())


def changing_size(path):
    """Two halves of different sizes, one behind the other."""
    halves = [encoded(format="mpegts", count=10), encoded(format="mpegts", count=10, size=(128, 96))]
    Path(path).write_bytes(b"".join(halves))


def with_sound(path):
    with av.open(path, "w") as container:
        video, audio = add_stream(container), container.add_stream("aac", rate=44100)
        for number in range(LENGTH):
            container.mux(video.encode(picture(number)))
        add_sound(container, audio)
        container.mux(video.encode())


def add_sound(container, audio):
    for _ in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(audio.encode(frame))
    container.mux(audio.encode())


def without_header(path):
    """A pipe cannot be rewound: the header holds no duration and no index."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.data = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    encode(pipe, format="matroska")
    Path(path).write_bytes(pipe.data)


UNEVEN = np.cumsum([0, *([20, 60, 40, 10, 250] * 4)])[:LENGTH].tolist()
RIGHT = {
    "plain.mp4": encode,
    "frames out of order.mp4": lambda path: encode(path, options={**X264, "bf": "3", "b-pyramid": "normal"}, gop=50),
    "open groups of pictures.mkv": lambda path: encode(path, options={**X264, "x264-params": "open-gop=1:log=-1"}),
    "one key frame.mp4": lambda path: encode(path, gop=1000),
    "only key frames.mp4": lambda path: encode(path, gop=1),
    "negative times.mkv": lambda path: encode(path, options={**X264, "bf": "2"}, format="nut", shift=-7),
    "late start.ts": lambda path: encode(path, format="mpegts", shift=90000),
    "uneven times.mkv": lambda path: encode(path, times=UNEVEN),
    "uneven times.mp4": lambda path: encode(path, times=UNEVEN),
    "no header.mkv": without_header,
    "no container.h264": lambda path: encode(path, format="h264", options={**X264, "bf": "0"}),
    "fragments.mp4": lambda path: fragmented(path),
    "several streams.mkv": several_streams,
    "sound too.mp4": with_sound,
    "a wrong suffix.avi": lambda path: encode(path, format="mp4"),
    "no suffix": lambda path: encode(path, format="mp4"),
    "10 bit.mp4": lambda path: encode(path, pix_fmt="yuv420p10le"),
    "full chroma.mp4": lambda path: encode(path, pix_fmt="yuv444p"),
    "half chroma.mp4": lambda path: encode(path, pix_fmt="yuv422p"),
    "odd size.mp4": lambda path: encode(path, pix_fmt="yuv444p", size=(37, 21)),
    "hevc.mp4": lambda path: encode(path, "libx265", options={"x265-params": "log-level=none:qp=4"}),
    "hevc 10 bit.mp4": lambda path: encode(
        path, "libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none:qp=4"}
    ),
    "av1.mp4": lambda path: encode(path, "libsvtav1", options={"crf": "5", "preset": "12"}),
    "vp9.webm": lambda path: encode(path, "libvpx-vp9", options={"crf": "2", "b": "0", "deadline": "realtime"}),
    "vp8.webm": lambda path: encode(path, "libvpx", options={"crf": "4", "b": "4M", "deadline": "realtime"}),
    "mpeg2.mpg": lambda path: encode(path, "mpeg2video", options={}),
    "mpeg2 late start.mpg": lambda path: encode(path, "mpeg2video", options={}, format="mpeg", shift=900000),
    "mpeg2.vob": lambda path: encode(path, "mpeg2video", options={}, format="vob"),
    "mpeg4.avi": lambda path: encode(path, "mpeg4", options={"bf": "2"}),
    "ffv1.mkv": lambda path: encode(path, "ffv1", options={}),
    "one frame.mp4": lambda path: encode(path, count=1),
    "two frames.mp4": lambda path: encode(path, count=2),
}


def fragmented(path):
    with av.open(path, "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = add_stream(container)
        for number in range(LENGTH):
            container.mux(stream.encode(picture(number)))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", RIGHT)
def test_it_decodes_rightly(tmp_path, frame_numbers, name):
    path = str(tmp_path / name)
    try:
        RIGHT[name](path)
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this PyAV has no encoder for it")
    source = VideoFile(path)
    count = source.info.num_frames
    assert count == {"one frame.mp4": 1, "two frames.mp4": 2}.get(name, LENGTH)
    for wanted in (list(range(count)), [count - 1], [count // 2, 0, count // 2]):
        found = frame_numbers(VideoFile(path).read(wanted))
        assert np.abs(np.subtract(found, wanted)).max() <= 1, f"{found} for {wanted}"
    assert (source.info.width, source.info.height) == ((37, 21) if name.startswith("odd") else SIZE)


MPEG2 = {"codec": "mpeg2video", "options": {}}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("late start.ts", {"shift": 90000}),
        ("x.mpg", MPEG2),
        ("x.vob", {**MPEG2, "format": "vob"}),
        ("late start.mpg", {**MPEG2, "format": "mpeg", "shift": 900000}),
    ],
)
@pytest.mark.parametrize("choose", [choose_by_span, choose_by_stride])
def test_a_clip_lies_where_its_times_say(tmp_path, frame_numbers, name, options, choose):
    encode(tmp_path / name, count=60, **options)
    source = VideoFile(tmp_path / name)
    assert source.info.timeline.pts[0] == 0
    for view in range(3):
        choice = choose(ClipSpec(4, 1, 25), source.info.timeline, View(view, 3, 0, 1))
        indices = choice.indices.tolist()
        # From the duration, which some containers only estimate, the second rule takes the time of a frame.
        assert (indices[0] > 0) == (view > 0)
        assert 0.8 * choice.start - 1 < indices[0] < choice.start + 1
        assert indices[:3] == list(range(indices[0], indices[0] + 3))
        assert np.abs(np.subtract(frame_numbers(source.read(indices)), indices)).max() <= 1


@pytest.mark.parametrize("name", ["x.ts", "x.mkv", "x.mp4"])
def test_a_video_without_key_frames_but_one_is_not_damaged(tmp_path, frame_numbers, monkeypatch, caplog, name):
    refresh = {"x264-params": "intra-refresh=1:log=-1:keyint=10:bframes=0", "crf": "1"}
    encode(tmp_path / name, count=60, gop=10, options=refresh)
    started = []
    decode = VideoFile._decode
    monkeypatch.setattr(VideoFile, "_decode", lambda self, *args: (started.append(args[0]), decode(self, *args))[1])
    for wanted in ([50], [10, 20, 31, 59], list(range(60))):
        source = VideoFile(tmp_path / name)
        assert np.abs(np.subtract(frame_numbers(source.read(wanted)), wanted)).max() <= 1
    started.clear()
    source.read([50])
    assert started == [40]  # known from before
    assert not caplog.records


def test_a_size_that_changes_is_brought_to_the_first(tmp_path, frame_numbers):
    changing_size(tmp_path / "x.ts")
    source = open_source(str(tmp_path / "x.ts"))
    frames = source.read(range(source.info.num_frames))
    assert frames.shape[1:] == (48, 64, 3)
    assert set(frame_numbers(frames)) >= set(range(9))


def test_an_image_with_the_name_of_a_video_is_one_frame(tmp_path):
    Image.new("RGB", (8, 6), (200, 100, 50)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.mp4")
    source = open_source(str(tmp_path / "x.mp4"))
    assert (source.info.num_frames, source.read([0])[0, 0, 0].tolist()) == (1, [200, 100, 50])


# ---------------------------------------------------------------- what does not


def only_sound(path):
    with av.open(path, "w") as container:
        add_sound(container, container.add_stream("aac", rate=44100))


def bytes_of(change):
    """A whole file, changed."""
    return lambda path: Path(path).write_bytes(change(encoded(format="mp4")))


def emptied(data):
    """The index is sound, the pictures are gone."""
    first = data.index(b"mdat") + 4
    return data[:first] + bytes(data.index(b"moov") - 4 - first) + data[data.index(b"moov") - 4 :]


WRONG = {
    "empty.mp4": (lambda path: Path(path).touch(), "the file is empty"),
    "text.mp4": (lambda path: Path(path).write_text("no video\n" * 99), "Invalid data"),
    "a web page.mp4": (lambda path: Path(path).write_text("<html><body>404</body></html>"), "Invalid data"),
    "zeros.mp4": (lambda path: Path(path).write_bytes(bytes(5000)), "Invalid data"),
    "noise.mp4": (lambda path: Path(path).write_bytes(np.random.default_rng(0).bytes(5000)), "Invalid data"),
    "sound only.mp4": (only_sound, "no video stream"),
    "its first half.mp4": (bytes_of(lambda data: data[: len(data) // 2]), "Invalid data"),
    "its second half.mp4": (bytes_of(lambda data: data[len(data) // 2 :]), "Invalid data"),
    "its first bytes.mp4": (bytes_of(lambda data: data[:40]), "Invalid data|End of file"),
    "no pictures.mp4": (bytes_of(emptied), "no frame can be decoded"),
    "a folder.mp4": (lambda path: Path(path).mkdir(), "the folder holds no image"),
    "no file.mp4": (lambda path: None, "no such file"),
    "a broken link.mp4": (lambda path: Path(path).symlink_to("nowhere"), "no such file"),
    "an empty image.png": (lambda path: Path(path).touch(), "the file is empty"),
    "no image.jpg": (lambda path: Path(path).write_text("no image"), "not an image"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_says_what_is_wrong(tmp_path, name):
    path = str(tmp_path / name)
    make, reason = WRONG[name]
    make(path)
    with pytest.raises(DecodeError, match=reason) as caught:
        open_source(path).read([0, 3])
    assert caught.value.path == path


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_of_a_file_cut_short_all_is_had_that_is_there(tmp_path, frame_numbers, kept):
    with av.open(str(tmp_path / "whole.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = add_stream(container, gop=5, size=(640, 480))
        rng = np.random.default_rng(0)
        for number in range(LENGTH):
            noise = rng.integers(-8, 9, (480, 640, 3)) + round(2 * number * 255 / 219) + 8
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise.astype(np.uint8), "rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * kept)])
    try:
        source = VideoFile(tmp_path / "cut.mp4")
        found = frame_numbers(source.read(range(source.info.num_frames)))
    except DecodeError as error:
        assert "damaged" in error.reason  # noqa: PT017 - one or the other
    else:
        assert len(found) >= kept * LENGTH - 4
        assert np.diff(found).min() >= -1


# ---------------------------------------------------------------- turned, and decoded otherwise


def test_a_turned_video_is_given_upright(tmp_path):
    """The telephone's picture: red at its left edge, which is meant to be at the top."""
    path = write_turned_video(tmp_path / "x.mp4")
    source = VideoFile(path)
    frames = source.read([0, 2])
    assert frames.shape == (2, 64, 48, 3)
    assert (source.info.width, source.info.height) == (48, 64)
    assert frames[:, 2, :, 0].float().mean() > 150 > 100 > frames[:, -3, :, 0].float().mean()
    assert VideoFile(path, short_side=24).read([1]).shape == (1, 32, 24, 3)


def test_a_turned_video_is_given_as_stored_where_asked(tmp_path):
    path = write_turned_video(tmp_path / "x.mp4")
    (tmp_path / "test.csv").write_text(f"{path} 0\n")
    stored = VideoFile(path, upright=False).read([1])
    assert stored.shape == (1, 48, 64, 3)
    assert stored[0, :, 2, 0].float().mean() > 150 > 100 > stored[0, :, -3, 0].float().mean()
    clips = []
    for autorotate in (True, False):
        keys = ["DATA.PATH_TO_DATA_DIR", str(tmp_path), "MODEL.NUM_CLASSES", 2, "DATA.AUTOROTATE", autorotate]
        clips.append(build_dataset("kinetics", load_cfg(None, keys), "test")[1].clip)  # the centre crop
    torch.testing.assert_close(clips[0], torch.rot90(clips[1], -1, (2, 3)), rtol=0, atol=0.02)


def test_a_real_turned_video():
    frames = VideoFile(shared("videos/rotated_90.mov")).read([0, 1, 2])
    assert frames.shape == (3, 568, 320, 3)


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match=r"DATA.VIDEO_DECODER='opencv' is not one of pyav, torchcodec"):
        check_decoder("opencv")


def torchcodec_is_here():
    try:
        check_decoder("torchcodec")
    except ValueError as error:
        assert "pip install torchcodec" in str(error)  # noqa: PT017
        return False
    return True


@pytest.mark.parametrize("name", ["plain.mp4", "frames out of order.mp4", "10 bit.mp4", "mpeg4.avi", "hevc.mp4"])
def test_torchcodec_gives_the_same_frames(tmp_path, name):
    if not torchcodec_is_here():
        pytest.skip("needs torchcodec and FFmpeg's libraries")
    path = str(tmp_path / name)
    RIGHT[name](path)
    for wanted in ([0], [19, 3, 3, 8], list(range(LENGTH))):
        source = TorchcodecFile(path)
        assert torch.equal(source.read(wanted), VideoFile(path).read(wanted))
        assert source._alike == (name != "10 bit.mp4" and not name.endswith("avi"))
    scaled = TorchcodecFile(path, short_side=24).read([5])
    assert torch.equal(scaled, VideoFile(path, short_side=24).read([5]))
