"""What a training that starts from another network's weights may lack, and advice where the weights do not fit.

The one idea: a new classifier is what fine-tuning is for, and a pre-training has parts that nothing else has; anything
else that is left at random is a mistake, unless the config says so.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from slowfast.checkpoint.convert import clear_name
from slowfast.checkpoint.io import LoadReport

State = Mapping[str, Tensor]

# Names, from their beginning. The key encoder, queue and banks of contrastive learning; what predicts hidden tokens.
_PRETRAINING = (
    r"backbone_hist\.|ptr$|iter$|queue_\w+$|knn_mem\.|memory\.|swav_prototypes\.",
    r"mask_token$|decoder_embed\.|decoder_pos_embed$|dec_pos_embed_\w+$|pred_head\.|hogs\.",
)
_HEAD = r"(.*\.)?(head|detection_head)\."
_PTV_HEAD = r"(model\.)?blocks\.\d+\.proj\."  # of convolutional networks; of MViT, it is a shortcut
_NONLOCAL = r".*_nonlocal\d+\."  # networks with such blocks are trained from those without
_FINAL_NORM = r"norm\.(weight|bias)$"
# What images and clips do not share: positions, absolute or relative ones in time, and often the class token.
_IMAGE_INIT = r"pos_embed|cls_token$|.*\.rel_pos_t$"
_CLEAR = "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN"


def extras(model: nn.Module) -> re.Pattern[str]:
    """What the names begin with that belong to a classifier or only to a pre-training: they are not carried over."""
    linear = [place for place, module in model.named_modules() if isinstance(module, nn.Linear)]
    last = [re.escape(f"{place}.") for place in linear[-1:] if place]
    return re.compile("|".join([_HEAD, *_PRETRAINING, *last]))


def may_differ(
    model: nn.Module, state: State, *, report: LoadReport, clear_patterns: Sequence[str] = (), image_init: bool = False
) -> set[str]:
    """The names among the problems of ``report`` that a fine-tuning from the file's ``state`` may have.

    The classifier; parts of a pre-training; with ``image_init`` positions and class token; non-local blocks that the
    file lacks; and what a pattern took out of the file.
    """
    parts = [extras(model).pattern, *([_IMAGE_INIT] if image_init else [])]
    if "mask_token" in report.problems():
        parts.append(_FINAL_NORM)  # MaskFeat predicts from blocks, before it
    allowed = re.compile("|".join(parts))
    differing = {name for name in report.problems() if allowed.match(name)}
    differing |= {name for name in report.missing if re.match(_NONLOCAL, name)}
    differing |= {name for name in report.missing if any(pattern in name for pattern in clear_patterns)}
    taken_out = {clear_name(name, clear_patterns) for name in state if name in report.missing}
    return differing | {name for name in report.unexpected if name in taken_out or re.match(_PTV_HEAD, name)}


def advice(report: LoadReport, *, training: bool) -> str:
    """What could be meant by weights that do not fit as ``report`` says, and the key for it; each a line."""
    lines = []
    pattern = _prefix_in_the_way(report)
    if pattern and training:
        lines.append(f"the names in the file have {pattern!r} before ours: set {_CLEAR} {[pattern]}")
    shapes = [(here, there) for _, here, there in report.mismatched]
    if training and any(len(here) == 4 and len(there) == 5 for here, there in shapes):
        key = "TRAIN.CHECKPOINT_IN_INIT" if _is_transformer(report) else "TRAIN.CHECKPOINT_INFLATE"
        lines.append(f"the file is of a network for images: set {key} True")
    lines = lines or _class_count(report)
    if not lines:
        lines.append("the file is of another network: compare MODEL.* with the config that belongs to it")
        if training:
            lines.append(f"(a new classifier may differ; to leave another part as it is, name it in {_CLEAR})")
    return "".join(f"\n{line}" for line in lines)


def _prefix_in_the_way(report: LoadReport) -> str:
    """The commonest text that stands before a name that is missing; empty if there is none."""
    missing = set(report.missing)
    found: Counter[str] = Counter()
    for name in report.unexpected:
        if re.match("|".join(_PRETRAINING), name):
            continue
        places = [match.end() for match in re.finditer(r"\.", name)]
        found.update(name[:place] for place in places if name[place:] in missing)
    return found.most_common(1)[0][0] if found else ""


def _is_transformer(report: LoadReport) -> bool:
    return any(name.startswith("patch_embed.") for name, _, _ in report.mismatched)


def _class_count(report: LoadReport) -> list[str]:
    """A hint where nothing but the number of rows of one layer, the classifier, is wrong."""
    layers = {name.rpartition(".")[0] for name, _, _ in report.mismatched}
    rows = {(here[0], there[0]) for _, here, there in report.mismatched if here and there}
    columns_fit = all(here[1:] == there[1:] for _, here, there in report.mismatched)
    if report.missing or report.unexpected or len(layers) != 1 or len(rows) != 1 or not columns_fit:
        return []
    ((here, there),) = rows
    return [f"the file classifies {here} classes, the model {there}: set MODEL.NUM_CLASSES {here}"]
