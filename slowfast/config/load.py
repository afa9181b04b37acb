"""From files and options to one checked, frozen tree."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from slowfast.config.defaults import get_cfg


class ConfigError(ValueError):
    """A key or value in a file or an option that cannot be used; the message names it."""


def load_cfg(path: str | Sequence[str] | None = None, opts: Sequence = ()) -> CfgNode:
    """Defaults, then ``path``, then ``opts`` (``KEY, value, KEY, value, ...``), frozen."""
    cfg = get_cfg()
    for file in [path] if isinstance(path, str) else path or []:
        cfg.merge_from_file(file)
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg
