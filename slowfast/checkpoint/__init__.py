"""Weights on disk: saving and reading them safely, making them fit, and deciding which file a job starts from."""

from slowfast.checkpoint.io import (
    CheckpointError,
    LoadReport,
    checkpoint_path,
    find_last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from slowfast.checkpoint.start import (
    Start,
    StartPlan,
    carry_out,
    load_initial_weights,
    load_test_weights,
    plan_test,
    plan_training,
    start_training,
)

__all__ = [
    "CheckpointError",
    "LoadReport",
    "Start",
    "StartPlan",
    "carry_out",
    "checkpoint_path",
    "find_last_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_initial_weights",
    "load_test_weights",
    "load_weights",
    "plan_test",
    "plan_training",
    "save_checkpoint",
    "start_training",
]
