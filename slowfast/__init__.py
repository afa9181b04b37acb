"""Video understanding: train, evaluate, inspect and ship SlowFast, X3D, MViT and their relatives."""

__version__ = "0.1.0"
