"""Phases: stretches of epochs, each trained with its own frozen configuration (one input shape each)."""

from dataclasses import dataclass

from fvcore.common.config import CfgNode


@dataclass(frozen=True)
class Phase:
    """The epochs ``first_epoch`` to ``last_epoch`` (0-based, both included) are trained as ``cfg`` says."""

    cfg: CfgNode
    first_epoch: int
    last_epoch: int

    def epochs(self, start: int = 0) -> range:
        """The epochs of this phase from ``start`` on; empty if the phase lies before it."""
        return range(max(start, self.first_epoch), self.last_epoch + 1)


def training_phases(cfg) -> list[Phase]:
    """The phases that ``cfg`` describes, in order and without gaps, from epoch 0 to the last."""
    return [Phase(cfg, 0, cfg.SOLVER.MAX_EPOCH - 1)]
