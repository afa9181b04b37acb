"""Networks as files that run without this package's models: ONNX (``.onnx``) and ``torch.export`` (``.pt2``).

The one idea: a file carries a card, which says what the network wants to be shown and what its scores mean. So it can
be used without a configuration, here and elsewhere.
"""

from slowfast.export.card import Card, build_card, build_clips_of
from slowfast.export.compare import Comparison, compare, percent_right
from slowfast.export.read import ExportedNetwork, exported_predictor, load_exported
from slowfast.export.write import PRECISIONS, SUFFIXES, write_exported

__all__ = [
    "PRECISIONS",
    "SUFFIXES",
    "Card",
    "Comparison",
    "ExportedNetwork",
    "build_card",
    "build_clips_of",
    "compare",
    "exported_predictor",
    "load_exported",
    "percent_right",
    "write_exported",
]
