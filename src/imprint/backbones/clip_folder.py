"""CLIP and SigLIP models of transformers, read from a local folder, under the encoder contracts; nothing is downloaded.

Shapes: B images, C channels, H x W pixels, N patches, D width, T all tokens, h heads, L text tokens, E shared width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from imprint.backbones import torchvision_compat  # noqa: F401  (transformers' models import torchvision)
from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder, Features
from imprint.backbones.text_encoder import StoredTokenizer, TextBatch, TextEncoder
from imprint.core.errors import CheckpointError, ConfigError, MissingExtra

KINDS = ("clip", "siglip")
_NORMALISE = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_ARGMAX_END = 2  # configurations with this end token mean: the token with the largest id (see transformers' CLIP)


def described_kind(path: str | Path) -> str | None:
    """Return `clip` or `siglip` for a folder whose config.json says so, else None."""
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        return None
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, OSError, AttributeError):
        return None
    return kind if kind in KINDS else None


def folder_normalise(path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) of the images from preprocessor_config.json, or the published ones of the kind.

    Raises:
        CheckpointError: for a folder of another kind.
    """
    folder = Path(path).expanduser()
    file = folder / "preprocessor_config.json"
    if file.is_file():
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            return tuple(map(float, told["image_mean"])), tuple(map(float, told["image_std"]))
        except (ValueError, OSError, KeyError, TypeError):
            pass  # a processor without them: the kind's own hold
    kind = described_kind(folder)
    if kind is None:
        raise CheckpointError(f"'{folder}' holds no CLIP or SigLIP model: its config.json names neither.")
    return _NORMALISE[kind]


