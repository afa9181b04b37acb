"""Learning problems: what a step learns, what a prediction is, and how it is judged."""

from slowfast.tasks.base import StepResult, Task, build_task
from slowfast.tasks.classification import Classification

__all__ = ["Classification", "StepResult", "Task", "build_task"]
