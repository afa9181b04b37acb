"""The published weights, and downloading them from a server that misbehaves: pytest tests/test_zoo.py"""

import csv
import errno
import hashlib
import io
import logging
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo_server as server_that
from shared import shared

from slowfast import zoo
from slowfast.checkpoint import CheckpointError
from slowfast.zoo import Settings, ZooError

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- the list


def test_every_published_row_has_a_name_of_its_own():
    names = [entry.name for entry in zoo.entries()]
    assert len(set(names)) == len(names) == 77
    assert all(name.isidentifier() and name == name.lower() for name in names)
    assert all(zoo.find(name).name == name for name in names)


def test_every_entry_has_its_config_and_one_place_in_the_cache():
    for entry in zoo.entries():
        assert zoo.config_file(entry, ROOT).is_file()
        assert not entry.config_finetune or (ROOT / entry.config_finetune).is_file()
        assert entry.link in ("direct", "manual", "wrong")
        same_file = [other for other in zoo.entries() if other.file == entry.file]
        assert len({other.url for other in same_file}) == 1
        assert entry.twin == ("" if same_file[0] is entry else same_file[0].name)
        assert not Path(entry.file).is_absolute()
        assert ".." not in Path(entry.file).parts
    assert zoo.find("mvitv2_s_16x4_project").twin == "mvitv2_s_16x4"


def test_numbers_and_addresses_are_those_of_the_record():
    rows = list(csv.DictReader(shared("reference/model_zoo.csv").open(newline="")))
    assert len(rows) == len(zoo.entries())
    for row, entry in zip(rows, zoo.entries(), strict=True):
        assert entry.url == row["ckpt_url"]
        assert entry.dataset == row["dataset"]
        for field, column in (("top1", "top1"), ("top5", "top5"), ("mean_ap", "mAP"), ("params_m", "params_m")):
            text = row[column].rstrip("*M")
            assert getattr(entry, field) == (float(text) if text else None), entry.name
        flops, *views = row["flops_g"].rstrip("G").split(" x ")
        assert entry.flops_g == (float(flops) if flops else None)
        assert entry.views == ("x".join(views) or row["views"])
        assert entry.frames_x_rate == row["frames_x_rate"]


@pytest.mark.parametrize(
    ("filters", "some", "not_these"),
    [
        ({"dataset": "k400", "arch": "slowfast"}, {"slowfast_8x8_r50", "ptv_slowfast_8x8_r101"}, {"slow_8x8_r50"}),
        ({"task": "detection"}, {"slow_4x16_r50_ava"}, {"slowfast_8x8_r50"}),
        ({"arch": "MViTv2", "dataset": "SSv2"}, {"mvitv2_l_40x3_ssv2"}, {"mvitv2_s_16x4"}),
        ({"arch": "r(2+1)d"}, {"ptv_r2plus1d_16x4_r50"}, {"ptv_csn_32x2_r101"}),
        ({}, {"x3d_m"}, set()),
        ({"arch": "lstm"}, set(), {"x3d_m"}),
    ],
)
def test_select_filters_by_words(filters, some, not_these):
    names = {entry.name for entry in zoo.select(**filters)}
    assert some <= names
    assert not names & not_these


@pytest.mark.parametrize("name", ["slowfast_8x8_r50", "SLOWFAST_8x8_R50", "slowfast-8x8-r50 "])
def test_find_takes_upper_case_and_dashes(name):
    assert zoo.find(name).name == "slowfast_8x8_r50"


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ZooError, match=r"'slowfast_8x8_r5'; did you mean slowfast_8x8_r50.*tools/zoo.py list"):
        zoo.find("slowfast_8x8_r5")
    with pytest.raises(ZooError, match="nothing like it"):
        zoo.find("qqqqqqq")


# ---------------------------------------------------------------- settings


def test_settings_come_from_the_environment(tmp_path):
    plain = Settings.from_env({})
    assert (plain.cache, plain.mirror, plain.offline) == (Path.home() / ".cache" / "slowfast", "", False)
    environ = {
        "SLOWFAST_CACHE": str(tmp_path),
        "SLOWFAST_ZOO_MIRROR": "https://m.example/zoo/",
        "SLOWFAST_OFFLINE": "1",
    }
    assert Settings.from_env(environ) == Settings(tmp_path, "https://m.example/zoo", True)
    assert not Settings.from_env({"SLOWFAST_OFFLINE": "false"}).offline
    with pytest.raises(ZooError, match=r"SLOWFAST_ZOO_MIRROR=/data.*SLOWFAST_CACHE"):
        Settings.from_env({"SLOWFAST_ZOO_MIRROR": "/data"})


