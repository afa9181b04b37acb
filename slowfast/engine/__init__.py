"""The jobs: train and test, on one process or many."""

from slowfast.engine.launch import launch
from slowfast.engine.test import test
from slowfast.engine.train import NonFiniteLossError, train

__all__ = ["NonFiniteLossError", "launch", "test", "train"]
