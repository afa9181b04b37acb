"""Weights & Biases: the scalars that TensorBoard gets, results of tests, and the confusion matrix.

The package is optional, and switched off unless ``WANDB.ENABLE`` asks for it.
"""

import io
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slowfast.config.defaults import flatten
from slowfast.visualization import plots
from slowfast.visualization.results import count_confusions
from slowfast.visualization.tensorboard import scalars_of

_MOST_CLASSES = 60  # of a confusion matrix that can be read
_RESULTS = ("top1_acc", "top5_acc", "map")


class WandbSink:
    """Sends records to a run of Weights & Biases, which a later job of the same folder goes on with.

    ``config`` is shown beside the run. ``offline`` writes to ``output_dir/wandb`` only; ``wandb sync`` sends it later.
    """

    def __init__(
        self, output_dir: str | Path, *, project: str, name: str, config: Mapping[str, Any], offline: bool
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "WANDB.ENABLE needs Weights & Biases: python -m pip install wandb (or switch it off)"
            ) from error
        self._wandb = wandb
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        how = {"mode": "offline"} if offline else {"mode": "online", "resume": "allow"}
        self._run = wandb.init(
            dir=str(folder), project=project, name=name or folder.name, id=run_id(folder), config=dict(config), **how
        )
        # Each kind of number has its own axis, so that a resumed training may write a step again.
        for prefix, axis in (("Train", "step"), ("Val", "epoch")):
            self._run.define_metric(axis)
            self._run.define_metric(f"{prefix}/*", step_metric=axis)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Scalars of training (over steps) and validation (over epochs, from 1); results of tests as a summary."""
        if record.get("split") == "test_final":
            results = {key: float(record[key]) for key in _RESULTS if key in record}
            prefix = f"Test/{record['views']}/" if "views" in record else "Test/"
            self._run.summary.update({f"{prefix}{key}": value for key, value in results.items()})
        values = scalars_of(record)
        if values:
            is_validation = str(record.get("_type", "")).startswith("val")
            place = {"epoch": step + 1} if is_validation else {"step": step}
            self._run.log({**values, **place})

    def add_predictions(self, scores: Tensor | np.ndarray, labels: Tensor | np.ndarray, step: int) -> None:
        """The confusion matrix of ``scores`` [N, K] and single ``labels`` [N], where K classes can be read in one."""
        scores, labels = torch.as_tensor(scores).cpu().numpy(), torch.as_tensor(labels).cpu().numpy()
        if labels.ndim != 1 or scores.shape[1] > _MOST_CLASSES:
            return
        from PIL import Image

        counts = count_confusions(labels, scores.argmax(axis=1), scores.shape[1])
        figure = plots.confusion_matrix(counts, [str(index) for index in range(len(counts))])
        picture = Image.open(io.BytesIO(plots.to_png(figure)))
        self._run.log({"Confusion Matrix": self._wandb.Image(picture)})

    def close(self) -> None:
        """Send what is left and end the run."""
        self._run.finish()


def run_id(folder: Path) -> str:
    """The id of the run of this folder, made when it is first asked for."""
    file = folder / "wandb_id.txt"
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:10] + "\n")
    return file.read_text().strip()


def build_wandb(cfg) -> WandbSink | None:
    """The sink that ``cfg.WANDB`` asks for; ``None`` where it is switched off."""
    if not cfg.WANDB.ENABLE:
        return None
    options = cfg.WANDB
    return WandbSink(
        cfg.OUTPUT_DIR, project=options.PROJECT, name=options.NAME, config=flatten(cfg), offline=options.OFFLINE
    )
