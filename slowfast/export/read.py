"""From a file to scores: the exported network as a module, and a predictor around it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from slowfast.export.card import Card, build_clips_of
from slowfast.export.write import CARD_FILE, CARD_KEY, INPUT, OUTPUT, check_suffix, need_onnx, quietly
from slowfast.visualization.class_names import load_class_names
from slowfast.visualization.predictor import Predictor


class ExportedNetwork(nn.Module):
    """A network out of a file, for scores only. ``card`` says what it is shown, ``run`` computes.

    It has no weights to be seen, and stays on the device that it was loaded for.
    """

    def __init__(self, card: Card, run: Callable[[Tensor], Tensor], origin: str):
        super().__init__()
        self.card = card
        self.origin = origin
        # NOTE: in a tuple, so that it is no child: a loaded graph refuses ``eval()``.
        self._run = (run,)

    def forward(self, clips: Tensor) -> Tensor:
        """Normalised clips [B, 3, T, H, W], float32, -> scores [B, K]."""
        if tuple(clips.shape[1:]) != self.card.shape:
            raise ValueError(
                f"{self.origin} was exported for clips of {list(self.card.shape)} (channels, frames, height, width), "
                f"given are {list(clips.shape[1:])}: that is fixed when a network is exported"
            )
        return self._run[0](clips)


def load_exported(path: str | os.PathLike, *, device: torch.device | str | None = None) -> ExportedNetwork:
    """The network of an .onnx or .pt2 that ``write_exported`` wrote, on ``device``: by default a GPU if there is one.

    ``ValueError`` where the file is none, ``ImportError`` where the package that runs it is not installed.
    NOTE: a .pt2 from a stranger is read by PyTorch and deserves as much trust as a checkpoint from one.
    """
    path, suffix = os.fspath(path), check_suffix(path)
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    card, run = (_load_onnx if suffix == ".onnx" else _load_pt2)(path, device)
    return ExportedNetwork(card, run, path)


def exported_predictor(
    path: str | os.PathLike,
    *,
    opts: Sequence = (),
    labels: str | os.PathLike | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
) -> Predictor:
    """A predictor of the network in a file: clips, views and names are those of its card.

    ``opts`` change keys of views and reading (``FREE_KEYS``), ``labels`` is a file of other names.
    """
    network = load_exported(path, device=device)
    card = network.card
    clips, values = build_clips_of(card, opts)
    return Predictor(
        network,
        clips,
        card.labels if labels is None else load_class_names(labels, len(card.labels)),
        merge=values["DATA.ENSEMBLE_METHOD"],
        batch_size=values["TEST.BATCH_SIZE"] if batch_size is None else batch_size,
        fps=card.fps,
        device="cpu",  # the network takes clips to where it is
        fold=False,
    )


def _load_pt2(path: str, device: torch.device | str | None) -> tuple[Card, Callable[[Tensor], Tensor]]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no file of torch.export")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    extra = {CARD_FILE: ""}
    with quietly():
        try:
            program = torch.export.load(path, extra_files=extra)
        except (RuntimeError, KeyError, ValueError, AssertionError) as error:
            raise ValueError(f"{path} cannot be read by PyTorch {torch.__version__}: {error}") from error
    card = Card.from_json(extra[CARD_FILE], path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    graph = program.module()

    def run(clips: Tensor) -> Tensor:
        with torch.no_grad():
            return graph(clips.to(device))

    return card, run


def _load_onnx(path: str, device: torch.device | str | None) -> tuple[Card, Callable[[Tensor], Tensor]]:
    need_onnx("onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    wanted = torch.device(device or ("cuda" if has_cuda else "cpu"))
    if wanted.type == "cuda" and not has_cuda:
        raise ValueError(f"this onnxruntime has no CUDA for the device {wanted}: python -m pip install onnxruntime-gpu")
    providers: list = ["CPUExecutionProvider"]
    if wanted.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": wanted.index or 0}))
    options = onnxruntime.SessionOptions()
    # Its threads would hold the cores for a while after each batch, against decoding and drawing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except (errors.InvalidArgument, errors.InvalidProtobuf, errors.InvalidGraph, errors.NoModel, errors.Fail) as error:
        raise ValueError(f"{path} cannot be read by onnxruntime {onnxruntime.__version__}: {error}") from error
    except errors.NotImplemented as error:
        raise ValueError(f"{path}: this onnxruntime lacks an operation of it on {wanted}: {error}") from error
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(CARD_KEY, ""), path)

    def run(clips: Tensor) -> Tensor:
        (scores,) = session.run([OUTPUT], {INPUT: clips.cpu().contiguous().numpy()})
        return torch.from_numpy(scores)

    return card, run
