"""Folders of shards: read back, damaged, and with something else planted in them."""

import io
import os
import pickle
import shutil

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from slowfast.checkpoint import CheckpointError, find_last_checkpoint, load_checkpoint, write_atomically
from slowfast.checkpoint.sharded import save_shards, shards_folder

WEIGHTS = {"a": torch.arange(3000.0).reshape(600, 5), "b": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The output folder of a job with two sharded checkpoints, written by one process."""
    folder = tmp_path_factory.mktemp("job")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weights = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in WEIGHTS.items()}
        for epoch in (1, 2):
            path = folder / f"checkpoints/checkpoint_epoch_0000{epoch}.pyth"
            write_atomically(path, save_shards(path, {"epoch": epoch - 1, "model_state": weights}))
    finally:
        dist.destroy_process_group()
    return folder


@pytest.fixture
def job(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "job")


def checkpoints(folder):
    return sorted(folder.glob("checkpoints/*.pyth"))


def good_one(folder):
    """The number of the newest good checkpoint."""
    return checkpoints(folder).index(type(folder)(find_last_checkpoint(folder))) + 1


def test_what_was_saved_is_read(job):
    content = load_checkpoint(checkpoints(job)[-1])
    assert content.keys() == {"epoch", "model_state"}
    assert all(torch.equal(content["model_state"][name], value) for name, value in WEIGHTS.items())
    assert good_one(job) == 2


class Writes:
    """Pickled, a call that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_the_description_is_not_run(job, tmp_path):
    description = shards_folder(checkpoints(job)[-1]) / ".metadata"
    description.write_bytes(pickle.dumps(Writes(tmp_path / "marker")))
    with pytest.raises(CheckpointError, match=r"refused: it asks for \w+.mkdir"):
        load_checkpoint(checkpoints(job)[-1])
    assert good_one(job) == 1
    assert not (tmp_path / "marker").exists()


def test_code_in_what_the_description_calls_bytes_is_not_run(job, tmp_path):
    path = checkpoints(job)[-1]
    buffer = io.BytesIO()
    torch.save(Writes(tmp_path / "marker"), buffer)
    shutil.rmtree(shards_folder(path))
    dcp.save({"model_state/a": buffer, "model_state/b": buffer}, checkpoint_id=shards_folder(path), no_dist=True)
    with pytest.raises(CheckpointError, match=r"refused: it asks for .*BytesStorageMetadata"):
        load_checkpoint(path)
    assert not (tmp_path / "marker").exists()


def test_code_in_a_shard_is_not_run(job, tmp_path):
    (piece,) = shards_folder(checkpoints(job)[-1]).glob("*.distcp")
    torch.save(Writes(tmp_path / "marker"), piece)
    with pytest.raises(CheckpointError):
        load_checkpoint(checkpoints(job)[-1])
    assert not (tmp_path / "marker").exists()


def test_shards_of_other_folders_are_not_read(job):
    description = shards_folder(checkpoints(job)[-1]) / ".metadata"
    name = b"__0_0.distcp"
    description.write_bytes(description.read_bytes().replace(name, b"/" + name[1:]))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_checkpoint(checkpoints(job)[-1])


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_the_one_before_a_torn_description_is_found(share, job):
    description = shards_folder(checkpoints(job)[-1]) / ".metadata"
    whole = description.read_bytes()
    description.write_bytes(whole[: int(share * len(whole))])
    assert good_one(job) == 1


def test_a_damaged_description_never_crashes_the_search(job):
    description = shards_folder(checkpoints(job)[-1]) / ".metadata"
    whole = description.read_bytes()
    for place in range(0, len(whole), 23):
        description.write_bytes(whole[:place] + bytes([whole[place] ^ 0x24]) + whole[place + 1 :])
        assert good_one(job) in (1, 2)


def test_a_missing_description_or_shard_is_named(job):
    path = checkpoints(job)[-1]
    folder = shards_folder(path)
    (folder / ".metadata").rename(folder / "away")
    with pytest.raises(CheckpointError, match="metadata"):
        load_checkpoint(path)
    (folder / "away").rename(folder / ".metadata")
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError, match="is not whole"):
        load_checkpoint(path)
