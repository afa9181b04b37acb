"""From a network to a file: traced for any number of clips, with plain operations and half the size or a quarter."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from slowfast.export.card import Card
from slowfast.export.weights import store_weights, to_bfloat16, to_int8
from slowfast.models.layers import conv_backend

SUFFIXES = (".onnx", ".pt2")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
CARD_FILE = "slowfast.json"  # of a .pt2
CARD_KEY = "slowfast"  # of the metadata of an .onnx
INPUT, OUTPUT = "clips", "scores"


class Scorer(nn.Module):
    """float32 clips in, float32 scores out, whatever is computed with between them."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, clips: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, K]."""
        return self.network(clips.to(self.dtype)).float()


def check_suffix(path: str | os.PathLike) -> str:
    """``.onnx`` or ``.pt2``; ``ValueError`` for any other ending of ``path``."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{os.fspath(path)}: an exported file ends in .onnx (ONNX) or .pt2 (torch.export)")
    return suffix


def need_onnx(*modules: str) -> None:
    """``ImportError`` with the remedy unless the packages for ONNX are installed."""
    for module in modules:
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(
                f'ONNX files need the package {module}: python -m pip install "slowfast[export]", or '
                "python -m pip install onnx onnxscript onnxruntime"
            ) from error


def write_exported(network: nn.Module, path: str | os.PathLike, card: Card, *, precision: str = "fp32") -> Card:
    """Write ``network``, which gives scores of the clips that ``card`` tells of, and give the card that was written.

    The ending of ``path`` says how: .onnx or .pt2. ``precision``:

    - fp32: as it is;
    - fp16, and bf16 in a .pt2: weights and computation in half precision;
    - bf16 in an .onnx: weights in bfloat16, computation in float32, because runtimes lack most operations of it;
    - int8: weights of convolutions and linear layers in 8 bits, with a scale for each output channel; computation in
      float32.

    ``network`` is left as it was. Any number of clips may be given to the result, of the one size that the card tells.
    """
    suffix = check_suffix(path)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: allowed are {', '.join(PRECISIONS)}")
    if suffix == ".onnx":
        need_onnx("onnx", "onnxscript", "onnxruntime")
    card = replace(card, precision=precision)
    network = copy.deepcopy(network).eval().requires_grad_(False).to("cpu")
    dtype = torch.float32
    if precision == "int8":
        store_weights(network, to_int8)
    elif precision == "bf16" and suffix == ".onnx":
        store_weights(network, to_bfloat16)
    elif precision != "fp32":
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        network.to(dtype)
    program = trace(Scorer(network, dtype), torch.zeros(2, *card.shape))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".onnx":
        _write_onnx(program, path, card)
    else:
        torch.export.save(program, path, extra_files={CARD_FILE: card.to_json()})
    return card


def trace(network: nn.Module, clips: Tensor) -> torch.export.ExportedProgram:
    """The graph of ``network`` for any number of clips like ``clips`` [B, C, T, H, W], B more than 1."""
    # NOTE: "auto" chooses the form of a convolution by the number of clips; plain ones suit every number.
    with conv_backend(network, "native"), torch.no_grad():
        return torch.export.export(network, (clips,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _write_onnx(program: torch.export.ExportedProgram, path: str | os.PathLike, card: Card) -> None:
    with quietly():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    exported.model.metadata_props[CARD_KEY] = card.to_json()
    exported.save(os.fspath(path))


@contextmanager
def quietly() -> Iterator[None]:
    """Without the remarks that PyTorch's converters make to their own developers."""
    noisy = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [each.level for each in noisy]
    for each in noisy:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(noisy, levels):
            each.setLevel(level)
