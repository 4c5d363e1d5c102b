"""`imprint evaluate`: names in, a Report out."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, unknown
from imprint.data.batch import Normalise
from imprint.data.sources import Source
from imprint.evals.catalog import protocol_class, row
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import EvalData, ProtocolConfig
from imprint.evals.report import Report

SourceLike = str | os.PathLike[str] | Source | Sequence[Any]


def evaluate(
    protocol: str,
    encoder: str | os.PathLike[str] | Encoder,
    train: SourceLike,
    test: SourceLike | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    normalise: Normalise | None = None,
    **options: Any,
) -> Report:
    """Judge an encoder by a protocol of the catalogue.

    Args:
        protocol: a name of the catalogue (`imprint.evals.catalog`).
        encoder: a run folder, an exported file, `timm:NAME`, `random:NAME` (untrained), `hf:FOLDER` (a local CLIP or
            SigLIP), `pixels` (raw pixels as the baseline), or an Encoder.
        train: SRC of the bank or training set, or the one source of protocols that need no other; several of them for
            `transfer`, and joined into one elsewhere.
        test: SRC that is scored.
        out: JSON file to write the report to.
        normalise: pixel normalisation; None takes the one stored with the encoder, else ImageNet's.
        options: fields of the protocol's configuration (`ks`, `temperatures`, `lrs`, `tokens`, `image_size`, ...).

    Raises:
        ConfigError: for an unknown protocol or option (the nearest is named), an encoder that cannot be loaded, or a
            place to write to that cannot be written.
        DataError: for sources that cannot be opened, lack labels, or disagree about classes.
    """
    entry = row(protocol)
    cls = protocol_class(protocol)
    config = config_from(cls.Config, options)
    if out is not None:
        check_writable(Path(out))
    if entry.needs_test and test is None:
        raise ConfigError(f"'{protocol}' scores a test source; add --test SRC.")
    if test is not None and not (entry.needs_test or cls.takes_test):
        raise ConfigError(f"'{protocol}' looks at one source, --train; leave out --test.")
    train_source = cls.open(train, config)
    test_source = cls.open(test, config) if test is not None else None
    if isinstance(encoder, Encoder):
        model, own = encoder, None
    else:
        model, own = open_encoder(os.fspath(encoder), train_source, config)
    data = EvalData(train=train_source, test=test_source, normalise=normalise or own or Normalise())
    report = cls().run(model, data, config)
    report = dataclasses.replace(
        report,
        encoder=model.name if isinstance(encoder, Encoder) else os.fspath(encoder),
        command=_command(protocol, encoder, train, test, out, config, options),
    )
    if out is not None:
        report.save(Path(out))
    return report


def check_writable(path: Path) -> None:
    """Refuse a report file that cannot be written, before hours are spent on what would be in it.

    Raises:
        ConfigError: for a folder, a place below a file, and a folder without permission.
    """
    if path.is_dir():
        raise ConfigError(f"--out '{path}' is a folder; name the file to write, such as '{path / 'report.json'}'.")
    if path.exists():
        place = path
    else:
        place = next(folder for folder in path.absolute().parents if folder.exists())
        if not place.is_dir():
            raise ConfigError(f"--out '{path}': '{place}' is a file, so nothing can be written below it.")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"--out '{path}': there is no permission to write '{place}'; give another place.")


def open_encoder(spec: str, source: Any, config: ProtocolConfig) -> tuple[Encoder, Normalise | None]:
    """Return an encoder and the normalisation stored with it; `pixels` is the raw-pixel baseline for `source`."""
    if spec == "pixels":
        return PixelEncoder(config.image_size or 32, getattr(source, "channels", 3)), None
    from imprint.backbones.load import load_encoder, load_normalise

    mean, std = load_normalise(spec)
    with torch.random.fork_rng(devices=[]):  # an untrained encoder (random:NAME) is the same one each time
        torch.manual_seed(config.seed)
        return load_encoder(spec), Normalise(tuple(mean), tuple(std))


def config_from(cls: type[ProtocolConfig], options: Mapping[str, Any]) -> ProtocolConfig:
    """Build a protocol's configuration from options; lists become tuples, mappings the configurations inside it.

    Raises:
        ConfigError: for an unknown option, naming the nearest known one.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    for name in options:
        if name not in known:
            raise unknown("option", name, known)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    for field in dataclasses.fields(cls):
        if isinstance(values.get(field.name), Mapping):  # options of a protocol that this one runs
            own: Any = field.default_factory() if callable(field.default_factory) else field.default
            if not isinstance(own, ProtocolConfig):
                raise ConfigError(f"option '{field.name}' takes no options of its own.")
            values[field.name] = config_from(type(own), values[field.name])
    return cls(**values)


def _command(
    protocol: str,
    encoder: str | os.PathLike[str] | Encoder,
    train: SourceLike,
    test: SourceLike | None,
    out: str | os.PathLike[str] | None,
    config: ProtocolConfig,
    options: Mapping[str, Any],
) -> str:
    """Return a command line that repeats the evaluation, or "" when a part of it exists in memory only."""
    words = ["imprint", "evaluate", protocol]
    for flag, value in (("--encoder", encoder), ("--train", train), ("--test", test)):
        if value is None:
            continue
        parts = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(part, (str, os.PathLike)) for part in parts):
            return ""
        words += [flag, *map(os.fspath, parts)]
    words += _flags(config, list(options))
    if out is not None:
        words += ["--out", os.fspath(out)]
    return shlex.join(words)


def _flags(config: ProtocolConfig, names: Sequence[str], prefix: str = "--") -> list[str]:
    """Return the words that set the named fields; of a configuration inside, those that are not its defaults."""
    words: list[str] = []
    for name in names:
        value = getattr(config, name)
        flag = prefix + name.replace("_", "-")
        if isinstance(value, ProtocolConfig):
            plain = type(value)()
            changed = [f.name for f in dataclasses.fields(value) if getattr(value, f.name) != getattr(plain, f.name)]
            words += _flags(value, changed, f"{flag}.")
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        elif value is not None:
            words += [flag, str(value)]
    return words
