"""Networks for text: our own format, and transformers' folder with the tokenizer."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprint.backbones.language_model import LanguageModel
from imprint.backbones.load import load_encoder
from imprint.backbones.stored import save_encoder
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import CheckpointError, ConfigError, MissingExtra
from imprint.export.check import ExportResult, compare
from imprint.export.timm_folder import spare_other_config

FORMATS = ("safetensors", "hf")


def export_language(model: LanguageModel, format: str, out: Path, provenance: Mapping[str, Any] | None) -> ExportResult:
    """Write a network for text, load it back, and compare its tokens.

    Args:
        model: stays as it is.
        format: `safetensors` (file or folder, the tokenizer beside it) or `hf` (a folder that transformers'
            `AutoModel` and `AutoTokenizer` load).
        out: see above.
        provenance: JSON-ready facts kept in our own format.

    Raises:
        ConfigError: for a format of images.
        MissingExtra: for `hf` without transformers.
        CheckpointError: when it cannot be written, or reads back differently.
    """
    if format not in FORMATS:
        raise ConfigError(
            f"'{model.name}' reads text, which the format {format} does not hold; use {', '.join(FORMATS)}."
        )
    own = copy.deepcopy(model).float().cpu().eval()
    return _hf(own, out) if format == "hf" else _native(own, out, provenance)


def _native(model: LanguageModel, out: Path, provenance: Mapping[str, Any] | None) -> ExportResult:
    folder, stem = (out.parent, out.stem) if out.suffix == ".safetensors" else (out, "encoder")
    path = save_encoder(model, folder, provenance=provenance, stem=stem)
    back = load_encoder(path)
    assert isinstance(back, LanguageModel)
    ids = _tokens(model)
    with torch.no_grad():
        diff = compare(path, {"tokens": model(ids)}, {"tokens": back(ids)}, tolerance=1e-5)
    lines = f"import imprint\nmodel = imprint.load_encoder({str(path)!r})"
    return ExportResult(format="safetensors", path=path, max_abs_diff=diff, how_to_load=lines)


def _hf(model: LanguageModel, out: Path) -> ExportResult:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "text", "export to the Hugging Face layout") from error
    spare_other_config(out)
    network: Any = model.network
    ids = _tokens(model)
    kept = copy.deepcopy(network.config)
    if model.tokenizer is not None:
        special = model.tokenizer.special
        kept.pad_token_id, kept.bos_token_id, kept.eos_token_id = special.padding, special.start, special.end
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            network.save_pretrained(str(out))
            kept.save_pretrained(str(out))
            if model.tokenizer is not None:
                _tokenizer(model.tokenizer, model.context).save_pretrained(str(out))
    except OSError as error:
        raise CheckpointError(
            f"'{out}' cannot be written: {error.strerror or error}. Free space or write elsewhere."
        ) from error
    options = {} if model.causal else {"add_pooling_layer": False}
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        back: Any = transformers.AutoModel.from_pretrained(str(out), local_files_only=True, **options).eval()
        theirs = back(input_ids=ids).last_hidden_state
        diff = compare(out, {"last_hidden_state": model(ids)}, {"last_hidden_state": theirs}, tolerance=1e-4)
    given = "".join(f", {k}={v}" for k, v in options.items())
    lines = "from transformers import AutoModel, AutoTokenizer\n"
    lines += f"model = AutoModel.from_pretrained({str(out)!r}{given}).eval()"
    if model.tokenizer is not None:
        again: Any = transformers.AutoTokenizer.from_pretrained(str(out), local_files_only=True)
        words = "One text, and another."
        if again(words, add_special_tokens=False)["input_ids"] != model.tokenizer.ids([words])[0].tolist():
            raise CheckpointError(f"{out}: the tokenizer reads back differently; do not use it.")
        lines += f"\ntokenizer = AutoTokenizer.from_pretrained({str(out)!r})"
    return ExportResult(format="hf", path=out, max_abs_diff=diff, how_to_load=lines)


def _tokenizer(tokenizer: TextTokenizer, context: int) -> Any:
    """Return transformers' wrapper with the special tokens named."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = tokenizer.special
    named = {
        "pad_token": special.padding, "unk_token": special.unknown, "cls_token": special.start,
        "bos_token": special.start, "sep_token": special.end, "eos_token": special.end, "mask_token": special.mask,
    }  # fmt: skip
    words = {name: tokenizer.token(i) for name, i in named.items() if i is not None}
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=Tokenizer.from_str(tokenizer.json), model_max_length=context, **words)


def _tokens(model: LanguageModel) -> Tensor:
    """Return the same rows every time, (2, L)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.vocabulary, (2, min(model.context, 32)), generator=generator)
