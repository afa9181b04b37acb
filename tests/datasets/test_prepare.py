"""Preparing videos: the same frames at the same times, nothing lost, nothing done twice, sources untouched."""

import csv
import errno
import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from slowfast.datasets import encode
from slowfast.datasets.encode import PreparationError, Settings, hash_of, prepare_video, psnr
from slowfast.datasets.kinetics import load_records
from slowfast.datasets.prepare import MANIFEST, alike, measure_speed, prepare, read_manifest
from slowfast.datasets.prepare_plan import Video, plan_folder, plan_kinetics, plan_lists, read_kinetics
from slowfast.datasets.sources import VideoFile

FAST = Settings(short_side=32, gop=8, crf=12, preset="ultrafast")


def digests(folder):
    return {str(path): hash_of(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def by_name(outcomes):
    return {os.path.basename(outcome.source): outcome for outcome in outcomes}


def read_list(file):
    return Path(file).read_text().splitlines()


@pytest.fixture
def classes(tmp_path, make_video):
    """Two class folders with two videos for training and one for validation each."""
    for number, (split, name) in enumerate([("train", "a.mp4"), ("train", "b.mp4"), ("val", "c.mp4")]):
        for offset, kind in ((0, "walk"), (3, "run")):
            folder = tmp_path / "in" / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            make_video(folder / name, 20, size=(64, 48), offset=5 * number + offset)
    return tmp_path / "in"


def test_class_folders_become_lists_with_the_same_frames(classes, tmp_path, frame_numbers):
    before = digests(classes)
    plan, out = plan_folder(str(classes)), tmp_path / "out"
    outcomes = prepare(plan, out, FAST, sources=[str(classes)], workers=2)
    assert digests(classes) == before
    assert read_list(out / "train.csv") == [
        *("videos/train/run/a.mp4 0", "videos/train/run/b.mp4 0"),
        *("videos/train/walk/a.mp4 1", "videos/train/walk/b.mp4 1"),
    ]
    assert (
        read_list(out / "test.csv")
        == read_list(out / "val.csv")
        == [
            "videos/val/run/c.mp4 0",
            "videos/val/walk/c.mp4 1",
        ]
    )
    assert json.loads((out / "class_names.json").read_text()) == {"run": 0, "walk": 1}
    assert list(csv.reader((out / "left_out.csv").open())) == [["split", "video", "reason"]]
    for outcome in outcomes:
        original, made = VideoFile(outcome.source), VideoFile(out / outcome.target)
        assert (made.info.width, made.info.height, made.info.fps) == (44, 32, original.info.fps)
        assert frame_numbers(made.read(range(20))) == frame_numbers(original.read(range(20)))
        facts = (outcome.frames, outcome.fps, outcome.width, outcome.height, outcome.seconds, outcome.source_frames)
        assert facts == (20, 25.0, 44, 32, 0.8, 20)
        assert outcome.sha256 == hash_of(out / outcome.target)
        assert outcome.bytes == (out / outcome.target).stat().st_size
        assert outcome.psnr_db > 45
        with av.open(str(out / outcome.target)) as container:
            keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
        assert [number for number, key in enumerate(keys) if key] == [0, 8, 16]
    assert {one.target: one for one in read_manifest(out)} == {one.target: one for one in outcomes}
    assert not list(out.glob(".partial*"))


def test_the_lists_train(classes, tmp_path, small_cfg):
    from slowfast.datasets import Request, build_dataset

    prepare(plan_folder(str(classes)), tmp_path / "out", FAST)
    dataset = build_dataset("kinetics", small_cfg(tmp_path / "out", "MODEL.NUM_CLASSES", 2), "train")
    assert [dataset[Request(row, 0)].label for row in range(4)] == [0, 0, 1, 1]
    assert dataset.records.path(0) == str(tmp_path / "out" / "videos/train/run/a.mp4")


def test_a_second_run_does_only_what_is_missing(classes, tmp_path):
    out = tmp_path / "out"
    plan = plan_folder(str(classes))

    def made(settings=FAST, **options):
        done = []

        def watch(outcomes, total):
            for outcome in outcomes:
                done.append(os.path.relpath(outcome.source, classes))
                yield outcome
            assert len(done) == total

        prepare(plan, out, settings, progress=watch, **options)
        return sorted(done)

    assert len(made()) == 6
    first = digests(out / "videos")
    assert made() == []
    (out / "videos/val/run/c.mp4").unlink()
    (out / "videos/val/walk/c.mp4").write_bytes(b"cut")
    with open(out / MANIFEST, "a") as stream:  # killed while it wrote a line, and while it encoded a video
        stream.write('{"source": "x", "targ')
    (out / ".partial").mkdir()
    (out / ".partial" / "rest.mp4").write_bytes(b"half")
    assert made() == ["val/run/c.mp4", "val/walk/c.mp4"]
    assert digests(out / "videos") == first  # and it is deterministic
    assert len(read_manifest(out)) == 6
    assert not (out / ".partial").exists()
    os.utime(classes / "train/run/a.mp4", ns=(1, 1))
    assert made() == ["train/run/a.mp4"]
    assert len(made(Settings(short_side=32, gop=4, crf=12, preset="ultrafast"))) == 6


def test_broken_videos_are_left_out_with_the_reason(classes, tmp_path, make_video):
    folder = classes / "train" / "run"
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"these are only words " * 40)
    (folder / "notes.txt").write_text("not a video")
    whole = Path(make_video(tmp_path / "whole.mkv", 60, b_frames=0)).read_bytes()
    (folder / "short.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "frames").mkdir()
    outcomes = by_name(prepare(plan_folder(str(classes)), tmp_path / "out", FAST))
    assert len(outcomes) == 8 - 2  # of the six sound ones two pairs have one name
    assert outcomes["empty.mp4"].reason == "the file is empty"
    assert outcomes["text.mp4"].reason
    assert outcomes["text.mp4"].frames == 0
    assert outcomes["short.mkv"].reason == ""
    assert 10 < outcomes["short.mkv"].frames < 60
    rows = list(csv.reader((tmp_path / "out" / "left_out.csv").open()))[1:]
    assert [(split, os.path.basename(name)) for split, name, _ in rows] == [
        ("train", "empty.mp4"),
        ("train", "text.mp4"),
    ]
    assert not any("empty" in line or "text" in line for line in read_list(tmp_path / "out" / "train.csv"))


def test_videos_left_out_are_tried_again_when_asked_or_changed(tmp_path, make_video):
    (tmp_path / "in/a").mkdir(parents=True)
    bad = tmp_path / "in/a/bad.mp4"
    bad.write_bytes(b"no video")
    plan, tried = plan_folder(str(tmp_path / "in")), []

    def watch(outcomes, total):
        tried.append(total)
        return outcomes

    prepare(plan, tmp_path / "out", FAST, progress=watch)
    prepare(plan, tmp_path / "out", FAST, progress=watch)
    prepare(plan, tmp_path / "out", FAST, progress=watch, retry=True)
    make_video(bad, 10)
    (outcome,) = prepare(plan, tmp_path / "out", FAST, progress=watch)
    assert tried == [1, 0, 1, 1]
    assert outcome.frames == 10


def test_strange_names(tmp_path, make_video):
    names = ["a b/x, 1.mp4", "a b/x;1.mp4", "ünï|c/日本\n2.mp4", "a b/same.avi", "a b/same.mp4", "a b/SAME.mp4"]
    for number, name in enumerate(names):
        path = tmp_path / "in" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_video(path, 6, offset=number, codec="mjpeg" if name.endswith("avi") else "libx264")
    plan = plan_folder(str(tmp_path / "in"))
    outcomes = prepare(plan, tmp_path / "out", FAST)
    records = load_records(str(tmp_path / "out" / "train.csv"), " ", str(tmp_path / "out"))
    assert len({record.path.casefold() for record in records}) == 6
    assert all(os.path.isfile(record.path) for record in records)
    assert [record.label for record in records] == [0] * 5 + [1]
    assert list(plan.class_ids) == ["a b", "ünï|c"]
    assert [outcome.reason for outcome in outcomes] == [""] * 6


def test_outputs_that_would_harm_are_refused(classes, tmp_path):
    plan, source = plan_folder(str(classes)), [str(classes)]
    for folder in (classes, classes / "out", tmp_path):
        with pytest.raises(ValueError, match="lie in one another"):
            prepare(plan, folder, FAST, sources=source)
    (tmp_path / "link").symlink_to(classes)
    with pytest.raises(ValueError, match="lie in one another"):
        prepare(plan, tmp_path / "link" / "out", FAST, sources=source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        prepare(plan, tmp_path / "full", FAST, sources=source)
    with pytest.raises(ValueError, match="lies in the output"):
        prepare(plan, classes / "train", FAST)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="not a folder"):
        prepare(plan, tmp_path / "file", FAST, sources=source)
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "in", "link"]


def test_two_runs_at_once_are_refused(classes, tmp_path):
    import subprocess
    import sys

    out = tmp_path / "out"
    plan = plan_folder(str(classes))
    prepare(plan, out, FAST)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    with subprocess.Popen([sys.executable, "-c", f"{hold}; input()", str(out / ".lock")], stdin=-1, stdout=-1) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(PreparationError, match="another run"):
            prepare(plan, out, FAST)
        other.communicate(b"\n")
    prepare(plan, out, FAST)


def test_a_full_disk_stops_everything(classes, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encode, "_encode", full)
    with pytest.raises(PreparationError, match="No space left"):
        prepare(plan_folder(str(classes)), tmp_path / "out", FAST)
    assert read_manifest(tmp_path / "out") == []


def test_a_crash_costs_one_video(classes, tmp_path, monkeypatch):
    whole = encode._encode

    def crash(video, *rest):
        if video.source.endswith("train/run/b.mp4"):
            os._exit(7)
        return whole(video, *rest)

    monkeypatch.setattr(encode, "_encode", crash)
    outcomes = prepare(plan_folder(str(classes)), tmp_path / "out", FAST, workers=2)
    assert [outcome.reason for outcome in outcomes if outcome.reason] == ["its process died (exit status 7)"]
    assert len(read_list(tmp_path / "out" / "train.csv")) == 3


# ---------------------------------------------------------------- plans

KINETICS = """label,youtube_id,time_start,time_end,split
"washing, by hand",-abcdefghij,2,12,train
abseiling,0123456789A,100,110,train
abseiling,missing____,0,10,train
abseiling,whole______,1,2,train
"""


def test_kinetics_annotation(tmp_path, make_video):
    (tmp_path / "train.csv").write_text(KINETICS)
    (tmp_path / "kinetics_val.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\nabseiling,val________,7,17,validate,0\n"
    )
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\ntest_______,0,10,test\n")
    videos = tmp_path / "in"
    (videos / "val" / "abseiling").mkdir(parents=True)
    make_video(videos / "-abcdefghij_000002_000012.mp4", 10)
    make_video(videos / "0123456789A.mkv", 10)
    make_video(videos / "whole______.mp4", 100)  # four seconds, of which the second one is meant
    make_video(videos / "val________.mp4", 10, offset=50)
    make_video(videos / "val" / "abseiling" / "val________.mp4", 10)
    make_video(videos / "test_______.mp4", 10)
    files = [tmp_path / name for name in ("train.csv", "kinetics_val.csv", "test.csv")]
    plan = plan_kinetics(files, str(videos))
    assert plan.class_ids == {"abseiling": 0, "washing, by hand": 1}
    outcomes = prepare(plan, tmp_path / "out", FAST, sources=[str(videos)])
    assert read_list(tmp_path / "out/train.csv") == [
        "videos/train/washing_by_hand/-abcdefghij_000002_000012.mp4 1",
        "videos/train/abseiling/0123456789A_000100_000110.mp4 0",
        "videos/train/abseiling/whole_______000001_000002.mp4 0",
    ]
    assert read_list(tmp_path / "out/val.csv") == ["videos/val/abseiling/val_________000007_000017.mp4 0"]
    assert outcomes[3].source == str(videos / "val/abseiling/val________.mp4")  # that in the folder of its split
    assert list(csv.reader((tmp_path / "out/left_out.csv").open()))[1:] == [
        ["train", "missing_____000000_000010", "no such file"],
        ["test", "test________000000_000010", "the annotation gives no label"],
    ]


def test_an_uncut_video_is_cut(tmp_path, make_video, frame_numbers):
    source = make_video(tmp_path / "long.mp4", 100)
    video = Video(source, "videos/a.mp4", part_s=(1.0, 2.0))
    outcome = prepare_video(video, str(tmp_path / "out"), FAST) if (tmp_path / "out").mkdir() is None else None
    assert (outcome.frames, outcome.note, outcome.seconds) == (25, "cut out of a longer video", 1.0)
    assert frame_numbers(VideoFile(tmp_path / "out/videos/a.mp4").read(range(25))) == list(range(25, 50))
    late = prepare_video(Video(source, "videos/b.mp4", part_s=(9.0, 10.0)), str(tmp_path / "out"), FAST)
    assert "nothing of it lies in 9 to 10 s" in late.reason


def test_wrong_annotation_is_named(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("a.mp4 0\n")
    with pytest.raises(ValueError, match="lacks time_end, time_start, youtube_id"):
        read_kinetics(file)
    file.write_text("label,youtube_id,time_start,time_end,split\nx,y,one,2,train\n")
    with pytest.raises(ValueError, match="line 2: could not convert"):
        read_kinetics(file)
    file.write_text("label,youtube_id,time_start,time_end,split\nx,y,1,2,holdout\n")
    with pytest.raises(ValueError, match="'holdout' is not one of train"):
        read_kinetics(file)
    with pytest.raises(ValueError, match="no folder"):
        plan_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds train\.csv"):
        plan_folder(str(tmp_path))


def test_lists(tmp_path, make_video):
    videos, lists = tmp_path / "in", tmp_path / "lists"
    lists.mkdir()
    (videos / "sub").mkdir(parents=True)
    make_video(videos / "sub" / "a.mp4", 10)
    make_video(tmp_path / "else.mp4", 10)
    (lists / "train.csv").write_text(f"sub/a.mp4,5\n{tmp_path}/else.mp4,2\ngone.mp4,1\n")
    (lists / "val.csv").write_text("sub/a.mp4,5\n")
    plan = plan_lists(str(lists), str(videos), ",")
    outcomes = prepare(plan, tmp_path / "out", FAST, sources=[str(videos), str(lists)])
    assert len(outcomes) == 2  # a video of two lists is made once
    assert read_list(tmp_path / "out/train.csv") == [
        "videos/sub/a.mp4 5",
        f"videos/{str(tmp_path).lstrip('/')}/else.mp4 2",
    ]
    assert read_list(tmp_path / "out/val.csv") == ["videos/sub/a.mp4 5"]
    assert [one[0].split(":")[0] for one in alike(plan, outcomes)] == ["train"]
    with pytest.raises(ValueError, match=r"no train\.csv"):
        plan_lists(str(videos), str(videos))


def test_named_ids_are_kept(classes, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"walk": 0, "swim": 1, "run": 2}')
    plan = plan_folder(str(classes), class_names=str(names))
    assert {row.label for row in plan.rows} == {0, 2}
    names.write_text('{"walk": 0, "swim": 1}')
    with pytest.raises(ValueError, match="lacks 1 classes: run"):
        plan_folder(str(classes), class_names=str(names))


def test_flat_folders_are_for_training_without_labels(tmp_path, make_video):
    make_video(tmp_path / "1.mp4", 10)
    make_video(tmp_path / "2.webm", 10, codec="libvpx-vp9")
    plan = plan_folder(str(tmp_path))
    assert [(row.split, row.label) for row in plan.rows] == [("train", 0)] * 2
    assert plan.class_ids == {}


def test_without_encoding_videos_are_listed_where_they_are(tmp_path, make_video):
    for name in ("a b", "c"):
        (tmp_path / "in" / "train" / name).mkdir(parents=True)
        make_video(tmp_path / "in" / "train" / name / "1.mp4", 10)
    (tmp_path / "in" / "train" / "c" / "bad.mp4").write_text("")
    outcomes = prepare(plan_folder(str(tmp_path / "in")), tmp_path / "out", Settings(encode=False))
    assert [(outcome.frames, outcome.reason) for outcome in outcomes] == [
        (10, ""),
        (10, ""),
        (0, "the file is empty"),
    ]
    assert read_list(tmp_path / "out" / "train.csv") == [
        f"{tmp_path}/in/train/a b/1.mp4,0",
        f"{tmp_path}/in/train/c/1.mp4,1",
    ]
    assert not (tmp_path / "out" / "videos").exists()


# ---------------------------------------------------------------- pictures, times, sound


def prepared(tmp_path, source, settings=FAST):
    (tmp_path / "out").mkdir(exist_ok=True)
    outcome = prepare_video(Video(str(source), "videos/x.mp4"), str(tmp_path / "out"), settings)
    assert outcome.reason == ""
    return outcome, VideoFile(tmp_path / "out/videos/x.mp4")


def test_times_of_frames_are_kept(tmp_path):
    times = [0, 40, 60, 200, 205, 1000]  # milliseconds
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    _, made = prepared(tmp_path, tmp_path / "a.mkv")
    found = np.asarray(made.info.timeline.pts) * float(made.info.timeline.time_base) * 1000
    assert found == pytest.approx(times, abs=0.1)


@pytest.mark.parametrize(("form", "tag"), [("yuv420p", None), ("yuv420p", 1), ("yuvj420p", None), ("yuvj420p", 1)])
def test_colours_are_kept(tmp_path, form, tag):
    """Limited and full range, unmarked and BT.709: a network sees the same colours."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        if tag:
            stream.codec_context.colorspace = tag
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:, :16], pixels[:, 16:32], pixels[:, 32:48], pixels[:, 48:] = (
            (240, 20, 20),
            (20, 200, 20),
            (9, 9, 230),
            255,
        )
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=form)))
        container.mux(stream.encode())
    _, made = prepared(tmp_path, tmp_path / "a.mp4", Settings(short_side=0, crf=1))
    original = VideoFile(tmp_path / "a.mp4").read([0, 4])
    assert psnr(original.numpy(), made.read([0, 4]).numpy()) > 40


def test_turned_videos_are_made_upright(tmp_path):
    """A quarter of a turn, put into the header by hand: the files decode to the same pictures."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        shades = np.broadcast_to(np.arange(64)[None, :, None] * 2 + np.arange(48)[:, None, None] * 2, (48, 64, 3))
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shades.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "a.mp4").read_bytes()
    one, unit = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    upright = one + bytes(12) + one + bytes(12) + unit
    quarter = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(16) + unit
    place = data.index(upright, data.index(b"tkhd"))
    (tmp_path / "a.mp4").write_bytes(data[:place] + quarter + data[place + 36 :])
    outcome, made = prepared(tmp_path, tmp_path / "a.mp4", Settings(short_side=0, crf=1))
    assert (outcome.width, outcome.height) == (48, 64)
    with av.open(made.path) as container:
        assert next(container.decode(video=0)).rotation == 0
    original = VideoFile(tmp_path / "a.mp4").read([0, 2])
    assert psnr(original.numpy(), made.read([0, 2]).numpy()) > 38


def test_small_and_odd_frames_are_not_enlarged(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 31, 21, "bgr0"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((21, 31, 3), 99, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    outcome, made = prepared(tmp_path, tmp_path / "a.avi")
    assert (outcome.source_width, outcome.source_height, made.info.width, made.info.height) == (31, 21, 32, 20)


def with_sound(path, codec, rate):
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout="mono")
        for _ in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        wave = (np.sin(np.arange(rate) / 8) * 9000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=sound.format.name, layout="mono", rate=rate, frame_size=sound.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(sound.encode(piece))
        container.mux([*video.encode(), *sound.encode()])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.mp4", "aac", 16000), ("a.mov", "pcm_s16le", 16000), ("a.avi", "libmp3lame", 44100), ("a.avi", "mp2", 44100)],
)
def test_sound_is_dropped_or_kept(tmp_path, name, codec, rate):
    source = with_sound(tmp_path / name, codec, rate)
    _, made = prepared(tmp_path, source)
    with av.open(made.path) as container:
        assert not container.streams.audio
    _, made = prepared(tmp_path, source, Settings(short_side=32, preset="ultrafast", keep_audio=True))
    with av.open(made.path) as container:
        frames = list(container.decode(audio=0))
        assert sum(frame.samples for frame in frames) == pytest.approx(rate, abs=2400)
        assert abs(frames[0].time) < 0.1
    assert made.info.num_frames == 25


@pytest.mark.parametrize(
    "values", [{"crf": 52}, {"gop": 0}, {"short_side": 8}, {"short_side": -1}], ids=lambda values: str(values)
)
def test_wrong_settings(values):
    with pytest.raises(ValueError, match=str(next(iter(values.values())))):
        Settings(**values)


def test_speed_and_likeness(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", 40)
    speeds = measure_speed([(path, path)], 32, clips=1)
    assert len(speeds) == 2
    assert all(speed.before > 0 and speed.after > 0 for speed in speeds)
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == 99
    assert psnr(black, black + 255) == 0
    assert hash_of(path) == hashlib.sha256(Path(path).read_bytes()).hexdigest()
