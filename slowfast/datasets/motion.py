"""The built-in data set: short videos whose class is how things move, so that one frame says nothing.

Every video shows a few textured shapes that move alike, on a background out of focus, with smaller distractors. A
shape's *state* has four coordinates: horizontal and vertical position, angle, size. The one idea: each coordinate
lives on a circle (the picture wraps around left-right and top-bottom, the angle is an angle, and a shape that has
grown to the largest size goes on from the smallest), and a class is a path on these four circles, *added to starts
drawn uniformly*:

    state(t) = (start + path_class(t)) mod 1,    path_class(0) = 0,    start independent of the class

A uniform start plus anything independent of it, modulo 1, is again uniform. So in every class and at every time t the
positions, angles and log-sizes are independent and uniform: the distribution of a single frame is the same for all
classes exactly, not about. What else could betray a class, and why it does not:

* Appearance. Textures, outlines, background, distractors, lighting, noise and the starts belong to a *scene*, and
  every scene is filmed once per class, from the same first frame. Knowing a texture by heart tells nothing about the
  class.
* Blur. Frames are instants: there is no motion blur, and a frame is a function of the states alone.
* Edges. What leaves on one side enters on the other in the same moment, in all classes; so do distractors.
* The codec. By default every frame is an intra frame with a constant quantiser, hence coded without knowledge of its
  neighbours: a video run backwards decodes to the same pictures. (With ``gop > 1`` frames are predicted from others,
  as in videos from elsewhere, and this last guarantee becomes an approximation.)

Train, val and test differ in textures as well as in draws; see ``motion_textures``. Every video is a pure function of
(seed, split, scene, class).
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageFilter

from slowfast.datasets.motion_textures import draw_texture

SPLITS = ("train", "val", "test")
MIN_SIDE = 48  # pixels; smaller frames leave too little of the shape
RADIUS = (0.16, 0.36)  # smallest and largest radius of a shape, in frame heights (or widths, if those are smaller)
DISTRACTOR_RADIUS = (0.05, 0.11)
_SPRITE_SIDE = 96  # pixels of a sprite's finest level
_MANIFEST_VERSION = 1

# ------------------------------------------- motions: what a class is -------------------------------------------


class Path4(NamedTuple):
    """Displacement over time, each [T] or a constant 0."""

    dx: np.ndarray | float = 0.0  # to the right, in frame heights
    dy: np.ndarray | float = 0.0  # downwards, in frame heights
    turns: np.ndarray | float = 0.0  # clockwise
    zoom: np.ndarray | float = 0.0  # in ranges of log-size: 1 leads from the smallest size to the largest


Motion = Callable[[np.ndarray, np.random.Generator], Path4]  # times [T] in seconds, generator of speeds and phases


def _slide(x: int, y: int) -> Motion:
    def motion(t: np.ndarray, rng: np.random.Generator) -> Path4:
        way = rng.uniform(0.25, 0.5) * t
        return Path4(dx=x * way, dy=y * way)

    return motion


def _spin(sense: int) -> Motion:
    return lambda t, rng: Path4(turns=sense * rng.uniform(0.22, 0.45) * t)


def _zoom(sense: int) -> Motion:
    return lambda t, rng: Path4(zoom=sense * rng.uniform(0.6, 1.0) * t)


def _swing(t: np.ndarray, rng: np.random.Generator) -> Path4:
    reach, phase = rng.uniform(0.08, 0.12), rng.uniform(0, 2 * np.pi)
    return Path4(turns=reach * (np.sin(2 * np.pi * t / rng.uniform(0.9, 1.4) + phase) - np.sin(phase)))


def _bounce(t: np.ndarray, rng: np.random.Generator) -> Path4:
    reach, phase, period = rng.uniform(0.2, 0.3), rng.uniform(), rng.uniform(0.9, 1.3)

    def height(s: np.ndarray | float) -> np.ndarray | float:
        return 1 - (2 * (s % 1) - 1) ** 2  # a ball thrown up, from landing to landing

    return Path4(dy=reach * (height(phase) - height(t / period + phase)))


def _orbit(sense: int) -> Motion:
    def motion(t: np.ndarray, rng: np.random.Generator) -> Path4:
        reach, phase = rng.uniform(0.13, 0.2), rng.uniform(0, 2 * np.pi)
        angle = sense * 2 * np.pi * t / rng.uniform(1.4, 2.0) + phase
        return Path4(dx=reach * (np.cos(angle) - np.cos(phase)), dy=reach * (np.sin(angle) - np.sin(phase)))

    return motion


MOTIONS: dict[str, Motion] = {
    "move_left": _slide(-1, 0),
    "move_right": _slide(1, 0),
    "move_up": _slide(0, -1),
    "move_down": _slide(0, 1),
    "rotate_clockwise": _spin(1),
    "rotate_counterclockwise": _spin(-1),
    "zoom_in": _zoom(1),
    "zoom_out": _zoom(-1),
    "orbit_clockwise": _orbit(1),
    "orbit_counterclockwise": _orbit(-1),
    "swing": _swing,
    "bounce": _bounce,
}

# ------------------------------------------------- what to make -------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MotionSpec:
    """All that decides the pixels and the number of the videos; equal specs make equal files."""

    train_per_class: int = 100
    val_per_class: int = 5
    test_per_class: int = 20
    classes: tuple[str, ...] = tuple(MOTIONS)
    shapes: int = 3  # shapes per video; all follow the same path, each from a start of its own
    width: int = 96
    height: int = 72
    frames: int = 32
    fps: int = 15
    gop: int = 1  # frames from one intra frame to the next; 1 = every frame (module docstring)
    qp: int = 22  # constant quantiser of the encoder, 0 (lossless) .. 51
    seed: int = 0

    def __post_init__(self):
        unknown = sorted(set(self.classes) - set(MOTIONS))
        if unknown or len(set(self.classes)) < len(self.classes) or not self.classes:
            raise ValueError(f"classes={list(self.classes)}: choose different ones from {', '.join(MOTIONS)}")
        for name in ("width", "height"):
            side = getattr(self, name)
            if side < MIN_SIDE or side % 2:
                raise ValueError(f"{name}={side}: needs an even number of pixels, at least {MIN_SIDE}")
        for name, low in [("shapes", 1), ("frames", 1), ("fps", 1), ("gop", 1), ("qp", 0), ("seed", 0)]:
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: needs at least {low}")
        if self.qp > 51:
            raise ValueError(f"qp={self.qp}: H.264 quantisers end at 51")
        if min(self.train_per_class, self.val_per_class, self.test_per_class) < 0:
            raise ValueError("the numbers of videos per class cannot be negative")

    def scenes(self, split: str) -> int:
        """Videos per class in ``split``: every scene is filmed once per class."""
        return getattr(self, f"{split}_per_class")

    def videos(self, split: str) -> list["VideoId"]:
        """The videos of ``split`` in the order of its list, scene by scene."""
        return [VideoId(split, scene, name) for scene in range(self.scenes(split)) for name in self.classes]


class VideoId(NamedTuple):
    """Names one video of a data set."""

    split: str
    scene: int
    motion: str

    @property
    def path(self) -> str:
        """Where its file lies, relative to the data set's folder."""
        return f"{self.split}/{self.motion}/{self.scene:05d}.mp4"


