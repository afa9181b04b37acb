#!/usr/bin/env python3
"""Make one ordinary checkpoint file of a sharded one (MODEL.FSDP), or of the average of weights (TRAIN.EMA_DECAY).

    python tools/export_checkpoint.py output/checkpoints/checkpoint_epoch_00010.pyth whole.pyth
    python tools/export_checkpoint.py output/checkpoints/checkpoint_epoch_00010.pyth averaged.pyth --average

The first file holds all that the original's does: it resumes without MODEL.FSDP, and on any number of processes. With
--average, or --weights, only weights are written, for testing or fine-tuning.
"""

import argparse
import sys
from pathlib import Path

from slowfast.checkpoint import CheckpointError, load_checkpoint, write_atomically
from slowfast.checkpoint.convert import fold_sub_bn


def main(argv: list[str] | None = None) -> int:
    """Read, choose, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="file of a training")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--average", action="store_true", help="the moving average of the weights, nothing else")
    parser.add_argument("--weights", action="store_true", help="the weights, nothing else")
    args = parser.parse_args(argv)
    try:
        content = load_checkpoint(args.checkpoint)
        if args.output.exists():
            raise CheckpointError(f"{args.output} exists already: choose another name")
        if args.average and "ema_state" not in content:
            raise CheckpointError(
                f"{args.checkpoint} has no average of weights: it was trained without TRAIN.EMA_DECAY"
            )
        if args.average:
            content["model_state"] = fold_sub_bn(content["ema_state"]["weights"])
        if args.average or args.weights:
            content = {key: content[key] for key in ("model_state", "cfg", "class_names") if key in content}
        write_atomically(args.output, content)
    except (CheckpointError, OSError) as error:
        print(f"export_checkpoint.py: {error}", file=sys.stderr)
        return 1
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {', '.join(content)} ({len(content['model_state'])} tensors of the network, {size:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
