"""From files and options to one checked, frozen tree.

Everything is first brought to one flat form, full key -> (raw value, where it was written), so that inheritance
is a dictionary update and every complaint can name the file, or --opts, that is to be changed.
"""

import difflib
import logging
import os
from ast import literal_eval
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fvcore.common.config import BASE_KEY, CfgNode
from iopath.common.file_io import PathManagerFactory

from slowfast.config.defaults import NONE_TYPES, ConfigError, flatten, get_cfg

logger = logging.getLogger(__name__)
_pathmgr = PathManagerFactory.get(key="slowfast")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Keys and sections that some published files carry although nothing ever read them: accepted, left out of the tree.
_IGNORED = {
    "PREFETCH": "workers are set by DATA_LOADER.NUM_WORKERS",
    "TENSORBOARD.MODEL_VIS.TOPK": "the number of labels is set by TENSORBOARD.MODEL_VIS.TOPK_PREDS",
}
_ARTICLES = {bool: "a bool", int: "an int", float: "a float", str: "a string", list: "a list", tuple: "a tuple"}

_MACHINE_KEYS = ("NUM_SHARDS", "SOLVER.BASE_LR_SCALE_NUM_SHARDS")


class _Entry(NamedTuple):
    value: Any
    origin: str  # file name, or "--opts"


def load_cfg(path: str | os.PathLike | Sequence[str | os.PathLike] | None = None, opts: Sequence = ()) -> CfgNode:
    """Defaults, then the file(s) at ``path`` in turn, then ``opts``, checked and frozen.

    ``opts`` is flat, ``KEY, value, KEY, value, ...``; an item ``"KEY=value"`` stands for a pair. Strings that read as
    a Python literal are taken as such, an int serves where a float is meant, a list where a tuple is, and None
    everywhere. ``ConfigError`` says which file or option is wrong and what would be right.

    A file alone gives exactly the tree it writes down. Options that set the number of machines, or ask for learning
    rates scaled by it, have the rates scaled here; otherwise ``scale_rates`` does it when a job starts.
    """
    files = [path] if isinstance(path, (str, os.PathLike)) else list(path or ())
    entries: dict[str, _Entry] = {}
    for file in files:
        entries |= _read(os.fspath(file))
    entries |= {key: _Entry(value, "--opts") for key, value in option_pairs(opts)}

    cfg = get_cfg()
    defaults = flatten(cfg)
    for key, entry in entries.items():
        _place(cfg, defaults, key, entry)
    _check(cfg, where=", ".join(map(os.fspath, files)) or "--opts")
    cfg.freeze()
    asked = any(entries[key].origin == "--opts" for key in _MACHINE_KEYS if key in entries)
    return scale_rates(cfg) if asked else cfg


def scale_rates(cfg: CfgNode) -> CfgNode:
    """``cfg`` with its learning rates multiplied by NUM_SHARDS if SOLVER.BASE_LR_SCALE_NUM_SHARDS asks for it, frozen.

    The request is taken back once it is met, so doing it twice, or loading a dumped tree, changes nothing.
    """
    if not cfg.SOLVER.BASE_LR_SCALE_NUM_SHARDS or cfg.NUM_SHARDS == 1:
        return cfg
    scaled = cfg.clone()
    scaled.defrost()
    for key in ("BASE_LR", "WARMUP_START_LR", "COSINE_END_LR"):
        scaled.SOLVER[key] *= cfg.NUM_SHARDS
    scaled.SOLVER.BASE_LR_SCALE_NUM_SHARDS = False
    scaled.freeze()
    rate = scaled.SOLVER.BASE_LR
    logger.info("Learning rates are scaled by NUM_SHARDS=%d: SOLVER.BASE_LR=%g", cfg.NUM_SHARDS, rate)
    return scaled


def dump_cfg(cfg: CfgNode) -> str:
    """The whole tree as YAML text that ``load_cfg`` turns into an equal tree."""
    return cfg.dump(sort_keys=False, default_flow_style=None, width=120)


