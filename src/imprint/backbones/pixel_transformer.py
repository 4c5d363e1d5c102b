"""A GPT over the colours of an image's pixels as an encoder (iGPT: Chen 2020, Generative Pretraining from Pixels).

Every pixel becomes the nearest of K colours, and the image a sequence in raster order behind a learned start token. So
a "patch" is one pixel, and the features are those of a middle block, pooled by their mean. Where the paper and the
public code (openai/image-gpt) differ, the code is followed: norms without centring, x sigmoid(1.702 x), no biases.

Shapes: B images, C channels, H x W pixels, N = H * W positions, T tokens given, D width, h heads, K colours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imprint.backbones.encoder import Encoder, Features
from imprint.backbones.pixel_gpt import PixelGPT
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.core.errors import ConfigError
from imprint.ops.palette import from_colours, to_colours
from imprint.ops.positions import interpolate_positions

SIZES: dict[str, tuple[int, int, int]] = {
    "image_gpt_s": (512, 24, 8),
    "image_gpt_m": (1024, 36, 8),
    "image_gpt_l": (1536, 48, 16),
}
"""Name -> width, blocks, heads (Sec. 3.3; heads: public code)."""

CLUSTERS = 512
SETTINGS = ("embed_dim", "depth", "num_heads", "clusters", "layer", "causal")
"""What `Arch`, or `arch` of `Encoder.config`, may say of a pixel transformer."""

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values (B, h, N, D / h) of every block, filled up to the current position."""


