"""Speech for data2vec: strided convolutions over the raw waveform, spans of frames hidden.

Shape suffixes: B recordings, S samples, T frames, D width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.core.errors import ConfigError
from imprint.nn.data2vec import FrontEnd
from imprint.nn.sequence import SequenceTransformer

CONVOLUTIONS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
"""wav2vec 2.0's (arXiv 2006.11477, Sec. 4.2): (channels, kernel, stride), a frame per 320 samples, 20 ms at 16 kHz."""


class WaveformFrontEnd(FrontEnd):
    """wav2vec 2.0's encoder of frames, convolutional positions and a transformer (data2vec, Sec. 4.2).

    Masked frames become one learned vector, before the positions. A recording is brought to mean 0 and variance 1.

    Args:
        width: D.
        depth: blocks.
        heads: attention heads.
        convolutions: (channels, kernel, stride) of each; layer norm and GELU after each.
        positions: layers of convolutions that give frames their positions.
        kernel: of these, odd.
        groups: of these.
        dropout: in the transformer.

    Raises:
        ConfigError: for sizes that cannot be.
    """

    shared = ("extractor", "norm", "project", "positions", "norm_in")

    def __init__(
        self,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        convolutions: Sequence[tuple[int, int, int]] = CONVOLUTIONS,
        positions: int = 5,
        kernel: int = 19,
        groups: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not convolutions or kernel % 2 == 0 or width % groups:
            raise ConfigError(
                f"a waveform front end needs convolutions, an odd kernel (got {kernel}) and groups that divide the "
                f"width (got {groups} and {width})."
            )
        self.width, self.depth, self.convolutions = width, depth, tuple(convolutions)
        before = (1, *(c for c, _, _ in self.convolutions[:-1]))
        self.extractor = nn.ModuleList(
            nn.ModuleList([nn.Conv1d(fan_in, c, k, stride=s, bias=False), nn.LayerNorm(c)])
            for fan_in, (c, k, s) in zip(before, self.convolutions, strict=True)
        )
        for stage in self.extractor:
            nn.init.kaiming_normal_(stage.get_submodule("0").get_parameter("weight"))
        self.norm = nn.LayerNorm(self.convolutions[-1][0])
        self.project = nn.Linear(self.convolutions[-1][0], width)
        self.mask_token = nn.Parameter(torch.empty(width).uniform_())
        self.positions = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups) for _ in range(positions)
        )
        self.norm_in = nn.LayerNorm(width)
        self.transformer = SequenceTransformer(width, depth, heads, dropout=dropout)

    def frames(self, samples: int) -> int:
        """Return T for S samples.

        Raises:
            ConfigError: when they do not make a frame.
        """
        left = samples
        for _, kernel, stride in self.convolutions:
            left = (left - kernel) // stride + 1 if left >= kernel else 0
        if left < 1:
            raise ConfigError(f"a recording of {samples} samples is too short for one frame.")
        return left

    def predict(self, inputs: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the frames (B, T, D) of recordings (B, S) with masked frames hidden."""
        last: Tensor = self.transformer(self._embed(inputs, mask_BN))
        return last

    def layers(self, inputs: Tensor, top: int) -> list[Tensor]:
        """Return the feed-forward layers' outputs of the whole recordings."""
        return self.transformer.feed_forward(self._embed(inputs, None), top)

    def _embed(self, wave_BS: Tensor, mask_BT: Tensor | None) -> Tensor:
        self.frames(wave_BS.shape[1])
        x_BCT = F.layer_norm(wave_BS, wave_BS.shape[1:])[:, None]
        for stage in self.extractor:
            convolution, norm = stage.get_submodule("0"), stage.get_submodule("1")
            x_BCT = F.gelu(norm(convolution(x_BCT).transpose(1, 2))).transpose(1, 2)
        x_BTD: Tensor = self.project(self.norm(x_BCT.transpose(1, 2)))
        if mask_BT is not None:
            x_BTD = torch.where(mask_BT[..., None], self.mask_token.to(x_BTD.dtype), x_BTD)
        place_BDT = x_BTD.transpose(1, 2)
        for convolution in self.positions:
            place_BDT = convolution(place_BDT)
            place_BDT = F.gelu(F.layer_norm(place_BDT.transpose(1, 2), (self.width,))).transpose(1, 2)
        placed: Tensor = self.norm_in(x_BTD + place_BDT.transpose(1, 2))
        return placed
