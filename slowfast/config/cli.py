"""The command line of the tools: which files, which options, which machine of how many.

Files and options stand beside each other without marks (``--cfg A.yaml NUM_GPUS 0``), and a value may begin with a
minus, so they are told apart here; argparse has the rest and the help.
"""

import argparse
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from fvcore.common.config import CfgNode

from slowfast.config.defaults import ConfigError
from slowfast.config.load import load_cfg, option_pairs, scale_rates

_EXAMPLES = """\
examples:
  %(prog)s --cfg configs/Kinetics/SLOWFAST_8x8_R50.yaml DATA.PATH_TO_DATA_DIR lists NUM_GPUS 2
      train and test as the file says, with two values changed
  %(prog)s --cfg A.yaml B.yaml --opts OUTPUT_DIR=out TRAIN.ENABLE False
      two jobs, one after another; KEY=VALUE is the same as KEY VALUE
  %(prog)s --cfg A.yaml TEST.CHECKPOINT_FILE_PATH model.pyth TRAIN.ENABLE False
      test a checkpoint
  %(prog)s --cfg A.yaml --check
      look at everything before starting: paths, lists, batch, memory, pace; trains and writes nothing
  %(prog)s --cfg A.yaml --num_shards 2 --shard_id 1 --init_method tcp://10.0.0.1:9999
      the second of two machines

Every key, with its default and meaning, is in slowfast/config/defaults.py. NUM_GPUS 0 runs on the CPU.
"""


@dataclass(frozen=True)
class Args:
    """What was asked for on the command line."""

    cfg_files: tuple[str, ...]
    opts: tuple[str, ...] = ()
    shard_id: int | None = None  # None: as the file says
    num_shards: int | None = None
    init_method: str | None = None  # None: a free port of this machine
    zoo: str | None = None  # the name of a published model
    check: bool = False  # look at the jobs instead of running them

    def load(self) -> list[CfgNode]:
        """One checked, frozen tree per file; ``ConfigError`` where one of them is wrong."""
        machines = [("NUM_SHARDS", self.num_shards), ("SHARD_ID", self.shard_id)]
        pairs = [*option_pairs(self.opts), *(pair for pair in machines if pair[1] is not None)]
        opts = [item for pair in pairs for item in pair]
        return [scale_rates(load_cfg(file, opts)) for file in self.cfg_files]


def parse_args(argv: Sequence[str] | None = None, description: str | None = None, *, knows_zoo: bool = False) -> Args:
    """Read ``argv`` (the arguments of the process if None); help and errors end the process."""
    parser = _parser(description, knows_zoo)
    cfg_files, opts, flags = _sort(sys.argv[1:] if argv is None else argv)
    known = parser.parse_args(flags)
    if not cfg_files and known.zoo is None:
        parser.error("no config file: give at least one with --cfg (see --help)")
    machines = (known.shard_id, known.num_shards, known.init_method)
    return Args(tuple(cfg_files), tuple(opts), *machines, known.zoo, known.check)


def load_jobs(
    argv: Sequence[str] | None = None,
    description: str | None = None,
    *,
    from_zoo: Callable[[Args], Args] | None = None,
) -> tuple[Args, list[CfgNode]]:
    """``parse_args`` and ``Args.load`` for a tool's main: a config error, too, is one line and exit code 2.

    With ``from_zoo`` there is an option --zoo; it turns arguments that name a published model into those that name
    its config and weights.
    """
    args = parse_args(argv, description, knows_zoo=from_zoo is not None)
    try:
        if from_zoo is not None and args.zoo is not None:
            args = from_zoo(args)
        return args, args.load()
    except ConfigError as error:
        _parser(description).error(str(error))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser(description: str | None, knows_zoo: bool = False) -> argparse.ArgumentParser:
    parser = _Parser(
        usage="%(prog)s --cfg A.yaml [B.yaml ...] [--opts] [KEY VALUE ...]\n"
        "       [--check] [--shard_id I] [--num_shards N] [--init_method URL]",
        description=description or "Run the jobs that config files describe.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cfg", nargs="+", metavar="FILE", help="config files; each is a job of its own, run in turn")
    if knows_zoo:
        parser.add_argument(
            "--zoo",
            metavar="NAME",
            help="a published model (see tools/zoo.py): test its weights with its config, or fine-tune them with "
            "TRAIN.ENABLE True; beside --cfg, use the weights with that file",
        )
    else:
        parser.set_defaults(zoo=None)
    parser.add_argument(
        "--opts", nargs="*", metavar="KEY VALUE", help="keys to change; the word --opts may be left out"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at environment, data, batch, memory, pace and checkpoints, and train nothing; exit code 1 if "
        "there is a problem",
    )
    parser.add_argument(
        "--shard_id", type=int, metavar="I", help="this machine, 0 .. N-1 (default: SHARD_ID of the file)"
    )
    parser.add_argument("--num_shards", type=int, metavar="N", help="machines (default: NUM_SHARDS of the file)")
    parser.add_argument(
        "--init_method",
        metavar="URL",
        help="where the processes meet, tcp://HOST:PORT of the first machine (not needed on a single one)",
    )
    return parser


def _sort(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Files, options, and what argparse is to read: the flags with their values.

    What follows ``--cfg`` is a file, and so is each further word that ends in .yaml or .yml; the others are options.
    """
    cfg_files: list[str] = []
    opts: list[str] = []
    flags: list[str] = []
    in_files = first = False
    words = deque(argv)
    while words:
        word = words.popleft()
        name, equals, value = word.partition("=")
        if name == "--cfg":
            in_files = first = True
            if equals:
                words.appendleft(value)
        elif word == "--opts":
            in_files = False
        elif word.startswith("--") or word == "-h":
            flags.append(word)
            if words and not equals and word not in ("-h", "--help", "--check"):
                flags.append(words.popleft())
        else:
            in_files = in_files and (first or word.endswith((".yaml", ".yml")))
            first = False
            (cfg_files if in_files else opts).append(word)
    return cfg_files, opts, flags
