"""What every test may rely on: few threads, no network, and a cache of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch, OpenCV or numba start their pools: tests are small, and threads that wait for each other are slow.
for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
_LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep indexes and features out of the user's cache; processes started by tests inherit it."""
    before = os.environ.get("IMPRINT_CACHE")
    os.environ["IMPRINT_CACHE"] = str(tmp_path_factory.mktemp("imprint-cache"))
    yield
    if before is None:
        del os.environ["IMPRINT_CACHE"]
    else:
        os.environ["IMPRINT_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOCAL:
            raise OSError(f"a test tried to reach {address[0]}")
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def sample_data(root: Path) -> Path:
    """Real images for measuring, where they are at hand; tests that need them are skipped elsewhere."""
    folder = Path(os.environ.get("IMPRINT_SAMPLE_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no sample data here; set IMPRINT_SAMPLE_DATA")
    return folder


@pytest.fixture(scope="session")
def image_text_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny untrained CLIP or SigLIP (`clip`, `siglip`) and a tokenizer trained on a few words."""
    pytest.importorskip("transformers")
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = _image_text_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return folder


def _image_text_model(folder: Path, kind: str) -> Path:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    from imprint.backbones import torchvision_compat  # noqa: F401  (transformers' models import torchvision)

    import transformers  # isort: skip

    words = "a photo of the red green blue yellow black white square circle dog cat runs over small big grass".split()
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    inner.train_from_iterator([" ".join(words)] * 3, trainer)
    start, end = inner.token_to_id("<s>"), inner.token_to_id("</s>")
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), special, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    text = {
        "vocab_size": inner.get_vocab_size(), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 12, "bos_token_id": start, "eos_token_id": end,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "clip":
        clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        transformers.CLIPModel(clip).save_pretrained(folder)
    else:
        siglip = transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision)
        transformers.SiglipModel(siglip).save_pretrained(folder)
    return folder