# ------------------------------------------- scenes and their states --------------------------------------------


class Track(NamedTuple):
    """The state of the shapes, each [shapes, T]: centre in pixels, angle in radians clockwise, radius in pixels."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    radius: np.ndarray


def _generator(spec: MotionSpec, split: str, scene: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([spec.seed, SPLITS.index(split), scene, *stream])


def track(spec: MotionSpec, video: VideoId) -> Track:
    """The paths of the shapes: each one's start, uniform on four circles, plus the path of the class."""
    starts = _generator(spec, video.split, video.scene, 0).uniform(size=(4, spec.shapes, 1))
    rng = _generator(spec, video.split, video.scene, 1, list(MOTIONS).index(video.motion))
    path = MOTIONS[video.motion](np.arange(spec.frames) / spec.fps, rng)
    aspect = spec.width / spec.height
    moved = zip(starts, (path.dx / aspect, path.dy, path.turns, path.zoom))
    x, y, turn, size = (np.broadcast_to((start + step) % 1.0, (spec.shapes, spec.frames)) for start, step in moved)
    low, high = (edge * min(spec.width, spec.height) for edge in RADIUS)
    return Track(x * spec.width, y * spec.height, 2 * np.pi * turn, low * (high / low) ** size)


class Sprite:
    """A textured shape with an outline that can be drawn at any place, angle and size."""

    def __init__(self, texture: np.ndarray, edge: Callable[[np.ndarray], np.ndarray], outline: np.ndarray):
        """``edge``: radius in 0..1 by polar angle; ``texture`` [S, S, 3]; ``outline`` a colour."""
        side = len(texture)
        reach = side / 2 - 2
        x, y = np.meshgrid(*[np.arange(side) - side / 2 + 0.5] * 2)
        inside = reach * edge(np.arctan2(y, x)) - np.hypot(x, y)  # pixels to the edge, negative outside
        rim = np.clip(inside - 0.09 * reach + 0.5, 0, 1)[..., None]
        alpha = np.clip(inside + 0.5, 0, 1)[..., None]
        pixels = np.concatenate([(outline + rim * (texture - outline)) * alpha, alpha * 255], -1)
        image = Image.frombytes("RGBa", (side, side), pixels.astype(np.uint8).tobytes())
        self.levels = [image, image.reduce(2), image.reduce(4)]  # finest first; a coarser one avoids aliasing
        self.reach = reach

    def draw(self, frame: Image.Image, x: float, y: float, angle: float, radius: float) -> None:
        """Paint over ``frame`` with the centre at (x, y), wrapping around its edges; ``radius`` in pixels."""
        level = int(np.clip(np.log2(self.reach / radius), 0, len(self.levels) - 1))
        image = self.levels[level]
        scale = self.reach / 2**level / radius
        side = 2 * int(np.ceil(radius + 1))
        left, top = int(np.floor(x)) - side // 2, int(np.floor(y)) - side // 2
        a, b = scale * np.cos(angle), scale * np.sin(angle)
        u, v, centre = x - left, y - top, image.width / 2
        back = (a, b, centre - a * u - b * v, -b, a, centre + b * u - a * v)  # from the frame into the sprite
        patch = image.transform((side, side), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
        patch = patch.convert("RGBA")
        for column in _wraps(left, side, frame.width):
            for row in _wraps(top, side, frame.height):
                frame.paste(patch, (column, row), patch)


def _wraps(start: int, size: int, period: int) -> range:
    """The places, a period apart, where something of ``size`` shows in [0, period) when it is also at ``start``."""
    return range((start + size - 1) % period - size + 1, period, period)


def _draw_edge(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A polygon, a flower or an ellipse: its radius in 0..1 by polar angle."""
    kind, corners, ratio = rng.integers(3), int(rng.integers(3, 6)), rng.uniform(0.55, 0.8)
    if kind == 0:
        return lambda angle: np.cos(np.pi / corners) / np.cos((angle % (2 * np.pi / corners)) - np.pi / corners)
    if kind == 1:
        return lambda angle: 0.82 + 0.18 * np.cos(corners * angle)
    return lambda angle: ratio / np.hypot(ratio * np.cos(angle), np.sin(angle))


def _draw_sprite(split: str, rng: np.random.Generator, behind: float) -> Sprite:
    """A random sprite with an outline that stands out from the mean level ``behind`` it."""
    texture = draw_texture(split, rng, _SPRITE_SIDE, _SPRITE_SIDE).astype(np.float32)
    mean = texture.mean((0, 1))
    contrast = max(1.0, 50 / (texture.std((0, 1)).mean() + 1))  # on a plain patch a rotation would not show
    texture = np.clip(np.clip(mean, 90, 165) + contrast * (texture - mean), 0, 255)
    light = rng.uniform(190, 255, 3) if behind < 120 else rng.uniform(0, 60, 3)
    return Sprite(texture, _draw_edge(rng), light)


class Distractor(NamedTuple):
    """A small sprite that drifts, whatever the class; one that stands still is part of the background."""

    sprite: Sprite
    x: np.ndarray
    y: np.ndarray
    angle: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """What all videos of a scene share; its generator is the same whatever the class."""

    background: Image.Image
    shapes: tuple[Sprite, ...]
    distractors: tuple[Distractor, ...]
    light: np.ndarray  # float32 [T, H, W, 1]: factor on the pixels
    noise: np.ndarray  # float32 [T, H, W, 1]: added to the pixels


def draw_scene(spec: MotionSpec, split: str, scene: int) -> Scene:
    """The scene with number ``scene`` of ``split``."""
    rng = _generator(spec, split, scene, 2)
    width, height, times = spec.width, spec.height, np.arange(spec.frames) / spec.fps
    unit = min(width, height)
    texture = draw_texture(split, rng, width, height).astype(np.float32)
    texture = rng.uniform(60, 180) + rng.uniform(0.2, 0.5) * (texture - texture.mean((0, 1)))
    background, level = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8)), texture.mean()
    background = background.filter(ImageFilter.GaussianBlur(unit * rng.uniform(0.03, 0.06)))
    shapes = tuple(_draw_sprite(split, rng, level) for _ in range(spec.shapes))
    distractors = []
    for _ in range(rng.integers(0, 3)):
        sprite, angle, radius = (
            _draw_sprite(split, rng, level),
            rng.uniform(0, 2 * np.pi),
            rng.uniform(*DISTRACTOR_RADIUS),
        )
        x, y, direction = rng.uniform(size=3) * (width, height, 2 * np.pi)
        if rng.uniform() < 0.5:
            sprite.draw(background, x, y, angle, radius * unit)
        else:
            way = rng.uniform(0.1, 0.5) * unit * times
            path = (x + way * np.cos(direction)) % width, (y + way * np.sin(direction)) % height
            distractors.append(Distractor(sprite, *path, angle, radius * unit))
    slope, side = rng.uniform(0, 0.3), rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    shade = rng.uniform(0.75, 1.15) * (1 + slope * (x * np.cos(side) + y * np.sin(side)))
    flicker = 1 + rng.uniform(0, 0.05) * np.sin(2 * np.pi * (rng.uniform(0.3, 1.0) * times + rng.uniform()))
    light = (flicker[:, None, None, None] * shade[..., None]).astype(np.float32)
    noise = rng.uniform(0, 3) * rng.standard_normal((spec.frames, height, width, 1), np.float32)
    return Scene(background, shapes, tuple(distractors), light, noise.astype(np.float32))


def render(spec: MotionSpec, video: VideoId, scene: Scene | None = None) -> np.ndarray:
    """The frames of one video, uint8 [T, H, W, 3]; ``scene`` saves drawing it again for each class."""
    scene = scene or draw_scene(spec, video.split, video.scene)
    pictures = []
    states = np.stack(track(spec, video), -1)  # [shapes, T, 4]
    for t in range(spec.frames):
        picture = scene.background.copy()
        for item in scene.distractors:
            item.sprite.draw(picture, item.x[t], item.y[t], item.angle, item.radius)
        for shape, state in zip(scene.shapes, states[:, t]):
            shape.draw(picture, *state)
        pictures.append(np.asarray(picture))
    frames = np.stack(pictures) * scene.light + scene.noise
    return np.clip(frames, 0, 255, out=frames).astype(np.uint8)


# ---------------------------------------------------- files -----------------------------------------------------


def write_video(path: str | os.PathLike, frames: np.ndarray, *, fps: int, gop: int = 1, qp: int = 22) -> None:
    """Encode ``frames`` uint8 [T, H, W, 3] as H.264 in mp4; the file appears only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    options = {"preset": "veryfast", "qp": str(qp), "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
    with av.open(str(draft), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        for t, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = t
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    draft.replace(path)


def _write_scene(root: str, spec: MotionSpec, split: str, scene: int) -> int:
    """Write the videos of one scene that are not there yet; how many videos it has."""
    videos = [VideoId(split, scene, name) for name in spec.classes]
    missing = [video for video in videos if not Path(root, video.path).is_file()]
    if missing:
        drawn = draw_scene(spec, split, scene)
        for video in missing:
            frames = render(spec, video, drawn)
            write_video(Path(root, video.path), frames, fps=spec.fps, gop=spec.gop, qp=spec.qp)
    return len(videos)


def _claim_folder(root: Path, spec: MotionSpec, overwrite: bool) -> None:
    """Leave ``root`` with the manifest of ``spec``, or say why not."""
    manifest = root / "manifest.json"
    wanted = {"version": _MANIFEST_VERSION, **dataclasses.asdict(spec), "classes": list(spec.classes)}
    if manifest.is_file():
        try:
            found = json.loads(manifest.read_text())
        except ValueError as error:
            raise ValueError(f"{manifest} cannot be read ({error}): choose another folder or --overwrite") from error
        if found == wanted:
            return
        changes = [f"{key} {found.get(key)} -> {wanted.get(key)}" for key in wanted if found.get(key) != wanted[key]]
        if not overwrite:
            raise ValueError(
                f"{root} holds a motion data set made with other parameters ({', '.join(changes)}): "
                "choose another folder, the same parameters, or --overwrite"
            )
        for name in SPLITS:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / f"{name}.csv").unlink(missing_ok=True)
    elif root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and no motion data set: choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps(wanted, indent=2) + "\n")


def write_dataset(
    root: str | os.PathLike,
    spec: MotionSpec,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda counts, total: counts,
) -> None:
    """Write the videos, ``{train,val,test}.csv`` and ``class_names.json`` under ``root``, reusing what is there.

    A line of a list is ``path label`` with the path relative to ``root``: set both DATA.PATH_TO_DATA_DIR and
    DATA.PATH_PREFIX to ``root``. ``progress`` wraps the finished numbers of videos, whose sum is its second argument.
    Raises ValueError where ``root`` holds something else, or a set of other parameters without ``overwrite``.
    """
    root = Path(root)
    _claim_folder(root, spec, overwrite)
    jobs = [(str(root), spec, split, scene) for split in SPLITS for scene in range(spec.scenes(split))]
    total = len(jobs) * len(spec.classes)
    if workers <= 1:
        for _ in progress((_write_scene(*job) for job in jobs), total):
            pass
    else:
        # NOTE: forked workers start at once; a spawned one would first import the whole package.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
            for _ in progress(pool.map(_write_scene, *zip(*jobs)) if jobs else [], total):
                pass
    labels = {name: label for label, name in enumerate(spec.classes)}
    (root / "class_names.json").write_text(json.dumps(labels, indent=2) + "\n")
    for split in SPLITS:
        lines = [f"{video.path} {labels[video.motion]}\n" for video in spec.videos(split)]
        (root / f"{split}.csv").write_text("".join(lines))


# --------------------------------------------------- pictures ---------------------------------------------------


def film_strips(spec: MotionSpec, columns: int, *, step: int = 4, split: str = "train") -> list[tuple[str, np.ndarray]]:
    """For each class its name and ``columns`` frames of a video, ``step`` apart: uint8 [columns, H, W, 3].

    Two classes that follow one another show the same scene.
    """
    times = np.minimum(np.arange(columns) * step, spec.frames - 1)
    videos = [VideoId(split, i // 2, name) for i, name in enumerate(spec.classes)]
    return [(video.motion, render(spec, video)[times]) for video in videos]
