"""What people have lost days to, found beforehand: each finding names the cause and the remedy."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import slowfast
from slowfast.engine import preflight_checks as checks
from slowfast.engine import train
from slowfast.engine.preflight import Preflight, build_data_findings, build_preflight, build_start_findings
from slowfast.engine.preflight_checks import GIB, DataFinding, Found, Recipe
from slowfast.engine.preflight_steps import Pace, estimate_memory, measure_steps, state_bytes
from slowfast.engine.run import build_run
from slowfast.models import build_model

ROOT = Path(__file__).parents[2]


def absent(module):
    if module == "pytorchvideo":
        raise ImportError("No module named 'pytorchvideo'")
    return importlib.import_module(module)


PROCESSES = {"launched_by_torchrun": False}
BATCH = {"batch": 64, "processes": 8, "shards": 1, "accumulation": 1, "rate": 0.1, "clips": 1000, "published": None}
LABELS = {
    "multi_label": True,
    "loss": "bce_logit",
    "activation": "sigmoid",
    "ensemble": "max",
    "classes": 157,
    "tests": True,
}
START = {"problems": 0, "loaded": 100, "table": "", "epoch": 0, "max_epoch": 10, "resumed": False}

# What went wrong -> what is looked at, the level, words of the cause, words of the remedy. The numbers are those of
# the themes in which users of the original asked for help.
MISTAKES = {
    "1 a package is missing": (
        lambda: checks.check_packages({"pytorchvideo": "pytorchvideo"}, absent),
        ("problem", "No module named 'pytorchvideo'", "pip install pytorchvideo"),
    ),
    "1 PYTHONPATH points into the package": (
        lambda: checks.check_import_path(["/usr/lib", str(Path(slowfast.__file__).parent)], ROOT / "slowfast"),
        ("problem", "is the package itself", f"PYTHONPATH to {ROOT}"),
    ),
    "2 videos do not decode": (
        lambda: checks.check_data([DataFinding("error", "undecodable", "train: a.mp4: no video stream")]),
        ("problem", "a.mp4: no video stream", "tools/prepare_videos.py"),
    ),
    "3 a list of one's own has a wrong class": (
        lambda: checks.check_data([DataFinding("error", "list", "train: train.csv, line 3: class 5 of 5")]),
        ("problem", "line 3: class 5 of 5", "MODEL.NUM_CLASSES"),
    ),
    "3 the videos lie elsewhere": (
        lambda: checks.check_data([DataFinding("error", "missing", f"train: {n}.mp4: no such file") for n in range(9)]),
        ("problem", "and 6 more", "DATA.PATH_PREFIX"),
    ),
    "4 fewer than five classes": (
        lambda: checks.check_labels(**{**LABELS, "multi_label": False, "classes": 3}),
        ("note", "top-5 is always right; look at top-1", ""),
    ),
    "5 another batch with the same rate": (
        lambda: checks.check_batch(**{**BATCH, "batch": 8, "processes": 1, "published": Recipe(64, 0.1)}),
        ("warning", "0.1 for 64 clips per step, and here there are 8", "SOLVER.BASE_LR 0.0125"),
    ),
    "5 more machines with the same rate": (
        lambda: checks.check_batch(**{**BATCH, "shards": 4, "published": Recipe(64, 0.1)}),
        ("warning", "here there are 256", "SOLVER.BASE_LR_SCALE_NUM_SHARDS True"),
    ),
    "5 validation videos are trained on": (
        lambda: checks.check_data([DataFinding("error", "leak", "val: a.mp4: is a.mp4 of the training set")]),
        ("problem", "of the training set", "take them out"),
    ),
    "5 batch norm of two clips": (
        lambda: checks.check_norm(has_batch_norm=True, clips=2, norm="batchnorm", frozen=False),
        ("warning", "from 2 clips per process", "sync_batchnorm"),
    ),
    "7 machines that do not know of each other": (
        lambda: checks.check_processes(2, None, **PROCESSES),
        ("problem", "they would wait for each other", "--init_method tcp://FIRST_MACHINE:PORT"),
    ),
    "7 machines that meet at localhost": (
        lambda: checks.check_processes(2, "tcp://localhost:9999", **PROCESSES),
        ("problem", "on itself", "--init_method tcp://FIRST_MACHINE:PORT"),
    ),
    "7 torchrun and NUM_GPUS disagree": (
        lambda: checks.check_processes(1, None, launched_by_torchrun=True, num_gpus=8, local=2),
        ("warning", "torchrun starts 2 processes per machine, NUM_GPUS says 8", "--nproc-per-node 8"),
    ),
    "8 too large for the memory": (
        lambda: checks.check_memory(20 * GIB, 16 * GIB, where="the GPU", measured=True),
        ("problem", "20.00 GiB measured", "TRAIN.ACCUMULATION_STEPS"),
    ),
    "8 little shared memory": (
        lambda: checks.check_workers(8, 1, 16, 64 * 1024**2),
        ("problem", "/dev/shm has 64 MiB", "--shm-size"),
    ),
    "9 waiting for data": (
        lambda: checks.check_speed(0.62, "raise DATA_LOADER.NUM_WORKERS", "0.5 s per step"),
        ("warning", "0.5 s per step", "DATA_LOADER.NUM_WORKERS"),
    ),
    "9 no workers": (
        lambda: checks.check_workers(0, 2, 16, None),
        ("warning", "each step waits", "DATA_LOADER.NUM_WORKERS 8"),
    ),
    "9 a GPU is asked for and there is none": (
        lambda: checks.check_devices(1, 0, [], None, 8),
        ("warning", "this build of PyTorch has no CUDA", "install a CUDA build"),
    ),
    "9 more GPUs than there are": (
        lambda: checks.check_devices(8, 2, ["A", "A"], "13.0", 8),
        ("problem", "NUM_GPUS=8, but 2 GPUs are visible", "NUM_GPUS 2"),
    ),
    "10 weights of another network": (
        lambda: checks.check_start("weights from a.pyth", **{**START, "problems": 80, "loaded": 3, "table": "s1: 80"}),
        ("problem", "s1: 80", "tools/zoo.py"),
    ),
    "10 a new classifier": (
        lambda: checks.check_start("weights from a.pyth", **{**START, "problems": 2, "table": "head: 2"}),
        ("warning", "head: 2", "a new classifier (head) is meant"),
    ),
    "10 fine-tuning takes the epoch too": (
        lambda: checks.check_start("continuing a.pyth at epoch 11", **{**START, "epoch": 10}),
        ("problem", "nothing will be learnt", "TRAIN.CHECKPOINT_EPOCH_RESET True"),
    ),
    "10 the folder holds a finished training": (
        lambda: checks.check_start("continuing b.pyth", **{**START, "epoch": 10, "resumed": True}),
        ("warning", "all 10 epochs are trained", "another OUTPUT_DIR"),
    ),
    "13 a key that does nothing": (
        lambda: checks.check_idle({"SOLVER.STEP_SIZE": "SOLVER.STEPS and SOLVER.LRS make the steps"}),
        ("warning", "SOLVER.STEP_SIZE has no effect: SOLVER.STEPS", "take it out"),
    ),
    "16 spaces in a list": (
        lambda: checks.check_data([DataFinding("error", "list", "train: train.csv, line 1: three columns")]),
        ("problem", "three columns", "DATA.PATH_LABEL_SEPARATOR"),
    ),
    "17 Charades with the mean over views": (
        lambda: checks.check_labels(**{**LABELS, "ensemble": "sum"}),
        ("warning", "averaged away", "DATA.ENSEMBLE_METHOD max"),
    ),
    "17 several labels and a loss for one": (
        lambda: checks.check_labels(**{**LABELS, "loss": "cross_entropy"}),
        ("problem", "takes one class per clip", "MODEL.LOSS_FUNC bce_logit"),
    ),
    "17 several labels and softmax": (
        lambda: checks.check_labels(**{**LABELS, "activation": "softmax"}),
        ("problem", "would compete", "MODEL.HEAD_ACT sigmoid"),
    ),
    "no room for checkpoints": (
        lambda: checks.check_output("/", 5 * GIB, GIB),
        ("problem", "5.00 GiB of checkpoints, 1.0 GiB free", "TRAIN.CHECKPOINT_KEEP"),
    ),
    "an epoch shorter than a step": (
        lambda: checks.check_batch(**{**BATCH, "clips": 40}),
        ("problem", "an epoch has 40 clips, a step 64", "TRAIN.BATCH_SIZE 40"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_common_mistake_is_named_with_its_remedy(name):
    look, (level, cause, remedy) = MISTAKES[name]
    found = [one for one in look() if one.level != "ok"]
    assert len(found) == 1
    assert (found[0].level, cause in found[0].text, remedy in found[0].remedy) == (level, True, True), found[0]


FINE = (
    lambda: checks.check_packages({"torch": "torch"}),
    lambda: checks.check_import_path(["", "/usr/lib", str(ROOT)], ROOT / "slowfast"),
    lambda: checks.check_data([]),
    lambda: checks.check_labels(**LABELS),
    lambda: checks.check_batch(**{**BATCH, "published": Recipe(64, 0.1)}),
    lambda: checks.check_batch(**{**BATCH, "batch": 8, "rate": 0.0125, "published": Recipe(64, 0.1)}),
    lambda: checks.check_norm(has_batch_norm=True, clips=2, norm="sync_batchnorm", frozen=False),
    lambda: checks.check_processes(2, "tcp://10.0.0.1:9999", **PROCESSES),
    lambda: checks.check_devices(0, 0, [], None, 8),
    lambda: checks.check_memory(GIB, 16 * GIB, where="the GPU", measured=True),
    lambda: checks.check_workers(8, 1, 16, 64 * GIB),
    lambda: checks.check_speed(0.02, "nothing", "0.5 s per step"),
    lambda: checks.check_start("starting from random weights", **{**START, "loaded": 0}),
    lambda: checks.check_idle({}),
)


@pytest.mark.parametrize("look", FINE)
def test_what_is_right_is_not_complained_of(look):
    assert [one for one in look() if one.level != "ok"] == []


def test_the_table_groups_by_topic_and_wraps():
    found = (
        Found("data", "ok", "fine"),
        Found("batch", "problem", "long " * 60, "do this"),
        Found("data", "note", "x"),
    )
    preflight = Preflight(found)
    lines = preflight.table().splitlines()
    assert not preflight.ok
    assert lines[:3] == ["data", "  ok      fine", "  note    x"]
    assert lines[4].startswith("  PROBLEM long long")
    assert lines[-2] == "          -> do this"
    assert lines[-1] == "1 problem, 0 warnings"
    assert max(map(len, lines)) <= 120


def test_lists_are_read_and_videos_tried(tiny, tmp_path):
    (fine,) = build_data_findings(tiny(), sample=2)
    assert (fine.level, "train: 12 rows, 2 videos tried" in fine.text) == ("ok", True)
    _, broken = build_data_findings(tiny(data=tmp_path), sample=2)
    assert (broken.level, str(tmp_path) in broken.text) == ("problem", True)


def test_steps_are_measured_and_memory_is_counted(tiny, tmp_path):
    run = build_run(tiny("TRAIN.BATCH_SIZE", 4))
    weights = sum(parameter.nbytes for parameter in run.network.parameters())
    assert state_bytes(run) == 3 * weights  # weights, gradients, momenta
    run.train_loader.batch_sampler.set_epoch(0)
    batch = next(iter(run.train_loader))
    whole = estimate_memory(run, batch)
    assert whole > 3 * weights + batch.clips[0].numel() * len(batch) * 4
    before = next(run.network.parameters()).detach().clone()
    pace = measure_steps(run)
    assert (pace.steps, pace.clips) == (2, 4)  # an epoch has 3 steps, the first is not counted
    assert 0 < pace.data < pace.step
    assert not torch.equal(before, next(run.network.parameters()))
    assert not (tmp_path / "out").exists()


def test_pace_in_shares():
    pace = Pace(10, clips=8, step=0.5, data=0.1)
    assert (pace.waiting, pace.clips_per_second) == (0.2, 16.0)


def test_the_start_is_tried_on_the_real_network(tiny, tmp_path):
    train(tiny("SOLVER.MAX_EPOCH", 1, "TRAIN.EVAL_PERIOD", 9, out=tmp_path / "first"))
    file = str(tmp_path / "first/checkpoints/checkpoint_epoch_00001.pyth")
    wider = tiny("RESNET.WIDTH_PER_GROUP", 16, "TRAIN.CHECKPOINT_FILE_PATH", file)
    (found,) = [one for one in build_start_findings(wider, build_run(wider)) if one.level == "problem"]
    assert "of another shape" in found.text
    again = tiny("SOLVER.MAX_EPOCH", 1, "TRAIN.CHECKPOINT_FILE_PATH", file)
    (found,) = [one for one in build_start_findings(again, build_run(again)) if one.topic == "checkpoint"][:1]
    assert "TRAIN.CHECKPOINT_EPOCH_RESET" in found.remedy


def test_a_network_that_cannot_be_built_is_a_finding(tiny):
    preflight = build_preflight(tiny("MODEL.ARCH", "slowest"))
    (problem,) = [one for one in preflight.found if one.level == "problem"]
    assert (problem.topic, "slowest" in problem.text) == ("network", True)


def test_a_job_that_only_tests_has_its_weights_and_first_batch_tried(tiny, tmp_path):
    only = ("TRAIN.ENABLE", False)
    (problem,) = [one for one in build_preflight(tiny(*only)).found if one.level == "problem"]
    assert (problem.topic, "no weights to test" in problem.text) == ("checkpoint", True)
    train(tiny("SOLVER.MAX_EPOCH", 1, "TRAIN.EVAL_PERIOD", 9))
    preflight = build_preflight(tiny(*only))
    assert preflight.ok, preflight.table()
    assert preflight.found[-1].topic == "steps"
    assert re.search(r"scores \[\d+, 3\]", preflight.found[-1].text)


def test_a_job_that_only_watches_has_its_weights_and_video_tried(tiny, videos, tmp_path):
    only = ("TRAIN.ENABLE", False, "TEST.ENABLE", False, "DEMO.ENABLE", True)
    video = ("DEMO.INPUT_VIDEO", str(videos / "test_dark_0.mp4"))
    weights = tmp_path / "a.pyth"
    torch.save({"model_state": build_model(tiny()).state_dict()}, weights)
    fits = ("TEST.CHECKPOINT_FILE_PATH", str(weights))
    nowhere = tmp_path / "no lists are needed"
    preflight = build_preflight(tiny(*only, *video, *fits, data=nowhere))
    assert preflight.ok, preflight.table()
    assert "test_dark_0.mp4, 12 frames" in preflight.found[-1].text
    for options, topic, words in (
        ((*video, "TEST.CHECKPOINT_FILE_PATH", ""), "checkpoint", "no weights to test"),
        (fits, "demo", "nothing to watch"),
        ((*fits, "DEMO.INPUT_VIDEO", str(tmp_path / "none.mp4")), "demo", "none.mp4"),
        ((*fits, *video, "DEMO.VIS_MODE", "all"), "demo", "DEMO.VIS_MODE='all'"),
    ):
        preflight = build_preflight(tiny(*only, *options, data=nowhere))
        (problem,) = [one for one in preflight.found if one.level == "problem"]
        assert (problem.topic, words in problem.text) == (topic, True), preflight.table()


def test_the_classes_of_lists_are_not_the_width_of_contrastive_features(tiny):
    contrastive = ("MODEL.MODEL_NAME", "ContrastiveModel", "MODEL.NUM_CLASSES", 128, "CONTRASTIVE.DIM", 128)
    (fine,) = build_data_findings(tiny(*contrastive, "CONTRASTIVE.NUM_CLASSES_DOWNSTREAM", 3), sample=1)
    assert fine.level == "ok"
    _, more = build_data_findings(tiny(*contrastive, "CONTRASTIVE.NUM_CLASSES_DOWNSTREAM", 5), sample=1)
    assert "set CONTRASTIVE.NUM_CLASSES_DOWNSTREAM to the number" in more.remedy
    assert "MODEL.NUM_CLASSES" not in more.text + more.remedy
    _, fewer = build_data_findings(tiny(*contrastive, "CONTRASTIVE.NUM_CLASSES_DOWNSTREAM", 2), sample=1)
    assert (fewer.level, "CONTRASTIVE.NUM_CLASSES_DOWNSTREAM=2" in fewer.text) == ("problem", True)
    assert "MODEL.NUM_CLASSES" not in fewer.text + fewer.remedy


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_nothing(tiny, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(tiny().dump())
    command = [sys.executable, "tools/run_net.py", "--cfg", str(file), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("environment", "12 rows", "3 classes", "6 clips per step", "GiB estimated", "clips/s", "0 problems"):
        assert words in done.stdout
    assert not (tmp_path / "out").exists()
    command += ["TRAIN.CHECKPOINT_FILE_PATH", "nowhere.pyth", "SOLVER.BASE_LR", "5.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere.pyth" in done.stdout
    assert "1 problem" in done.stdout
