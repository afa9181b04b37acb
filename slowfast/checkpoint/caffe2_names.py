"""How the first published models, trained in Caffe2, named what our models name otherwise."""

import re

_KINDS = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}

# A blob is named <layer>_<kind>; "t_" in front marks the Fast pathway. {p} becomes the pathway's number.
_LAYERS = [
    (r"conv1(_xy)?", r"s1.pathway{p}_stem.conv\1"),
    (r"res_conv1_bn", r"s1.pathway{p}_stem.bn"),
    (r"pool1_subsample", r"s1_fuse.conv_f2s"),
    (r"pool1_subsample_bn", r"s1_fuse.bn"),
    (r"res(\d)_\d+_branch2c_bn_subsample", r"s\1_fuse.conv_f2s"),
    (r"res(\d)_\d+_branch2c_bn_subsample_bn", r"s\1_fuse.bn"),
    (r"res(\d)_(\d+)_branch1(_bn)?", r"s\1.pathway{p}_res\2.branch1\3"),
    (r"res(\d)_(\d+)_branch2([abc])(_bn)?", r"s\1.pathway{p}_res\2.branch2.\3\4"),
    (r"res(\d)_(\d+)_branch2b_bn_(fc[12])", r"s\1.pathway{p}_res\2.branch2.se.\3"),
    (r"nonlocal_conv(\d)_(\d+)_(theta|phi|g|out)", r"s\1.pathway{p}_nonlocal\2.conv_\3"),
    (r"nonlocal_conv(\d)_(\d+)_bn", r"s\1.pathway{p}_nonlocal\2.bn"),
    (r"(conv_5|conv_5_bn|lin_5)", r"head.\1"),
    (r"pred", r"head.projection"),
]
_LAYERS = [(re.compile(pattern), replacement) for pattern, replacement in _LAYERS]


def model_name(blob: str) -> str | None:
    """The state-dict name of a blob; None for what is no weight (momentum, learning rate, counters)."""
    fast = blob.startswith("t_")
    layer, _, kind = blob.removeprefix("t_").rpartition("_")
    if kind not in _KINDS:
        return None
    for pattern, replacement in _LAYERS:
        match = pattern.fullmatch(layer)
        if match:
            return f"{match.expand(replacement).replace('{p}', str(int(fast)))}.{_KINDS[kind]}"
    return None
