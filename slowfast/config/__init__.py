"""Configuration: the keys of the original, a few of ours, and how files and options become a frozen tree."""

from slowfast.config.defaults import ConfigError, get_cfg, register_keys
from slowfast.config.load import dump_cfg, load_cfg, save_cfg

__all__ = ["ConfigError", "dump_cfg", "get_cfg", "load_cfg", "register_keys", "save_cfg"]
