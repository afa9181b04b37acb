"""How big and how costly a network is: parameters, multiply-adds, activations. Values, no text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from slowfast.models.layers import conv_backend


@dataclass(frozen=True)
class ModelSummary:
    """Counts of one forward pass in evaluation."""

    parameters: int  # elements of all parameters, trained or not
    gflops: float  # 1e9 multiply-adds, each counted once, as papers do
    mactivations: float  # 1e6 elements that convolutions and matrix products put out
    uncounted: dict[str, int]  # operators that could not be counted -> how often they occur


def summarize(model: nn.Module, *inputs: Tensor) -> ModelSummary:
    """Count ``model(*inputs)``; the inputs' first axis should be 1 for numbers per clip.

    The convolutions are counted as convolutions, however the model computes them, and the model is left as it was.
    """
    was_training = model.training
    model.eval()
    try:
        with conv_backend(model, "native"):
            flops = FlopCountAnalysis(model, inputs)
            flops.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
            activations = ActivationCountAnalysis(model, inputs)
            for analysis in (flops, activations):
                analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            return ModelSummary(
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                gflops=flops.total() / 1e9,
                mactivations=activations.total() / 1e6,
                uncounted=dict(flops.unsupported_ops()),
            )
    finally:
        model.train(was_training)


def _attention_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of queries [.., N, D] with keys [.., M, D], and of the weights with values [.., M, E]."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
