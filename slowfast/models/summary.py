"""How big and how costly a network is: parameters, multiply-adds, activations. Values, no text."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slowfast.models.attention import MultiScaleAttention
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

    Convolutions and attention are counted by their definitions, however the model computes them, and the model is
    left as it was.
    """
    was_training = model.training
    model.eval()
    try:
        with plain_forms(model):
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


def count_products(model: nn.Module, *inputs: Tensor) -> float:
    """1e9 multiply-adds of the convolutions and matrix products of ``model(*inputs)`` in evaluation.

    Norms and sums, which fvcore counts too, are left out, as most papers do. Model and inputs may be on the "meta"
    device: nothing is computed there, so that the largest network takes a second.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), plain_forms(model), FlopCounterMode(display=False) as counter:
            model(*inputs)
        return counter.get_total_flops() / 2e9  # the counter takes a multiplication with its addition for two
    finally:
        model.train(was_training)


@contextmanager
def plain_forms(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` computes convolutions and attention by their definitions."""
    attentions = [module for module in model.modules() if isinstance(module, MultiScaleAttention)]
    for module in attentions:
        module.by_definition = True
    try:
        with conv_backend(model, "native"):
            yield
    finally:
        for module in attentions:
            module.by_definition = False


def _attention_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of queries [.., N, D] with keys [.., M, D], and of the weights with values [.., M, E]."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