def test_addresses(tmp_path):
    entry = zoo.find("x3d_m")
    assert Settings(tmp_path).address(entry) == entry.url
    assert Settings(tmp_path, "http://m").address(entry) == "http://m/pyslowfast/x3d_models/x3d_m.pyth"
    assert Settings(tmp_path).path(entry) == tmp_path / "pyslowfast" / "x3d_models" / "x3d_m.pyth"
    drive = zoo.find("mvit_b_16x4")
    assert Settings(tmp_path, "http://m").address(drive) == "http://m/manual/mvit_b_16x4.pyth"


@pytest.mark.parametrize(
    ("name", "offline", "says"),
    [
        ("x3d_m", True, "SLOWFAST_OFFLINE forbids"),
        ("mvit_b_16x4", False, "Google Drive"),
        ("ptv_slow_8x8_r50_charades", False, "leads to the SSv2 weights"),
    ],
)
def test_what_cannot_be_downloaded_says_where_the_file_goes(name, offline, says, tmp_path):
    entry = zoo.find(name)
    with pytest.raises(ZooError, match=says) as error:
        zoo.download(name, Settings(tmp_path / "cache", offline=offline))
    assert entry.url in str(error.value)
    assert str(tmp_path / "cache" / entry.file) in str(error.value)
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------- downloads

ENTRY = zoo.find("x3d_xs")


@pytest.fixture(scope="module")
def payload():
    buffer = io.BytesIO()
    weights = {"head.weight": torch.arange(60000.0).reshape(100, 600), "head.bias": torch.zeros(100)}
    torch.save({"epoch": 1, "model_state": weights}, buffer)
    return buffer.getvalue()


