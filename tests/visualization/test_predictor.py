"""Predictions are those of the test; windows, times, features, names and drawings are what they say."""

import json
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fill import fill_model
from PIL import Image
from torch import nn

from slowfast.checkpoint import CheckpointError
from slowfast.config import load_cfg
from slowfast.datasets import DecodeError
from slowfast.datasets.charades import StrideRule
from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.datasets.sampling import Timeline
from slowfast.datasets.sources import VideoInfo
from slowfast.datasets.ssv2 import SegmentRule
from slowfast.engine import test as run_test
from slowfast.models import build_model
from slowfast.models.heads import HeadSpec, MLPSpec
from slowfast.visualization import predictor as predicting
from slowfast.visualization import video_io
from slowfast.visualization.predictor import (
    ClipPrediction,
    Guess,
    Predictor,
    build_clips,
    has_channels_last,
    merge_scores,
    pooled,
)
from slowfast.visualization.timeline import (
    Look,
    annotated_frames,
    moments,
    stretches,
    timeline_figure,
    write_annotated,
    write_scores,
)
from slowfast.visualization.video_io import Span, VideoWriter, ahead, find_videos, part_of, sliding_windows

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("move_left", "zoom_in", "bounce")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a configuration, weights of a small SlowFast, and six videos of 32 frames at 15 a second."""
    folder = tmp_path_factory.mktemp("predict")
    sizes = {"train_per_class": 0, "val_per_class": 0, "test_per_class": 2}
    write_dataset(folder / "data", MotionSpec(classes=CLASSES, **sizes))
    (folder / "small.yaml").write_text(
        f"_BASE_: {ROOT}/configs/Motion/_base/slowfast.yaml\n"
        f"DATA: {{PATH_TO_DATA_DIR: {folder}/data, PATH_PREFIX: {folder}/data}}\n"
        "MODEL: {NUM_CLASSES: 3}\nRESNET: {WIDTH_PER_GROUP: 8}\n"
        "TEST: {NUM_ENSEMBLE_VIEWS: 2, NUM_SPATIAL_CROPS: 3, BATCH_SIZE: 4}\n"
        f"DATA_LOADER: {{NUM_WORKERS: 0}}\nTENSORBOARD: {{ENABLE: False}}\nOUTPUT_DIR: {folder}/out\n"
    )
    network = fill_model(build_model(load_cfg(folder / "small.yaml")))
    network.head.projection.weight.data *= 30  # filled weights alone score all videos nearly alike
    torch.save({"model_state": network.state_dict()}, folder / "small.pyth")
    return folder


@pytest.fixture(scope="module")
def predictor(job):
    return Predictor.from_checkpoint(job / "small.yaml", job / "small.pyth", features="s5", device="cpu")


@pytest.fixture
def video(job):
    return job / "data" / "test" / "bounce" / "00000.mp4"


def window(start_s, end_s, *scores):
    return ClipPrediction(start_s, end_s, torch.tensor(scores), ("jump", "run", "swim"))


# ------------------------------------------------------------ the same as a test


@pytest.mark.parametrize("method", ["sum", "max"])
def test_prediction_equals_the_test(job, method):
    opts = ["DATA.ENSEMBLE_METHOD", method]
    test_opts = ["TEST.CHECKPOINT_FILE_PATH", str(job / "small.pyth"), "OUTPUT_DIR", str(job / method)]
    run_test(load_cfg(job / "small.yaml", [*opts, *test_opts]))
    lines = [json.loads(line) for line in (job / method / "test_2x3.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    plain = Predictor.from_checkpoint(job / "small.yaml", job / "small.pyth", opts=opts, device="cpu")
    for line in lines:
        found = plain.predict(line["path"])
        assert found.views == (2, 3)
        factor = line["views"] if method == "sum" else 1
        assert torch.allclose(found.scores * factor, torch.tensor(line["scores"]), atol=2e-5)
        assert found.top(1)[0].index == line["top"][0][0]
    assert len({tuple(line["scores"]) for line in lines}) == 6  # so that one would not pass for another


def test_three_lines_give_names_and_scores(predictor, video):
    prediction = predictor.predict(str(video))
    best = prediction.top(2)
    assert [guess.name for guess in best] == [CLASSES[guess.index] for guess in best]
    assert best[0].score >= best[1].score
    assert prediction.length_s == pytest.approx(32 / 15)
    assert float(prediction.scores.sum()) == pytest.approx(1, abs=1e-4)


def test_frame_folder_is_a_video(predictor, tmp_path):
    for number in range(20):
        Image.new("RGB", (96, 72), (number * 10, 0, 0)).save(tmp_path / f"{number}.png")
    prediction = predictor.predict(tmp_path)
    assert prediction.length_s == pytest.approx(20 / 15)  # DATA.TARGET_FPS counts
    assert find_videos([tmp_path]) == [str(tmp_path)]


def test_unusable_video_is_named(predictor, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    for call in (predictor.predict, lambda path: list(predictor.predict_windows(path))):
        with pytest.raises(DecodeError, match=r"empty.mp4.*empty"):
            call(tmp_path / "empty.mp4")


# ------------------------------------------------------------ windows


@pytest.mark.parametrize(
    ("length", "window_s", "stride", "wanted"),
    [
        (10, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (9, 4, 2, [(0, 4), (2, 6), (4, 8), (5, 9)]),
        (3, 4, 2, [(0, 3)]),
        (4, 4, 2, [(0, 4)]),
        (5, 1, 3, [(0, 1), (3, 4), (4, 5)]),
    ],
)
def test_windows_reach_the_end(length, window_s, stride, wanted):
    assert sliding_windows(length, window_s, stride) == [Span(*pair) for pair in wanted]


def test_windows_need_a_length():
    with pytest.raises(ValueError, match="stride 0 s is not more than 0"):
        sliding_windows(10, 1, 0)


def test_part_of_a_video_is_a_video():
    timeline = Timeline(np.array([0, 10, 25, 30, 40]), 10.0, 10.0, Fraction(1, 100), 50, 5)
    part = part_of(VideoInfo(5, 8, 8, 10.0, timeline), 1, 4)
    assert (part.num_frames, part.timeline.pts.tolist(), part.timeline.duration) == (3, [0, 15, 20], 30)
    assert part_of(VideoInfo(5, 8, 8), 2, 5).num_frames == 3


def test_window_over_all_is_the_centre_of_the_video(job, video):
    opts = ["TEST.NUM_ENSEMBLE_VIEWS", 1, "DATA.USE_OFFSET_SAMPLING", True]
    one = Predictor.from_checkpoint(job / "small.yaml", job / "small.pyth", opts=opts, device="cpu")
    (found,) = one.predict_windows(video, window_s=60)
    assert (found.start_s, found.end_s) == (0.0, pytest.approx(32 / 15))
    assert torch.allclose(found.scores, one.predict(video).scores, atol=1e-6)


def test_windows_see_their_part_alone(job, predictor, video, tmp_path):
    """A window gives what a video of only its frames gives."""
    found = list(predictor.predict_windows(video, window_s=16 / 15, stride_s=8 / 15))
    assert [window.start_s for window in found] == pytest.approx([0, 8 / 15, 16 / 15])
    frames = predictor._open(str(video)).read(range(8, 24))
    for number, frame in enumerate(frames.numpy()):
        Image.fromarray(frame).save(tmp_path / f"{number:02}.png")
    alone = next(predictor.predict_windows(tmp_path))
    assert torch.allclose(found[1].scores, alone.scores, atol=1e-5)
    assert not torch.allclose(found[0].scores, alone.scores, atol=1e-3)


def test_little_memory_changes_nothing(predictor, video, monkeypatch):
    plenty = list(predictor.predict_windows(video, window_s=1.0, stride_s=0.3))
    asked = []
    read = predicting.Predictor._read

    def counted(self, source, windows, union):
        asked.append(len(union))
        return read(self, source, windows, union)

    monkeypatch.setattr(predicting, "FRAMES_IN_MEMORY", 12 * 96 * 72 * 3)
    monkeypatch.setattr(predicting.Predictor, "_read", counted)
    scarce = list(predictor.predict_windows(video, window_s=1.0, stride_s=0.3))
    assert len(asked) > 1
    assert max(asked) <= 15  # frames at once: decoded at 85 x 64, there is room for 15
    for one, other in zip(plenty, scarce, strict=True):
        assert torch.equal(one.scores, other.scores)


def test_video_of_windows_is_their_mean(predictor, video):
    windows = list(predictor.predict_windows(video, window_s=1.0))
    merged = predictor.merged(video, windows)
    assert torch.allclose(merged.scores, torch.stack([w.scores for w in windows]).mean(0), atol=1e-6)
    assert (merged.views, merged.length_s) == ((len(windows), 1), pytest.approx(32 / 15))


def test_batches_change_nothing(job, predictor, video):
    small = Predictor.from_checkpoint(job / "small.yaml", job / "small.pyth", batch_size=1, device="cpu")
    for one, other in zip(predictor.predict_windows(video), small.predict_windows(video), strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-5)


def test_other_rules_are_those_of_their_data_sets(job):
    cfg = load_cfg(job / "small.yaml", ["TEST.DATASET", "ssv2"])
    assert build_clips(cfg).rule == SegmentRule(8)
    charades = build_clips(load_cfg(job / "small.yaml", ["TEST.DATASET", "Ptvcharades"]))
    assert charades.rule == StrideRule(8, 2)
    assert charades.transform.normalize.reverse_channels  # frames are BGR there
    network = torch.nn.Identity()
    whole = Predictor(network, build_clips(cfg), CLASSES, fold=False)
    video = next((job / "data" / "test").rglob("*.mp4"))
    with pytest.raises(ValueError, match="say how long a window is"):
        next(whole.predict_windows(video))


# ------------------------------------------------------------ features


def test_features_are_the_mean_of_a_layer(job, predictor, video):
    found = next(predictor.predict_windows(video))
    cfg = load_cfg(job / "small.yaml")
    network = build_model(cfg).eval()
    network.load_state_dict(torch.load(job / "small.pyth", weights_only=True)["model_state"])
    outputs = []
    network.s5.register_forward_hook(lambda layer, args, output: outputs.append(output))
    source = predictor._open(str(video))
    times = video_io.frame_times(source.info, 15)
    clips = next(predictor._window_views(source, times, [Span(found.start_s, found.end_s)])).clips
    with torch.no_grad():
        network(torch.stack(clips))
    wanted = torch.cat([pathway.mean((2, 3, 4)) for pathway in outputs[0]], dim=1).mean(0)
    assert found.features.shape == wanted.shape
    assert np.allclose(found.features, wanted.numpy(), rtol=1e-3, atol=1e-3)


def test_pooled_knows_where_channels_are():
    tokens = torch.arange(12.0).reshape(1, 3, 4)
    assert pooled((tokens, [1, 3, 1])).tolist() == [[4, 5, 6, 7]]
    clip = torch.arange(8.0).reshape(1, 2, 1, 2, 2)
    assert pooled(clip).tolist() == [[1.5, 5.5]]
    assert pooled(clip, channels_last=True).tolist() == [[3, 4]]
    assert pooled([clip, clip]).shape == (1, 4)
    with pytest.raises(ValueError, match="without tensors"):
        pooled("text")


def test_unknown_layer_is_answered_with_the_nearest(job):
    with pytest.raises(ValueError, match=r"no layer 's55'.*did you mean .*s5"):
        Predictor.from_checkpoint(job / "small.yaml", job / "small.pyth", features="s55")


MVIT = [
    *("MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "MODEL.NUM_CLASSES", 3, "MVIT.DEPTH", 2, "MVIT.EMBED_DIM", 16),
    *("MVIT.NUM_HEADS", 2, "MVIT.PATCH_KERNEL", [3, 7, 7], "MVIT.PATCH_STRIDE", [2, 4, 4]),
    *("MVIT.PATCH_PADDING", [1, 3, 3], "MVIT.POOL_KVQ_KERNEL", [3, 3, 3], "DATA.INPUT_CHANNEL_NUM", [3]),
    *("DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MVIT.CLS_EMBED_ON", False),
    *("DATA.TRAIN_JITTER_SCALES", [32, 32], "MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1]], "MVIT.DROPOUT_RATE", 0.0),
]


def features_of(network, cfg, layer, clips):
    """What is kept of a layer, [V, D]; clips are shown two at a time."""
    predictor = Predictor(network, build_clips(cfg), CLASSES, batch_size=2, features=layer)
    return predictor._run([predicting._Views(None, list(clips))])[0][2]


def test_rows_of_heads_go_back_to_their_clips():
    """Pooled queries have a row for each head of each clip; the heads' channels stand side by side."""
    cfg = load_cfg(None, MVIT)
    network, clips = fill_model(build_model(cfg)).eval(), torch.rand(3, 3, 4, 32, 32)
    found = features_of(network, cfg, "blocks.0.attn.pool_q", clips)
    outputs = []
    network.blocks[0].attn.pool_q.register_forward_hook(lambda layer, args, output: outputs.append(output))
    with torch.no_grad():
        for clip in clips:
            network(clip[None])
    wanted = [torch.cat([head.mean((1, 2, 3)) for head in output]) for output in outputs]
    torch.testing.assert_close(found, torch.stack(wanted))
    assert found.shape == (3, 16)


