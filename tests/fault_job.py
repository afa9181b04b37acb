"""A training for torchrun: ``fault_job.py config.yaml RANK STEP`` kills that rank before that step, the first time."""

import os
import sys
from functools import partial

from faults import Fault, hurt_rank, kill

from slowfast.config import load_cfg
from slowfast.engine import launch, train

if __name__ == "__main__":
    path, rank, step = sys.argv[1:]
    first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    faults = [Fault("slowfast.engine.train:train_step", int(step), kill)] if first_time else []
    launch(partial(hurt_rank, partial(train, load_cfg(path)), int(rank), faults))
