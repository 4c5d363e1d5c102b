"""data2vec on rows of tokens: what its targets are, which places count, and a run from text to encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imprint.backbones.arch import Arch
from imprint.backbones.language_model import LanguageModel, build_language_model
from imprint.backbones.load import load_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress, Steps
from imprint.data.batch import Batch
from imprint.data.corpus import Corpus
from imprint.data.texts import TextConfig
from imprint.methods.data2vec import Data2Vec, Data2VecConfig
from imprint.nn.data2vec import Data2VecObjective, Targets
from imprint.nn.language_front import LanguageFrontEnd
from imprint.recipes.book import recipe
from imprint.train.loop import train

pytest.importorskip("transformers")


def network(kind: str = "bert") -> LanguageModel:
    arch = {"embed_dim": 32, "depth": 3, "num_heads": 2, "dropout": 0.0}
    return build_language_model(
        {"name": f"text:{kind}", "vocabulary": 60, "context": 16, "image_size": 32, "arch": arch}
    )


def ids(seed: int = 0, size: int = 16) -> torch.Tensor:
    rows = torch.randint(5, 60, (4, 16), generator=torch.Generator().manual_seed(seed))
    rows[:, size:] = -1
    return rows


def test_targets_are_feed_forward_outputs_before_the_sum() -> None:
    front = LanguageFrontEnd(network().eval())
    rows = ids()
    found = front.layers(torch.stack([rows, rows + 0]), 2)
    whole = front.backbone.network(input_ids=rows, output_hidden_states=True).hidden_states
    for number, added in zip((1, 2), found, strict=True):
        block = front.backbone.network.encoder.layer[number]
        kept: list[torch.Tensor] = []
        hook = block.output.register_forward_pre_hook(lambda module, given, kept=kept: kept.append(given[1]))
        front.backbone(rows)
        hook.remove()
        torch.testing.assert_close(block.output.LayerNorm(added + kept[0]), whole[number + 1], rtol=1e-4, atol=1e-5)
    assert not front.backbone.network.encoder.layer[1].output.dense._forward_hooks
    with pytest.raises(ConfigError, match="text:bert, not 'text:gpt2'"):
        LanguageFrontEnd(network("gpt2"))


def test_places_that_only_fill_up_do_not_count() -> None:
    torch.manual_seed(0)
    objective = Data2VecObjective(LanguageFrontEnd(network()), nn.Linear(32, 32), Targets(top=2, beta=4.0))
    inputs = torch.stack([ids(), ids(1)])
    places, valid = torch.tensor([1, 5, 20, 40]), torch.tensor([True, False, True, False])
    mask = torch.zeros(4, 16, dtype=torch.bool)
    some, _ = objective(inputs, mask, places, rows=valid.sum().float(), valid_M=valid)
    exact, _ = objective(inputs, mask, places[valid])
    torch.testing.assert_close(some, exact)
    grads = [torch.autograd.grad(loss, objective.head.weight)[0] for loss in (some, exact)]
    torch.testing.assert_close(*grads)


def test_what_the_student_sees_does_not_depend_on_the_company(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = Data2VecConfig(modality="text", top_layers=2, vocabulary=60, length=16)
    method = Data2Vec(cfg, network()).eval()
    t = Progress(3, 10, 5)

    def loss_of(part: slice) -> torch.Tensor:
        rows = ids(size=12)
        return method(Batch(tokens={"text": rows[part]}, index_B=torch.arange(4)[part]), t).loss

    halves = (loss_of(slice(0, 2)) + loss_of(slice(2, 4))) / 2
    torch.testing.assert_close(halves, loss_of(slice(0, 4)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="--method.modality text"):
        Data2Vec(Data2VecConfig(), network())
    assert Data2Vec.dangers(dataclasses.replace(cfg, momentum=Data2VecConfig().momentum)) == ()


def test_a_run_on_text_ends_in_an_encoder_of_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = "a dog cat red car on the grass sky runs sits blue tree near".split()
    corpus = Corpus.of(" ".join(rng.choice(words, 40)) for _ in range(60))
    plan = recipe("data2vec/text_small")
    plan = dataclasses.replace(
        plan,
        method=dataclasses.replace(plan.method, length=16),
        encoder=dataclasses.replace(plan.encoder, arch=Arch(embed_dim=32, depth=2, num_heads=2, dropout=0.0)),
        data=dataclasses.replace(plan.data, text=TextConfig(vocabulary=300)),
        batch_size=16,
        length=Steps(6),
        probe_every=Epochs(1),
        log_every=1,
        workers=1,
        device="cpu",
        precision="fp32",
    )
    run = train(plan, tmp_path / "run", source=corpus)
    losses = [m["loss"] for m in run.metrics() if "loss" in m]
    assert run.finished and len(losses) == 6 and losses[-1] < losses[0]
    encoder = load_encoder(str(run.path))
    assert isinstance(encoder, LanguageModel) and encoder.tokenizer is not None
    assert encoder.tokenizer.json == (run.path / "tokenizer.json").read_text()
