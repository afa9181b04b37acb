"""Layer-wise adaptive rate scaling (You et al., "Large Batch Training of Convolutional Networks", 2017)."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """Rescales each weight's gradient to the size of the weight, then lets ``inner`` make the step.

    Groups whose ``apply_LARS`` is False are left to ``inner`` as they are. In the others the gradient of
    a parameter of two or more axes becomes ``(g + wd*p) * trust * |p| / (|g| + wd*|p| + eps)``; vectors, and
    parameters whose weight or gradient is all zero, keep their gradient and get no decay.

    Parameter groups, state and the saved form are those of ``inner``, so checkpoints are interchangeable.
    """

    def __init__(self, inner: Optimizer, *, trust_coefficient: float = 0.001, eps: float = 1e-8):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        self.trust_coefficient = trust_coefficient
        self.eps = eps
        self._share()

    def _share(self) -> None:
        self.defaults = self.inner.defaults
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Scale the gradients in place and step the inner optimiser."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaled = [group for group in self.param_groups if group.get("apply_LARS", True)]
        decays = [group["weight_decay"] for group in scaled]
        for group in scaled:
            for param in group["params"]:
                if param.grad is not None and param.ndim != 1:
                    self._scale_gradient(param, group["weight_decay"])
            group["weight_decay"] = 0.0
        try:
            self.inner.step()
        finally:
            for group, decay in zip(scaled, decays, strict=True):
                group["weight_decay"] = decay
        return loss

    def _scale_gradient(self, param: torch.Tensor, weight_decay: float) -> None:
        weight_norm, grad_norm = param.norm(), param.grad.norm()
        trusted = (weight_norm > 0) & (grad_norm > 0)
        scale = self.trust_coefficient * weight_norm / (grad_norm + weight_decay * weight_norm + self.eps)
        scaled = param.grad.add(param, alpha=weight_decay).mul_(scale)
        param.grad.copy_(torch.where(trusted, scaled, param.grad))  # decided on the device: no host sync

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the inner optimiser's state."""
        self.inner.load_state_dict(state_dict)
        self._share()
