"""SimSiam: exploring simple Siamese representation learning.

Chen, He 2020, arXiv 2011.10566. One network sees both views; a predictor makes one's projection alike the other's,
which is held constant. No negatives, no momentum encoder, no large batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import mocov2_views
from imprint.data.views import View
from imprint.losses.regression import simsiam_loss
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig(MethodConfig):
    """SimSiam's choices.

    Attributes:
        projection: width of the projector's layers and of z (Sec. 3).
        layers: layers of the projector: 3 for ImageNet (Sec. 3), 2 for CIFAR-10 (App. D).
        output_norm: end the projector in a BatchNorm without gain and shift (Sec. 3); off is Table 3's "hidden-only".
        predictor_hidden: width of the predictor's bottleneck, a quarter of `projection` (Sec. 3).
        stop_gradient: hold the other view's projection constant; without it the network collapses (Sec. 4.1, Fig. 2).
        predictor_constant_lr: do not decay the predictor's learning rate (Sec. 4.2, Table 1; --fix-pred-lr).
        crop_scale: bounds of the crop's area share (Sec. 3, MoCo v2's views).
        colour: factor on the jitter (0.4, 0.4, 0.4, 0.1) (Sec. 3).
        blur: probability of the Gaussian blur (Sec. 3); 0 for CIFAR-10 (App. D).
    """

    projection: int = 2048
    layers: int = 3
    output_norm: bool = True
    predictor_hidden: int = 512
    stop_gradient: bool = True
    predictor_constant_lr: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)
    colour: float = 1.0
    blur: float = 0.5


class SimSiam(Method):
    """Encoder and projector f, predictor h, negative cosine with stop-gradient (Algorithm 1).

    As in the public code (facebookresearch/simsiam): each view goes through f by itself, so BatchNorm's statistics are
    those of one view; layers before a BatchNorm have no bias, the predictor's last layer has one; the projector ends
    in a BatchNorm without gain and shift. Its hidden layers have the width of z here, the encoder's there: both are
    2048 for a ResNet-50. Weight decay covers every parameter, BatchNorm and biases included.
    """

    Config: ClassVar[type[MethodConfig]] = SimSiamConfig

    def __init__(self, cfg: SimSiamConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        widths = (encoder.embed_dim, *(cfg.projection,) * cfg.layers)
        projector = ProjectionMLP(widths, last_norm="plain" if cfg.output_norm else "none")
        self.branch = Branch(encoder, projector)
        self.predictor = ProjectionMLP((cfg.projection, cfg.predictor_hidden, cfg.projection))

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two views of one distribution, MoCo v2's (Sec. 3)."""
        assert isinstance(cfg, SimSiamConfig)
        return mocov2_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur)

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Name a missing stop-gradient (Sec. 4.1)."""
        assert isinstance(cfg, SimSiamConfig)
        if cfg.stop_gradient:
            return ()
        return (
            "stop_gradient is off: without it SimSiam collapses to a constant (arXiv 2011.10566, Sec. 4.1, Fig. 2); "
            "set --method.stop-gradient True",
        )

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute L = D(p1, stopgrad(z2)) / 2 + D(p2, stopgrad(z1)) / 2 (Eq. 4)."""
        z1_BD, z2_BD = (self.branch(view[None])[0] for view in batch.views["global"])
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = simsiam_loss(p1_BD, p2_BD, z1_BD, z2_BD, stop_gradient=self.cfg.stop_gradient)
        return StepOutput(loss, agreement(z1_BD.detach(), z2_BD.detach()))

    def param_groups(self) -> list[ParamGroup]:
        """Decay every weight; the predictor's rate stays where it starts."""
        groups = []
        for name, constant in (("branch", False), ("predictor", self.cfg.predictor_constant_lr)):
            named = [(n, p) for n, p in self.named_parameters() if n.startswith(name) and p.requires_grad]
            params, names = [p for _, p in named], [n for n, _ in named]
            groups.append(ParamGroup(name=name, params=params, names=names, constant_lr=constant))
        return groups

    @property
    def encoder(self) -> Encoder:
        """The encoder; projector and predictor are thrown away (Sec. 3)."""
        return self.branch.backbone
