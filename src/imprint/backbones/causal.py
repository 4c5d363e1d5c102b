"""What a causal network for text can be asked: which token comes next, and how likely a text is after another one.

Shapes: B rows, L tokens, D width, K tokens of the vocabulary, T tokens that are scored, R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import CAUSAL, PREFIX, LanguageModel
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError

LOGITS = 2**22
"""Logits held at a time: 16 MiB of float32."""


@dataclass(frozen=True)
class Request:
    """Tokens of which the last ones are to be scored.

    Attributes:
        ids: all tokens in order.
        scored: how many of the last ones count, at least one and fewer than all.
    """

    ids: Sequence[int]
    scored: int


@dataclass(frozen=True)
class Scored:
    """How likely the scored tokens of R requests are.

    Attributes:
        nats_R: float64 sum of -log P(token | all before it).
        tokens_R: int64 number of scored tokens.
        greedy_R: whether each of them is the likeliest one where it stands, so that always taking the likeliest token
            would write them.
    """

    nats_R: npt.NDArray[np.float64]
    tokens_R: npt.NDArray[np.int64]
    greedy_R: npt.NDArray[np.bool_]


def require_causal(encoder: Encoder, asker: str) -> tuple[LanguageModel, TextTokenizer]:
    """Return the encoder as a causal network for text, and its tokenizer.

    Raises:
        ConfigError: for an encoder of images, one that sees what comes later, or one without a tokenizer.
    """
    if not isinstance(encoder, LanguageModel) or not encoder.causal:
        seen = "looks at both sides of a token" if isinstance(encoder, LanguageModel) else "does not predict text"
        raise ConfigError(
            f"{asker} lets a causal language model go on with a text, and '{encoder.name}' {seen}. Give a "
            f"run of gpt, or another network of the kinds {', '.join(PREFIX + kind for kind in CAUSAL)}."
        )
    if encoder.tokenizer is None:
        raise ConfigError(f"{asker}: '{encoder.name}' has no tokenizer with it; load it from a run or an export.")
    return encoder, encoder.tokenizer


@torch.no_grad()
def score(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    rows: int = 64,
    tokens: int = 16_384,
    dtype: torch.dtype = torch.float32,
) -> Scored:
    """Return how likely the last tokens of each request are after those before them.

    Requests of similar length go through together, padded behind, which a causal network does not see. Logits are
    made for scored tokens only, and a few at a time.

    Args:
        model: in evaluation mode.
        requests: none longer than the model's context.
        rows: most requests of a batch.
        tokens: most tokens of a batch, padding included.
        dtype: of autocast; float32 switches it off.

    Raises:
        ConfigError: for a request that is longer than the context, or that leaves nothing to be scored or seen.
    """
    for request in requests:
        if not 0 < request.scored < len(request.ids) <= model.context:
            raise ConfigError(
                f"a request of {len(request.ids)} tokens, the last {request.scored} scored, does not fit a context of "
                f"{model.context}: it needs a token before the scored ones."
            )
    nats = np.zeros(len(requests))
    greedy = np.ones(len(requests), dtype=np.bool_)
    device = model.token_embedding.device
    for batch in _batches([len(request.ids) for request in requests], rows, tokens):
        ids_BL = pad_sequence(
            [torch.as_tensor(requests[i].ids, dtype=torch.int64) for i in batch], batch_first=True, padding_value=-1
        )
        own_B = torch.tensor([len(requests[i].ids) for i in batch])[:, None]
        first_B = own_B - torch.tensor([requests[i].scored for i in batch])[:, None]
        place_L = torch.arange(1, ids_BL.shape[1])
        scored_BL = (place_L >= first_B) & (place_L < own_B)
        at_T = scored_BL.flatten().nonzero().squeeze(1)  # known on the host: the device is not waited for
        target_T = ids_BL[:, 1:].flatten()[at_T].to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            hidden_BLD = model(ids_BL.to(device), padded=False)
        hidden_TD = hidden_BLD[:, :-1].flatten(0, 1)[at_T.to(device)]
        nats_T, right_T = _next_tokens(model, hidden_TD, target_T)
        row_T = np.asarray(batch)[(at_T // (ids_BL.shape[1] - 1)).numpy()]
        np.add.at(nats, row_T, nats_T.double().cpu().numpy())
        np.logical_and.at(greedy, row_T, right_T.cpu().numpy())
    return Scored(nats, np.array([request.scored for request in requests], dtype=np.int64), greedy)


def _next_tokens(model: LanguageModel, hidden_TD: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log P(target) and whether it is the likeliest, a token at a time (float32)."""
    nats, right = [], []
    rows = max(1, LOGITS // model.vocabulary)
    for start in range(0, len(hidden_TD), rows):
        logits = next_logits(model, hidden_TD[start : start + rows])
        target_T1 = target_T[start : start + rows, None]
        own_T1 = logits.gather(1, target_T1)
        nats.append((logits.logsumexp(1, keepdim=True) - own_T1).squeeze(1))
        right.append((own_T1 >= logits.amax(1, keepdim=True)).squeeze(1))
    return torch.cat(nats), torch.cat(right)


def next_logits(model: LanguageModel, hidden_TD: Tensor) -> Tensor:
    """Return the logits (T, K) of the token after each one: h W_e^T with the token embeddings (Radford 2018, Eq. 2).

    Float32 (float64 for float64 states), whatever autocast says.
    """
    dtype = torch.float64 if hidden_TD.dtype == torch.float64 else torch.float32
    with torch.autocast(hidden_TD.device.type, enabled=False):
        return hidden_TD.to(dtype) @ model.token_embedding.to(dtype).T


def last_states(hidden_BLD: Tensor, ids_BL: Tensor) -> Tensor:
    """Return the state (B, D) of the last token of each row (ids -1 behind it), which has seen the whole row.

    It is what GPT's classifier reads (Radford 2018, Eq. 3). A row without a token gives its first state.
    """
    last_B = ((ids_BL >= 0).sum(1) - 1).clamp(min=0)
    return hidden_BLD[torch.arange(len(ids_BL), device=ids_BL.device), last_B]


def _batches(sizes: Sequence[int], rows: int, tokens: int) -> list[list[int]]:
    """Return the indices of requests in batches, long ones first (what does not fit in memory fails at once)."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    made: list[list[int]] = []
    while order:
        take = max(1, min(rows, tokens // max(1, sizes[order[0]])))
        made.append(order[:take])
        order = order[take:]
    return made
