"""What a process of a lane does in tests: it ends in all ways there are, and needs no network."""

import os
import pathlib
import signal
import time

from slowfast.visualization.studio import work


def count(tell, *, to):
    for number in range(to):
        tell(number + 1, to, "counting")
    return {"counted": to, "pid": os.getpid()}


def crash(tell):
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(tell):
    os._exit(7)


def hang(tell):
    tell(0, 1, "hanging")
    time.sleep(600)


def refuse(tell):
    raise ValueError("no frame can be decoded")


def surprise(tell):
    raise ZeroDivisionError("by nothing")


def picture(tell, *, path, target):
    pathlib.Path(target).write_bytes(b"a picture")
    return {"file": target}


def play(tell, *, path, target, max_seconds):
    return {"file": path}


def serve(connection):
    known = (count, crash, leave, hang, refuse, surprise, picture, play)
    work.FUNCTIONS = {function.__name__: function for function in known}
    work.serve(connection)
