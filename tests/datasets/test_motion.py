"""The motion data set: a single frame has the same distribution in every class, and files are reproducible."""

import dataclasses
import itertools
import json
import os

import av
import numpy as np
import pytest
from PIL import Image

from slowfast.datasets import motion
from slowfast.datasets.motion import MOTIONS, MotionSpec, Sprite, VideoId, draw_scene, render, track, write_dataset
from slowfast.datasets.motion_textures import FAMILIES, PHOTO_STRIPS, draw_texture

SMALL = MotionSpec(2, 1, 1, classes=("move_left", "swing", "zoom_in"), shapes=2, width=64, height=48, frames=6)


def states(name, frames, scenes=150):
    """The four coordinates of the shapes in 0..1 for many scenes of class ``name``: [shapes, len(frames), 4]."""
    spec = MotionSpec(train_per_class=scenes)
    low, high = (edge * min(spec.width, spec.height) for edge in motion.RADIUS)
    rows = []
    for scene in range(scenes):
        path = track(spec, VideoId("train", scene, name))
        size = np.log(path.radius / low) / np.log(high / low)
        turn = path.angle / (2 * np.pi)
        rows.append(np.stack([path.x / spec.width, path.y / spec.height, turn, size], -1)[:, list(frames)])
    return np.concatenate(rows)


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("name", MOTIONS)
def test_position_angle_and_size_are_uniform_and_independent_in_every_class_at_every_time(name):
    found = states(name, frames=(0, 5, 17, 31))
    count = len(found)
    steps = np.arange(1, count + 1) / count
    for t in range(found.shape[1]):
        for coordinate in range(4):
            distance = np.abs(np.sort(found[:, t, coordinate]) - steps).max()
            assert distance < 2.0 / np.sqrt(count), (t, coordinate)  # Kolmogorov-Smirnov, p about 0.0007
        # On circles a linear correlation is not enough: the first harmonics of two coordinates must not go together.
        waves = np.exp(2j * np.pi * found[:, t])
        for a in range(4):
            for b in range(a):
                for product in (waves[:, a] * waves[:, b], waves[:, a] * waves[:, b].conj()):
                    assert abs(product.mean()) < 3.2 / np.sqrt(count), (t, a, b)


def test_classes_differ_in_how_the_state_changes():
    """The counterpart of the test above: two frames together do tell the classes apart."""
    step = {name: np.diff(states(name, frames=(0, 3), scenes=30), axis=1)[:, 0] for name in MOTIONS}
    turned = {name: (moved + 0.5) % 1 - 0.5 for name, moved in step.items()}  # the short way round
    assert (turned["move_right"][:, 0] > 0).all()
    assert (turned["move_left"][:, 0] < 0).all()
    assert (turned["move_down"][:, 1] > 0).all()
    assert (turned["move_up"][:, 1] < 0).all()
    assert (turned["rotate_clockwise"][:, 2] > 0).all()
    assert (turned["rotate_counterclockwise"][:, 2] < 0).all()
    assert (turned["zoom_in"][:, 3] > 0).all()
    assert (turned["zoom_out"][:, 3] < 0).all()
    assert not turned["swing"][:, [0, 1, 3]].any()
    assert not turned["bounce"][:, [0, 2, 3]].any()


@pytest.mark.parametrize("name", MOTIONS)
def test_path_starts_where_the_scene_put_the_shapes(name):
    path = MOTIONS[name](np.arange(4) / 30, np.random.default_rng(1))
    for axis in path:
        assert np.atleast_1d(axis)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("forward", "back"),
    [("move_left", "move_right"), ("rotate_clockwise", "rotate_counterclockwise"), ("zoom_in", "zoom_out")],
)
def test_partner_runs_the_same_path_backwards(forward, back):
    times = np.arange(48) / 30
    there, again = (MOTIONS[name](times, np.random.default_rng(5)) for name in (forward, back))
    for a, b in zip(there, again):
        np.testing.assert_allclose(a, -np.asarray(b), atol=1e-12)