@pytest.mark.parametrize(("layer", "width"), [("projection", 3), ("projection.projection.0", 8), ("dropout", 6)])
def test_channels_of_a_head_are_last(layer, width):
    """An MLP on several places of [B, t, h, w, C]; its own layers see [B * t * h * w, C]."""
    spec = HeadSpec(3, windows=((2, 2, 2),), mlp=MLPSpec(2, dim_hidden=8))
    network = nn.Sequential(OrderedDict(conv=nn.Conv3d(3, 6, 1), many=AsList(), head=spec.make([6])))
    clips = torch.rand(3, 3, 2, 3, 4)
    found = features_of(fill_model(network), load_cfg(None, MVIT), f"head.{layer}", clips)
    outputs = []
    network.head.get_submodule(layer).register_forward_hook(lambda _, args, output: outputs.append(output))
    with torch.no_grad():
        for clip in clips:
            network(clip[None])
    torch.testing.assert_close(found, torch.stack([output.flatten(0, -2).mean(0) for output in outputs]))
    assert found.shape == (3, width)


class AsList(nn.Module):
    """One pathway."""

    def forward(self, x):
        return [x]


def test_channels_are_where_the_parts_of_a_layer_have_them():
    conv = nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU(), nn.BatchNorm3d(4), nn.ReLU())
    tokens = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU())
    pool = nn.AdaptiveAvgPool3d(1)
    network = nn.Sequential(conv, tokens, pool, nn.Linear(4, 3))
    last = {name: has_channels_last(network, layer) for name, layer in network.named_modules() if name}
    assert [name for name, is_last in last.items() if is_last] == ["1", "1.0", "1.1", "1.2", "3"]


