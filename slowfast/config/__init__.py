"""Configuration: the keys of the original, a few of ours, and how files and options become a frozen tree."""

from slowfast.config.cli import Args, load_jobs, parse_args
from slowfast.config.defaults import ConfigError, get_cfg, register_keys
from slowfast.config.load import dump_cfg, load_cfg, save_cfg

__all__ = [
    "Args",
    "ConfigError",
    "dump_cfg",
    "get_cfg",
    "load_cfg",
    "load_jobs",
    "parse_args",
    "register_keys",
    "save_cfg",
]
