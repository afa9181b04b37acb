"""Shards hold what the files hold: the same clips, each once, in any arrangement of workers and ranks."""

import contextlib
import json
import pickle
import shutil
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from slowfast.datasets import DecodeError, Request, build_dataset, build_loader
from slowfast.datasets.kinetics import load_records
from slowfast.datasets.shards import Shard, ShardBatchSampler, ShardStore, load_index, write_shards


@pytest.fixture(scope="module")
def shards(video_folder, tmp_path_factory):
    """The six videos as shards of about two each; training rows keep their order."""
    folder = tmp_path_factory.mktemp("shards")
    size = (video_folder / "a.mp4").stat().st_size
    for split in ("train", "val", "test"):
        records = load_records(str(video_folder / f"{split}.csv"), " ", str(video_folder))
        count, missing = write_shards(records, str(folder), split, prefix=str(video_folder), shard_bytes=size + 1)
        assert (count, missing) == (3, [])
    return folder


def as_shards(small_cfg, folder, *options):
    return small_cfg(folder, "TRAIN.DATASET", "shards", "TEST.DATASET", "shards", *options)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_same_request_gives_the_same_clip(video_folder, shards, small_cfg, split):
    files = build_dataset("kinetics", small_cfg(video_folder), split)
    tars = build_dataset("shards", as_shards(small_cfg, shards), split)
    assert len(files) == len(tars)
    for epoch in (0, 1):
        for row in range(len(files)):
            one, other = files[Request(row, epoch)], tars[Request(row, epoch)]
            assert torch.equal(one.clip, other.clip)
            assert (one.label, one.index) == (other.label, other.index)
            assert torch.equal(one.time, other.time)


def test_a_test_reads_every_shard_once(shards, small_cfg):
    cfg = as_shards(small_cfg, shards)
    loader = build_loader(cfg, "test")
    rows = [row for batch in loader for row in batch.index.tolist()]
    assert sorted(rows) == list(range(len(loader.dataset)))
    assert loader.dataset.records.store.shards_read == 3


def test_shards_are_laid_out_as_webdataset_does(video_folder, shards):
    with tarfile.open(shards / "train-000001.tar") as tar:
        names = tar.getnames()
        about = json.load(tar.extractfile(names[0]))
        data = tar.extractfile(names[1]).read()
    assert names == ["00000000.json", "00000000.mp4", "00000001.json", "00000001.mp4"]
    assert about == {"path": "c.mp4", "label": 2}
    assert data == (video_folder / "c.mp4").read_bytes()


SIZES = [7, 12, 5, 9, 11, 8, 10]


