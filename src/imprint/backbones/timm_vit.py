"""timm's ViTs under the contract: masked and dropped patches, registers, layer outputs, attention, any image size.

Covers the VisionTransformer family (ViT, DeiT, DINO, DINOv2, MAE, CLIP, SigLIP, hybrids) and the Eva family with axial
rotary positions (EVA-02, DINOv3); BEiT is in `timm_beit`. The weights stay timm's, under timm's names, in `self.model`.

Shapes: B images, C channels, H x W pixels, N = gh * gw patches, M kept patches, P prefix tokens (class, then
distillation or registers), T = P + N (or P + M) tokens, D width, h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imprint.backbones.attention import attention_probabilities
from imprint.backbones.encoder import Features
from imprint.backbones.packed import Group, packable, run_block
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.core.errors import ConfigError
from imprint.ops.positions import Layout, Style, interpolate_positions, sincos_2d

POSITION_STYLE: Style = "dino"
"""How learned positions are resized: bicubic without antialiasing by the scale (g + 0.1) / g0, as DINO and DINOv2 do.

timm's `dynamic_img_size` antialiases instead: at the built image size the two agree, away from it they differ slightly.
"""


POSITION_LAYOUTS: dict[str, Layout] = {"sincos": "mae", "sincos_mocov3": "mocov3"}
"""The fixed 2-d sin-cos positions by name: which axis fills the first half of the width."""


CPU_PACKS_BELOW = 1_500_000
"""Numbers in a pass (tokens x width) from which a CPU takes one resolution after the other (benchmarks/packing.py)."""


class TimmViT(TimmEncoder):
    """A timm ViT with token access.

    Order of operations: patch embedding, mask token, positions, dropping of patches, prefix tokens, blocks, final norm.
    So with `keep`, every kept patch carries the position it had in the full grid, and the cost of the blocks falls with
    the number of kept patches. A distillation token counts among the registers.

    Args:
        model: VisionTransformer or Eva, built with `num_classes=0` and `dynamic_img_size=True`.
        config: JSON-ready arguments of `build_encoder`.
    """

    has_tokens = True
    can_mask = True
    can_drop = True

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        described: Any = model
        super().__init__(model, config)
        self.depth = len(described.blocks)
        self.patch_size = int(described.patch_embed.feat_ratio())
        if not isinstance(getattr(described, "patch_drop", None) or nn.Identity(), nn.Identity):
            raise ConfigError(f"'{self.name}': patch_drop_rate is timm's own patch dropping; use `keep` instead.")
        self.mask_token: nn.Parameter | None
        self.register_parameter("mask_token", None)
        self._native_grid: tuple[int, int] = tuple(described.patch_embed.grid_size)
        self._grad_checkpointing = False
        positions = getattr(described, "pos_embed", None)
        self.position_prefix = 0 if positions is None else positions.shape[1] - described.patch_embed.num_patches
        if config.get("positions"):
            self._fix_sincos_positions(POSITION_LAYOUTS[config["positions"]])
        self._packable = all(packable(block) for block in described.blocks)
        self._drop_samples = bool(config.get("drop_samples"))
        if self._drop_samples and not self._packable:
            raise ConfigError(
                f"'{self.name}' has blocks that cannot leave out samples; leave drop_samples off or take a plain ViT."
            )
        if config.get("mask_token"):
            self.enable_mask_token()

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images; see the contract and the class. Nothing here waits for the device."""
        tokens_BTD, rope, grid = self._embed(images_BCHW, mask_BN, keep_BM)
        for block, bias in zip(self._blocks(), self._biases(grid), strict=True):
            tokens_BTD = self._run(block, tokens_BTD, rope, bias)
        return self._split(tokens_BTD, grid)

    def encode_many(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]:
        """Encode batches of several image sizes in one packed pass (see the contract and `packed`).

        Blocks that `packed` does not know (parallel, post-norm) take one batch after the other; so does a CPU with so
        much work in each that packing costs more than it saves.
        """
        masks = [None] * len(images) if masks is None else masks
        if len(images) < 2 or not self._packable or (images[0].device.type == "cpu" and self._is_large(images)):
            return super().encode_many(images, masks)
        run: Callable[..., list[Features]] = self.__dict__.get("_packed_compiled", self._packed)
        return run(images, masks)

    def _is_large(self, images: Sequence[Tensor]) -> bool:
        tokens = sum(x.shape[0] * (x.shape[2] * x.shape[3] // self.patch_size**2 + self.prefix_tokens) for x in images)
        return tokens * self.embed_dim > CPU_PACKS_BELOW

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile `forward`, as torch does, and the packed pass with the same settings."""
        super().compile(*args, **kwargs)
        self.__dict__["_packed_compiled"] = torch.compile(self._packed, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled code out of copies, as torch does."""
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_packed_compiled", None)
        return state

    def _packed(self, images: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Features]:
        embedded = [self._embed(x, m, None) for x, m in zip(images, masks, strict=True)]
        groups = [Group(t.shape[0], t.shape[1], rope) for t, rope, _ in embedded]
        biases = [self._biases(grid) for _, _, grid in embedded]
        x_SD = torch.cat([t.flatten(0, 1) for t, _, _ in embedded])
        for index, block in enumerate(self._blocks()):
            own = [replace(g, bias_hTT=b[index]) for g, b in zip(groups, biases, strict=True)]
            if self._grad_checkpointing and torch.is_grad_enabled():
                x_SD = checkpoint(run_block, block, x_SD, own, self._drop_samples, use_reentrant=False)
            else:
                x_SD = run_block(block, x_SD, own, self._drop_samples)
        model: Any = self.model
        parts = model.norm(x_SD).split([g.batch * g.tokens for g in groups])
        return [
            self._described(part.unflatten(0, (g.batch, g.tokens)), grid)
            for part, g, (_, _, grid) in zip(parts, groups, embedded, strict=True)
        ]

    def encode_layers(
        self, images_BCHW: Tensor, layers: Sequence[int], *, mask_BN: Tensor | None = None, norm: bool = True
    ) -> list[Features]:
        """Return Features after the given blocks, in the order asked for; the final norm applied to each by default."""
        wanted = [self.layer_index(layer) for layer in layers]
        tokens_BTD, rope, grid = self._embed(images_BCHW, mask_BN, None)
        found: dict[int, Features] = {}
        pairs = zip(self._blocks(), self._biases(grid), strict=True)
        for index, (block, bias) in enumerate(list(pairs)[: max(wanted, default=-1) + 1]):
            tokens_BTD = self._run(block, tokens_BTD, rope, bias)
            if index in wanted:
                found[index] = self._split(tokens_BTD, grid) if norm else self._described(tokens_BTD, grid)
        return [found[index] for index in wanted]

    def attention(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """Return softmax(q k^T / sqrt(D / h)) of one block, shape (B, h, T, T), prefix tokens first.

        Queries and keys of that block alone are computed again; the other blocks keep their fused attention.

        Raises:
            ConfigError: for a block whose attention has no probabilities to show (linear, differential).
        """
        index = self.layer_index(layer)
        tokens_BTD, rope, grid = self._embed(images_BCHW, None, None)
        biases = self._biases(grid)
        for block, bias in zip(self._blocks()[:index], biases[:index], strict=True):
            tokens_BTD = self._run(block, tokens_BTD, rope, bias)
        return attention_probabilities(self._blocks()[index], tokens_BTD, rope, self.name, biases[index])

    def attentions(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield `attention` of every block in one pass; each block runs once more with its fused attention."""
        tokens_BTD, rope, grid = self._embed(images_BCHW, None, None)
        for block, bias in zip(self._blocks(), self._biases(grid), strict=True):
            yield attention_probabilities(block, tokens_BTD, rope, self.name, bias)
            tokens_BTD = self._run(block, tokens_BTD, rope, bias)

    def enable_mask_token(self, std: float = 0.02) -> None:
        """Create the learned mask token, drawn from N(0, std); once. Call before DDP, the optimizer and EMA copies."""
        if self.mask_token is None:
            reference = next(self.model.parameters())
            token = torch.empty(1, 1, self.embed_dim, device=reference.device, dtype=reference.dtype)
            self.mask_token = nn.Parameter(token.normal_(std=std))
            self._config["mask_token"] = True

    def freeze_patch_projection(self) -> None:
        """Keep the random patch projection, weight and bias, as it is (MoCo v3, arXiv 2104.02057, Sec. 4.2)."""
        embed: Any = self.model.patch_embed
        embed.requires_grad_(False)

    def drop_mask_token(self) -> None:
        """Remove the learned mask token, which only pretraining needs."""
        self.mask_token = None
        self._config["mask_token"] = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: recompute blocks in the backward pass instead of keeping their activations."""
        self._grad_checkpointing = enable

    def _blocks(self) -> list[nn.Module]:
        model: Any = self.model
        return list(model.blocks)

    def _biases(self, grid: tuple[int, int]) -> list[Tensor | None]:
        """Return what each block adds to its attention scores, (h, T, T) or None."""
        return [None] * self.depth

    def _run(self, block: nn.Module, tokens_BTD: Tensor, rope: Tensor | None, bias_hTT: Tensor | None) -> Tensor:
        run: Callable[..., Tensor] = block
        arguments: tuple[Any, ...] = (tokens_BTD,) if rope is None else (tokens_BTD, rope)
        own = bias_hTT is not None or (self._drop_samples and self.training)
        # timm calls the fused attention, which is slow in mixed precision on CPUs (`ops.attention`).
        if own or (self._packable and tokens_BTD.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            run, arguments = self._run_own, (block, tokens_BTD, rope, bias_hTT)
        if self._grad_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(run, *arguments, use_reentrant=False)
            return result
        return run(*arguments)

    def _run_own(self, block: nn.Module, tokens_BTD: Tensor, rope: Tensor | None, bias_hTT: Tensor | None) -> Tensor:
        batch, tokens, _ = tokens_BTD.shape
        groups = [Group(batch, tokens, rope, bias_hTT)]
        return run_block(block, tokens_BTD.flatten(0, 1), groups, self._drop_samples).unflatten(0, (batch, tokens))

    def _embed(
        self, images_BCHW: Tensor, mask_BN: Tensor | None, keep_BM: Tensor | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Return tokens before the blocks, rotary positions, and the patch grid."""
        model: Any = self.model
        grid = self._grid(images_BCHW)
        x_BND = model.patch_embed(images_BCHW)
        if x_BND.ndim == 4:  # most give a map (B, gh, gw, D), BEiT's gives tokens
            x_BND = x_BND.flatten(1, 2)
        if mask_BN is not None:
            if self.mask_token is None:
                raise ConfigError(
                    f"'{self.name}' has no mask token; build it with mask_token=True or call enable_mask_token()."
                )
            x_BND = torch.where(mask_BN.unsqueeze(-1), self.mask_token.to(x_BND.dtype), x_BND)
        positions_1TD = self._positions(grid)
        if positions_1TD is not None:
            x_BND = x_BND + positions_1TD[:, self.position_prefix :]
        rotary = getattr(model, "rope", None)
        rope: Tensor | None = None if rotary is None else rotary.get_embed(shape=list(grid))
        if keep_BM is not None:
            x_BND = x_BND.gather(1, keep_BM.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))
            rope = None if rope is None else rope[keep_BM].unsqueeze(1)
        prefix_1PD = self._prefix(positions_1TD)
        if prefix_1PD is not None:
            x_BND = torch.cat([prefix_1PD.expand(x_BND.shape[0], -1, -1).to(x_BND.dtype), x_BND], dim=1)
        x_BND = model.pos_drop(x_BND)
        before = getattr(model, "norm_pre", None)
        return x_BND if before is None else before(x_BND), rope, grid

    def _grid(self, images_BCHW: Tensor) -> tuple[int, int]:
        self.check_images(images_BCHW)
        height, width = images_BCHW.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"'{self.name}' cuts patches of {self.patch_size} px; {height} x {width} images do not divide. "
                f"Use sides that are multiples of {self.patch_size}."
            )
        return height // self.patch_size, width // self.patch_size

    def _positions(self, grid: tuple[int, int]) -> Tensor | None:
        positions_1TD: Tensor | None = getattr(self.model, "pos_embed", None)
        if positions_1TD is None or grid == self._native_grid:
            return positions_1TD
        return interpolate_positions(
            positions_1TD, grid, style=POSITION_STYLE, prefix=self.position_prefix, source=self._native_grid
        )

    def _prefix(self, positions_1TD: Tensor | None) -> Tensor | None:
        names = ("cls_token", "dist_token", "reg_token")
        parts = [p for p in (getattr(self.model, name, None) for name in names) if p is not None]
        if not parts:
            return None
        prefix_1PD = torch.cat(parts, dim=1)
        if self.position_prefix and positions_1TD is not None:
            prefix_1PD = prefix_1PD + positions_1TD[:, : self.position_prefix]
        return prefix_1PD

    def _split(self, tokens_BTD: Tensor, grid: tuple[int, int]) -> Features:
        model: Any = self.model
        return self._described(model.norm(tokens_BTD), grid)

    def _described(self, x_BTD: Tensor, grid: tuple[int, int]) -> Features:
        model: Any = self.model
        first = int(self._has_class_token)
        return Features(
            pooled_BD=model.forward_head(x_BTD, pre_logits=True),
            cls_BD=x_BTD[:, 0] if self._has_class_token else None,
            registers_BRD=x_BTD[:, first : self.prefix_tokens] if self.prefix_tokens > first else None,
            patches_BND=x_BTD[:, self.prefix_tokens :],
            grid=grid,
        )

    def _fix_sincos_positions(self, layout: Layout) -> None:
        """Replace learned positions by fixed 2-d sin-cos ones (MAE, arXiv 2111.06377, A.1); prefix tokens get zeros."""
        model: Any = self.model
        if getattr(model, "pos_embed", None) is None:
            raise ConfigError(f"'{self.name}' adds no positions to its tokens, so sin-cos positions do not apply.")
        table_ND = sincos_2d(self.embed_dim, self._native_grid, layout=layout)
        with torch.no_grad():
            model.pos_embed.zero_()
            model.pos_embed[0, self.position_prefix :] = table_ND.to(model.pos_embed)
        model.pos_embed.requires_grad_(False)
