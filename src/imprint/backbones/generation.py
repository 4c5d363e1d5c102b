"""How a causal network goes on with a text: greedily, or by draws.

Shapes: B rows, L tokens, D width, K tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imprint.backbones.causal import next_logits, require_causal
from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import LanguageModel
from imprint.core.errors import ConfigError


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt_BL: Tensor,
    tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    end: int | None = None,
) -> Tensor:
    """Return prompts with `tokens` more tokens each, (B, L + tokens) int64 on the prompts' device.

    A text longer than the context goes on from its last tokens, half a context at least.

    Args:
        model: in evaluation mode.
        prompt_BL: int64 ids, at least one each, none of them -1.
        tokens: how many to write.
        temperature: divides the logits before drawing; 0 always takes the likeliest token.
        top_k: draw from the likeliest so many tokens only; 0 draws from all.
        seed: of what is drawn.
        end: a row ends with this token; it is repeated to the end of the row.

    Raises:
        ConfigError: for a network that is not causal, an empty prompt, or values out of range.
    """
    if not model.causal:
        raise ConfigError(f"'{model.name}' looks at both sides of a token and cannot go on with a text.")
    if prompt_BL.ndim != 2 or prompt_BL.shape[1] < 1 or tokens < 0 or temperature < 0 or top_k < 0:
        raise ConfigError(
            f"generate needs prompts (B, L) of at least one token, got {tuple(prompt_BL.shape)}, and tokens, "
            f"temperature and top_k of at least 0, got {tokens}, {temperature} and {top_k}."
        )
    device = model.token_embedding.device
    ids_BL = prompt_BL.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    done_B1 = torch.zeros(len(ids_BL), 1, dtype=torch.bool, device=device)
    reader = _Reader(model)
    for _ in range(tokens):
        logits_BK = next_logits(model, reader.last(ids_BL))
        if temperature == 0.0:
            chosen_B1 = logits_BK.argmax(1, keepdim=True)
        else:
            logits_BK = logits_BK / temperature
            if 0 < top_k < model.vocabulary:
                least_B1 = logits_BK.topk(top_k, dim=1).values[:, -1:]
                logits_BK = logits_BK.masked_fill(logits_BK < least_B1, -torch.inf)
            chosen_B1 = torch.multinomial(logits_BK.softmax(1), 1, generator=generator)
        if end is not None:
            chosen_B1 = chosen_B1.masked_fill(done_B1, end)
            done_B1 = done_B1 | (chosen_B1 == end)
        ids_BL = torch.cat([ids_BL, chosen_B1], 1)
    return ids_BL.to(prompt_BL.device)


class _Reader:
    """Reads a growing text; what GPT-2 has read it does not read again (keys and values are kept)."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.start, self.read, self.kept = 0, 0, None

    def last(self, ids_BL: Tensor) -> Tensor:
        """Return the state (B, D) of the last token of a text that continues the one of the call before."""
        model, length = self.model, ids_BL.shape[1]
        if length - self.start > model.context:
            # Positions are absolute, so nothing that was read elsewhere can be kept.
            self.start, self.read, self.kept = length - max(1, model.context // 2), 0, None
        window_BL = ids_BL[:, self.start :]
        if model.kind != "gpt2":
            hidden_BLD: Tensor = model(window_BL, padded=False)
            return hidden_BLD[:, -1]
        network: Any = model.network
        out = network(input_ids=window_BL[:, self.read :], past_key_values=self.kept, use_cache=True)
        self.kept, self.read = out.past_key_values, window_BL.shape[1]
        last_BD: Tensor = out.last_hidden_state[:, -1]
        return last_BD


def continued(
    encoder: Encoder,
    prompts: Sequence[str],
    tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 40,
    seed: int = 0,
) -> list[str]:
    """Return how a causal network goes on with each text, until it ends the document or `tokens` tokens are written.

    Raises:
        ConfigError: for an encoder that cannot (see `require_causal`), or values out of range.
    """
    model, tokenizer = require_causal(encoder, "continued")
    end, texts = tokenizer.special.end, []
    for number, ids in enumerate(tokenizer.ids(prompts)):
        prompt = torch.tensor([[end, *ids.tolist()]])  # the token between documents: a document begins
        found = generate(
            model, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed + number, end=end
        )  # fmt: skip
        texts.append(tokenizer.decode(found[0, prompt.shape[1] :].tolist()))
    return texts