def shards_of(sizes):
    return [Shard(f"{number}.tar", sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def epoch_of(workers, world, epoch=0, batch=3, start=0, sizes=SIZES):
    """Rows of every (batch, rank)."""
    found = []
    for rank in range(world):
        options = {"num_workers": workers, "seed": 5, "rank": rank, "world_size": world}
        sampler = ShardBatchSampler(shards_of(sizes), batch, **options)
        sampler.set_epoch(epoch, start)
        found.append([[request.index for request in requests] for requests in sampler])
    return found


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_no_row_is_lost_or_doubled(workers, world):
    found = epoch_of(workers, world)
    rows = [row for rank in found for batch in rank for row in batch]
    assert len(rows) == len(set(rows)) == sum(SIZES) // (3 * world) * 3 * world
    assert set(rows) <= set(range(sum(SIZES)))
    assert {len(rank) for rank in found} == {sum(SIZES) // (3 * world)}


def test_epochs_differ_and_repeat():
    assert epoch_of(2, 2) == epoch_of(2, 2)
    assert epoch_of(2, 2) != epoch_of(2, 2, epoch=1)
    rows = [row for batch in epoch_of(1, 1)[0] for row in batch]
    assert all(part != sorted(part) for part in (rows[:20], rows[20:40], rows[40:60]))


@pytest.mark.parametrize("start", [1, 4, 8])
def test_an_epoch_can_be_started_in_the_middle(start):
    for whole, rest in zip(epoch_of(3, 2), epoch_of(3, 2, start=start)):
        assert rest == whole[start:]


def test_a_worker_reads_few_shards_at_a_time():
    sizes = [50] * 40
    (batches,) = epoch_of(4, 1, batch=5, sizes=sizes)
    for worker in range(4):
        store = ShardStore(shards_of(sizes))
        seen = [store.shard_of(row) for batch in batches[worker::4] for row in batch]
        changes = [shard for place, shard in enumerate(seen) if shard not in seen[:place]]
        assert len(changes) <= 11  # a quarter of the shards, and two that are shared with a neighbour
        for first in range(0, len(seen), 200):  # no shard is needed again once its group is over
            assert not set(seen[first + 200 :]) & set(seen[max(0, first - 200) : first])


def test_short_cycles_fill_their_batches():
    from slowfast.datasets.samplers import CycleStep

    cycle = [CycleStep(4, 16), CycleStep(2, 24), CycleStep(1)]
    rows, shapes = [], []
    for rank in range(2):
        sampler = ShardBatchSampler(shards_of(SIZES), cycle, num_workers=2, rank=rank, world_size=2)
        for requests in sampler:
            rows += [request.index for request in requests]
            shapes.append((len(requests), requests[0].crop_size))
    assert set(shapes) == {(4, 16), (2, 24), (1, None)}
    assert len(rows) == len(set(rows))


@pytest.mark.slow
def test_a_loader_with_workers_gives_every_row_once(shards, small_cfg):
    cfg = as_shards(small_cfg, shards, "DATA_LOADER.NUM_WORKERS", 2, "TRAIN.BATCH_SIZE", 1)
    loader = build_loader(cfg, "train")
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        assert sorted(row for batch in loader for row in batch.index.tolist()) == list(range(6))


# ---------------------------------------------------------------- over the network, and what goes wrong


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def address(shards):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shards_are_read_over_http(shards, address, small_cfg):
    near = build_dataset("shards", as_shards(small_cfg, shards), "train")
    far = build_dataset("shards", as_shards(small_cfg, shards, "DATA.PATH_TO_DATA_DIR", address), "train")
    assert torch.equal(near[Request(3, 1)].clip, far[Request(3, 1)].clip)
    assert far.records.path(3) == f"{address}/train-000001.tar/d.mp4"
    with pytest.raises(FileNotFoundError, match="404"):
        load_index(address + "/nowhere", "train")


class Cutting(Quiet):
    """Breaks off the first ``cuts`` replies of each file: of a whole body of which half comes, or of chunks."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, way, cuts, asked, **options):
        self.way, self.cuts, self.asked = way, cuts, asked
        super().__init__(*args, **options)

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.asked[name] += 1
        if self.asked[name] > self.cuts:
            return super().do_GET()
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        # Half of a shard of whole tar blocks looks like a shorter one.
        half = data[: len(data) // 1024 * 512] if self.way != "at once" else b""
        self.send_response(200)
        if self.way == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
            half = b"%x\r\n%b" % (len(data), half)
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(half)
        self.close_connection = True


@pytest.fixture
def cutting(shards, monkeypatch):
    """Starts a server of ``Cutting``; gives its address, and how often each file was asked for."""
    monkeypatch.setattr("slowfast.datasets.shards._PAUSE_S", 0.01)
    with contextlib.ExitStack() as stack:

        def serve(way, cuts):
            asked = Counter()
            handler = partial(Cutting, directory=str(shards), way=way, cuts=cuts, asked=asked)
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}", asked

        yield serve


@pytest.mark.parametrize("way", ["half", "chunks", "at once"])
def test_a_reply_that_breaks_off_is_asked_for_again(shards, small_cfg, cutting, way):
    address, asked = cutting(way, cuts=2)
    near = build_dataset("shards", as_shards(small_cfg, shards), "train")
    far = build_dataset("shards", as_shards(small_cfg, shards, "DATA.PATH_TO_DATA_DIR", address), "train")
    for row in range(6):
        assert far.records.store.video(row) == near.records.store.video(row)
        assert torch.equal(far[Request(row, 0)].clip, near[Request(row, 0)].clip)
        assert far[Request(row, 0)].bad == ()
    shards_asked = {f"train-{number:06d}.tar": 3 for number in range(3)}
    assert asked == {"train.shards.json": 3, **shards_asked}


@pytest.mark.parametrize("way", ["half", "chunks", "at once"])
def test_a_reply_that_always_breaks_off_is_an_error_with_its_address(shards, cutting, way):
    address, asked = cutting(way, cuts=99)
    with pytest.raises(FileNotFoundError, match=r"there is no http.*shards\.json \(IncompleteRead"):
        load_index(address, "train")
    with pytest.raises(DecodeError, match=r"train-000000\.tar: the shard cannot be read: IncompleteRead"):
        ShardStore([Shard(f"{address}/train-000000.tar", 0, 2)]).video(0)
    assert set(asked.values()) == {3}


def test_a_damaged_shard_is_a_bad_video(shards, small_cfg, tmp_path):
    shutil.copytree(shards, tmp_path / "s")
    whole = (tmp_path / "s" / "train-000000.tar").read_bytes()
    (tmp_path / "s" / "train-000000.tar").write_bytes(whole[: len(whole) // 3])
    dataset = build_dataset("shards", as_shards(small_cfg, tmp_path / "s"), "train")
    with pytest.raises(DecodeError, match=r"train-000000\.tar: the shard"):
        dataset.records[0].open()
    sample = dataset[Request(0, 0)]  # another video takes its place
    assert sample.index in (2, 3, 4, 5)
    assert "the shard" in sample.bad[0].reason
    (tmp_path / "s" / "train-000000.tar").unlink()
    with pytest.raises(DecodeError, match="No such file"):
        dataset.records[1].open()


def test_only_some_shards_are_held(shards):
    records = load_index(str(shards), "train")
    records.store.at_once = 1
    for row in (0, 1, 2, 3, 0):
        assert records.store.video(row)
    assert records.store.shards_read == 3
    records[0].open()
    assert pickle.loads(pickle.dumps(records)).store._held == {}


def test_wrong_indices(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make_shards\.py"):
        load_index(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"MODEL\.NUM_CLASSES=2"):
        load_index(str(shards), "train", 2)
    for text, said in (("{", "not JSON"), ("[]", "not an index"), ('{"version": 2}', "not an index")):
        (tmp_path / "train.shards.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            load_index(str(tmp_path), "train")
    index = json.loads((shards / "train.shards.json").read_text())
    index["shards"][0]["file"] = "../../secret.tar"
    (tmp_path / "train.shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="damaged"):
        load_index(str(tmp_path), "train")


def test_writing(video_folder, tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "train.csv").write_text(f"{video_folder}/a.mp4 0\ngone.mp4 1\n{video_folder}/b.mp4 1\n")
    records = load_records(str(tmp_path / "train.csv"))
    assert write_shards(records, str(tmp_path / "s"), "train", shuffle_seed=1) == (1, ["gone.mp4"])
    assert sorted(load_index(str(tmp_path / "s"), "train").labels.tolist()) == [0, 1]
    (tmp_path / "train.csv").write_text(f"{video_folder}/a.mp4 0\n{tmp_path}/frames 1\n")
    with pytest.raises(ValueError, match="is a folder"):
        write_shards(load_records(str(tmp_path / "train.csv")), str(tmp_path / "t"), "train")
    assert list((tmp_path / "t").iterdir()) == []
    with pytest.raises(ValueError, match="at least 1"):
        write_shards(records, str(tmp_path / "u"), "train", shard_bytes=0)


def test_the_check_of_data_knows_shards(shards, small_cfg, tmp_path):
    from slowfast.datasets.check import build_data_check

    shutil.copytree(shards, tmp_path / "s")
    (tmp_path / "s" / "test-000002.tar").unlink()
    check = build_data_check(as_shards(small_cfg, tmp_path / "s"))
    assert [(one.rows, one.missing) for one in check.splits] == [(6, 0), (6, 0), (6, 2)]
    assert {one.kind for one in check.findings} == {"missing"}
