"""The command: what it refuses, and that it begins and ends cleanly."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool():
    return load_script(ROOT / "tools" / "studio.py")


def test_a_missing_folder_is_named(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "box.local"])
def test_other_machines_are_kept_out_unless_it_is_said(tool, tmp_path, capsys, host):
    assert tool.main([str(tmp_path), "--host", host]) == 2
    assert "--allow-network" in capsys.readouterr().err


def test_letting_other_machines_in_warns(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "serve", lambda server, open_it: server.server_close())
    monkeypatch.setattr("slowfast.visualization.studio.app.Studio.warm", lambda self: None)
    assert tool.main([str(tmp_path), "--host", "0.0.0.0", "--allow-network", "--port", "0"]) == 0
    assert "WARNING: whoever can reach 0.0.0.0" in capsys.readouterr().err


def test_a_taken_port_is_said(tool, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert tool.main([str(tmp_path), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use)" in error
    assert "--port" in error


@pytest.mark.parametrize("options", [["--port", "70000"], ["--max-seconds", "0"], ["--max-upload-mb", "-1"]])
def test_senseless_numbers_are_refused(tool, tmp_path, options):
    with pytest.raises(SystemExit) as error:
        tool.main([str(tmp_path), *options])
    assert error.value.code == 2


UNHEARD = """
import runpy, signal, sys, threading, time
from types import SimpleNamespace

def serve_forever():
    time.sleep(0.5)  # the main thread waits by now
    signal.pthread_kill(threading.get_ident(), signal.Signals[sys.argv[2]])

none = lambda: None
app = SimpleNamespace(library=SimpleNamespace(root="."))
server = SimpleNamespace(url="", app=app, serve_forever=serve_forever, shutdown=none, server_close=none)
runpy.run_path(sys.argv[1])["serve"](server)
"""


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_a_signal_that_another_thread_gets_ends_it_too(kind):
    command = [sys.executable, "-c", UNHEARD, str(ROOT / "tools" / "studio.py"), kind]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("ended\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_it_begins_and_ends(tmp_path, kind):
    command = [sys.executable, str(ROOT / "tools" / "studio.py"), str(tmp_path), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        assert str(tmp_path) in line
        with urllib.request.urlopen(url, timeout=300) as answer:
            assert b"<title>Studio</title>" in answer.read()
        assert list(tmp_path.glob("slowfast-studio-*"))
        process.send_signal(kind)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "ended\n", "")
    assert not list(tmp_path.glob("slowfast-studio-*"))