def save_cfg(cfg: CfgNode, path: str | os.PathLike) -> None:
    """Write ``dump_cfg(cfg)`` to ``path``; its folder is made if need be."""
    _pathmgr.mkdirs(os.path.dirname(os.fspath(path)) or ".")
    with _pathmgr.open(os.fspath(path), "w") as file:
        file.write(dump_cfg(cfg))


def _read(file: str, readers: tuple[str, ...] = ()) -> dict[str, _Entry]:
    """The entries of ``file`` over those of its ``_BASE_`` files; ``readers`` are the files that led here."""
    if file in readers:
        raise ConfigError(f"{BASE_KEY} goes in a circle: {' -> '.join((*readers, file))}")
    tree = _parse(file, readers)
    bases = tree.pop(BASE_KEY, None) or []
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{file}: {BASE_KEY} = {bases!r}, expected the name of a file or a list of names")
    entries: dict[str, _Entry] = {}
    for base in bases:
        entries |= _read(_locate(base, file), (*readers, file))
    return entries | {key: _Entry(value, file) for key, value in flatten(tree).items()}


def _locate(base: str, file: str) -> str:
    """The path of a ``_BASE_`` entry: relative to the file that names it unless absolute, ``~`` or a URL."""
    if "://" in base:
        return base
    return os.path.normpath(os.path.join(os.path.dirname(file), os.path.expanduser(base)))


def _parse(file: str, readers: tuple[str, ...]) -> dict:
    via = f" (named by {BASE_KEY} in {readers[-1]})" if readers else ""
    try:
        with _pathmgr.open(file, "r") as stream:
            tree = yaml.load(stream, Loader=_Loader)
    except OSError as error:
        reason = "no such config file" if isinstance(error, FileNotFoundError) else f"cannot be read, {error.strerror}"
        raise ConfigError(f"{file}: {reason}{via}{_neighbours(file)}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{file}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a YAML text: {error}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{file}: holds a {type(tree).__name__}, not sections with keys")
    return tree or {}


def _neighbours(file: str) -> str:
    """Names in the folder of ``file`` that resemble it, as a hint to append."""
    folder = Path(file).parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist"
    names = {name.stem: name.name for name in folder.iterdir() if name.suffix in (".yaml", ".yml")}
    close = difflib.get_close_matches(Path(file).stem, names, n=3)
    return f"; did you mean {' or '.join(names[stem] for stem in close)}?" if close else ""


def option_pairs(opts: Sequence) -> Iterator[tuple[str, Any]]:
    """The ``KEY, value`` and ``"KEY=value"`` items of a flat list as pairs; ``ConfigError`` if a value is missing."""
    items = iter(opts)
    for item in items:
        if not isinstance(item, str):
            raise ConfigError(f"--opts: expected the name of a key, got {item!r}; options are KEY VALUE KEY VALUE ...")
        key, equals, value = item.partition("=")
        if not equals:
            try:
                value = next(items)
            except StopIteration:
                raise ConfigError(f"--opts: {item} has no value; options are KEY VALUE KEY VALUE ...") from None
        yield key, value


def _place(cfg: CfgNode, defaults: dict[str, Any], key: str, entry: _Entry) -> None:
    """Put one entry into the tree, or say why it has no place there."""
    if key not in defaults:
        for ignored, instead in _IGNORED.items():
            if f"{key}.".startswith(f"{ignored}."):
                logger.warning("%s: %s is ignored, it has never had an effect; %s", entry.origin, key, instead)
                return
        if any(known.startswith(f"{key}.") for known in defaults):
            if entry.value in (None, {}):
                return  # a section whose keys are all commented out
            raise ConfigError(f"{entry.origin}: {key} is a section, it takes keys and not {entry.value!r}")
        raise ConfigError(f"{entry.origin}: unknown key {key}{_nearest(key, defaults)}")
    kind = NONE_TYPES.get(key, type(defaults[key]))
    try:
        value = _fit(entry.value, kind)
    except TypeError:
        given = _ARTICLES.get(type(entry.value), f"a {type(entry.value).__name__}")
        raise ConfigError(
            f"{entry.origin}: {key} = {entry.value!r} ({given}), expected {_ARTICLES[kind]} like {defaults[key]!r}"
        ) from None
    *sections, leaf = key.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    node[leaf] = value


