import errno
import io
import json
import os
import pickle
import random
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from slowfast.checkpoint import (
    CheckpointError,
    CheckpointTooLarge,
    LoadReport,
    checkpoint_path,
    copy_to_host,
    find_last_checkpoint,
    list_checkpoints,
    list_positions,
    load_checkpoint,
    load_weights,
    remove_leftovers,
    save_checkpoint,
    step_checkpoint_path,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/checkpoint/checkpoint.json").read_text())


def make():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(4, 2)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def save(path, **changes):
    model, optimizer = make()
    save_checkpoint(path, **{"model": model, "optimizer": optimizer, "epoch": 4, "cfg_text": "A: 1\n", **changes})
    return model, optimizer


# ---------------------------------------------------------------- names


def test_names_equal_reference():
    for task, number, path in GOLDEN["paths"]:
        assert checkpoint_path("OUT", number - 1, task) == path


def test_last_checkpoint_equals_reference(tmp_path):
    golden = GOLDEN["last_checkpoint"]
    assert find_last_checkpoint(tmp_path, "") is None
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in golden["files"]:
        torch.save({"model_state": {}}, folder / name)
    for task, wanted in golden["cases"].items():
        found = find_last_checkpoint(tmp_path, task)
        assert (found and os.path.basename(found)) == wanted


def test_order_is_by_number_and_foreign_files_are_no_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    names = ["checkpoint_epoch_100000.pyth", "checkpoint_epoch_99999.pyth", "checkpoint_epoch_00002.pyth"]
    foreign = [
        "checkpoint_best.pyth",
        ".checkpoint_epoch_00003.pyth.x.part",
        "checkpoint_epoch_00009.pyth.bak",
        "a.txt",
    ]
    for name in names + foreign:
        torch.save({"model_state": {}}, folder / name)
    assert [os.path.basename(path) for path in list_checkpoints(tmp_path)] == names[::-1]


def test_checkpoints_within_an_epoch_come_after_it_as_numbers_and_as_text(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    paths = [
        step_checkpoint_path(tmp_path, 0, 3),
        checkpoint_path(tmp_path, 0),
        step_checkpoint_path(tmp_path, 1, 0),
        step_checkpoint_path(tmp_path, 1, 12),
        checkpoint_path(tmp_path, 1),
    ]
    assert sorted(paths) == paths  # the original takes the last by name
    for path in reversed(paths):
        torch.save({"model_state": {}}, path)
    positions = [((0, 3), paths[0]), ((1, None), paths[1]), ((1, 0), paths[2]), ((1, 12), paths[3])]
    assert list_positions(tmp_path) == [*positions, ((2, None), paths[4])]
    assert list_checkpoints(tmp_path) == [paths[1], paths[4]]
    assert list_positions(tmp_path, "ssl") == []


def flip_a_byte(path):
    """Change one value of a stored tensor: PyTorch would read the file without complaint."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((3,), 0.125).numpy().tobytes())] ^= 1
    path.write_bytes(content)


def cut(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def many_disks(content):
    """A zip file whose end says that it lies on several disks."""
    end = content.rindex(b"PK\x06\x07") + 4
    return content[:end] + b"\x07\0\0\0" + content[end + 4 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(0), "is empty"),
        (cut(5), "no checkpoint, or one that was cut off"),
        (cut(-30), "no checkpoint, or one that was cut off"),
        (flip_a_byte, "the checksum of its part .* is wrong"),
        (lambda path: path.write_text("epoch,loss\n1,0.5\n"), "no checkpoint"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "has no weights"),
        (lambda path: path.write_bytes(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc"), "OverflowError"),
        (lambda path: torch.save({"model_state": None, "epoch": 1}, path), "model_state is a NoneType"),
        (lambda path: path.write_bytes(many_disks(path.read_bytes())), "is damaged .*multiple disks"),
    ],
)
def test_a_bad_checkpoint_is_named_and_the_newest_good_one_is_taken(tmp_path, caplog, damage, message):
    for epoch in (0, 1):
        save(checkpoint_path(tmp_path, epoch), extra={"mark": torch.full((3,), 0.125)})
    newest = Path(checkpoint_path(tmp_path, 1))
    damage(newest)
    assert find_last_checkpoint(tmp_path) == checkpoint_path(tmp_path, 0)
    assert re.search(f"passed over: {newest}.*{message}", caplog.text)


# ---------------------------------------------------------------- writing


def test_content_is_that_of_the_original(tmp_path):
    path = checkpoint_path(tmp_path, 4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    model, _ = save(path, scaler=scaler, extra={"note": "x"})
    saved = torch.load(path, weights_only=True)
    assert list(saved) == [*GOLDEN["saved"]["keys_with_scaler"], "note"]
    assert saved["epoch"] == 4
    assert saved["scaler_state"] == GOLDEN["saved"]["scaler_state_when_disabled"]
    for key, kind in GOLDEN["saved"]["types"].items():
        assert type(saved[key]).__name__ == kind
    assert all(torch.equal(saved["model_state"][name], tensor) for name, tensor in model.state_dict().items())
    assert os.listdir(tmp_path / "checkpoints") == [os.path.basename(path)]


def test_without_scaler_there_is_no_scaler_state(tmp_path):
    save(tmp_path / "a.pyth")
    assert list(load_checkpoint(tmp_path / "a.pyth")) == GOLDEN["saved"]["keys"]


def test_extra_entries_may_not_replace_standard_ones(tmp_path):
    with pytest.raises(ValueError, match="epoch"):
        save(tmp_path / "a.pyth", extra={"epoch": 7})


def test_wrapped_model_is_saved_bare(tmp_path):
    model, optimizer = make()
    save(tmp_path / "a.pyth", model=torch.compile(model, backend="eager"), optimizer=optimizer)
    assert load_checkpoint(tmp_path / "a.pyth")["model_state"].keys() == model.state_dict().keys()


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.pyth"
    save(path)
    before = path.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=rf"{path} could not be written: disk full.* Checkpoints before it are untouched"):
        save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pyth"]


def test_full_disk_is_reported_as_such(tmp_path):
    path = tmp_path / "a.pyth"
    save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a.pyth could not be written: File too large; \d+ MB are free"):
            save(path, extra={"large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pyth"]


def test_a_file_that_reads_back_differently_does_not_replace_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.pyth"
    save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: os.pwrite(handle, b"XX", 70))  # the disk changes two bytes
    with pytest.raises(OSError, match="is not what is read back"):
        save(path, epoch=5)
    assert path.read_bytes() == before


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    path = Path(checkpoint_path(tmp_path, 0))
    save(path)
    (path.parent / f".{path.name}.123.part").write_bytes(b"half")
    (path.parent / ".hidden").write_text("")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(path.parent)) == [".hidden", path.name]


def test_copies_do_not_follow_the_originals(tmp_path):
    live = torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    copied = copy_to_host({"a": [live, (live, 3)], "b": "text"})
    live.fill_(1)
    assert copied["a"][0].sum() == 0
    assert copied["a"][0].stride() == live.stride()
    assert (copied["a"][1][1], copied["b"]) == (3, "text")


def test_saved_file_is_as_readable_as_any_other(tmp_path):
    save(tmp_path / "a.pyth")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.pyth").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---------------------------------------------------------------- reading


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.pyth: there is no such checkpoint file"):
        load_checkpoint(tmp_path / "none.pyth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "<!DOCTYPE html>", "version https://git-lfs.github.com/spec/v1", "PK but no archive"]
)
def test_text_is_no_checkpoint(tmp_path, text):
    (tmp_path / "a.pyth").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.pyth is (no checkpoint|not a whole PyTorch file)"):
        load_checkpoint(tmp_path / "a.pyth")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_file_is_named(tmp_path, part, legacy):
    path = tmp_path / "a.pyth"
    torch.save({"model_state": {"w": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"a\.pyth .*cut off"):
        load_checkpoint(path)


def test_legacy_pytorch_file_is_read(tmp_path):
    torch.save({"model_state": {"w": torch.ones(3)}}, tmp_path / "a.pyth", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "a.pyth")["model_state"]["w"].tolist() == [1.0] * 3


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, how):
    path, marker = tmp_path / "a.pyth", tmp_path / "marker"
    content = {"model_state": {"w": torch.ones(1)} if how != "pickle" else {}, "cfg": Malicious(str(marker))}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError, match=r"a\.pyth is refused.*(posix|nt)\.mkdir"):
        load_checkpoint(path)
    assert not marker.exists()


def test_bare_state_dict_is_read(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["model_state"].keys() == {"weight", "bias"}


def test_numpy_numbers_in_a_file_are_read(tmp_path):
    torch.save({"model_state": {}, "epoch": np.int64(3), "best": np.float64(0.5), "x": np.ones(2)}, tmp_path / "a.pyth")
    checkpoint = load_checkpoint(tmp_path / "a.pyth")
    assert (checkpoint["epoch"], checkpoint["best"], checkpoint["x"].tolist()) == (3, 0.5, [1.0, 1.0])


@pytest.mark.parametrize(("content", "message"), [([1, 2], "holds a list"), ({"a": 1}, "holds a$"), ({}, "nothing")])
def test_foreign_content_is_described(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pyth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (5, "its model_state is a int; it must hold the network's state_dict()"),
        (None, "its model_state is a NoneType"),
        ([torch.ones(1)], "its model_state is a list"),
        ({"a": torch.ones(1), "b": 1}, "its model_state has a int under 'b'"),
        ({"a": np.ones(1)}, "its model_state has a ndarray under 'a'"),
        ({0: torch.ones(1)}, "its model_state has a Tensor under 0"),
    ],
)
def test_weights_that_are_no_state_dict_are_refused(tmp_path, state, message):
    torch.save({"model_state": state, "epoch": 1}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=rf"a\.pyth: {re.escape(message)}"):
        load_checkpoint(tmp_path / "a.pyth")


def test_bare_state_dict_needs_names(tmp_path):
    torch.save({0: torch.ones(1)}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=r"has no weights this framework knows .* it holds 0"):
        load_checkpoint(tmp_path / "a.pyth")


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        (None, "its blobs are a NoneType"),
        ([1], "its blobs are a list"),
        ({3: np.ones(2)}, "its blobs have the name 3"),
        ({"pred_w": "x"}, "its blob pred_w is a str, not an array of numbers"),
        ({"pred_w": None}, "its blob pred_w is a NoneType"),
        ({"pred_w": np.array([None, 1])}, "is refused: it has an array of type 'O8'"),
    ],
)
def test_blobs_that_are_no_arrays_are_refused(tmp_path, blobs, message):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    with pytest.raises(CheckpointError, match=rf"a\.pkl:? {re.escape(message)}"):
        load_checkpoint(tmp_path / "a.pkl")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_damaged_bytes_are_checkpoint_errors(tmp_path, how):
    path, rng = tmp_path / "a.pyth", random.Random(0)
    if how == "pickle":
        path.write_bytes(pickle.dumps({"blobs": {"pred_w": np.ones((2, 3), np.float32)}}, protocol=2))
    else:
        content = {"model_state": {"w": torch.zeros(10)}, "epoch": 3, "cfg": "a: 1"}
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    good = path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.choice([0, 1, 1, 8])] = rng.randbytes(rng.choice([0, 1, 1, 4]))
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            refused += str(path) in str(error)
    assert refused > 30


def test_a_file_that_cannot_be_read_is_named_with_the_cause(tmp_path, monkeypatch):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"blobs": {}}))
    monkeypatch.setattr("builtins.open", lambda *_: os.open(tmp_path / "none", os.O_RDONLY))
    with pytest.raises(CheckpointError, match=r"a\.pkl cannot be read \(FileNotFoundError"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("unable to mmap 9 bytes from file: Cannot allocate memory (12)"),
    ],
)
@pytest.mark.parametrize("where", ["torch.load", "zipfile.ZipFile.testzip"])
def test_want_of_memory_is_no_damage(tmp_path, monkeypatch, error, where):
    for epoch in (0, 1):
        path = Path(checkpoint_path(tmp_path, epoch))
        path.parent.mkdir(exist_ok=True)
        torch.save({"model_state": {"w": torch.zeros(2)}, "epoch": epoch}, path)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(CheckpointTooLarge, match=r"epoch_00002\.pyth asks for more memory than there is"):
        find_last_checkpoint(tmp_path)  # an older one would lose an epoch


def test_a_file_without_checksums_that_asks_for_memory_is_passed_over(tmp_path, monkeypatch):
    for epoch in (0, 1):
        path = Path(checkpoint_path(tmp_path, epoch))
        path.parent.mkdir(exist_ok=True)
        content = {"model_state": {"w": torch.zeros(2)}, "epoch": epoch}
        torch.save(content, path, _use_new_zipfile_serialization=epoch == 0)
    plain = torch.load
    old = Path(checkpoint_path(tmp_path, 1)).name

    def fail(path, **options):
        if str(path).endswith(old):
            raise MemoryError
        return plain(path, **options)

    monkeypatch.setattr(torch, "load", fail)
    assert find_last_checkpoint(tmp_path) == checkpoint_path(tmp_path, 0)


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    torch.save({"model_state": {"w": torch.zeros(2)}}, tmp_path / "a.pyth")
    monkeypatch.setattr(torch, "load", lambda *args, **options: os.open(tmp_path / "none", os.O_RDONLY))
    with pytest.raises(CheckpointError, match=r"cannot be read \(FileNotFoundError"):
        load_checkpoint(tmp_path / "a.pyth")


def test_a_compiled_network_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=r"a\.pyth is a compiled network .*save the state_dict\(\)"):
        load_checkpoint(tmp_path / "a.pyth")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex64), "complex"),
        (torch.zeros(2, device="meta"), "without content"),
        (torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8), "quantised"),
    ],
)
def test_a_tensor_that_can_be_no_weight_is_named(tmp_path, tensor, kind):
    torch.save({"model_state": {"layer.weight": tensor}}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=rf"a\.pyth: layer\.weight in its model_state is {kind}"):
        load_checkpoint(tmp_path / "a.pyth")


def test_a_disk_that_fails_for_a_moment_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.pyth"
    torch.save({"model_state": {"w": torch.zeros(2)}}, path)
    plain, opened = open, []

    def fail_once(file, *args, **options):
        opened.append(file)
        if len(opened) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return plain(file, *args, **options)

    monkeypatch.setattr("builtins.open", fail_once)
    with pytest.raises(CheckpointError, match=r"a\.pyth cannot be read \(OSError"):
        load_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_caffe2_pickle_is_recognised(tmp_path, protocol):
    blobs = {"pred_w": np.arange(6, dtype=np.float32).reshape(2, 3), "pred_b": np.zeros(2, np.float32), "lr": 0.1}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}, protocol=protocol))
    checkpoint = load_checkpoint(tmp_path / "a.pkl")
    assert checkpoint.keys() == {"model_state"}
    assert checkpoint["model_state"]["head.projection.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_python_2_caffe2_pickle_is_read(tmp_path):
    stream = io.BytesIO()
    pickle.dump({"blobs": {"pred_b": np.array([1.5, 2.5], np.float32)}}, stream, protocol=2)
    old = stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "a.pkl").write_bytes(old)
    assert load_checkpoint(tmp_path / "a.pkl")["model_state"]["head.projection.bias"].tolist() == [1.5, 2.5]


# ---------------------------------------------------------------- into the model


def layers(**sizes):
    return nn.ModuleDict({name: nn.Linear(2, size) for name, size in sizes.items()})


def test_same_model_loads_completely():
    source, target = layers(body=3, head=4), layers(body=3, head=4)
    report = load_weights(target, source.state_dict())
    assert report.complete
    assert report.table() == "4 weights loaded"
    assert torch.equal(target["head"].weight, source["head"].weight)


def test_disagreement_is_refused_with_a_table_before_anything_is_copied():
    source, target = layers(body=3, head=4, old=1), layers(body=3, head=5, new=1)
    before = target["body"].weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, source.state_dict())
    for line in (
        "the weights do not fit the model (6 disagree)",
        "2 weights loaded",
        "new: 2 not in the file, left as they were, e.g. new.weight",
        "old: 2 not in the model, not used, e.g. old.weight",
        "head: 2 of another shape, left as they were, e.g. head.weight is [4, 2] in the file, [5, 2] in the model",
    ):
        assert line in str(caught.value)
    assert torch.equal(target["body"].weight, before)


def test_table_goes_deeper_where_all_names_begin_alike():
    names = ("model.a.weight", "model.b.weight", "model.b.bias")
    table = LoadReport(("model.c.weight",), names, (), ()).table()
    assert "  model.a: 1 not in the file" in table
    assert "  model.b: 2 not in the file, left as they were, e.g. model.b.weight" in table


def test_partial_loading_is_limited_to_the_prefixes_given():
    source, target = layers(body=3, head=4), layers(body=3, head=5)
    report = load_weights(target, source.state_dict(), allow_partial=["head."])
    assert report.problems() == ["head.weight", "head.bias"]
    assert torch.equal(target["body"].weight, source["body"].weight)
    with pytest.raises(CheckpointError, match="head: 2 of another shape"):
        load_weights(target, source.state_dict(), allow_partial=["body."])
    assert load_weights(target, source.state_dict(), allow_partial=True) == report


def test_state_of_which_nothing_fits_is_refused_even_then():
    with pytest.raises(CheckpointError, match="0 weights loaded"):
        load_weights(layers(body=3), {"backbone.body.weight": torch.zeros(3, 2)}, allow_partial=True)


def test_batch_counters_are_not_missed():
    model = nn.BatchNorm1d(2)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "num_batches_tracked"}
    assert load_weights(model, state).complete
