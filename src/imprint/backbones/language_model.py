"""Networks for text by transformers' configurations, with random weights: BERT, ALBERT, GPT and GPT-2.

Shapes: B rows, L tokens, D width, E width of the token embeddings (D but in ALBERT), K tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder, Features
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError, MissingExtra, unknown

PREFIX = "text:"
KINDS = ("bert", "albert", "gpt", "gpt2")
CAUSAL = ("gpt", "gpt2")
SIZES: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0, "dropout": 0.1}
"""Of every kind unless `arch` says otherwise: BERT-base, GPT, GPT-2 small; ALBERT-base with `embedding` 128."""

GELU = "gelu_pytorch_tanh"
"""ALBERT's and GPT-2's tanh approximation in one kernel; the package's own `gelu_new` takes seven."""


class LanguageModel(Encoder):
    """A transformer over tokens. As an `Encoder` it refuses images and says what to do instead.

    Args:
        kind: one of `KINDS`.
        network: the transformers model without a head.
        config: JSON-ready arguments of `build_encoder`.

    Attributes:
        kind: see above.
        causal: whether a token sees only what stands before it.
        vocabulary: K.
        context: most tokens of a row.
        tokenizer: what makes its tokens, once it is known.
    """

    tokenizer: TextTokenizer | None

    def __init__(self, kind: str, network: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind, self.network, self._config = kind, network, dict(config)
        self.name, self.causal = PREFIX + kind, kind in CAUSAL
        self.vocabulary, self.context = int(config["vocabulary"]), int(config["context"])
        arch = SIZES | dict(config["arch"])
        self.embed_dim, self.depth = int(arch["embed_dim"]), int(arch["depth"])
        self.patch_size, self.channels, self.image_size = 1, 3, int(config["image_size"])
        self.tokenizer = None

    def forward(  # type: ignore[override]
        self, ids_BL: Tensor, segment_BL: Tensor | None = None, *, padded: bool = True
    ) -> Tensor:
        """Return the last layer's tokens (B, L, D).

        Args:
            ids_BL: int64; -1 where there is no token, which nobody looks at.
            segment_BL: 0 or 1, for networks with segments (`bert`, `albert`).
            padded: False promises that nobody would look at a -1 anyway: there is none, or they end the rows of a
                causal network. Attention then takes no mask, and its fastest kernels.
        """
        if ids_BL.shape[1] > self.context:
            raise ConfigError(
                f"rows of {ids_BL.shape[1]} tokens are longer than the {self.context} that {self.name} takes."
            )
        more = {} if self.causal or segment_BL is None else {"token_type_ids": segment_BL.clamp(min=0)}
        out = self.network(input_ids=ids_BL.clamp(min=0), attention_mask=self._mask(ids_BL) if padded else None, **more)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _mask(self, ids_BL: Tensor) -> Tensor:
        there_BL = ids_BL >= 0
        # Of one row for all queries the transformers package makes nothing more; given (B, L) it asks the device
        # whether any token is missing, and waits for the answer.
        return there_BL.long() if self.causal else there_BL[:, None, None, :]

    def take_weights(self, previous: LanguageModel) -> None:
        """Copy the weights of a network that may take shorter rows; positions that it does not have stay as they are.

        Raises:
            ConfigError: when anything else differs in shape, or the tokens are made by another tokenizer.
        """
        ours, theirs = self.tokenizer, previous.tokenizer
        if ours is not None and theirs is not None and ours.fingerprint != theirs.fingerprint:
            raise ConfigError(
                "the run to start from has another tokenizer, whose tokens mean something else. Leave "
                "--data.text.tokenizer out: its own is taken then."
            )
        state, own = previous.state_dict(), self.state_dict()
        for name, value in state.items():
            mine = own.get(name)
            placed = "position" in name or name.endswith("wpe.weight")
            if placed and mine is not None and len(value) < len(mine) and value.shape[1:] == mine.shape[1:]:
                state[name] = torch.cat([value.to(mine), mine[len(value) :]])
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigError(f"the network to start from has other shapes: {error}") from error

    @property
    def token_embedding(self) -> nn.Parameter:
        """The token embeddings, which heads that predict tokens share."""
        network: Any = self.network
        weight: nn.Parameter = network.get_input_embeddings().weight
        return weight

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Refuse images.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"'{self.name}' reads text, not images. Evaluate it by a protocol for text (see imprint evaluate --help)."
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        network: Any = self.network
        if enable:
            network.gradient_checkpointing_enable()
        else:
            network.gradient_checkpointing_disable()

    @property
    def config(self) -> dict[str, Any]:
        """What `build_encoder` needs."""
        return dict(self._config)


def build_language_model(config: Mapping[str, Any]) -> LanguageModel:
    """Build a network for text, with random weights from torch's generator.

    Args:
        config: `name` (`text:KIND`), `vocabulary`, `context`, `image_size` (kept, not used) and `arch`, a mapping with
            `embed_dim`, `depth`, `num_heads`, `mlp_ratio`, `embedding` (ALBERT's E) and `dropout`.

    Raises:
        ConfigError: for an unknown kind, or sizes that do not fit together.
        MissingExtra: without transformers.
    """
    kind = str(config["name"]).removeprefix(PREFIX)
    if kind not in KINDS:
        raise unknown("language model", kind, KINDS)
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "text", "a language model") from error
    hf: Any = transformers
    known = {*SIZES, "embedding"}
    strange = [name for name in config["arch"] if name not in known]
    if strange:
        raise ConfigError(f"'{PREFIX}{kind}' has no part '{strange[0]}'; its sizes are {', '.join(sorted(known))}.")
    arch = SIZES | dict(config["arch"])
    width, heads = int(arch["embed_dim"]), int(arch["num_heads"])
    vocabulary, context = int(config["vocabulary"]), int(config["context"])
    if width % heads:
        raise ConfigError(f"'{PREFIX}{kind}' of width {width} cannot have {heads} heads; use a divisor of the width.")
    if vocabulary < 1 or context < 1:
        raise ConfigError(f"'{PREFIX}{kind}' needs a vocabulary and a context, got {vocabulary} and {context}.")
    inner, rate = int(width * arch["mlp_ratio"]), float(arch["dropout"])
    shared = {"vocab_size": vocabulary, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    masked: dict[str, Any] = {
        "hidden_size": width, "num_hidden_layers": int(arch["depth"]), "num_attention_heads": heads,
        "intermediate_size": inner, "max_position_embeddings": context, "hidden_dropout_prob": rate,
        "attention_probs_dropout_prob": rate,
        # The published 0.02 is for widths from 768; narrower matrices start wider, so that layers put out as much.
        "initializer_range": 0.02 * max(1.0, 768 / width) ** 0.5,
    }  # fmt: skip
    causal: dict[str, Any] = {
        "n_embd": width, "n_layer": int(arch["depth"]), "n_head": heads, "n_positions": context,
        "resid_pdrop": rate, "embd_pdrop": rate, "attn_pdrop": rate,
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**shared, **masked), add_pooling_layer=False),
        "albert": lambda: hf.AlbertModel(
            hf.AlbertConfig(**shared, **masked, embedding_size=int(arch.get("embedding") or 128), hidden_act=GELU),
            add_pooling_layer=False,
        ),
        "gpt": lambda: hf.OpenAIGPTModel(hf.OpenAIGPTConfig(**shared, **causal)),
        "gpt2": lambda: hf.GPT2Model(
            hf.GPT2Config(**shared, **causal, n_inner=inner, use_cache=False, activation_function=GELU)
        ),
    }
    if kind == "gpt" and inner != 4 * width:
        raise ConfigError("'text:gpt' has MLPs of four times the width (Radford 2018); text:gpt2 takes other ratios.")
    return LanguageModel(kind, makers[kind](), {**config, "arch": dict(config["arch"])})


def require_language(encoder: Encoder, method: str, *, causal: bool | None = None) -> LanguageModel:
    """Return the encoder as a network for text.

    Raises:
        ConfigError: for an encoder of images, or one that reads in another way than `causal` says.
    """
    fitting = [PREFIX + kind for kind in KINDS if causal is None or (kind in CAUSAL) == causal]
    if not isinstance(encoder, LanguageModel) or (causal is not None and encoder.causal != causal):
        raise ConfigError(f"{method} needs a network for text: --encoder {' or '.join(fitting)}, not '{encoder.name}'.")
    return encoder
