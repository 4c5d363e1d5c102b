"""An encoder with a linear classifier: the supervised network that teachers and students are made of.

Shapes: B images, C channels, H x W pixels, D width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError


class Classifier(nn.Module):
    """Encoder, dropout, and a linear map from its pooled vector to classes: (B, C, H, W) -> (B, K).

    Args:
        backbone: the encoder.
        classes: K.
        dropout: probability of dropping an element of the pooled vector while training.

    Raises:
        ConfigError: for fewer than one class, which says that nobody knows their number.
    """

    def __init__(self, backbone: Encoder, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if classes < 1:
            raise ConfigError(
                "the number of classes is not known: the images have no labels, and no earlier stage says it. Give "
                "labelled images, or set --method.classes."
            )
        self.backbone, self.drop = backbone, nn.Dropout(dropout)
        self.linear = nn.Linear(backbone.embed_dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(self.drop(self.backbone(images_BCHW).pooled_BD))
        return logits