def test_a_layer_that_takes_no_part_is_named():
    cfg = load_cfg(None, MVIT)
    network, clips = build_model(cfg), torch.rand(2, 3, 4, 32, 32)
    with pytest.raises(ValueError, match=r"the layer 'blocks' takes no part.*it only holds blocks\.0"):
        features_of(network, cfg, "blocks", clips)
    network.idle = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the layer 'idle' takes no part in a prediction"):
        features_of(network, cfg, "idle", clips)


def test_a_layer_that_does_not_tell_clips_apart_is_named():
    class Table(nn.Module):
        def forward(self, x):
            return torch.ones(3, 4)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = Table()

        def forward(self, x):
            self.table(x)
            return x.mean((2, 3, 4))

    with pytest.raises(ValueError, match="'table' gives 3 rows for 2 clips"):
        features_of(Network(), load_cfg(None, MVIT), "table", torch.rand(2, 3, 4, 8, 8))


# ------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        (["DETECTION.ENABLE", True], "DETECTION.ENABLE True scores boxes"),
        (["MASK.ENABLE", True], "MASK.ENABLE True"),
        (["TEST.DATASET", "imagenet"], "is of images"),
    ],
)
def test_what_does_not_classify_videos_is_refused(job, opts, says):
    with pytest.raises(ValueError, match=says):
        Predictor.from_cfg(load_cfg(job / "small.yaml", opts), job / "small.pyth")


