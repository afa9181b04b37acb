"""Files of the page: uploads and what was made of videos, in a folder of its own that goes when the server does.

The one idea: a name that came from outside is only ever shown. Files have random names, and what is not a video by its
first bytes is not kept.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
MAX_TITLE = 120
HEAD = 400  # bytes that a kind of file is known by
_KINDS = "MP4, MOV, MKV, WebM, AVI, MPEG, WMV, FLV or OGV"
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # of MP4 and MOV
_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # WMV
    b"\x00\x00\x01\xba",  # MPEG
    b"\x00\x00\x01\xb3",
    b"FLV\x01",
    b"OggS",
)
_TS_PACKET = 188


class UploadError(ValueError):
    """What was sent cannot be taken; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Upload:
    """A video that somebody sent."""

    id: str
    title: str
    path: Path
    size: int


def is_video(head: bytes) -> bool:
    """Whether a file begins like a container of video.

    Lists of other files (playlists, concatenations), which FFmpeg would open and follow, are none.
    """
    avi = head.startswith(b"RIFF") and head[8:12] == b"AVI "
    transport = head[:1] == b"\x47" and head[_TS_PACKET : _TS_PACKET + 1] == b"\x47"
    return head[4:8] in _BOXES or head.startswith(_STARTS) or avi or transport


def clean_title(name: str) -> str:
    """The last part of a file's name, printable and not too long, for people."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in name if letter.isprintable())[:MAX_TITLE].strip() or "video"


class Store:
    """At most ``max_bytes`` of one upload and four times that of all; the oldest go first."""

    def __init__(self, *, max_bytes: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slowfast-studio-"))
        self.max_bytes, self._max_total = max_bytes, 4 * max_bytes
        self._uploads: dict[str, Upload] = {}
        self._made: dict[str, Path] = {}
        self._coming = 0  # bytes of uploads under way
        self._lock = threading.Lock()

    def close(self) -> None:
        """Everything is deleted."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def uploads(self) -> list[Upload]:
        """What is there, the newest first."""
        with self._lock:
            return list(reversed(self._uploads.values()))

    def upload(self, upload_id: str) -> Upload | None:
        """One of them."""
        with self._lock:
            return self._uploads.get(upload_id)

    def receive(self, stream: BinaryIO, length: int, name: str) -> Upload:
        """Keep ``length`` bytes of ``stream``; ``UploadError`` where they are too many, too few or no video."""
        if length > self.max_bytes:
            limit = f"{self.max_bytes / 2**20:.0f} MB"
            raise UploadError(413, f"{length / 2**20:.0f} MB are more than {limit} (start with --max-upload-mb)")
        if length <= 0:
            raise UploadError(400, "the file is empty")
        self._make_room(length)
        key = f"u-{secrets.token_hex(8)}"
        path = self.folder / f"{key}.video"
        try:
            with path.open("xb") as file:
                self._copy(stream, file, length)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            with self._lock:
                self._coming -= length
        upload = Upload(key, clean_title(name), path, length)
        with self._lock:
            self._uploads[key] = upload
        return upload

    def remove(self, upload_id: str) -> bool:
        """Delete one; whether it was there."""
        with self._lock:
            upload = self._uploads.pop(upload_id, None)
        if upload is not None:
            upload.path.unlink(missing_ok=True)
        return upload is not None

    def new_file(self, suffix: str, *, keep: int = 100) -> Path:
        """A name for something to be made; of all that were made with this suffix, the last ``keep`` stay."""
        path = self.folder / f"m-{secrets.token_hex(8)}{suffix}"
        with self._lock:
            self._made[path.name] = path
            old = [name for name in self._made if name.endswith(suffix)][:-keep]
            gone = [self._made.pop(name) for name in old]
        for file in gone:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        return path

    def _make_room(self, length: int) -> None:
        with self._lock:
            if self._coming + length > self._max_total:
                raise UploadError(429, "too much is being uploaded at once: try again when that is done")
            self._coming += length
            while self._uploads and self._coming + sum(u.size for u in self._uploads.values()) > self._max_total:
                oldest = self._uploads.pop(next(iter(self._uploads)))
                oldest.path.unlink(missing_ok=True)

    @staticmethod
    def _copy(stream: BinaryIO, file: BinaryIO, length: int) -> None:
        left, first = length, True
        while left:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise UploadError(400, f"the connection ended {left} bytes before the file did")
            if first and not is_video(chunk[:HEAD]):
                raise UploadError(415, f"this is not a video by its content: {_KINDS} can be read")
            file.write(chunk)
            left, first = left - len(chunk), False