def test_shapes_of_a_video_move_alike_from_starts_of_their_own():
    path = track(MotionSpec(), VideoId("train", 0, "orbit_clockwise"))
    there = np.diff(path.x, axis=1)
    back_in_frame = (there + 48) % 96 - 48
    np.testing.assert_allclose(back_in_frame[1:], back_in_frame[:1].repeat(2, 0), atol=1e-9)
    assert np.ptp(path.x[:, 0]) > 1


def test_all_videos_of_a_scene_start_from_the_same_picture():
    scene = draw_scene(SMALL, "train", 3)
    first = [render(SMALL, VideoId("train", 3, name), scene)[0] for name in MOTIONS]
    for picture in first[1:]:
        np.testing.assert_array_equal(picture, first[0])


def test_video_run_backwards_decodes_to_the_same_pictures(tmp_path):
    """No frame knows its neighbours, so compression cannot betray a direction."""
    frames = render(MotionSpec(frames=12), VideoId("train", 0, "move_right"))
    motion.write_video(tmp_path / "there.mp4", frames, fps=30)
    motion.write_video(tmp_path / "back.mp4", frames[::-1], fps=30)
    np.testing.assert_array_equal(decode(tmp_path / "there.mp4"), decode(tmp_path / "back.mp4")[::-1])


@pytest.mark.parametrize(("x", "y"), [(0, 20), (63, 20), (20, 0), (20, 47), (0, 0), (63.5, 47.5), (2.25, 1.75)])
def test_shape_that_leaves_on_one_side_enters_on_the_other(x, y):
    texture = np.random.default_rng(0).uniform(0, 255, (96, 96, 3)).astype(np.float32)
    sprite = Sprite(texture, lambda angle: np.ones_like(angle), np.zeros(3))
    there, centre = Image.new("RGB", (64, 48)), Image.new("RGB", (64, 48))
    sprite.draw(there, x, y, 0.4, 15)
    dx, dy = 32 - int(x), 24 - int(y)
    sprite.draw(centre, x + dx, y + dy, 0.4, 15)
    np.testing.assert_array_equal(np.roll(np.asarray(there), (dy, dx), (0, 1)), np.asarray(centre))


def test_angle_turns_clockwise_on_the_screen():
    texture = np.zeros((96, 96, 3), np.float32)
    texture[:, 60:] = 255  # bright on the right
    sprite = Sprite(texture, lambda angle: np.ones_like(angle), np.zeros(3))
    picture = Image.new("RGB", (64, 48))
    sprite.draw(picture, 32, 24, np.pi / 2, 20)
    grey = np.asarray(picture)[..., 0].astype(int)
    assert grey[34:].sum() > 20 * grey[:14].sum()  # a quarter turn: bright at the bottom


def test_size_is_the_radius_in_pixels():
    sprite = Sprite(np.full((96, 96, 3), 255, np.float32), lambda angle: np.ones_like(angle), np.full(3, 255.0))
    for radius in (4, 11.5, 20, 31):
        picture = Image.new("RGB", (96, 72))
        sprite.draw(picture, 48, 36, 0.0, radius)
        area = np.asarray(picture, np.float64)[..., 0].sum() / 255
        assert np.sqrt(area / np.pi) == pytest.approx(radius, rel=0.04, abs=0.4)


def test_splits_share_no_textures():
    families = [set(members) for members in FAMILIES.values()]
    assert sum(map(len, families)) == len(set.union(*families))
    edges = sorted(PHOTO_STRIPS.values())
    assert all(left[1] < right[0] for left, right in itertools.pairwise(edges))


@pytest.mark.parametrize("split", FAMILIES)
def test_texture_has_the_asked_size_and_follows_its_generator(split):
    for seed in range(6):
        first, again = (draw_texture(split, np.random.default_rng(seed), 50, 40) for _ in range(2))
        assert first.shape == (40, 50, 3)
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, again)


def test_textures_do_without_photographs(monkeypatch):
    monkeypatch.setattr("slowfast.datasets.motion_textures._photos", tuple)
    for seed in range(4):
        assert draw_texture("test", np.random.default_rng(seed), 48, 48).std() > 5