def test_weights_must_be_there_and_fit(job):
    with pytest.raises(CheckpointError, match="no weights to test"):
        Predictor.from_checkpoint(job / "small.yaml", "")
    with pytest.raises(CheckpointError, match=r"small.pyth"):
        Predictor.from_checkpoint(job / "small.yaml", job / "small.pyth", opts=["RESNET.WIDTH_PER_GROUP", 16])


def test_merging():
    views = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    assert merge_scores(views, "sum").tolist() == pytest.approx([0.4, 0.6])
    assert merge_scores(views, "max").tolist() == pytest.approx([0.6, 0.8])


# ------------------------------------------------------------ over time


def test_stretches_join_neighbours_of_one_class():
    windows = [window(0, 4, 0.6, 0.4, 0.0), window(2, 6, 0.8, 0.2, 0.0), window(4, 8, 0.1, 0.0, 0.9)]
    assert moments(windows) == [0, 3, 5, 8]
    first, second = stretches(windows)
    assert first[:4] == (0, 5, "jump", 0)
    assert first.score == pytest.approx(0.7)
    assert second[:4] == (5, 8, "swim", 2)


def test_timeline_shows_classes_in_the_order_of_their_time():
    windows = [window(0, 2, 0.1, 0.9, 0.0), window(2, 4, 0.7, 0.3, 0.0), window(4, 6, 0.6, 0.4, 0.0)]
    axes = timeline_figure(windows, top_k=2, title="a$b").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["run", "jump"]
    assert axes.get_xlim() == (0, 6)
    dots = [line.get_xdata().tolist() for line in axes.lines]
    assert dots == [[1.0], [3.0, 5.0]]


