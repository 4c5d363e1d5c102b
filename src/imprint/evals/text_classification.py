"""Text classification: a language model fine-tuned with a linear classifier, or its frozen features probed.

BERT's (arXiv 1810.04805, Sec. 4.1 and App. A.3) for networks that see both ways, GPT's (Radford et al. 2018, Sec. 3.2
and 4.1) with the auxiliary language-modelling loss for causal ones.

Shapes: B texts, L tokens of the longest of a batch, D width, C classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import LanguageModel, require_language
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError, DataError
from imprint.core.progress import Steps
from imprint.core.rng import seed_of
from imprint.core.schedules import Schedule
from imprint.data.labelled_texts import LabelledTexts, open_labelled_texts
from imprint.data.sampler import Sampler
from imprint.evals.intervals import accuracy, class_shares
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, timed
from imprint.evals.report import Metric, Report
from imprint.evals.represent import pick_device, pick_precision
from imprint.evals.training import Plan, fit
from imprint.evals.workspace import Workspace
from imprint.losses.token_prediction import token_cross_entropy

Rows = list[npt.NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class TextClassificationConfig(ProtocolConfig):
    """Settings of fine-tuning on texts; defaults are BERT's (App. A.3), those of GPT in brackets.

    Attributes:
        epochs: passes over the training texts (3).
        minibatch: texts per step (32).
        lr: peak learning rate (BERT: 2e-5 to 5e-5; GPT: 6.25e-5).
        warmup: share of the steps with a linear warm-up (public code: 0.1; GPT: 0.002); the rate then falls to 0.
        weight_decay: of matrices (0.01).
        clip: largest norm of the gradient (public codes: 1), 0 for any.
        dropout: before the classifier (0.1).
        lm_weight: weight of the auxiliary language-modelling loss of causal networks (GPT, Sec. 4.1: 0.5).
        length: most tokens of a text, special ones included; longer ones lose their end. None takes the network's.
        frozen: train the classifier alone, on features that stay as they are.
        text_fields: field of the text, or the two fields of a pair; empty finds them.
        label_field: field of the class; None finds it.
    """

    epochs: int = 3
    minibatch: int = 32
    lr: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.1
    lm_weight: float = 0.5
    length: int | None = None
    frozen: bool = False
    text_fields: tuple[str, ...] = ()
    label_field: str | None = None

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        super().__post_init__()
        if self.epochs < 1 or self.minibatch < 1 or self.lr <= 0:
            raise ConfigError("fine-tuning needs at least one epoch, one text per step and a positive --lr.")
        if not (
            0 <= self.warmup < 1 and 0 <= self.dropout < 1 and min(self.weight_decay, self.clip, self.lm_weight) >= 0
        ):
            raise ConfigError("warmup and dropout lie in [0, 1); weight_decay, clip and lm_weight are 0 or more.")
        if self.length is not None and self.length < 4:
            raise ConfigError(f"texts of {self.length} tokens say nothing; use --length 4 or more.")


class TextClassification(Protocol):
    """Train network and classifier on `train`, score them on `test` once, at the end."""

    name: ClassVar[str] = "text_classification"
    Config: ClassVar[type[ProtocolConfig]] = TextClassificationConfig
    needs_labels: ClassVar[bool] = True

    @classmethod
    def open(cls, spec: Any, config: TextClassificationConfig) -> LabelledTexts:
        """Return labelled texts."""
        if isinstance(spec, Sequence) and not isinstance(spec, str):
            if len(spec) != 1:
                raise ConfigError(f"'{cls.name}' takes one file of labelled texts, got {len(spec)}.")
            spec = spec[0]
        return open_labelled_texts(spec, text=config.text_fields, label=config.label_field)

    def run(self, encoder: Encoder, data: EvalData, config: TextClassificationConfig | None = None) -> Report:
        """Return the accuracy (main) on the test texts, beside the share of the most frequent class.

        Raises:
            ConfigError: for an encoder of images.
            DataError: for a test class that the training texts lack, or one class only.
            HealthError: when the loss stops being finite.
        """
        config = config or TextClassificationConfig()
        model = require_language(encoder, self.name)
        if model.tokenizer is None:
            raise ConfigError(f"'{encoder.name}' has no tokenizer stored with it, so nobody knows its tokens.")
        train: LabelledTexts = data.train
        test = data.test.renumbered(train.classes)
        if len(train.classes) < 2:
            raise DataError(f"'{train.spec}' has one class only, '{train.classes[0]}': there is nothing to tell apart.")
        workspace = Workspace.open(self.name, model, EvalData(train=train, test=test), config)
        cost: dict[str, float] = {"texts": float(len(train) * config.epochs + len(test))}
        length = min(config.length or model.context, model.context)
        rows, cut = encoded(train, model.tokenizer, length)
        test_rows, test_cut = encoded(test, model.tokenizer, length)
        device = pick_device(config.device, model)
        torch.manual_seed(seed_of(config.seed, self.name))
        network = TextClassifier(model, len(train.classes), config).to(device)
        with timed(cost, "train_s"):
            judged, curve = _train(network, rows, train, config, device, workspace)
        with timed(cost, "test_s"):
            predicted = _predicted(judged, test_rows, config, device)
        workspace.clear()
        assert train.labels is not None and test.labels is not None
        hits = predicted == test.labels
        majority = int(np.bincount(train.labels).argmax())
        return Report(
            protocol=self.name,
            encoder=model.name,
            data={name: describe(part) | {"unit": "texts"} for name, part in (("train", train), ("test", test))},
            metrics={
                "accuracy": accuracy(int(hits.sum()), len(hits)),
                "most_frequent_class": Metric(value=100.0 * float((test.labels == majority).mean()), n=len(hits)),
            },
            main="accuracy",
            details={
                "train_loss": curve,
                "by_class": class_shares(hits, test.labels, train.classes),
                "texts_cut": {"train": cut, "test": test_cut, "length": length},
                "settings": dataclasses.asdict(config),
            },
            cost=cost,
        )


class TextClassifier(nn.Module):
    """A language model with a classifier on what stands for the text: the first token, or a causal network's last.

    Behind the first token a fresh layer with tanh comes first (BERT's pooler).
    """

    def __init__(self, model: LanguageModel, classes: int, config: TextClassificationConfig) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model)
        self.backbone.requires_grad_(not config.frozen)
        self.lm_weight = 0.0 if config.frozen or not model.causal else config.lm_weight
        self.frozen = config.frozen
        width = model.embed_dim
        self.pooler: nn.Module = nn.Identity() if model.causal else nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.drop, self.linear = nn.Dropout(config.dropout), nn.Linear(width, classes)
        for layer in (m for m in (*self.pooler.modules(), self.linear) if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> TextClassifier:
        """Switch to training; a frozen network stays as in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, ids_BL: Tensor, segment_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the tokens' features (B, L, D)."""
        hidden_BLD = self.backbone(ids_BL, segment_BL)
        if self.backbone.causal:
            last_B = (ids_BL >= 0).sum(1) - 1
            pooled = hidden_BLD[torch.arange(len(ids_BL), device=ids_BL.device), last_B]
        else:
            pooled = hidden_BLD[:, 0]
        return self.linear(self.drop(self.pooler(pooled))), hidden_BLD

    def loss(self, ids_BL: Tensor, segment_BL: Tensor | None, labels_B: Tensor) -> Tensor:
        """Return L_task + lambda L_LM (Radford et al. 2018, Eq. 5); the second for causal networks only."""
        logits, hidden_BLD = self(ids_BL, segment_BL)
        loss = F.cross_entropy(logits.float(), labels_B)
        if self.lm_weight:
            seen = (ids_BL[:, 1:] >= 0).flatten()
            places = seen.nonzero().squeeze(1)
            hidden_TD = hidden_BLD[:, :-1].flatten(0, 1)[places]
            nats, _ = token_cross_entropy(hidden_TD, self.backbone.token_embedding, ids_BL[:, 1:].flatten()[places])
            loss = loss + self.lm_weight * nats
        return loss


def encoded(source: LabelledTexts, tokenizer: TextTokenizer, length: int) -> tuple[Rows, int]:
    """Return rows of tokens, start a end (b end), and how many texts were cut; of a pair the longer text is cut."""
    special, rows, cut = tokenizer.special, [], 0
    parts = [
        tokenizer.ids([source.texts(i)[k] for i in range(len(source))]) for k in range(1 + (source.second is not None))
    ]
    for several in zip(*parts, strict=True):
        sizes = [len(ids) for ids in several]
        room = length - 1 - len(several)
        cut += sum(sizes) > room
        while sum(sizes) > room:
            longest = int(np.argmax(sizes))
            sizes[longest] -= min(sum(sizes) - room, max(1, sizes[longest] - (min(sizes) if len(sizes) > 1 else 0)))
        row = [special.start]
        for ids, size in zip(several, sizes, strict=True):
            row += [*ids[:size].tolist(), special.end]
        rows.append(np.array(row, dtype=np.int64))
    return rows, cut


def _collated(rows: Rows, chosen: npt.NDArray[np.int64], end: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return padded ids (-1 behind the end) and segments: 1 from behind the first end token on."""
    several = [rows[int(i)] for i in chosen]
    width = max(len(row) for row in several)
    ids = np.full((len(several), width), -1, dtype=np.int64)
    for place, row in enumerate(several):
        ids[place, : len(row)] = row
    ends = np.cumsum(ids == end, axis=1)
    segment = ((ends - (ids == end)) >= 1).astype(np.int64)
    return torch.from_numpy(ids).to(device), torch.from_numpy(segment).to(device)


def _train(
    network: TextClassifier,
    rows: Rows,
    train: LabelledTexts,
    config: TextClassificationConfig,
    device: torch.device,
    workspace: Workspace,
) -> tuple[nn.Module, list[float]]:
    assert train.labels is not None and network.backbone.tokenizer is not None
    labels, end = torch.from_numpy(train.labels).to(device), network.backbone.tokenizer.special.end
    size = min(config.minibatch, len(rows))
    order = Sampler(size=len(rows), batch_size=size, seed=seed_of(config.seed, "texts"), drop_last=False)
    steps = config.epochs * order.steps_per_epoch
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    plan = Plan(
        name=TextClassification.name,
        steps=steps,
        per_epoch=order.steps_per_epoch,
        lr=Schedule(start=config.lr, end=0.0, shape="linear", warmup=Steps(round(config.warmup * steps))),
        clip=config.clip,
        seed=config.seed,
    )

    def batches(first: int, last: int) -> Iterator[npt.NDArray[np.int64]]:
        return (chosen for _, chosen in order.walk(first, last))

    def loss_of(chosen: npt.NDArray[np.int64], step: int) -> Tensor:
        ids, segment = _collated(rows, chosen, end, device)
        return network.loss(ids, segment, labels[torch.from_numpy(chosen).to(device)])

    network.train()
    dtype = pick_precision(config.precision, device)
    return fit(network, optimizer, batches, loss_of, plan, device=device, dtype=dtype, workspace=workspace)


def _predicted(
    network: nn.Module, rows: Rows, config: TextClassificationConfig, device: torch.device
) -> npt.NDArray[np.int64]:
    """Return the class of every row; rows of like length share a batch."""
    assert isinstance(network, TextClassifier) and network.backbone.tokenizer is not None
    end = network.backbone.tokenizer.special.end
    order = np.argsort([len(row) for row in rows], kind="stable")
    found = np.zeros(len(rows), dtype=np.int64)
    network.eval()
    with torch.no_grad():
        for start in range(0, len(rows), config.batch_size):
            chosen = order[start : start + config.batch_size]
            logits, _ = network(*_collated(rows, chosen, end, device))
            found[chosen] = logits.argmax(1).cpu().numpy()
    return found
