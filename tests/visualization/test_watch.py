"""A stream watched from beginning to end: the same scores as otherwise, in order, whatever works side by side."""

import itertools
import threading
import time
from pathlib import Path

import pytest
import torch
from fill import fill_model

from slowfast.config import load_cfg
from slowfast.datasets.ava import build_box_lists
from slowfast.datasets.build import build_dataset
from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.datasets.moving_boxes import BoxesSpec, write_boxes_dataset
from slowfast.models import build_model
from slowfast.visualization.box_predictor import BoxPredictor, build_box_class_names, read_given_boxes
from slowfast.visualization.live import open_stream
from slowfast.visualization.predictor import Predictor
from slowfast.visualization.video_io import ahead_in_bunches
from slowfast.visualization.watch import BoxWatcher, ClassWatcher, hop_of, in_turn, watch
from slowfast.visualization.watch_results import line_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    """A small network of motions and a video of 32 frames at 15 a second."""
    folder = tmp_path_factory.mktemp("watch")
    write_dataset(folder, MotionSpec(classes=("bounce",), train_per_class=0, val_per_class=0, test_per_class=1))
    opts = ["MODEL.NUM_CLASSES", 3, "RESNET.WIDTH_PER_GROUP", 8, "TEST.NUM_ENSEMBLE_VIEWS", 2]
    cfg = load_cfg(ROOT / "configs/Motion/_base/slowfast.yaml", opts)
    network = fill_model(build_model(cfg))
    network.head.projection.weight.data *= 30  # filled weights alone score everything nearly alike
    torch.save({"model_state": network.state_dict()}, folder / "w.pyth")
    predictor = Predictor.from_cfg(cfg, folder / "w.pyth", device="cpu")
    return predictor, str(folder / "test/bounce/00000.mp4")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """The built-in boxes, the configuration of a test on them, and its network with filled weights."""
    folder = tmp_path_factory.mktemp("boxes")
    write_boxes_dataset(folder, BoxesSpec(videos=(1, 2)))
    opts = ["AVA.FRAME_DIR", str(folder / "videos"), "AVA.ANNOTATION_DIR", str(folder), "RESNET.WIDTH_PER_GROUP", 8]
    cfg = load_cfg(ROOT / "configs/Boxes/SLOWFAST_R18.yaml", opts)
    torch.save({"model_state": fill_model(build_model(cfg)).state_dict()}, folder / "w.pyth")
    return folder, cfg


@pytest.mark.parametrize("shared", [0, 5])
def test_clips_of_a_stream_score_as_windows_of_the_file(motion, shared):
    predictor, video = motion
    span = 16 / 15  # of 8 frames, two apart
    windows = list(predictor.predict_windows(video, stride_s=span - shared / 15))
    found = list(watch(open_stream(video), [ClassWatcher(predictor, shared=shared)], batch_size=2))
    assert [(p.start_s, p.end_s) for _, p in found] == [pytest.approx((w.start_s, w.end_s)) for w in windows]
    assert len(windows) == (2 if not shared else 3)
    for (_, prediction), window in zip(found, windows, strict=True):
        torch.testing.assert_close(prediction.scores, window.scores, rtol=1e-4, atol=1e-5)
    assert [shot.index for clip, _ in found for shot in clip.fresh] == list(range(32))


@pytest.mark.parametrize("rate", [0.0, 30.0])
def test_given_boxes_score_as_in_a_test_on_lists(boxes, rate):
    """At the rate of the video, and at another one."""
    folder, cfg = boxes
    cfg = cfg.clone()
    cfg.defrost()
    cfg.AVA.FRAME_RATE = rate
    predictor = BoxPredictor.from_cfg(cfg, folder / "w.pyth", device="cpu")
    dataset, lists = build_dataset("ava", cfg, "test"), build_box_lists(cfg, "test")
    network = build_model(cfg).eval()
    network.load_state_dict(torch.load(folder / "w.pyth")["model_state"])
    assert len(lists.boxes) == len(dataset) == 6
    row = 0
    for name in ("val_0000", "val_0001"):
        video = str(folder / "videos" / f"{name}.mp4")
        given = read_given_boxes(folder / "detected.csv", video, first_second=0, min_score=0.8)
        found = [p for _, p in watch(open_stream(video), [BoxWatcher(predictor, given=given)], batch_size=2) if p]
        assert [prediction.key_s for prediction in found] == [0.75, 1.0, 1.25]
        for prediction in found:
            sample = dataset[row]
            row += 1
            torch.testing.assert_close(prediction.boxes.float(), sample.image_boxes)
            rois = torch.cat([torch.zeros(len(sample.boxes), 1), sample.boxes], dim=1)
            with torch.no_grad():
                wanted = network(sample.clip[None], rois)
            torch.testing.assert_close(prediction.scores, wanted, rtol=1e-4, atol=1e-5)
            assert list(prediction.people) == list(range(1, len(wanted) + 1))  # nobody moves far


