"""Where the optional third-party material lies: real clips and reference data that never enter the repository."""

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SLOWFAST_SHARED", _ROOT.parent / "shared"))


def shared(path: str) -> Path:
    """``path`` inside the shared folder; skips the calling test where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path} from the shared folder (set SLOWFAST_SHARED)")
    return found
