"""The first generation of 3-D ResNets, of 18 layers, as torchvision builds them; its weight files fit as they are."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18

from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.heads import ACTIVATIONS, refuse_boxes
from slowfast.models.pathways import as_pathways

BUILDERS = {"r3d_18": r3d_18, "mc3_18": mc3_18, "r2plus1d_18": r2plus1d_18}


@MODEL_REGISTRY.register()
class TorchVisionResNet(nn.Module):
    """R3D, MC3 and R(2+1)D of 18 layers (Tran et al., https://arxiv.org/abs/1711.11248).

    3 x 3 x 3 convolutions throughout, only in the first stage (1 x 3 x 3 in the others), or each split into a spatial
    and a temporal one. Names, weights and initialisation are torchvision's. MODEL.DROPOUT_RATE, which torchvision
    lacks, acts before the classifier; RESNET.*, MODEL.FC_INIT_STD and MODEL.CONV_BACKEND do not apply.
    """

    def __init__(self, arch: str, *, num_classes: int = 400, dropout: float = 0.0, act: str = "softmax"):
        super().__init__()
        if arch not in BUILDERS:
            raise ValueError(
                f"MODEL.ARCH={arch!r} with MODEL.MODEL_NAME='TorchVisionResNet': allowed are {', '.join(BUILDERS)}"
            )
        if act not in ACTIVATIONS:
            raise ValueError(f"MODEL.HEAD_ACT={act!r}: allowed are {', '.join(ACTIVATIONS)}")
        for name, child in BUILDERS[arch](weights=None, num_classes=num_classes).named_children():
            self.add_module(name, child)
        self.dropout = nn.Dropout(dropout)
        self.act = ACTIVATIONS[act]

    @classmethod
    def from_cfg(cls, cfg) -> "TorchVisionResNet":
        """The network that MODEL.* describes; clips of any length and side will do."""
        for key, given, allowed in (
            ("DATA.INPUT_CHANNEL_NUM", cfg.DATA.INPUT_CHANNEL_NUM[:1], [3]),
            ("BN.NORM_TYPE", cfg.BN.NORM_TYPE, "batchnorm"),
            ("MODEL.DETACH_FINAL_FC", cfg.MODEL.DETACH_FINAL_FC, False),
            ("DETECTION.ENABLE", cfg.DETECTION.ENABLE, False),
        ):
            if given != allowed:
                raise ValueError(f"{key}={given!r} with MODEL.MODEL_NAME='TorchVisionResNet': allowed is {allowed!r}")
        return cls(
            cfg.MODEL.ARCH,
            num_classes=cfg.MODEL.NUM_CLASSES,
            dropout=cfg.MODEL.DROPOUT_RATE,
            act=cfg.MODEL.HEAD_ACT,
        )

    def forward(self, clips: Tensor | Sequence[Tensor], boxes: Tensor | None = None) -> Tensor:
        """Clips [B, 3, T, H, W], or a list of that one tensor, -> logits or scores [B, K]; ``boxes`` are refused."""
        refuse_boxes(boxes)
        x = self.stem(as_pathways(clips, 1)[0])
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.avgpool(x).flatten(1))  # [B, 512, t, h, w] -> [B, 512]
        x = self.fc(x)
        return x if self.training else self.act(x)