class FolderVision(Encoder):
    """The image tower of a transformers CLIP or SigLIP model.

    `pooled_BD` is what the model itself projects: CLIP's class token after the final norm, SigLIP's attention pooling.
    Patches carry the final norm as well. Of single blocks (`encode_layers`) the same pooling is taken.

    Args:
        tower: `CLIPModel.vision_model` or `SiglipModel.vision_model`.
        kind: `clip` or `siglip`.
    """

    def __init__(self, tower: nn.Module, kind: str) -> None:
        super().__init__()
        self.tower = tower
        described: Any = tower
        config = described.config
        self.kind, self.name = kind, f"hf:{kind}"
        self.embed_dim, self.patch_size = int(config.hidden_size), int(config.patch_size)
        self.depth, self.channels = int(config.num_hidden_layers), int(config.num_channels)
        self.image_size, self.heads = int(config.image_size), int(config.num_attention_heads)
        self.prefix_tokens = 1 if kind == "clip" else 0
        self.has_tokens = True
        if kind == "siglip" and not getattr(config, "vision_use_head", True):
            raise CheckpointError("this SigLIP model has no pooling head, so no vector for an image.")

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images of any size that the patch divides; positions are interpolated.

        Raises:
            ConfigError: for masks, kept tokens, or sizes that do not fit.
        """
        if mask_BN is not None or keep_BM is not None:
            raise ConfigError(f"'{self.name}' takes whole images only; choose a timm ViT to mask or drop patches.")
        tower: Any = self.tower
        tokens = tower.encoder(inputs_embeds=self._embed(images_BCHW)).last_hidden_state
        return self._split(tokens, images_BCHW, norm=True)

    def encode_layers(
        self, images_BCHW: Tensor, layers: Sequence[int], *, mask_BN: Tensor | None = None, norm: bool = True
    ) -> list[Features]:
        """Return Features after the given blocks, in the order asked for."""
        if mask_BN is not None:
            raise ConfigError(f"'{self.name}' takes whole images only; choose a timm ViT to mask patches.")
        wanted = [self._index(layer) for layer in layers]
        kept: dict[int, Tensor] = {}
        tower: Any = self.tower

        def keeper(index: int) -> Any:
            def keep(_: nn.Module, __: Any, output: Any) -> None:
                kept[index] = output[0] if isinstance(output, tuple) else output

            return keep

        hooks = [tower.encoder.layers[i].register_forward_hook(keeper(i)) for i in set(wanted)]
        try:
            tower.encoder(inputs_embeds=self._embed(images_BCHW))
        finally:
            for hook in hooks:
                hook.remove()
        return [self._split(kept[i], images_BCHW, norm=norm) for i in wanted]

    def attention(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """Return softmax(q k^T / sqrt(D / h)) of one block, (B, h, T, T), the class token first where there is one."""
        index = self._index(layer)
        tower: Any = self.tower
        block = tower.encoder.layers[index].self_attn
        found: dict[str, Tensor] = {}

        def keeper(name: str) -> Any:
            def keep(_: nn.Module, __: Any, output: Tensor) -> None:
                found[name] = output.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, h, T, D / h)

            return keep

        hooks = [getattr(block, f"{name}_proj").register_forward_hook(keeper(name)) for name in ("q", "k")]
        try:
            tower.encoder(inputs_embeds=self._embed(images_BCHW))
        finally:
            for hook in hooks:
                hook.remove()
        scale = float((self.embed_dim // self.heads) ** -0.5)
        return (found["q"] @ found["k"].transpose(-1, -2) * scale).float().softmax(-1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        tower: Any = self.tower
        if enable:
            tower.gradient_checkpointing_enable()
        else:
            tower.gradient_checkpointing_disable()

    @property
    def config(self) -> dict[str, Any]:
        """The kind and the shape."""
        described: Any = self.tower
        return {"name": self.name, "vision": _plain(described.config)}

    def _index(self, layer: int) -> int:
        index = layer + self.depth if layer < 0 else layer
        if not 0 <= index < self.depth:
            raise ConfigError(f"layer {layer} of '{self.name}': it has {self.depth}, 0 to {self.depth - 1} or -1 back.")
        return index

    def _embed(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != self.channels:
            raise ConfigError(
                f"'{self.name}' takes images (B, {self.channels}, H, W) and got {tuple(images_BCHW.shape)}."
            )
        height, width = images_BCHW.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(f"images of {height} x {width} are not whole patches of {self.patch_size} pixels.")
        tower: Any = self.tower
        other = (height, width) != (self.image_size, self.image_size)
        tokens: Tensor = tower.embeddings(images_BCHW, interpolate_pos_encoding=other)
        if self.kind == "clip":
            tokens = tower.pre_layrnorm(tokens)  # transformers' own spelling
        return tokens

    def _split(self, tokens_BTD: Tensor, images_BCHW: Tensor, *, norm: bool) -> Features:
        tower: Any = self.tower
        grid = (images_BCHW.shape[2] // self.patch_size, images_BCHW.shape[3] // self.patch_size)
        normed = tower.post_layernorm(tokens_BTD)
        shown = normed if norm else tokens_BTD
        if self.kind == "clip":
            return Features(shown[:, 0], shown[:, 0], None, shown[:, 1:], grid)
        return Features(tower.head(normed), None, None, shown, grid)


class FolderText(TextEncoder):
    """The text tower of a transformers CLIP or SigLIP model.

    CLIP reads the end token of a causal transformer and projects it; SigLIP reads the last place of a text padded to
    the full context, without a mask, as it was trained.

    Args:
        tower: the model's `text_model`.
        projection: CLIP's `text_projection`; `nn.Identity` for SigLIP.
        tokenizer: from the same folder.
        kind: `clip` or `siglip`.
        joint_dim: E.
    """

    def __init__(
        self, tower: nn.Module, projection: nn.Module, tokenizer: StoredTokenizer, kind: str, joint_dim: int
    ) -> None:
        super().__init__()
        self.tower, self.projection, self.tokenizer = tower, projection, tokenizer
        self.kind, self.joint_dim = kind, joint_dim

    def forward(self, batch: TextBatch) -> Tensor:
        """Return vectors (B, E), not normalised."""
        mask = batch.mask_BL.long() if self.kind == "clip" else None
        pooled: Tensor = self.tower(input_ids=batch.ids_BL, attention_mask=mask).pooler_output
        projected: Tensor = self.projection(pooled)
        return projected


def load_folder(path: str | Path) -> DualEncoder:
    """Load a transformers CLIPModel or SiglipModel with its tokenizer from a folder, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: for a folder of another kind, damaged files, or a tokenizer that does not belong to the model.
        MissingExtra: without transformers.
    """
    folder = Path(path).expanduser()
    kind = described_kind(folder)
    if kind is None:
        raise CheckpointError(
            f"'{folder}' holds no CLIP or SigLIP model: it needs a config.json whose model_type is one of {KINDS}."
        )
    try:
        from transformers import CLIPModel, SiglipModel
        from transformers.utils import logging as talk
    except ImportError as error:
        raise MissingExtra("transformers", "text", "a CLIP or SigLIP model") from error
    cls: Any = CLIPModel if kind == "clip" else SiglipModel
    bars = talk.is_progress_bar_enabled()
    talk.disable_progress_bar()
    try:
        model, report = cls.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise CheckpointError(
            f"'{folder}': the {kind} model cannot be read ({str(error).splitlines()[0]}). "
            "It needs config.json and model.safetensors."
        ) from error
    finally:
        if bars:
            talk.enable_progress_bar()
    lost = sorted(report["missing_keys"])
    if lost:
        raise CheckpointError(f"'{folder}': {len(lost)} weights are missing, such as '{lost[0]}'.")
    model.float()  # whatever it was stored in
    text_config = model.config.text_config
    tokenizer = StoredTokenizer(folder, int(text_config.max_position_embeddings), full=kind == "siglip")
    _check(folder, tokenizer, text_config, kind)
    projection, text_projection = nn.Identity(), nn.Identity()
    joint = int(text_config.projection_size if kind == "siglip" else model.config.projection_dim)
    if kind == "clip":
        projection, text_projection = model.visual_projection, model.text_projection
    return DualEncoder(
        FolderVision(model.vision_model, kind),
        FolderText(model.text_model, text_projection, tokenizer, kind, joint),
        projection,
        model.logit_scale,
        getattr(model, "logit_bias", None),
        {"name": f"hf:{kind}", "vision": _plain(model.config.vision_config), "text": _plain(text_config)},
    ).eval()


def _check(folder: Path, tokenizer: StoredTokenizer, text_config: Any, kind: str) -> None:
    """Refuse a tokenizer of another model: ids out of range, or (CLIP) an end token that the model looks for in vain.

    The latter would not fail: every text would be read at its first place, and all would look alike.
    """
    if tokenizer.vocabulary > int(text_config.vocab_size):
        raise CheckpointError(
            f"'{folder}': the tokenizer has ids up to {tokenizer.vocabulary - 1} and the model "
            f"{text_config.vocab_size} embeddings; they do not belong together."
        )
    if kind != "clip":
        return
    end = tokenizer.end_id
    looked_for = int(text_config.eos_token_id)
    fits = end == tokenizer.vocabulary - 1 if looked_for == _ARGMAX_END else end == looked_for
    ids = tokenizer(["a"]).ids_BL[0].tolist()
    if not fits or end not in ids:
        raise CheckpointError(
            f"'{folder}': the model reads a text at its end token {looked_for}, and the tokenizer ends texts with "
            f"{end} (ids of 'a': {ids}); they do not belong together."
        )


def _plain(config: Any) -> dict[str, Any]:
    """Return a transformers configuration as JSON-ready values, without the release that wrote it."""
    told: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    told.pop("transformers_version", None)
    return told
