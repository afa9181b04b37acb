"""The contrastive task: parts, logs and rules on tiny networks; two processes against one."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fill import fill_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from slowfast.config import load_cfg
from slowfast.engine.parallel import Wrapping, wrap_model
from slowfast.evaluation import TopK, VideoEnsemble
from slowfast.models import build_model
from slowfast.models.contrastive import SimCLR, shuffled
from slowfast.tasks import Contrastive, build_task
from slowfast.utils import distributed

BATCH, ROWS = 4, 10
SMALL = [
    *("TASK", "ssl", "MODEL.MODEL_NAME", "ContrastiveModel", "MODEL.ARCH", "slow", "MODEL.NUM_CLASSES", 8),
    *("CONTRASTIVE.DIM", 8, "MODEL.HEAD_ACT", "none", "MODEL.LOSS_FUNC", "contrastive_loss", "NUM_GPUS", 0),
    *("RESNET.DEPTH", 18, "RESNET.TRANS_FUNC", "basic_transform", "RESNET.WIDTH_PER_GROUP", 4),
    *("RESNET.NUM_BLOCK_TEMP_KERNEL", [[1], [1], [1], [1]], "DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32),
    *("DATA.INPUT_CHANNEL_NUM", [3], "MODEL.DROPOUT_RATE", 0.0, "CONTRASTIVE.T", 0.1, "TRAIN.BATCH_SIZE", BATCH),
    *("CONTRASTIVE.NUM_MLP_LAYERS", 2, "CONTRASTIVE.MLP_DIM", 8, "CONTRASTIVE.BN_MLP", True),
    *("CONTRASTIVE.QUEUE_LEN", 16, "CONTRASTIVE.LENGTH", ROWS, "CONTRASTIVE.NUM_CLASSES_DOWNSTREAM", 3),
    *("CONTRASTIVE.MOMENTUM", 0.9, "BN.NORM_TYPE", "sync_batchnorm", "BN.NUM_SYNC_DEVICES", 2),
    *("CONTRASTIVE.BN_SYNC_MLP", True, "DATA.TRAIN_JITTER_SCALES", [32, 40]),
]
KINDS = {
    "moco": ("CONTRASTIVE.TYPE", "moco", "CONTRASTIVE.SEQUENTIAL", True, "CONTRASTIVE.MOCO_MULTI_VIEW_QUEUE", True),
    "moco_first": ("CONTRASTIVE.TYPE", "moco"),
    "byol": ("CONTRASTIVE.TYPE", "byol", "CONTRASTIVE.SEQUENTIAL", True, "CONTRASTIVE.PREDICTOR_DEPTHS", [2]),
    "simclr": ("CONTRASTIVE.TYPE", "simclr", "CONTRASTIVE.SEQUENTIAL", True),
    "swav": ("CONTRASTIVE.TYPE", "swav", "CONTRASTIVE.SWAV_QEUE_LEN", 4),
    "mem": ("CONTRASTIVE.TYPE", "mem"),
}


def make(kind, *opts):
    cfg = load_cfg(None, [*SMALL, *KINDS[kind], *opts])
    return fill_model(build_model(cfg)).double().train(), build_task(cfg)


def make_batch(rows=slice(None), views=3):
    generator = torch.Generator().manual_seed(3)
    clips = [torch.randn(BATCH, 3, 4, 32, 32, generator=generator, dtype=torch.float64)[rows] for _ in range(views)]
    return SimpleNamespace(clips=clips, index=torch.tensor([7, 2, 9, 4])[rows])


def steps(model, task, batch, epochs=(16.0, 16.5)):
    """The loss in the log of each step, after plain gradient descent by a fixed rate."""
    shown = []
    for epoch in epochs:
        model.zero_grad()
        for part in task.split(model, batch):
            result = task.loss(model, part, epoch)
            result.total.backward()
        shown.append(result.parts["loss"])
        with torch.no_grad():
            for param in model.parameters():
                if param.grad is not None:
                    param -= 0.02 * param.grad
    return distributed.all_reduce_mean(torch.stack(shown))


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(rank)  # as in training, ranks draw other numbers
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slowfast.utils.distributed.get_local_world_size", lambda: 2)
        patch.setattr("slowfast.utils.distributed.get_local_rank", lambda: rank)
        rows = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        for kind in KINDS:
            if kind != "mem":  # draws negatives of its own on each process
                model, task = make(kind)
                model = wrap_model(model, Wrapping())
                assert isinstance(model, DistributedDataParallel)
                losses = steps(model, task, make_batch(rows))
                results[kind] = (losses, model.module.state_dict())
        everyone = torch.arange(6.0).view(6, 1)[rank * 3 : rank * 3 + 3]
        results["shuffled"] = [
            shuffled(lambda clips: clips * 2 + clips.sum(), local=local)(everyone) for local in (0, 1)
        ]
        gathered = everyone.clone().requires_grad_()
        (distributed.all_gather_rows(gathered).flatten() * torch.arange(6.0) * (rank + 1)).sum().backward()
        results["gradient"] = gathered.grad
    torch.save(results, f"{out}{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """With synchronised batch norm: same losses, weights, key encoder, queue and banks after two steps."""
    mp.spawn(worker, (tmp_path / "store", tmp_path / "out"), nprocs=2)
    parts = [torch.load(f"{tmp_path / 'out'}{rank}", weights_only=True) for rank in range(2)]
    for kind in KINDS:
        if kind == "mem":
            continue
        model, task = make(kind)
        losses = steps(model, task, make_batch())
        for part in parts:
            torch.testing.assert_close(part[kind][0], losses, rtol=1e-9, atol=1e-9)
            for name, value in model.state_dict().items():
                # the running variance of synchronised norms is the biased one across processes
                if not name.endswith(("running_var", "num_batches_tracked")):
                    torch.testing.assert_close(part[kind][1][name], value, rtol=1e-7, atol=1e-7, msg=f"{kind}: {name}")
    for number in (0, 1):  # each process gets its own clips back, encoded among others
        back = torch.cat([part["shuffled"][number] for part in parts]).flatten() - 2 * torch.arange(6.0)
        assert back.sum().item() == pytest.approx(45.0)  # three times the sum of each process's share
        assert len(set(back.tolist())) == 2
    grads = torch.cat([part["gradient"] for part in parts]).flatten()
    assert torch.equal(grads, 3 * torch.arange(6.0))


# ---------------------------------------------------------------- one process


class Flat(nn.Module):
    """Clips [B, 3, 1, 1, 1] to features [B, 3]."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, clips):
        return self.layer(clips.flatten(1))


