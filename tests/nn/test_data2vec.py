"""One objective, text and speech: what its front ends hide and show, and that they train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imprint.backbones.build import build_encoder
from imprint.backbones.language_model import LanguageModel
from imprint.core.errors import ConfigError
from imprint.nn.data2vec import Data2VecObjective, FrontEnd, Targets
from imprint.nn.language_front import LanguageFrontEnd
from imprint.nn.sequence import SequenceTransformer
from imprint.nn.waveform_front import CONVOLUTIONS, WaveformFrontEnd
from imprint.ops.masking import span_mask, token_mask

SMALL = ((16, 10, 5), (16, 3, 2), (16, 2, 2))


def text_front() -> LanguageFrontEnd:
    arch = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dropout": 0.0}
    model = build_encoder("text:bert", image_size=32, vocabulary=129, context=64, arch=arch)
    assert isinstance(model, LanguageModel)
    return LanguageFrontEnd(model)


MASK = 128


def wave_front(**changes) -> WaveformFrontEnd:
    return WaveformFrontEnd(
        width=32, depth=2, heads=2, convolutions=SMALL, positions=2, kernel=7, groups=4, **{"dropout": 0.0, **changes}
    )


def texts(rows: int, seed: int) -> Tensor:
    """Pieces of this repository's README, byte by byte."""
    data = (Path(__file__).parents[2] / "README.md").read_bytes()
    book = torch.tensor([min(b, 127) for b in data])
    start = torch.randint(len(book) - 48, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([book[s : s + 48] for s in start.tolist()])


def sounds(rows: int, seed: int) -> Tensor:
    """Tones that change their pitch twice, with noise."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 0.02 + 0.2 * torch.rand(rows, 3, generator=generator)
    phase = pitch.repeat_interleave(320, dim=1).cumsum(1)
    return torch.sin(phase) + 0.1 * torch.randn(rows, 960, generator=generator)


def masked(kind: str, inputs: Tensor, front: FrontEnd, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    if kind == "text":
        return token_mask(torch.rand(inputs.shape, generator=generator), 0.15)
    assert isinstance(front, WaveformFrontEnd)
    frames = front.frames(inputs.shape[1])
    return span_mask(torch.rand(len(inputs), frames, generator=generator), 0.065, 5)


def fed(kind: str, inputs: Tensor, mask: Tensor) -> Tensor:
    """What the front end reads: for text the rows, and the rows with the masked tokens hidden."""
    return torch.stack([inputs, torch.where(mask, MASK, inputs)]) if kind == "text" else inputs


def rules(kind: str) -> Targets:
    if kind == "text":  # fairseq: layer norm, beta 4, sum / sqrt(D)
        return Targets(top=2, beta=4.0, width="sqrt")
    return Targets(top=2, layer_norm=False, instance_norm=True, beta=0.0, width="sqrt")


@pytest.mark.parametrize("kind", ["text", "speech"])
def test_text_and_speech_train_by_the_same_objective(kind: str) -> None:
    """The student beats the best constant prediction of a teacher that stands still, while the real one moves."""
    torch.manual_seed(0)
    front: FrontEnd = text_front() if kind == "text" else wave_front()
    objective = Data2VecObjective(front, nn.Linear(32, 32), rules(kind))
    before = [p.clone() for p in objective.teacher.parameters()]
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    draw = texts if kind == "text" else sounds

    def loss_on(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = draw(24, step)
        mask = masked(kind, inputs, front, step)
        return objective(fed(kind, inputs, mask), mask, mask.flatten().nonzero().squeeze(1))

    # A head that says the same for every token, whatever the input: the baseline for the same targets.
    first, metrics = loss_on(0)
    assert metrics["target_std"] > 0.05
    for step in range(1, 61):
        optimizer.zero_grad()
        loss, _ = loss_on(step)
        loss.backward()
        if step == 1:
            named = objective.named_parameters()
            assert [n for n, p in named if p.requires_grad and p.grad is None] == []
        optimizer.step()
        objective.move_teacher(0.999)
    inputs = draw(64, 999)
    mask = masked(kind, inputs, front, 999)
    places = mask.flatten().nonzero().squeeze(1)
    inputs = fed(kind, inputs, mask)
    with torch.no_grad():
        trained, _ = objective(inputs, mask, places)
        weight, bias = objective.head.weight, objective.head.bias
        kept = weight.clone(), bias.clone()
        weight.zero_()
        from imprint.losses.data2vec import averaged_layers

        rule = objective.targets
        targets = averaged_layers(
            objective.teacher.layers(inputs, 2), places, layer_norm=rule.layer_norm, instance_norm=rule.instance_norm
        )
        bias.copy_(targets.mean(0))
        baseline, _ = objective(inputs, mask, places)
        weight.copy_(kept[0])
        bias.copy_(kept[1])
    assert trained < 0.9 * baseline and trained < 0.8 * first, (float(first), float(trained), float(baseline))
    moved = [not torch.equal(a, b) for a, b in zip(before, objective.teacher.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("kind", ["text", "speech"])
def test_shared_parts_are_the_students_and_blocks_lag(kind: str) -> None:
    front: FrontEnd = text_front() if kind == "text" else wave_front()
    objective = Data2VecObjective(front, nn.Identity(), rules(kind))
    with torch.no_grad():
        for parameter in front.parameters():
            parameter.add_(1.0)
    objective.move_teacher(0.9)
    for name, parameter in front.named_parameters():
        behind = parameter - objective.teacher.get_parameter(name)
        shared = any(name.startswith(f"{part}.") for part in front.shared)
        torch.testing.assert_close(behind, torch.full_like(behind, 0.0 if shared else 0.9))
    blocks = "backbone.network.encoder" if kind == "text" else "transformer"
    assert any(name.startswith(blocks) for name, _ in front.named_parameters())


def test_feed_forward_outputs_are_taken_before_the_sum() -> None:
    torch.manual_seed(0)
    stack = SequenceTransformer(16, 2, 2, dropout=0.0)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        stack.blocks[1].fc2.weight.zero_()
        stack.blocks[1].fc2.bias.fill_(0.25)
    first, second = stack.feed_forward(x, 2)
    assert (second == 0.25).all() and not (first == 0.25).any()
    assert len(stack.feed_forward(x, 1)) == 1 and torch.equal(stack.feed_forward(x, 1)[0], second)
    assert not torch.equal(stack(x), second)


def test_padding_is_neither_masked_nor_looked_at() -> None:
    torch.manual_seed(0)
    front = text_front().eval()
    tokens = torch.randint(0, 128, (3, 20))
    tokens[:, 12:] = -1
    mask = token_mask(torch.rand(3, 20), 0.25, tokens >= 0)
    assert not mask[:, 12:].any() and (mask.sum(1) == 3).all()
    short = front.layers(tokens[None, :, :12], 2)[1]
    torch.testing.assert_close(front.layers(tokens[None], 2)[1][:, :12], short, atol=1e-5, rtol=1e-4)


def test_spans_of_frames() -> None:
    mask = span_mask(torch.rand(500, 200), 0.065, 10)
    assert mask.dtype == torch.bool and 0.4 < mask.float().mean() < 0.55  # about 49 % (wav2vec 2.0, Sec. 4.2)
    runs = torch.cat([torch.zeros(500, 1), mask.float(), torch.zeros(500, 1)], 1).diff(dim=1)
    begins, ends = (runs == 1).nonzero(), (runs == -1).nonzero()
    assert ((ends[:, 1] - begins[:, 1]) >= 10).all()
    for start, length in ((0.5, 150), (0.1, 200), (0.0, 10)):
        with pytest.raises(ConfigError, match="spans"):
            span_mask(torch.rand(2, 200), start, length)
    with pytest.raises(ConfigError, match="ratio"):
        token_mask(torch.rand(2, 8), 0.0)


def test_masked_frames_say_nothing_of_the_sound_and_frames_are_counted() -> None:
    torch.manual_seed(0)
    front = wave_front().eval()
    wave = sounds(3, 0)
    assert front.layers(wave, 2)[0].shape == (3, front.frames(960), 32)
    everything = torch.ones(3, front.frames(960), dtype=torch.bool)
    torch.testing.assert_close(front.predict(wave, everything), front.predict(sounds(3, 1), everything))
    full = WaveformFrontEnd(width=32, depth=1, heads=2, convolutions=CONVOLUTIONS)
    assert full.frames(16_000) == 49 and full.width == 32
    with pytest.raises(ConfigError, match="too short"):
        front.frames(5)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="longer than"):
        text_front().layers(torch.zeros(1, 1, 65, dtype=torch.long), 1)
    with pytest.raises(ConfigError, match="odd kernel"):
        WaveformFrontEnd(width=32, depth=1, heads=2, convolutions=SMALL, kernel=4, groups=4)
    with pytest.raises(ConfigError, match="heads"):
        SequenceTransformer(30, 1, 4)
    with pytest.raises(ConfigError, match=r"1\.\.2"):
        Data2VecObjective(text_front(), nn.Identity(), Targets(top=3))
