#!/usr/bin/env python3
"""A local page: browse the runs of an output folder, and see what their networks see in a video.

    python tools/studio.py output
    python tools/studio.py output --port 8765 --open

Everything stays on this machine: the page loads nothing from elsewhere, and only this machine can reach it unless
--allow-network is given. Videos that are dropped on the page are deleted when it ends (Ctrl-C).
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

# Threads that wait for one another sleep instead of spinning. NOTE: read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", nargs="?", default="output", help="runs lie in and below it; default %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any that is free; default %(default)s")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.add_argument(
        "--allow-network", action="store_true", help="let --host be an address that other machines can reach"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument("--max-upload-mb", type=float, default=500.0, metavar="MB", help="default %(default)g")
    parser.add_argument(
        "--max-seconds", type=float, default=600.0, metavar="S", help="length of an uploaded video; default %(default)g"
    )
    options = parser.parse_args(args)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port {options.port} is not 0 to 65535")
    for name in ("max_upload_mb", "max_seconds"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name):g} is not more than 0")
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 when it was ended, 2 where it could not begin."""
    options = parse_args(args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from slowfast.visualization.studio.app import Limits, Studio
    from slowfast.visualization.studio.server import StudioServer, is_loopback

    if not Path(options.folder).is_dir():
        return _complain(f"{options.folder} is not a folder: name one that runs have written to (their OUTPUT_DIR)")
    if not is_loopback(options.host):
        if not options.allow_network:
            return _complain(
                f"--host {options.host} lets other machines see the runs and use this one: "
                "add --allow-network if that is meant, or use ssh -L to reach 127.0.0.1 from elsewhere"
            )
        print(
            f"WARNING: whoever can reach {options.host}:{options.port} can see the runs and videos of "
            f"{options.folder} and let this machine work; there is no password",
            file=sys.stderr,
        )
    limits = Limits(upload_bytes=int(options.max_upload_mb * 2**20), seconds=options.max_seconds)
    app = Studio(options.folder, limits=limits, device=options.device)
    try:
        server = StudioServer(app, options.host, options.port)
    except OSError as error:
        app.close()
        return _complain(
            f"cannot listen at {options.host}:{options.port} ({error.strerror or error}): "
            "end what uses it, or name another with --port (0 takes any that is free)"
        )
    app.warm()
    serve(server, open_it=options.open)
    app.close()
    return 0


def serve(server, *, open_it: bool = False) -> None:
    """Answer until an interrupt or a polite end."""
    ended: list[int] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda number, _: ended.append(number))
    thread = threading.Thread(target=server.serve_forever, name="studio", daemon=True)
    thread.start()
    print(f"{server.url} shows {server.app.library.root}; Ctrl-C ends it", flush=True)
    if open_it:
        webbrowser.open(server.url)
    # NOTE: not an event that is waited for without end: a signal that comes just before its lock sleeps, or that the
    # system gives to another thread, is not heard, and one that comes while it holds the lock waits for itself.
    while not ended:
        time.sleep(0.2)
    server.shutdown()
    server.server_close()
    print("ended")


def _complain(text: str) -> int:
    print(f"studio.py: error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
