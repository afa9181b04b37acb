"""The contract between the loop and a learning problem: the loop never asks what is being learnt.

A task reads only the attributes of a batch (``clips``, ``labels``, ``index``, ...), so it needs no data set
to be tested. Which task a configuration means is decided in ``build_task`` and nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from slowfast.evaluation.metrics import Metric
from slowfast.utils.registry import Registry

TASK_REGISTRY = Registry("TASK")


@dataclass
class StepResult:
    """What one forward pass gives the loop; everything stays on the device of the model.

    ``total`` is the scalar to differentiate. ``parts`` are named scalars for the log; one called ``loss`` is shown in
    place of the total, and where a batch is split the last part's are those of the whole. ``errors`` are named
    percentages of wrong answers in this batch, empty where the task has none to show.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """One learning problem. Subclasses say what a loss, a prediction and a metric are."""

    evaluates = True
    """Whether there is anything to measure; if not, validation is left out and a test ends at once."""

    def prepare(self, network: nn.Module, training_set: Callable[[], Any]) -> None:  # noqa: B027
        """Before weights are loaded: fit the bare network, and the task, to the data set ``training_set()``."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Whatever the network makes of a batch, for the statistics that it gathers on the way."""
        return model(batch.clips)

    def split(self, model: nn.Module, batch: Any) -> Iterator[Any]:
        """The parts of ``batch`` that are differentiated one after another; by default the batch itself."""
        yield batch

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, epoch: float) -> StepResult:
        """Forward pass in training mode; ``epoch`` is fractional (3.25 is a quarter through the fourth)."""

    def after_backward(self, model: nn.Module, epoch: float, step: int) -> bool:
        """May edit gradients before the update; ``False`` skips the update."""
        return True

    @abstractmethod
    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Scores of a model in evaluation mode, [B, K]."""

    @abstractmethod
    def metric(self, split: str, dataset: Any) -> Metric:
        """A fresh metric for ``split`` ("val" or "test") of ``dataset`` (its length and views per video count)."""


def task_name(cfg) -> str:
    """Which learning problem ``cfg`` describes: a name of ``TASK_REGISTRY``."""
    if cfg.DETECTION.ENABLE:
        return "Detection"
    if cfg.MASK.ENABLE:
        return "Masked"
    if cfg.TASK == "ssl" or cfg.MODEL.MODEL_NAME == "ContrastiveModel":
        return "Contrastive"
    return "Classification"


def build_task(cfg) -> Task:
    """The task that ``cfg`` describes."""
    return TASK_REGISTRY.get(task_name(cfg)).from_cfg(cfg)
