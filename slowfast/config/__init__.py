"""Configuration: 339 keys of the original, a few of ours, and how files and options become a frozen tree."""

from slowfast.config.defaults import get_cfg
from slowfast.config.load import ConfigError, load_cfg

__all__ = ["ConfigError", "get_cfg", "load_cfg"]