@pytest.fixture
def server(payload, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    running = server_that.Server(payload)
    yield running
    running.close()


@pytest.fixture
def settings(server, tmp_path):
    return Settings(tmp_path / "cache", server.address)


def download(settings, entry=ENTRY, **options):
    return zoo.download(entry, settings, **{"pause_s": 0.01, "timeout_s": 2.0, "progress": False, **options})


def names_in(folder):
    return {file.name for file in folder.iterdir() if file.suffix != ".lock"}


def test_download_brings_the_file_and_its_sum_once(server, settings, payload):
    path = download(settings)
    assert path.read_bytes() == payload
    assert names_in(path.parent) == {"x3d_xs.pyth", "x3d_xs.pyth.sha256"}
    assert (path.parent / "x3d_xs.pyth.sha256").read_text() == f"{hashlib.sha256(payload).hexdigest()}  x3d_xs.pyth\n"
    assert download(settings) == path
    assert download(replace(settings, offline=True)) == path
    assert server.asked == [("/pyslowfast/x3d_models/x3d_xs.pyth", None)]


def test_dropped_connections_are_taken_up_where_they_broke(server, settings, payload, caplog):
    server.behaviours = [server_that.drop_after(50_000)] * 3
    with caplog.at_level(logging.WARNING):
        assert download(settings, retries=1).read_bytes() == payload
    assert server.ranges == [None, "bytes=50000-", "bytes=100000-", "bytes=150000-"]
    assert "closed after 50000 of" in caplog.text
    assert "trying again" in caplog.text


def test_server_that_ignores_range_is_read_from_the_start(server, settings, payload):
    server.behaviours = [server_that.whole(70_000), server_that.whole()]
    assert download(settings).read_bytes() == payload
    assert server.ranges == [None, "bytes=70000-"]


def test_pauses_double_and_tries_without_progress_are_counted(server, settings, monkeypatch):
    pauses = []
    monkeypatch.setattr(zoo.time, "sleep", pauses.append)
    server.behaviours = [server_that.whole(1000)] * 20  # never gets further
    with pytest.raises(ZooError, match="Given up after 4 tries; the next download goes on from the 1000 bytes"):
        download(settings, retries=3, pause_s=1.0)
    assert len(server.asked) == 4
    assert pauses == [1.0, 2.0, 4.0]


def test_next_run_goes_on_with_what_is_left(server, settings, payload):
    server.behaviours = [server_that.drop_after(90_000), *[server_that.status(503)] * 9]
    with pytest.raises(ZooError, match="503"):
        download(settings, retries=1)
    server.behaviours = []
    server.asked.clear()
    assert download(settings).read_bytes() == payload
    assert server.ranges == ["bytes=90000-"]


def test_what_was_left_complete_needs_no_more_bytes(server, settings, payload):
    part = settings.path(ENTRY).with_name("x3d_xs.pyth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(payload)
    assert download(settings).read_bytes() == payload
    assert server.ranges == [f"bytes={len(payload)}-"]


@pytest.mark.parametrize("length", [100, 10_000_000])
def test_foreign_leftovers_are_thrown_away(server, settings, payload, length):
    part = settings.path(ENTRY).with_name("x3d_xs.pyth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * length)
    assert download(settings).read_bytes() == payload
    assert server.ranges == [f"bytes={length}-", None]


def test_wrong_part_is_not_appended(server, settings, payload):
    server.behaviours = [server_that.drop_after(5000), server_that.wrong_part]
    assert download(settings).read_bytes() == payload
    assert server.ranges == [None, "bytes=5000-", None]


def test_silent_server_is_left_after_the_timeout(server, settings, payload):
    release = threading.Event()
    server.behaviours = [server_that.stall_after(40_000, release)]
    try:
        assert download(settings, timeout_s=1.0).read_bytes() == payload
    finally:
        release.set()
    assert server.ranges == [None, "bytes=40000-"]


def test_slow_server_is_waited_for(server, settings, payload):
    release = threading.Event()
    server.behaviours = [server_that.in_drops(len(payload) // 40, release)]
    assert download(settings, timeout_s=1.0).read_bytes() == payload
    assert len(server.asked) == 1


def test_passing_errors_are_tried_again(server, settings, payload):
    server.behaviours = [server_that.status(503), server_that.status(429), server_that.status(500)]
    assert download(settings).read_bytes() == payload
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (server_that.status(404), r"404 Not Found.*SLOWFAST_ZOO_MIRROR names another.*x3d_xs\.pyth$"),
        (server_that.status(403), "403 Forbidden"),
        (server_that.page, "is a web page"),
        (server_that.other_bytes(b"<html>text that claims to be binary</html>"), "did not give a checkpoint.*<html>"),
        (server_that.other_bytes(b""), "did not give a checkpoint"),
        (server_that.other_bytes(pickle.dumps({"lr": 0.1})), "no weights this framework knows"),
        (server_that.other_bytes(pickle.dumps(print)), "refused"),
        (server_that.without_length(150_000), "did not give a checkpoint"),
    ],
    ids=["404", "403", "page", "html", "empty", "pickle", "code", "truncated"],
)
def test_wrong_answer_is_told_at_once_and_leaves_nothing(server, settings, behaviour, says):
    server.behaviours = [behaviour]
    with pytest.raises(ZooError, match=says):
        download(settings)
    assert len(server.asked) == 1
    assert names_in(settings.path(ENTRY).parent) == set()


def test_server_that_is_not_there(settings, server, tmp_path):
    server.close()
    with pytest.raises(ZooError, match="Given up after 2 tries"):
        download(settings, retries=1)


def test_changed_file_is_not_handed_out(settings, server, payload):
    path = download(settings)
    path.write_bytes(payload[:-1] + b"?")
    with pytest.raises(ZooError, match=r"has changed.*remove it to download it again"):
        download(settings)


def test_later_download_must_equal_the_first(settings, server, payload):
    path = download(settings)
    path.unlink()
    buffer = io.BytesIO()
    torch.save({"model_state": {"head.bias": torch.ones(3)}}, buffer)
    server.payload = buffer.getvalue()
    with pytest.raises(ZooError, match=r"has changed.*remove .*\.sha256 if the new one is right"):
        download(settings)
    assert not path.exists()
    (path.parent / "x3d_xs.pyth.sha256").unlink()
    assert download(settings).read_bytes() == server.payload


def test_stated_sum_is_compared(settings, server, payload):
    with pytest.raises(ZooError, match="has changed: its SHA-256 is"):
        download(settings, replace(ENTRY, sha256="0" * 64))
    assert not settings.path(ENTRY).exists()
    download(settings, replace(ENTRY, sha256=hashlib.sha256(payload).hexdigest()))


def test_file_put_there_by_hand_is_checked_and_remembered(settings, server, payload):
    entry = zoo.find("mvit_b_16x4")
    path = settings.path(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>sign in</html>")
    with pytest.raises(ZooError, match="mvit_b_16x4 cannot be used"):
        download(settings, entry)
    path.write_bytes(payload)
    assert download(settings, entry) == path
    assert path.with_name(path.name + ".sha256").exists()
    assert server.asked == []


def test_several_at_once_download_once(settings, server, payload):
    release = threading.Event()
    server.behaviours = [server_that.in_drops(len(payload) // 10, release)]
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(download(settings))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert paths == [settings.path(ENTRY)] * 3
    assert len(server.asked) == 1
    assert paths[0].read_bytes() == payload


def test_too_little_space_is_said_before(settings, server, monkeypatch):
    monkeypatch.setattr(zoo.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ZooError, match=r"0 MB left.*SLOWFAST_CACHE"):
        download(settings)


def test_cache_that_is_no_folder_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="SLOWFAST_CACHE chooses the folder"):
        download(Settings(tmp_path / "file", server.address))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_cache_that_cannot_be_written_to_is_used(settings, payload, monkeypatch, number):
    path = settings.path(ENTRY)
    path.parent.mkdir(parents=True)
    path.write_bytes(payload)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert download(settings) == path
    assert names_in(path.parent) == {path.name}


def test_file_in_the_cache_that_cannot_be_read_is_named(settings, payload, monkeypatch):
    path = settings.path(ENTRY)
    path.parent.mkdir(parents=True)
    path.write_bytes(payload)

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zoo, "sha256_of", fail)
    with pytest.raises(ZooError, match=r"x3d_xs\.pyth cannot be read: Input/output error"):
        download(settings)


def test_progress_bar_shows_name_and_size(settings, server, capsys):
    download(settings, progress=True)
    assert "x3d_xs: 100%" in capsys.readouterr().err


# ---------------------------------------------------------------- networks


def test_published_weights_fill_the_network(settings, server):
    model = zoo.build_network(ENTRY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    buffer = io.BytesIO()
    torch.save({"model_state": model.state_dict()}, buffer)
    server.payload = buffer.getvalue()
    loaded = zoo.build_published("x3d_xs", pretrained=True, settings=settings, progress=False)
    assert not loaded.training
    assert all((parameter == 0.25).all() for parameter in loaded.parameters())


def test_weights_that_do_not_fit_are_refused_with_a_table(settings, server):
    with pytest.raises(CheckpointError, match=r"x3d_xs\.pyth: the weights do not fit.*\n(.|\n)*not in the file"):
        zoo.build_published("x3d_xs", pretrained=True, settings=settings, progress=False)


def test_config_options_of_an_entry_and_the_caller_count():
    with torch.device("meta"):
        model = zoo.build_network(zoo.find("mvit_b_32x3_k600"))
        other = zoo.build_network(zoo.find("mvit_b_32x3_k600"), ["MODEL.NUM_CLASSES", 7])
    assert model.state_dict()["head.projection.bias"].shape == (600,)
    assert other.state_dict()["head.projection.bias"].shape == (7,)


def test_network_that_cannot_be_built_is_named(monkeypatch):
    with pytest.raises(ZooError, match=r"x3d_xs cannot be built: 'NoSuchNet' is not in"):
        zoo.build_network(ENTRY, ["MODEL.MODEL_NAME", "NoSuchNet"])


def test_config_is_looked_for_in_the_given_folder(tmp_path):
    with pytest.raises(ZooError, match=r"configs/Kinetics/X3D_XS.yaml is not in .*clone"):
        zoo.config_file(ENTRY, tmp_path)


def _recorded():
    quick = {"slowfast_8x8_r50", "resnet50_in1k", "x3d_s", "mvit_b_in1k"}
    return [pytest.param(n, marks=[] if n in quick else [pytest.mark.slow]) for n in zoo.records()]


@pytest.mark.parametrize("name", _recorded())
def test_counted_parameters_are_those_of_the_network(name):
    with torch.device("meta"):
        model = zoo.build_network(zoo.find(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == zoo.records()[name].params


def test_no_recorded_network_differs_from_the_original():
    assert {record.names for record in zoo.records().values()} <= {"equal", ""}


# ---------------------------------------------------------------- the detector of people


def test_detector_comes_from_the_mirror_into_the_cache(server, settings, payload, monkeypatch):
    begins = hashlib.sha256(payload).hexdigest()[:8]
    monkeypatch.setattr(zoo, "_detector_url", lambda: f"https://example.org/models/people-{begins}.pth")
    path = zoo.download_detector(settings)
    assert path == settings.cache / "torchvision" / f"people-{begins}.pth"
    assert path.read_bytes() == payload
    assert server.asked[0][0] == f"/torchvision/people-{begins}.pth"


def test_detector_of_another_sum_is_refused(settings, server):
    assert zoo._detector_url().endswith("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    with pytest.raises(zoo.ZooError, match=r"is not the file of .*, not 258fb6c6\.\.\.; remove it"):
        zoo.download_detector(settings)


def test_detector_that_cannot_be_downloaded_says_where_it_goes(tmp_path):
    with pytest.raises(zoo.ZooError, match="SLOWFAST_OFFLINE forbids downloads") as error:
        zoo.download_detector(zoo.Settings(cache=tmp_path, offline=True))
    assert str(tmp_path / "torchvision" / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth") in str(error.value)
