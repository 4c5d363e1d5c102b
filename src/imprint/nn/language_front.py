"""Text for data2vec from the data path: rows of tokens through a network for text of the catalogue.

Shape suffixes: B rows, L tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from imprint.backbones.language_model import LanguageModel
from imprint.core.errors import ConfigError
from imprint.nn.data2vec import FrontEnd


class LanguageFrontEnd(FrontEnd):
    """A `text:bert` network; targets are what its feed-forward layers put out, before the sum (Sec. 3.3).

    Its inputs are two tables of ids (2, B, L), -1 where there is no token: the rows, and what the student sees of them.

    Args:
        backbone: the network; its embeddings are shared by student and teacher.

    Raises:
        ConfigError: for a network of another kind.
    """

    shared = ("backbone.network.embeddings",)

    def __init__(self, backbone: LanguageModel) -> None:
        super().__init__()
        if backbone.kind != "bert":
            raise ConfigError(f"data2vec reads text by --encoder text:bert, not '{backbone.name}'.")
        self.backbone = backbone
        self.width, self.depth = backbone.embed_dim, backbone.depth

    def predict(self, inputs: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the tokens (B, L, D) of what the student sees."""
        last: Tensor = self.backbone(inputs[1])
        return last

    def layers(self, inputs: Tensor, top: int) -> list[Tensor]:
        """Return the feed-forward layers' outputs of the whole rows."""
        found: list[Tensor] = []
        network: Any = self.backbone.network

        def keep(module: nn.Module, given: Any, output: Tensor) -> None:
            found.append(output)

        blocks = list(network.encoder.layer)[self.depth - top :]
        hooks = [block.output.dense.register_forward_hook(keep) for block in blocks]
        try:
            self.backbone(inputs[0])
        finally:
            for hook in hooks:
                hook.remove()
        return found
