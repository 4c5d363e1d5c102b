"""Which outputs of an encoder stand for an image."""

from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.evals.represent import pick_precision, represent, resting


def test_tokens_and_layers(tiny) -> None:
    tiny.eval()
    images = torch.rand(5, 3, 8, 8)
    plain = tiny.encode(images)
    torch.testing.assert_close(represent(tiny, images, "patch_mean"), plain.patches_BND.mean(1))
    torch.testing.assert_close(represent(tiny, images, "cls"), plain.cls_BD)
    both = represent(tiny, images, "cls+patch_mean", layers=(0, 1))
    want = torch.cat([plain.cls_BD, 2 * plain.cls_BD, 2 * plain.patches_BND.mean(1)], 1)
    torch.testing.assert_close(both, want)
    assert represent(tiny, images, "pooled", layers=(0, 1, 2)).shape == (5, 18)
    tiny.has_cls = False
    with pytest.raises(ConfigError, match="no class token"):
        represent(tiny, images, "cls")
    with pytest.raises(ConfigError, match="patch_mean"):
        represent(tiny, images, "patch_meen")  # type: ignore[arg-type]


def test_resting_gives_the_encoder_back_also_after_an_error(tiny) -> None:
    tiny.train()
    with pytest.raises(RuntimeError, match="stop"), resting(tiny, torch.device("cpu")):
        assert not tiny.dropout.training
        raise RuntimeError("stop")
    assert tiny.training and tiny.dropout.training


def test_precisions() -> None:
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == torch.float32 and pick_precision("bf16", cpu) == torch.bfloat16
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        pick_precision("bf61", cpu)  # type: ignore[arg-type]
