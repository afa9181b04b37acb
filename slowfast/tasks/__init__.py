"""Learning problems: what a step learns, what a prediction is, and how it is judged."""

from slowfast.tasks.base import StepResult, Task, build_task
from slowfast.tasks.classification import Classification
from slowfast.tasks.contrastive import Contrastive
from slowfast.tasks.detection import Detection
from slowfast.tasks.masked import Masked

__all__ = ["Classification", "Contrastive", "Detection", "Masked", "StepResult", "Task", "build_task"]