def _nearest(key: str, known: dict[str, Any]) -> str:
    """A hint naming the known key that looks most like ``key``, as a whole and in its last part."""

    def likeness(candidate: str) -> float:
        pairs = ((key, candidate), (key.rpartition(".")[2], candidate.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, a.upper(), b.upper()).ratio() for a, b in pairs)

    for parent in known:
        if key.startswith(f"{parent}."):
            return f": {parent} takes a value, it has no keys of its own"
    best = max(known, key=likeness)
    if likeness(best) > 1.2:
        return f"; did you mean {best}?"
    return "; keys of your own are declared with slowfast.config.register_keys"


def _fit(value: Any, kind: type) -> Any:
    """``value`` as ``kind``; ``TypeError`` where it cannot be meant so. ``kind`` NoneType takes anything."""
    if isinstance(value, str):
        value = _from_text(value, kind)
    if isinstance(value, (list, tuple)):
        value = kind(_listed(value)) if kind in (list, tuple) else _listed(value)
    elif kind is float and type(value) is int:
        value = float(value)
    if value is None or kind is type(None) or type(value) is kind:
        return value
    raise TypeError


def _from_text(text: str, kind: type) -> Any:
    """What a string means: a Python literal where it reads as one, unless the key holds strings."""
    word = text.strip().lower()
    if kind is bool and word in ("true", "false"):
        return word == "true"
    if kind is float and word.replace(".", "").lstrip("+-") in ("inf", "nan"):
        return float(word.replace(".", ""))
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return text if kind is str and not isinstance(value, (str, type(None))) else value


def _listed(value: Any) -> Any:
    """Nested sequences as lists, which is how YAML gives them back."""
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check(cfg: CfgNode, where: str) -> None:
    """Refuse combinations of values that cannot run, whatever the job."""
    problems = []
    for split in ("TRAIN", "TEST"):
        batch, kind = cfg[split].BATCH_SIZE, cfg[split].CHECKPOINT_TYPE
        if cfg.NUM_GPUS > 0 and batch % cfg.NUM_GPUS:
            problems.append(f"{split}.BATCH_SIZE={batch} does not divide by NUM_GPUS={cfg.NUM_GPUS}")
        if kind not in ("pytorch", "caffe2"):
            problems.append(f"{split}.CHECKPOINT_TYPE={kind!r} is neither 'pytorch' nor 'caffe2'")
    if cfg.NUM_GPUS < 0:
        problems.append(f"NUM_GPUS={cfg.NUM_GPUS} is below 0 (0 is the CPU)")
    if not 0 <= cfg.SHARD_ID < cfg.NUM_SHARDS:
        problems.append(f"SHARD_ID={cfg.SHARD_ID} is not within 0 .. NUM_SHARDS-1, with NUM_SHARDS={cfg.NUM_SHARDS}")
    if cfg.BN.USE_PRECISE_STATS and cfg.BN.NUM_BATCHES_PRECISE < 0:
        problems.append(f"BN.NUM_BATCHES_PRECISE={cfg.BN.NUM_BATCHES_PRECISE} is below 0")
    width, groups = cfg.RESNET.WIDTH_PER_GROUP, cfg.RESNET.NUM_GROUPS
    if width <= 0 or groups <= 0 or width % groups:
        problems.append(f"RESNET.WIDTH_PER_GROUP={width} does not divide into RESNET.NUM_GROUPS={groups} groups")
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems)}")
