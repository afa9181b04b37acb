"""How weights move: the learning rate as a function of the epoch, parameter groups, gradient clipping."""

from slowfast.solver.optimizer import build_optimizer, carry_state, clip_gradients, set_lr
from slowfast.solver.schedule import lr_at

__all__ = ["build_optimizer", "carry_state", "clip_gradients", "lr_at", "set_lr"]
