"""Folders of shards: read back, damaged, and with something else planted in them."""

import io
import os
import pickle
import shutil
import zlib
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from slowfast.checkpoint import (
    CheckpointError,
    check_checkpoint,
    find_last_checkpoint,
    load_checkpoint,
    write_atomically,
)
from slowfast.checkpoint.sharded import save_shards, shards_folder

WEIGHTS = {"a": torch.arange(3000.0).reshape(600, 5), "b": torch.ones(3, dtype=torch.bfloat16)}


@contextmanager
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def process_group():
    with one_process():
        yield


def sharded_weights():
    mesh = init_device_mesh("cpu", (1,))
    return {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in WEIGHTS.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The output folder of a job with two sharded checkpoints, written by one process."""
    folder = tmp_path_factory.mktemp("job")
    with one_process():
        for epoch in (1, 2):
            path = folder / f"checkpoints/checkpoint_epoch_0000{epoch}.pyth"
            write_atomically(path, save_shards(path, {"epoch": epoch - 1, "model_state": sharded_weights()}))
    return folder


@pytest.fixture
def job(saved, tmp_path):
    """A copy of the job."""
    return shutil.copytree(saved, tmp_path / "job")


@pytest.fixture
def old_job(job):
    """The same as it was written before lengths and checksums were noted."""
    for path in checkpoints(job):
        content = torch.load(path, weights_only=True)
        write_atomically(path, {key: value for key, value in content.items() if key != "shard_files"})
    return job


def checkpoints(folder):
    return sorted(folder.glob("checkpoints/*.pyth"))


def good_one(folder):
    """The number of the newest good checkpoint."""
    return checkpoints(folder).index(type(folder)(find_last_checkpoint(folder))) + 1


@pytest.mark.parametrize("kind", ["job", "old_job"])
def test_what_was_saved_is_read(kind, request):
    folder = request.getfixturevalue(kind)
    content = load_checkpoint(checkpoints(folder)[-1])
    assert content.keys() == {"epoch", "model_state"}
    assert all(torch.equal(content["model_state"][name], value) for name, value in WEIGHTS.items())
    assert good_one(folder) == 2


def test_every_file_has_its_length_and_checksum_noted(job):
    for path in checkpoints(job):
        noted = torch.load(path, weights_only=True)["shard_files"]
        files = list(shards_folder(path).iterdir())
        assert noted == {file.name: [file.stat().st_size, zlib.crc32(file.read_bytes())] for file in files}


@pytest.mark.parametrize("kind", ["job", "old_job"])
def test_one_wrong_bit_of_a_weight_is_noticed(kind, request):
    folder = request.getfixturevalue(kind)
    path = checkpoints(folder)[-1]
    (piece,) = shards_folder(path).glob("*.distcp")
    content = bytearray(piece.read_bytes())
    content[content.index(WEIGHTS["a"].numpy().tobytes()) + 4321] ^= 4
    piece.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"__0_0.distcp is damaged"):
        check_checkpoint(path)
    assert good_one(folder) == 1


def test_a_file_of_another_length_is_noticed(job):
    path = checkpoints(job)[-1]
    (piece,) = shards_folder(path).glob("*.distcp")
    piece.write_bytes(piece.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"has \d+ bytes, and had \d+"):
        check_checkpoint(path)


def test_what_was_not_written_well_is_told_before_anything_is_removed(tmp_path, process_group, monkeypatch):
    weights, save = sharded_weights(), dcp.save

    def save_badly(tensors, checkpoint_id):
        save(tensors, checkpoint_id=checkpoint_id)
        (piece,) = checkpoint_id.glob("*.distcp")
        content = bytearray(piece.read_bytes())
        content[content.index(WEIGHTS["a"].numpy().tobytes())] ^= 1
        piece.write_bytes(content)

    monkeypatch.setattr(dcp, "save", save_badly)
    with pytest.raises(OSError, match=r"is not as it was written .*process 0: __0_0.distcp is damaged"):
        save_shards(tmp_path / "a.pyth", {"model_state": weights})


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path, process_group):
    shards_folder(tmp_path / "a.pyth").write_text("in the way")
    with pytest.raises(OSError, match="could not be written"):
        save_shards(tmp_path / "a.pyth", {"model_state": sharded_weights()})


class Writes:
    """Pickled, a call that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_the_description_is_not_run(old_job, tmp_path):
    description = shards_folder(checkpoints(old_job)[-1]) / ".metadata"
    description.write_bytes(pickle.dumps(Writes(tmp_path / "marker")))
    with pytest.raises(CheckpointError, match=r"refused: it asks for \w+.mkdir"):
        load_checkpoint(checkpoints(old_job)[-1])
    assert good_one(old_job) == 1
    assert not (tmp_path / "marker").exists()


def test_code_in_what_the_description_calls_bytes_is_not_run(old_job, tmp_path):
    path = checkpoints(old_job)[-1]
    buffer = io.BytesIO()
    torch.save(Writes(tmp_path / "marker"), buffer)
    shutil.rmtree(shards_folder(path))
    dcp.save({"model_state/a": buffer, "model_state/b": buffer}, checkpoint_id=shards_folder(path), no_dist=True)
    with pytest.raises(CheckpointError, match=r"refused: it asks for .*BytesStorageMetadata"):
        load_checkpoint(path)
    assert not (tmp_path / "marker").exists()


def test_code_in_a_shard_is_not_run(old_job, tmp_path):
    (piece,) = shards_folder(checkpoints(old_job)[-1]).glob("*.distcp")
    torch.save(Writes(tmp_path / "marker"), piece)
    with pytest.raises(CheckpointError):
        load_checkpoint(checkpoints(old_job)[-1])
    assert not (tmp_path / "marker").exists()


def test_shards_of_other_folders_are_not_read(old_job):
    description = shards_folder(checkpoints(old_job)[-1]) / ".metadata"
    name = b"__0_0.distcp"
    description.write_bytes(description.read_bytes().replace(name, b"/" + name[1:]))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_checkpoint(checkpoints(old_job)[-1])


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_the_one_before_a_torn_description_is_found(share, old_job):
    description = shards_folder(checkpoints(old_job)[-1]) / ".metadata"
    whole = description.read_bytes()
    description.write_bytes(whole[: int(share * len(whole))])
    assert good_one(old_job) == 1


def test_a_damaged_description_never_crashes_the_search(old_job):
    description = shards_folder(checkpoints(old_job)[-1]) / ".metadata"
    whole = description.read_bytes()
    for place in range(0, len(whole), 23):
        description.write_bytes(whole[:place] + bytes([whole[place] ^ 0x24]) + whole[place + 1 :])
        assert good_one(old_job) in (1, 2)


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