def test_long_timeline_keeps_its_peaks():
    windows = [window(i, i + 1, 0.9 if i == 4321 else 0.1, 0.2, 0.3) for i in range(5000)]
    axes = timeline_figure(windows, top_k=3).axes[0]
    shown = axes.collections[0].get_array()
    assert shown.shape[1] == 2000
    assert float(shown.max()) == pytest.approx(0.9)


def test_scores_are_written_in_the_corner():
    frame = np.full((100, 120, 3), 255, np.uint8)
    drawn = write_scores(frame, [Guess("jump", 0, 0.9), Guess("run", 1, 0.01)], 1.5)
    assert drawn.shape == (300, 360, 3)  # enlarged to be read
    assert (drawn[:150] == 255).all()
    assert drawn[-5, 5].max() < 200
    large = write_scores(np.full((300, 300, 3), 255, np.uint8), [], 0.0, Look(top_k=1))
    assert large.shape == (300, 300, 3)


def test_annotated_video_keeps_times_and_says_what_is_now(video, tmp_path, monkeypatch):
    windows = [window(0, 1, 0.9, 0.1, 0.0), window(1, 32 / 15, 0.0, 0.1, 0.9)]
    said = []
    monkeypatch.setattr(
        "slowfast.visualization.timeline.write_scores",
        lambda frame, guesses, time_s, look: said.append((time_s, guesses[0].name)) or write_scores(frame, [], time_s),
    )
    assert write_annotated(tmp_path / "out.mp4", annotated_frames(str(video), windows, fps=15), fps=15) == 32
    edge = moments(windows)[1]
    assert {name for time, name in said if time < edge} == {"jump"}
    assert {name for time, name in said if time >= edge} == {"swim"}
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([number / 15 for number in range(32)], abs=1e-3)
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_uneven_times_are_kept_and_failures_leave_nothing(tmp_path):
    with VideoWriter(tmp_path / "a.mkv") as writer:
        for time in (0.0, 0.1, 0.5, 0.5, 2.0):
            writer.write(np.zeros((33, 35, 3), np.uint8), time)
    with av.open(str(tmp_path / "a.mkv")) as container:
        frames = list(container.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.5, 0.5, 2.0], abs=2e-3)
    assert (frames[0].width, frames[0].height) == (34, 32)
    sizes = [(0.0, np.zeros((32, 32, 3), np.uint8)), (0.1, np.zeros((64, 32, 3), np.uint8))]
    with pytest.raises(ValueError, match="a frame of 32x64 after 32x32"):
        write_annotated(tmp_path / "b.mp4", sizes)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mkv"]
    with pytest.raises(ValueError, match="is written as one of"):
        VideoWriter(tmp_path / "a.gif")


def test_reading_ahead_keeps_order_and_hands_errors_on():
    assert list(ahead(range(100), depth=3)) == list(range(100))

    def failing():
        yield 1
        raise DecodeError("a.mp4", "broken")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(DecodeError, match="broken"):
        next(items)
    endless = ahead(iter(int, 1))
    next(endless)
    endless.close()  # ends the thread, or this would hang


def test_videos_are_found_in_folders(tmp_path):
    for name in ("b.mp4", "a/c.MKV", "a/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_videos([tmp_path, "gone.mp4", "http://host/x.mp4"])
    assert found == [str(tmp_path / "a/c.MKV"), str(tmp_path / "b.mp4"), "gone.mp4", "http://host/x.mp4"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no video"):
        find_videos([tmp_path / "none"])


def test_each_video_has_an_output_of_its_own():
    assert video_io.names_of_outputs("o/t.png", ["x/a.mp4"]) == [Path("o/t.png")]
    names = video_io.names_of_outputs("o/t.png", ["x/a.mp4", "y/a.mp4", "y/b.mp4"])
    assert names == [Path("o/t-a.png"), Path("o/t-a-2.png"), Path("o/t-b.png")]