def flat_batch(views):
    return SimpleNamespace(clips=[torch.randn(2, 3, 1, 1, 1) for _ in range(views)], index=torch.arange(2))


def test_the_log_shows_the_sum_over_parts_by_twice_the_views():
    model, task = SimCLR(Flat(), temperature=0.5, sequential=True), Contrastive(temperature=0.5)
    shown, totals = [], []
    for part in task.split(model, flat_batch(4)):
        result = task.loss(model, part, 0.0)
        totals.append(result.total.item())
        shown.append(result.parts["loss"].item())
    assert len(totals) == 3
    assert shown == pytest.approx([sum(totals[: n + 1]) / 8 for n in range(3)])
    assert result.errors == {}


def test_errors_count_over_all_parts():
    model, task = make("moco")
    *_, last = [task.loss(model, part, 0.0) for part in task.split(model, make_batch())]
    assert set(last.errors) == {"top1_err", "top5_err"}
    steps_of_24 = last.errors["top1_err"].item() * 24 / 100  # 3 queries, 2 keys, 4 videos
    assert steps_of_24 == pytest.approx(round(steps_of_24))


def test_too_few_views_name_the_key():
    model, task = SimCLR(Flat(), temperature=0.5), Contrastive(temperature=0.5)
    with pytest.raises(ValueError, match=r"1 view of each video, at least 2.*DATA.TRAIN_CROP_NUM_TEMPORAL"):
        list(task.split(model, flat_batch(1)))


def test_the_queue_fills_before_anything_moves():
    model, task = make("moco", "CONTRASTIVE.QUEUE_LEN", 12)
    assert task.fill_steps == 3
    assert [task.after_backward(model, 0.0, step) for step in range(4)] == [False, False, False, True]
    assert task.after_backward(model, 1.0, 0)
    assert make("simclr")[1].after_backward(SimCLR(Flat(), temperature=1.0), 0.0, 0)


def test_neighbours_vote_with_the_labels_of_the_training_list():
    model, task = make("simclr")
    labels = [0, 1, 2] * 4
    records = type("Records", (), {"labels": labels, "__len__": lambda self: 12})()
    task.prepare(model, lambda: SimpleNamespace(records=records))
    assert len(model.knn_mem) == 12
    model.knn_mem.memory.copy_(torch.eye(12, 8)[:, None])

    def features(clips):
        return clips

    features.knn_mem = model.knn_mem
    scores = task.predict(features, SimpleNamespace(clips=5 * torch.eye(12, 8, dtype=torch.float64)[:4]))
    assert scores.shape == (4, 3)
    assert scores.argmax(1).tolist() == [0, 1, 2, 0]


def test_metrics_follow_the_split():
    task = make("simclr")[1]
    assert isinstance(task.metric("val", None), TopK)
    dataset = type("Views", (), {"num_views": 3, "__len__": lambda self: 12})()
    ensemble = task.metric("test", dataset)
    assert isinstance(ensemble, VideoEnsemble)
    assert ensemble.scores.shape == (4, 3)
    assert not make("simclr", "CONTRASTIVE.KNN_ON", False)[1].evaluates


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.MODEL_NAME", "ResNet"], r"TASK='ssl' with MODEL.MODEL_NAME='ResNet'"),
        (["MODEL.LOSS_FUNC", "cross_entropy"], r"MODEL.LOSS_FUNC='cross_entropy'"),
        (["MIXUP.ENABLE", True], r"MIXUP.ENABLE"),
        (["TRAIN.ACCUMULATION_STEPS", 2], r"TRAIN.ACCUMULATION_STEPS=2"),
        (["CONTRASTIVE.TYPE", "moco", "CONTRASTIVE.QUEUE_LEN", 18], r"QUEUE_LEN=18 is not a multiple of the 4 clips"),
    ],
)
def test_settings_that_cannot_be_name_their_keys(opts, message):
    with pytest.raises(ValueError, match=message):
        build_task(load_cfg(None, [*SMALL, *opts]))


def test_labels_are_needed_only_where_neighbours_judge():
    records = type("Records", (), {"__len__": lambda self: 5})()
    model, task = make("mem")
    with pytest.raises(ValueError, match=r"set CONTRASTIVE.KNN_ON False"):
        task.prepare(model, lambda: SimpleNamespace(records=records))
    model, task = make("mem", "CONTRASTIVE.KNN_ON", False)
    task.prepare(model, lambda: SimpleNamespace(records=records))
    assert len(model.memory) == 5