def test_a_detector_is_asked_in_the_middle_of_each_clip(boxes):
    folder, cfg = boxes
    asked = []

    def detector(pictures):
        asked.extend(pictures)
        none, one = torch.zeros(0, 4, dtype=torch.float64), torch.tensor([[0.1, 0.2, 0.5, 0.6]], dtype=torch.float64)
        return [(one, torch.ones(1)) if len(asked) == 1 else (none, torch.ones(0)) for _ in pictures]

    predictor = BoxPredictor.from_cfg(cfg, folder / "w.pyth", detector=detector, device="cpu")
    stream = open_stream(str(folder / "videos/val_0000.mp4"))
    found = list(watch(stream, [BoxWatcher(predictor)]))
    assert [(round(p.start_s, 3), round(p.end_s, 3)) for _, p in found] == [(0, 1.333), (0.667, 2)]
    assert [clip.key.index for clip, _ in found] == [8, 16]
    shots = list(open_stream(str(folder / "videos/val_0000.mp4")).shots)
    assert [bool((picture == shots[index].picture()).all()) for picture, index in zip(asked, (8, 16))] == [True] * 2
    assert [p.scores.shape for _, p in found] == [(1, 6), (0, 6)]  # nobody there: nothing to score, and no error


def test_without_boxes_and_detector_it_is_said(boxes):
    folder, cfg = boxes
    predictor = BoxPredictor.from_cfg(cfg, folder / "w.pyth", device="cpu")
    with pytest.raises(ValueError, match="give them, or a detector"):
        list(watch(open_stream(str(folder / "videos/val_0000.mp4")), [BoxWatcher(predictor)]))


def test_several_devices_give_the_same_in_the_same_order(motion):
    predictor, video = motion
    one = list(watch(open_stream(video), [ClassWatcher(predictor, shared=8)]))
    more = list(watch(open_stream(video), [ClassWatcher(predictor, shared=8) for _ in range(3)]))
    assert [p.start_s for _, p in one] == [p.start_s for _, p in more]
    assert all(torch.equal(a.scores, b.scores) for (_, a), (_, b) in zip(one, more, strict=True))


def test_clips_may_be_passed_over(motion):
    predictor, video = motion
    found = list(watch(open_stream(video), [ClassWatcher(predictor, shared=8)], skip=1))
    assert [prediction is not None for _, prediction in found] == [True, False, True]
    assert [shot.index for clip, _ in found for shot in clip.fresh] == list(range(32))
    with pytest.raises(ValueError, match=r"DEMO\.NUM_CLIPS_SKIP=-2"):
        list(watch(open_stream(video), [ClassWatcher(predictor)], skip=-2))


def test_a_slow_network_sees_the_newest_clip_and_every_frame_still_comes(motion):
    predictor, video = motion

    class Slow(ClassWatcher):
        def look(self, clip, fps):
            time.sleep(0.2)
            return super().look(clip, fps)

    watcher = Slow(predictor, shared=8)
    found = list(watch(open_stream(video), [watcher], skip=-1))
    assert [shot.index for clip, _ in found for shot in clip.fresh] == list(range(32))
    assert found[-1][1] is not None


def test_a_buffer_of_more_than_half_a_clip_is_refused():
    assert hop_of(2.0, 30, 30) == 1.0
    with pytest.raises(ValueError, match=r"DEMO\.BUFFER_SIZE=31 is not within 0 and half a clip, which has 60 frames"):
        hop_of(2.0, 31, 30)


