"""Networks. Importing this package registers them all."""

from slowfast.models.build import MODEL_REGISTRY, build_model
from slowfast.models.contrastive import ContrastiveModel
from slowfast.models.masked import MaskMViT
from slowfast.models.mvit import MViT
from slowfast.models.ptv import PTVCSN, PTVX3D, PTVMViT, PTVR2plus1D, PTVResNet, PTVSlowFast
from slowfast.models.resnet import ResNet
from slowfast.models.slowfast import SlowFast
from slowfast.models.torchvision_nets import TorchVisionResNet
from slowfast.models.x3d import X3D

__all__ = [
    "MODEL_REGISTRY",
    "PTVCSN",
    "PTVX3D",
    "X3D",
    "ContrastiveModel",
    "MViT",
    "MaskMViT",
    "PTVMViT",
    "PTVR2plus1D",
    "PTVResNet",
    "PTVSlowFast",
    "ResNet",
    "SlowFast",
    "TorchVisionResNet",
    "build_model",
]
