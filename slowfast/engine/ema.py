"""A moving average of the weights, which is steadier than the weights themselves: evaluated, and saved beside them.

(Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.checkpoint.convert import expand_sub_bn, fold_sub_bn
from slowfast.utils.distributed import unwrap

_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """``average = d * average + (1 - d) * weights`` after every update, for all parameters and running statistics.

    ``d`` is ``decay``, but at most (1 + n) / (10 + n) in update n, so that the random beginning is soon forgotten.
    All else that a network keeps (counters, queues and banks of features) is copied. Frozen parameters cost nothing:
    their average is themselves.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"TRAIN.EMA_DECAY={decay} must lie between 0 (off) and 1, say 0.999")
        self.decay = decay
        self.updates = 0
        self._live = {name: tensor.detach() for name, tensor in unwrap(network).state_dict(keep_vars=True).items()}
        self.weights = {name: tensor.clone() for name, tensor in self._live.items()}
        parameters = {name for name, _ in unwrap(network).named_parameters()}
        self._averaged = [name for name in self._live if name in parameters or name.endswith(_STATISTICS)]
        self._copied = [name for name in self._live if name not in set(self._averaged)]

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the weights as they are now."""
        self.updates = 0
        for name, tensor in self._live.items():
            self.weights[name].copy_(tensor)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; costs no wait for the device."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for names in _alike(self._averaged, self._live):
            torch._foreach_lerp_([self.weights[n] for n in names], [self._live[n] for n in names], 1.0 - decay)
        for name in self._copied:
            self.weights[name].copy_(self._live[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the network has the averaged weights; what changes in them (batch statistics) is kept."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self.weights[name])
            self.weights[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: the average under the names of the network, and the number of updates."""
        return {"decay": self.decay, "updates": self.updates, "weights": dict(self.weights)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave, also with another number of sub-batches.

        Names or shapes that differ otherwise are a ``ValueError``.
        """
        weights: Mapping[str, Tensor] = state["weights"]
        if self._misfits(weights):
            weights = expand_sub_bn(fold_sub_bn(weights), self.weights)
        wrong = self._misfits(weights)
        if wrong:
            raise ValueError(
                f"the saved average of weights does not fit the network: {len(wrong)} differ, e.g. {wrong[0]}"
            )
        for name, own in self.weights.items():
            own.copy_(weights[name])
        self.updates = int(state["updates"])

    def _misfits(self, weights: Mapping[str, Tensor]) -> list[str]:
        return [name for name, own in self.weights.items() if name not in weights or weights[name].shape != own.shape]


def _alike(names: list[str], tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """``names`` in groups of one type, as the fused operations want them."""
    groups: dict[torch.dtype, list[str]] = {}
    for name in names:
        groups.setdefault(tensors[name].dtype, []).append(name)
    return list(groups.values())
