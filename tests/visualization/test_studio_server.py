"""The page's addresses give what the runs hold, and what must not be done is refused."""

import http.client
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import quote

import lane_work
import pytest
from fake_job import CLASSES, write_config, write_job, write_multi_label_test, write_test, write_training

from slowfast.visualization.studio import app as app_module
from slowfast.visualization.studio.app import Limits, Studio
from slowfast.visualization.studio.lanes import Job, Lane
from slowfast.visualization.studio.server import StudioServer, byte_range, host_name, is_loopback, is_ours
from slowfast.visualization.studio.store import Store, clean_title, is_video

MP4 = b"\x00\x00\x00\x18ftypisom" + bytes(5000)
OURS = {"X-Studio": "1"}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A folder with two runs that trained and tested, one with several labels, and one of boxes."""
    folder = tmp_path_factory.mktemp("output")
    write_job(folder / "first")
    second = folder / "group" / "second"
    second.mkdir(parents=True)
    write_config(second)
    config = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(config.replace("MAX_EPOCH: 6", "MAX_EPOCH: 8\n  BASE_LR: 0.3"))
    write_training(second, epochs=8)
    (folder / "labels").mkdir()
    write_multi_label_test(folder / "labels")
    write_boxes(folder / "boxes")
    (folder / "no run").mkdir()
    return folder


def write_boxes(folder):
    folder.mkdir()
    (folder / "ap_per_class.csv").write_text("id,name,true_boxes,ap_percent\n1,walk,10,60.0\n2,sit,5,25.0\n")
    top = [["walk", 0.9], ["sit", 0.2]]
    lines = [
        {
            "video": "v",
            "second": 1.5,
            "file": str(folder / "v.mp4"),
            "frame": 15,
            "found": [{"box": [0.1, 0.2, 0.5, 0.9], "top": top}],
            "true": [{"box": [0.1, 0.2, 0.6, 0.9], "classes": ["walk"]}],
        }
    ]
    (folder / "key_frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "detections_latest.csv").write_text(
        "v,1.5,0.1,0.2,0.5,0.9,1,0.9\nv,1.5,0.1,0.2,0.5,0.9,2,0.2\nv,2.5,0.3,0.2,0.5,0.9,2,0.7\n"
        "v,2.5,0.3,0.2,0.5,0.9,1,0.01\nw,2.5,0,0,1,1,1,0.7\n"
    )
    (folder / "groundtruth_latest.csv").write_text("v,2.5,0.3,0.2,0.5,0.9,1,1.0\nv,2.5,0.3,0.2,0.5,0.9,2,1.0\n")


@pytest.fixture(scope="module")
def server(output):
    app = Studio(output, limits=Limits(upload_bytes=1 << 20, seconds=60))
    made = StudioServer(app, "127.0.0.1", 0)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()
    app.close()
    assert not app.store.folder.exists()


@pytest.fixture
def ask(server):
    def ask(method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=120)
        given = OURS if headers is None and method != "GET" else headers or {}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data

    return ask


@pytest.fixture
def get(ask):
    def get(path):
        answer, data = ask("GET", path)
        assert answer.status == 200, data
        return json.loads(data)

    return get


@pytest.fixture
def ids(get):
    return {run["name"]: run["id"] for run in get("/api/runs")["runs"]}


def refused(answer, data, status):
    assert answer.status == status, data
    return json.loads(data)["error"]


# ------------------------------------------------------------ what is shown


def test_runs_are_found_at_any_depth(get):
    runs = {run["name"]: run for run in get("/api/runs")["runs"]}
    assert list(runs) == ["boxes", "first", "group/second", "labels"]
    first = runs["first"]
    assert (first["measure"], first["result"]) == ("top-1", pytest.approx(100 * 20 / 24, abs=1e-3))
    assert (first["epochs"], first["of_epochs"], first["parameters"]) == (6, 6, 31.7e6)
    assert first["why_not"] == "it has no checkpoint"
    assert runs["labels"]["measure"] == "mAP"
    assert runs["labels"]["result"] == pytest.approx((100 + 75 + 50) / 3, abs=1e-3)
    assert runs["labels"]["why_not"] == "it has no config.yaml"
    assert runs["boxes"]["boxes"]


def test_a_run_has_curves_confusion_and_changed_keys(get, ids):
    run = get(f"/api/runs/{ids['first']}")
    assert [panel["title"] for panel in run["panels"]][:2] == ["Loss", "Top-1 error, %"]
    loss = run["panels"][0]["curves"][0]
    assert len(loss["x"]) == len(loss["y"]) == len(loss["smooth"]) == 24
    test = run["tests"][-1]
    assert (test["name"], test["videos"], test["skipped"]) == ("3x3", 24, 1)
    assert [4, 5, 1] in test["counts"]  # video 20 is of class 4 and was taken for 5
    assert [0, 0, 3] in test["counts"]
    assert test["per_class"][4] == pytest.approx(100 * 2 / 3)
    assert {"key": "DATA.NUM_FRAMES", "value": 16, "default": 8} in run["config"]
    assert run["bad_videos"][0]["path"] == "/data/<odd> name.mp4"


def test_a_cell_has_its_videos(get, ids):
    at = f"/api/runs/{ids['first']}/tests/3x3/videos"
    found = get(f"{at}?true=4&predicted=5")
    assert found["total"] == 1
    (video,) = found["videos"]
    assert (video["title"], video["truth"], video["right"]) == ("videos/video_20.mp4", [CLASSES[4]], False)
    assert video["top"][0] == {"index": 5, "name": CLASSES[5], "score": pytest.approx(0.5 + 0.4 * 20 / 24, abs=1e-4)}
    assert get(f"{at}?wrong=1")["total"] == 4
    assert get(f"{at}?true=4")["total"] == 3
    assert get(f"{at}?predicted=5")["total"] == 3  # videos 5, 13 and 20
    pages = [get(f"{at}?offset={offset}&limit=10")["videos"] for offset in (0, 10, 20, 30)]
    assert [len(page) for page in pages] == [10, 10, 4, 0]
    assert len({video["id"] for page in pages for video in page}) == 24


def test_a_video_knows_its_class_and_whether_it_is_there(get, ids):
    at = f"/api/runs/{ids['first']}/tests/3x3/videos"
    gone = next(video for video in get(f"{at}?wrong=1")["videos"] if video["title"].endswith("23.mp4"))
    video = get(f"/api/videos/{gone['id']}")
    assert (video["there"], video["truth"], video["run"]["name"]) == (False, [CLASSES[7]], "first")
    assert get(f"/api/videos/t-{ids['first']}-3x3-0")["there"]


def test_boxes_of_all_key_frames_are_shown(get, ids):
    run = get(f"/api/runs/{ids['boxes']}")
    assert [(c["name"], c["truth"], c["ap"]) for c in run["box_classes"]] == [("walk", 10, 60.0), ("sit", 5, 25.0)]
    boxes = get(f"/api/videos/{run['box_videos'][0]['id']}")["boxes"]
    assert (boxes["second"], boxes["frame"]) == (1.5, 15)
    first, second = boxes["key_frames"]
    assert first["found"] == [{"box": [0.1, 0.2, 0.5, 0.9], "top": [["walk", 0.9], ["sit", 0.2]]}]
    assert first["true"] == [{"box": [0.1, 0.2, 0.6, 0.9], "top": [["walk", None]]}]
    assert (second["second"], second["found"]) == (2.5, [{"box": [0.3, 0.2, 0.5, 0.9], "top": [["sit", 0.7]]}])
    assert second["true"] == [{"box": [0.3, 0.2, 0.5, 0.9], "top": [["walk", None], ["sit", None]]}]


def test_runs_are_compared(get, ids):
    found = get(f"/api/compare?runs={ids['first']},{ids['group/second']}")
    differences = {line["key"]: line["values"] for line in found["differences"]}
    assert differences["SOLVER.MAX_EPOCH"] == [6, 8]
    assert differences["SOLVER.BASE_LR"] == [0.1, 0.3]
    assert "OUTPUT_DIR" not in differences
    assert "DATA.NUM_FRAMES" not in differences
    assert {curve["label"] for curve in found["panels"][0]["curves"]} == {"first", "second"}


def test_a_new_result_is_seen(get, ids, output, server):
    write_test(output / "group" / "second", clips=1, crops=1, right={0})
    assert get(f"/api/runs/{ids['group/second']}")["tests"][0]["videos"] == 24
    (output / "group" / "second" / "test_1x1.jsonl").unlink()
    assert get(f"/api/runs/{ids['group/second']}")["tests"] == []


def test_pages_are_served_with_what_keeps_them_local(ask):
    for path, kind in (("/", "text/html"), ("/static/main.js", "text/javascript"), ("/static/studio.css", "text/css")):
        answer, data = ask("GET", path)
        assert (answer.status, answer.headers.get_content_type()) == (200, kind)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        addresses = re.findall(rb"https?://[^\s\"')]+", data)
        assert set(addresses) <= {b"http://www.w3.org/2000/svg"}, "the page would load from elsewhere"


def test_many_ask_at_once(server):
    def look(_):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=120)
        connection.request("GET", "/api/runs")
        return len(json.loads(connection.getresponse().read())["runs"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, range(24))) == [4] * 24


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "192.168.1.7"])
def test_foreign_host_names_are_refused(ask, host):
    assert "host name" in refused(*ask("GET", "/api/runs", headers={"Host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1", "[::1]:80"])
def test_own_host_names_are_answered_at_any_port(ask, host):
    assert ask("GET", "/api/about", headers={"Host": host})[0].status == 200


def test_other_pages_can_start_nothing(ask):
    body = json.dumps({"kind": "play", "video": "x"})
    assert "only the page" in refused(*ask("POST", "/api/jobs", body, {"Content-Type": "text/plain"}), 403)
    assert "only the page" in refused(*ask("POST", "/api/uploads", MP4, {"Origin": "http://evil.example", **OURS}), 403)
    for origin in ("null", "http://[", "http://evil.example://127.0.0.1"):
        assert "only the page" in refused(*ask("DELETE", "/api/jobs/x", headers={"Origin": origin, **OURS}), 403)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static//etc/passwd",
        "/../../etc/passwd",
        "/media/..%2f..%2fetc%2fpasswd",
        "/media/t-../../etc-passwd",
        "/pictures/%00",
        "/api/runs/..",
        "/api/videos/t-x-3x3-0",
        "/api/videos/t-x-3x3--1",
        "/nowhere",
    ],
)
def test_no_path_leads_out(ask, path):
    refused(*ask("GET", path), 404)


def test_ids_of_rows_are_looked_up(ask, ids):
    for key in (f"t-{ids['first']}-3x3-24", f"t-{ids['first']}-9x9-0", f"t-{ids['first']}-boxes-0", "u-0123"):
        refused(*ask("GET", f"/api/videos/{key}"), 404)
        refused(*ask("GET", f"/pictures/{key}"), 404)
        refused(*ask("POST", "/api/jobs", json.dumps({"kind": "play", "video": key})), 404)
    for row in ("9" * 5000, "٣", "1.0", "", "-1"):
        video = f"t-{ids['first']}-3x3-{row}"
        refused(*ask("POST", "/api/jobs", json.dumps({"kind": "play", "video": video})), 404)
    refused(*ask("GET", "/media/t-" + ids["first"] + "-3x3-0"), 404)  # not before somebody made it playable


def test_what_cannot_be_done_is_said(ask, ids):
    video = f"t-{ids['first']}-3x3-0"
    cases = [
        ("not json", "not JSON"),
        ("[1]", "an object"),
        (json.dumps({"kind": "delete", "video": video}), "play, predict or explain"),
        (json.dumps({"kind": "play", "video": 3}), "play, predict or explain"),
        (json.dumps({"kind": "predict", "video": video, "run": ids["first"]}), "it has no checkpoint"),
        (json.dumps({"kind": "predict", "video": video, "run": ids["first"], "window_s": 0}), "seconds"),
        (json.dumps({"kind": "predict", "video": video, "run": ids["first"], "window_s": True}), "seconds"),
        (json.dumps({"kind": "explain", "video": video, "run": ids["first"], "target": -1}), "number of a class"),
        (f'{{"kind": "explain", "video": "{video}", "run": "{ids["first"]}", "target": 1{"0" * 4000}}}', "of a class"),
        (f'{{"kind": "predict", "video": "{video}", "run": "{ids["first"]}", "window_s": 1{"0" * 4000}}}', "seconds"),
        (f'{{"kind": "play", "video": 1{"0" * 5000}}}', "not JSON"),
    ]
    for body, message in cases:
        assert message in refused(*ask("POST", "/api/jobs", body), 400)
    assert "compared" in refused(*ask("GET", f"/api/compare?runs={ids['first']}"), 400)
    assert "not a number" in refused(*ask("GET", f"/api/runs/{ids['first']}/tests/3x3/videos?true=-1"), 400)
    refused(*ask("POST", "/api/jobs", "x" * 70_000), 413)
    refused(*ask("GET", "/api/runs?" + "a=1&" * 40), 400)
    refused(*ask("DELETE", "/api/runs"), 405)
    refused(*ask("GET", "/api/jobs/0123"), 404)


# ------------------------------------------------------------ uploads


def files_of(server):
    return sorted(path.name for path in server.app.store.folder.iterdir())


def test_an_upload_is_kept_under_another_name(ask, server, get):
    name = quote("../../<b>holi\x00day</b>.mp4")
    answer, data = ask("POST", f"/api/uploads?name={name}", MP4)
    kept = json.loads(data)
    assert answer.status == 200
    assert kept["title"] == "b>.mp4"
    assert re.fullmatch(r"u-[0-9a-f]{16}", kept["id"])
    assert (server.app.store.folder / f"{kept['id']}.video").read_bytes() == MP4
    assert get("/api/uploads")["uploads"][0]["id"] == kept["id"]
    assert ask("DELETE", f"/api/uploads/{kept['id']}")[0].status == 200
    assert files_of(server) == []
    refused(*ask("DELETE", f"/api/uploads/{kept['id']}"), 404)


@pytest.mark.parametrize(
    "body",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<html>not a video</html>",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"x",
    ],
)
def test_what_is_no_video_is_not_kept(ask, server, body):
    assert "not a video" in refused(*ask("POST", "/api/uploads?name=a.mp4", body), 415)
    assert files_of(server) == []


def test_a_huge_upload_is_refused_before_it_is_read(server):
    with socket.create_connection(server.server_address[:2], timeout=120) as line:
        line.sendall(
            b"POST /api/uploads HTTP/1.1\r\nHost: localhost\r\nX-Studio: 1\r\nContent-Length: 99000000000\r\n\r\n"
        )
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert answer.status == 413
        assert "1 MB" in json.loads(answer.read())["error"]
    assert files_of(server) == []


def test_an_upload_without_length_or_end_is_refused(server):
    post = b"POST /api/uploads?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nX-Studio: 1\r\n"
    status, error = answer_to(server, post + b"Transfer-Encoding: chunked\r\n\r\n")  # refused before any of it came
    assert (status, bool(error)) == (411, True)
    status, error = answer_to(server, post + b"Content-Length: 6000\r\n\r\n" + MP4)
    assert (status, "before the file did" in error) == (400, True)
    assert files_of(server) == []


def answer_to(server, request):
    """Status and error of raw bytes, after which the line ends."""
    with socket.create_connection(server.server_address[:2], timeout=120) as line:
        line.sendall(request)
        line.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(line)
        answer.begin()
        return answer.status, json.loads(answer.read())["error"]


def test_old_uploads_make_room(ask, server):
    body = MP4 + bytes(900_000)
    kept = [json.loads(ask("POST", "/api/uploads?name=a.mp4", body)[1])["id"] for _ in range(6)]
    assert files_of(server) == sorted(f"{key}.video" for key in kept[2:])  # four of the largest size
    for key in kept[2:]:
        ask("DELETE", f"/api/uploads/{key}")


def test_parts_of_a_file_are_served(ask, server):
    path = server.app.store.folder / "part.mp4"
    path.write_bytes(bytes(range(200)))
    server.app._files["u-part"] = str(path)
    answer, data = ask("GET", "/media/u-part", headers={"Range": "bytes=10-19"})
    assert (answer.status, data) == (206, bytes(range(10, 20)))
    assert answer.headers["Content-Range"] == "bytes 10-19/200"
    answer, data = ask("GET", "/media/u-part")
    assert (answer.status, len(data), answer.headers["Accept-Ranges"]) == (200, 200, "bytes")
    assert ask("GET", "/media/u-part", headers={"Range": "bytes=200-"})[0].status == 416
    path.unlink()
    refused(*ask("GET", "/media/u-part"), 404)


# ------------------------------------------------------------ pictures


def test_pictures_wait_for_their_turn_and_videos_not_for_them(output, ids, monkeypatch):
    monkeypatch.setattr(app_module, "_PICTURE_WAIT_S", 0.2)
    monkeypatch.setattr(app_module, "Lane", partial(Lane, serve=lane_work.serve, most_waiting=2))
    app = Studio(output)
    videos = [f"t-{ids['first']}-3x3-{row}" for row in range(4)]
    try:
        busy = app.pictures.submit(Job("hang", {}))
        end = time.monotonic() + 60
        while busy.note == "" and time.monotonic() < end:
            time.sleep(0.02)
        assert [app.picture_file(video) for video in videos] == [None] * 4  # two of them find no room to wait
        begun = app.start({"kind": "play", "video": videos[0]})
        while (job := app.job(begun["id"]))["state"] != "done" and time.monotonic() < end:
            time.sleep(0.02)
        assert job["result"]["url"] == f"/media/{videos[0]}"
        assert busy.state == "running"
        busy.cancel()
        for video in videos:
            while (file := app.picture_file(video)) is None and time.monotonic() < end:
                pass
            assert file.read_bytes() == b"a picture"
    finally:
        app.close()


def test_of_what_was_made_the_newest_of_each_kind_stay(tmp_path):
    store = Store(max_bytes=1)
    try:
        made = []
        for suffix in (".mp4", ".jpg", ".jpg", ".jpg", ".mp4"):
            made.append(store.new_file(suffix, keep=2))
            made[-1].write_bytes(b"")
        assert [file.exists() for file in made] == [True, False, True, True, True]
    finally:
        store.close()


# ------------------------------------------------------------ pieces


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("", (0, 99)),
        ("bytes=0-", (0, 99)),
        ("bytes=90-200", (90, 99)),
        ("bytes=-10", (90, 99)),
        ("bytes=-1000", (0, 99)),
        ("bytes=100-", None),
        ("bytes=7-3", None),
        ("bytes=-0", None),
        ("bytes=1-2,4-5", (0, 99)),  # several parts: all is a right answer
        ("lines=1-2", (0, 99)),
        ("bytes=" + "9" * 5000 + "-", (0, 99)),
    ],
)
def test_ranges(header, part):
    assert byte_range(header, 100) == part


def test_host_names():
    assert [host_name(text) for text in ("a.b:80", "[::1]:8000", "a b", "a/b", "LOCALHOST")] == [
        "a.b",
        "::1",
        "",
        "",
        "localhost",
    ]
    assert is_loopback("127.0.0.2")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert is_ours("192.168.1.7", "0.0.0.0")
    assert is_ours("box.local", "box.local")
    assert not is_ours("evil.example", "0.0.0.0")
    assert not is_ours("192.168.1.7", "127.0.0.1")


def test_videos_are_known_by_their_first_bytes():
    heads = [MP4, b"\x1a\x45\xdf\xa3", b"RIFF1234AVI LIST", b"OggS", b"\x00\x00\x01\xba", b"G" + bytes(187) + b"G"]
    assert all(map(is_video, heads))
    assert not any(map(is_video, [b"", b"RIFF1234WAVEfmt ", b"#EXTM3U", b"G" + bytes(400)]))


def test_titles_are_short_and_plain():
    assert clean_title("a/b\\c\n.mp4") == "c.mp4"
    assert clean_title("/") == "video"
    assert len(clean_title("x" * 500)) == 120
