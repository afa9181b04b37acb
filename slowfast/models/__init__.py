"""Networks. Importing this package registers them all."""

from slowfast.models.build import MODEL_REGISTRY, build_model
from slowfast.models.resnet import ResNet
from slowfast.models.slowfast import SlowFast

__all__ = ["MODEL_REGISTRY", "ResNet", "SlowFast", "build_model"]