class PixelTransformer(Encoder):
    """Transformer over palette colours under the encoder contract; images are normalised floats as for any encoder.

    `pooled_BD` is the mean over positions of `patches_BND`, which is n^l (Sec. 2.2): the output of `layer` blocks
    behind the norm with which the next one starts (the final norm after the last block). Position i of a causal model
    has seen the pixels before i, so it holds what was predicted of pixel i. `generate` draws images.

    Args:
        config: JSON-ready arguments of `build_encoder`; `arch` holds `SETTINGS`.
    """

    has_tokens = True
    patch_size = 1

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = str(config["name"])
        self._config = copy.deepcopy(dict(config))
        arch = self._config["arch"]
        width, depth, heads = _sizes(self.name, arch)
        self.embed_dim = self.patch_dim = width
        self.depth = depth
        self.channels, self.image_size = int(config["channels"]), int(config["image_size"])
        self.clusters = int(arch.get("clusters", CLUSTERS))
        self.layer = int(arch.get("layer", max(1, depth // 2)))
        if not 1 <= self.layer <= depth:
            raise ConfigError(f"encoder '{self.name}': layer={self.layer} of {depth} blocks; choose 1 to {depth}.")
        if self.clusters < 2:
            raise ConfigError(f"encoder '{self.name}': clusters={self.clusters}; a palette has at least 2 colours.")
        self.model = PixelGPT(self.channels, self.image_size**2, self.clusters, width, depth, heads)
        self.position_prefix = 0
        self._grad_checkpointing = False
        if not arch.get("causal", True):
            self.see_both_sides()

    @property
    def causal(self) -> bool:
        """Whether a position sees earlier ones only."""
        return self.model.start_token is not None

    def see_both_sides(self) -> None:
        """Attend to all positions, without the start token (the BERT objective). Call before DDP and the optimizer."""
        self.model.start_token = None
        self._config["arch"]["causal"] = False

    def set_palette(self, colours_KC: Tensor) -> None:
        """Take over a palette in the space of normalised images.

        Raises:
            ConfigError: for another number of colours or channels.
        """
        if colours_KC.shape != self.model.palette.shape:
            raise ConfigError(
                f"'{self.name}' has a palette of {tuple(self.model.palette.shape)} (colours, channels), and "
                f"{tuple(colours_KC.shape)} came."
            )
        self.model.palette.copy_(colours_KC)
        self.model.fitted.fill_(True)

    def tokens(self, images_BCHW: Tensor) -> Tensor:
        """Return the nearest colours of the pixels, int64 (B, N) in raster order."""
        self.check_images(images_BCHW)
        return to_colours(images_BCHW, self.model.palette)

    def pictures(self, tokens_BN: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return normalised images (B, C, H, W) from colours in raster order; `grid` None is the built size."""
        return from_colours(tokens_BN, self.model.palette, grid or (self.image_size, self.image_size))

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images; see the contract and the class. Only the blocks below `layer` run."""
        if mask_BN is not None or keep_BM is not None:
            raise ConfigError(
                f"'{self.name}' reads every pixel, so no patches of it can be masked or dropped by a method for ViTs. "
                "Choose a ViT (for example --encoder vit_small_patch16_224), or the method igpt."
            )
        return self._after(images_BCHW, [self.layer])[self.layer]

    def encode_layers(
        self, images_BCHW: Tensor, layers: Sequence[int], *, mask_BN: Tensor | None = None, norm: bool = True
    ) -> list[Features]:
        """Return Features after the given blocks, in the order asked for; 0 is the first, -1 the last."""
        if mask_BN is not None:
            raise ConfigError(f"'{self.name}' takes no mask_BN; see `states` for hidden pixels.")
        wanted = [self.layer_index(layer) + 1 for layer in layers]
        found = self._after(images_BCHW, wanted, norm)
        return [found[count] for count in wanted]

    def states(self, tokens_BN: Tensor, mask_BN: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Return what the output layer reads, (B, N, D): the last block's output after the final norm.

        Args:
            tokens_BN: colours in raster order.
            mask_BN: bool, True = the colour's embedding is zeroed (the BERT objective).
            grid: (H, W); None is the built size.
        """
        x_BND = self._embed(tokens_BN, mask_BN, grid or (self.image_size, self.image_size))
        for block in self.model.blocks:
            x_BND = self._run(block, x_BND)
        out: Tensor = self.model.norm(x_BND)
        return out

    def logits(self, tokens_BN: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Return logits (B, N, K) of every pixel's colour; a causal model's at i depend on pixels before i alone."""
        out: Tensor = self.model.head(self.states(tokens_BN, mask_BN))
        return out

    @torch.no_grad()
    def generate(
        self, count: int = 1, prompt_BT: Tensor | None = None, *, temperature: float = 1.0, seed: int = 0
    ) -> Tensor:
        """Draw images pixel by pixel, each from the model's distribution given those before it.

        Keys and values of earlier pixels are kept, so a pixel costs one token's pass. The same seed, weights and device
        give the same images.

        Args:
            count: how many images without a prompt.
            prompt_BT: colours (`tokens`) of the first T < N pixels, which stay; None starts from nothing.
            temperature: divides the logits; 0 takes the most likely colour.
            seed: of the draws.

        Returns:
            int64 colours (B, N); `pictures` makes images of them.

        Raises:
            ConfigError: for a bidirectional model, a negative temperature, or a prompt that is the whole image.
        """
        if not self.causal:
            raise ConfigError(f"'{self.name}' was trained with the BERT objective; only a causal model draws images.")
        total = self.image_size**2
        place = self.model.palette.device
        tokens_BT = torch.empty(count, 0, dtype=torch.int64, device=place) if prompt_BT is None else prompt_BT
        if temperature < 0 or tokens_BT.shape[1] >= total:
            raise ConfigError(
                f"generate: temperature {temperature} must be >= 0, a prompt shorter than {total} pixels."
            )
        known = tokens_BT.shape[1]
        out_BN = torch.cat([tokens_BT, tokens_BT.new_zeros(len(tokens_BT), total - known)], dim=1)
        noise = torch.Generator(place).manual_seed(seed)
        x_BTD = self._embed(out_BN, None, (self.image_size, self.image_size))[:, : known + 1]
        cache: Cache = []
        for index in range(known, total):
            logits_BK = self._next(x_BTD, index + 1 - x_BTD.shape[1], cache).float()
            if temperature == 0:
                out_BN[:, index] = logits_BK.argmax(1)
            else:
                chance_BK = torch.softmax(logits_BK / temperature, dim=1)
                out_BN[:, index] = torch.multinomial(chance_BK, 1, generator=noise).squeeze(1)
            if index + 1 < total:
                x_BTD = self.model.embed(out_BN[:, index : index + 1]) + self.model.pos_embed[:, index + 1 : index + 2]
        return out_BN

    def attention(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """Return softmax(q k^T / sqrt(D / h)) of one block, (B, h, N, N); a causal model's rows end at the diagonal."""
        index = self.layer_index(layer)
        x_BND = self._embed(self.tokens(images_BCHW), None, (images_BCHW.shape[2], images_BCHW.shape[3]))
        for block in list(self.model.blocks)[:index]:
            x_BND = self._run(block, x_BND)
        last: Any = self.model.blocks[index]
        q, k, _ = last.heads_of(x_BND).unbind(0)
        score_BhNN = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
        if self.causal:
            later_NN = torch.ones(score_BhNN.shape[-2:], dtype=torch.bool, device=score_BhNN.device).triu(1)
            score_BhNN = score_BhNN.masked_fill(later_NN, float("-inf"))
        return score_BhNN.softmax(-1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: recompute blocks in the backward pass instead of keeping their activations."""
        self._grad_checkpointing = enable

    def enable_mask_token(self, std: float = 0.02) -> None:
        """Refuse: hidden pixels have a zero embedding, not a token.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"'{self.name}' has no mask token; choose a ViT, or the method igpt.")

    def drop_mask_token(self) -> None:
        """Do nothing: there is no mask token."""

    def layer_index(self, layer: int) -> int:
        """Return `layer` counted from 0.

        Raises:
            ConfigError: when the encoder is not that deep.
        """
        index = layer + self.depth if layer < 0 else layer
        if not 0 <= index < self.depth:
            raise ConfigError(f"layer {layer} of '{self.name}': it has {self.depth}, 0 to {self.depth - 1} or -1 back.")
        return index

    def check_images(self, images_BCHW: Tensor) -> None:
        """Refuse a batch of the wrong rank or number of channels.

        Raises:
            ConfigError: saying what was expected and what came.
        """
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != self.channels:
            raise ConfigError(
                f"'{self.name}' was built for images (B, {self.channels}, H, W) and got {tuple(images_BCHW.shape)}; "
                "build it with the number of channels you have, or convert the images."
            )

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready arguments from which `build_encoder(**config)` makes an encoder of the same shape."""
        return copy.deepcopy(self._config)

    def _after(self, images_BCHW: Tensor, counts: Sequence[int], norm: bool = True) -> dict[int, Features]:
        """Return Features after so many blocks each; the norm is the one with which the next block starts."""
        grid = (images_BCHW.shape[2], images_BCHW.shape[3])
        x_BND = self._embed(self.tokens(images_BCHW), None, grid)
        found: dict[int, Features] = {}
        blocks: list[Any] = list(self.model.blocks)
        for number, block in enumerate(blocks[: max(counts, default=0)], 1):
            x_BND = self._run(block, x_BND)
            if number in counts:
                after = blocks[number].norm1 if number < self.depth else self.model.norm
                out_BND: Tensor = after(x_BND) if norm else x_BND
                found[number] = Features(out_BND.mean(1), None, None, out_BND, grid)
        return found

    def _run(self, block: nn.Module, x_BTD: Tensor) -> Tensor:
        if self._grad_checkpointing and torch.is_grad_enabled():
            out = checkpoint(block, x_BTD, self.causal, use_reentrant=False)
        else:
            out = block(x_BTD, self.causal)
        result: Tensor = out
        return result

    def _embed(self, tokens_BN: Tensor, mask_BN: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Return the blocks' input: embedded colours (masked ones zero), one place late behind the start token."""
        x_BND = self.model.embed(tokens_BN)
        if mask_BN is not None:
            x_BND = x_BND.masked_fill(mask_BN[..., None], 0.0)
        if self.model.start_token is not None:
            start = self.model.start_token.to(x_BND.dtype).expand(x_BND.shape[0], -1, -1)
            x_BND = torch.cat([start, x_BND[:, :-1]], dim=1)
        positions: Tensor = self.model.pos_embed
        if grid != (self.image_size, self.image_size):
            positions = interpolate_positions(positions, grid, prefix=0, source=(self.image_size, self.image_size))
        out: Tensor = x_BND + positions
        return out

    def _next(self, x_BTD: Tensor, first: int, cache: Cache) -> Tensor:
        """Return logits (B, K) after tokens `first` ... `first + T - 1`; `cache` is made by the first call."""
        end = first + x_BTD.shape[1]
        fresh = not cache
        for number, module in enumerate(self.model.blocks):
            block: Any = module
            q, k, v = block.heads_of(x_BTD).unbind(0)
            if fresh:
                shape = (*k.shape[:2], self.image_size**2, k.shape[3])
                cache.append((k.new_empty(shape), v.new_empty(shape)))
            keys, values = cache[number]
            keys[:, :, first:end], values[:, :, first:end] = k, v
            # A single query sees everything so far; only the first call has several, and they start at 0.
            mixed = nn.functional.scaled_dot_product_attention(
                q, keys[:, :, :end], values[:, :, :end], is_causal=q.shape[2] > 1
            )
            x_BTD = block.after_attention(x_BTD, mixed)
        out: Tensor = self.model.head(self.model.norm(x_BTD[:, -1]))
        return out


Backbone = TimmEncoder | PixelTransformer
"""What `build_encoder` makes."""


def build_pixel_transformer(config: Mapping[str, Any]) -> PixelTransformer:
    """Build a `PixelTransformer` from the arguments of `build_encoder`, randomly initialised.

    Raises:
        ConfigError: for settings that belong to other backbones, or sizes that do not fit together.
    """
    name = config["name"]
    others = {"patch_size": (None, 1), "stem": ("imagenet",), "registers": (None, 0), "drop_path": (0.0,)}
    others |= {"positions": (None,), "mask_token": (False,)}
    wrong = [f"{key}={config[key]}" for key, plain in others.items() if config.get(key, plain[0]) not in plain]
    wrong += [f"arch.{key}={value}" for key, value in config["arch"].items() if key not in SETTINGS]
    if wrong:
        raise ConfigError(
            f"encoder '{name}' reads single pixels and has no {', '.join(wrong)}; its own settings are "
            f"{', '.join(f'arch.{key}' for key in SETTINGS[:-1])}."
        )
    for key in ("image_size", "channels"):
        if config[key] < 1:
            raise ConfigError(f"encoder '{name}': {key}={config[key]}; it must be at least 1.")
    return PixelTransformer(config)


def _sizes(name: str, arch: Mapping[str, Any]) -> tuple[int, int, int]:
    width, depth, heads = SIZES[name]
    width, depth = int(arch.get("embed_dim", width)), int(arch.get("depth", depth))
    heads = int(arch.get("num_heads", heads))
    if min(width, depth, heads) < 1 or width % heads:
        raise ConfigError(
            f"encoder '{name}': width {width}, depth {depth}, {heads} heads; all at least 1, and the heads must divide "
            "the width."
        )
    return width, depth, heads