def test_video_is_a_pure_function_of_seed_split_scene_and_class():
    video = VideoId("test", 5, "swing")
    here = render(SMALL, video)
    np.testing.assert_array_equal(here, render(SMALL, video))
    fewer = dataclasses.replace(SMALL, classes=("swing",), test_per_class=9)  # other sizes of the set
    np.testing.assert_array_equal(here, render(fewer, video))
    for other in (dataclasses.replace(SMALL, seed=1), SMALL):
        changed = render(other, video if other.seed else VideoId("val", 5, "swing"))
        assert (changed != here).mean() > 0.5


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion") / "set"
    write_dataset(root, SMALL)
    return root


def test_folder_holds_lists_names_and_videos(written):
    lines = (written / "train.csv").read_text().splitlines()
    assert lines[:4] == [
        "train/move_left/00000.mp4 0",
        "train/swing/00000.mp4 1",
        "train/zoom_in/00000.mp4 2",
        "train/move_left/00001.mp4 0",
    ]
    assert [len((written / f"{split}.csv").read_text().splitlines()) for split in motion.SPLITS] == [6, 3, 3]
    assert json.loads((written / "class_names.json").read_text()) == {"move_left": 0, "swing": 1, "zoom_in": 2}
    for line in lines:
        assert decode(written / line.split()[0]).shape == (6, 48, 64, 3)
    assert not list(written.rglob("*.part"))


def test_file_shows_what_was_rendered(written):
    video = VideoId("val", 0, "zoom_in")
    error = decode(written / video.path).astype(float) - render(SMALL, video)
    assert np.abs(error).mean() < 8  # quantised, colours at half resolution


def test_gop_says_how_often_an_intra_frame_comes(tmp_path):
    frames = render(MotionSpec(frames=12), VideoId("train", 0, "swing"))
    for gop, expected in [(1, 12), (4, 3), (100, 1)]:
        path = tmp_path / f"{gop}.mp4"
        motion.write_video(path, frames, fps=25, gop=gop)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.frames, stream.average_rate, stream.codec.name) == (12, 25, "h264")
            assert sum(frame.key_frame for frame in container.decode(video=0)) == expected


def test_processes_write_the_same_files(written, tmp_path):
    write_dataset(tmp_path / "again", SMALL, workers=2)
    for path in sorted(p for p in written.rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path.relative_to(written)).read_bytes() == path.read_bytes()


def test_second_run_completes_what_is_there(tmp_path):
    write_dataset(tmp_path, SMALL)
    kept, lost = (tmp_path / VideoId("train", scene, "swing").path for scene in (0, 1))
    os.utime(kept, (1, 1))
    lost.unlink()
    counts = []
    write_dataset(tmp_path, SMALL, progress=lambda done, total: [counts.append((n, total)) for n in done])
    assert kept.stat().st_mtime == 1
    assert lost.is_file()
    assert counts == [(3, 12)] * 4


def test_folder_of_other_parameters_is_an_error_that_names_them(written):
    with pytest.raises(ValueError, match=r"other parameters \(seed 0 -> 7\).*--overwrite"):
        write_dataset(written, dataclasses.replace(SMALL, seed=7))


def test_overwrite_replaces_the_set(tmp_path):
    write_dataset(tmp_path, SMALL)
    write_dataset(tmp_path, dataclasses.replace(SMALL, classes=("bounce",)), overwrite=True)
    assert sorted(path.parent.name for path in tmp_path.rglob("*.mp4")) == ["bounce"] * 4


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        write_dataset(tmp_path, SMALL, overwrite=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("move_left", "fly")}, "choose different ones from move_left"),
        ({"classes": ("swing", "swing")}, "choose different ones"),
        ({"classes": ()}, "choose different ones"),
        ({"width": 65}, "width=65"),
        ({"height": 20}, "height=20: .* at least 48"),
        ({"frames": 0}, "frames=0"),
        ({"shapes": 0}, "shapes=0"),
        ({"gop": 0}, "gop=0"),
        ({"qp": 52}, "qp=52"),
        ({"val_per_class": -1}, "negative"),
    ],
)
def test_impossible_set_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