def test_workers_share_the_items_and_errors_come_through():
    threads = set()

    def work(item):
        threads.add(threading.get_ident())
        time.sleep(0.01 * (item % 3))
        if item == 20:
            raise RuntimeError("broken")
        return item

    results = in_turn(itertools.count(), [work, work])
    assert [next(results) for _ in range(18)] == list(range(18))
    assert len(threads) == 2
    with pytest.raises(RuntimeError, match="broken"):
        list(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("watching")]


def test_bunches_hold_all_that_waits():
    go, done = threading.Event(), threading.Event()

    def items():
        yield 0
        go.wait()
        yield from range(1, 6)
        done.set()

    bunches = ahead_in_bunches(items(), 10)
    assert next(bunches) == [0]
    go.set()
    done.wait()
    assert next(bunches) == [1, 2, 3, 4, 5]
    assert list(bunches) == []


def test_videos_are_named_by_their_files(tmp_path):
    rows = "a.b,901,0.1,0.1,0.5,0.5,3,0.9\na.b,900.5,0.1,0.1,0.5,0.5,,0.7\na.b,899,0,0,1,1,,1\nother,901,0,0,1,1,,1\n"
    (tmp_path / "b.csv").write_text(rows)
    found = read_given_boxes(tmp_path / "b.csv", "/videos/a.b.mp4", first_second=900)
    assert [item.key_s for item in found] == [0.5, 1.0]  # in order; second 899 is before the first frame
    assert found[1].labels == [[3]]
    assert len(read_given_boxes(tmp_path / "b.csv", "/videos/a.b", first_second=900, min_score=0.8)) == 1
    with pytest.raises(ValueError, match=r"no box for 'c'; its videos are a\.b, other"):
        read_given_boxes(tmp_path / "b.csv", "c.mp4", first_second=900)
    with pytest.raises(ValueError, match="no such file of boxes"):
        read_given_boxes(tmp_path / "c.csv", "c.mp4", first_second=900)


def test_scores_of_given_boxes_are_kept(boxes, tmp_path):
    folder, cfg = boxes
    rows = ("0.1,0.1,0.5,0.5,1,0.9", "0.1,0.1,0.5,0.5,2,0.95", "0.2,0.1,0.6,0.5,,0.85", "0,0,1,1,", "0,0,.5,.5,,7")
    (tmp_path / "b.csv").write_text("".join(f"val_0000,1,{row}\n" for row in (*rows, "0.3,0,1,1,,0.5")))
    video = str(folder / "videos/val_0000.mp4")
    (given,) = read_given_boxes(tmp_path / "b.csv", video, first_second=0, min_score=0.8)
    assert given.scores.tolist() == pytest.approx([0.95, 0.85, 1, 1])  # one without a score; 7 is none
    predictor = BoxPredictor.from_cfg(cfg, folder / "w.pyth", device="cpu")
    (found,) = [p for _, p in watch(open_stream(video), [BoxWatcher(predictor, given=[given])]) if p]
    assert [person["certainty"] for person in line_of(found, 1)["people"]] == [0.95, 0.85, 1, 1]
    # In lists of true boxes the column numbers people.
    (truth,) = read_given_boxes(tmp_path / "b.csv", video, first_second=0)
    assert truth.scores.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.pbtxt", 'item { name: "walk" id: 1 }\nitem { name: "sit" id: 3 }\n'),
        ("a.txt", "1: walk\n3: sit\n"),
        ("a.json", '{"walk": 0, "sit": 2}'),
    ],
)
def test_names_of_some_outputs_are_enough(boxes, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    names = build_box_class_names(boxes[1], tmp_path / name)
    assert names == ["walk", "class 2", "sit", "class 4", "class 5", "class 6"]


def test_names_are_those_of_the_label_map_and_must_fit(boxes, tmp_path):
    assert build_box_class_names(boxes[1])[:2] == ["move_left", "move_right"]
    (tmp_path / "a.json").write_text('{"walk": 6}')
    with pytest.raises(ValueError, match=r"names output 6, the network has 6 \(MODEL\.NUM_CLASSES\)"):
        build_box_class_names(boxes[1], tmp_path / "a.json")
