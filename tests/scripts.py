"""Commands of ``tools/`` and ``benchmarks/`` as modules, so that tests can call their functions."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType


def load_script(path: str | os.PathLike) -> ModuleType:
    """The file at ``path``, run anew as a module that bears its name."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
