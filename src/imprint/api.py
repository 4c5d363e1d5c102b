"""Python's way in: the same commands as functions, with the same names for the same things."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.methods.catalog import CATALOG, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from imprint.backbones.encoder import Encoder
    from imprint.data.sources import Source
    from imprint.evals.protocol import ProtocolConfig
    from imprint.train.config import RunConfig
    from imprint.train.run import Run


def pretrain(
    data: str | os.PathLike[str] | Source | NDArray[Any] | Sequence[str | os.PathLike[str]],
    method: str | RunConfig | tuple[RunConfig, ...] = "dino",
    recipe: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    val: str | os.PathLike[str] | None = None,
    encoder: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    budget: str | float | None = None,
    report: bool = True,
    **overrides: Any,
) -> Run:
    """Pretrain an encoder on images and return the run (of several stages: the last one).

    Args:
        data: one SRC or several (folders, file lists, shard patterns, `hf:NAME`, `photos`), an open Source, or images
            in memory, (N, H, W) or (N, H, W, C).
        method: catalogue name, or a RunConfig to start from; a tuple of them is a run of several stages, in order.
        recipe: which of the method's recipes; None takes `small`.
        out: folder of the run; None takes the first free `runs/METHOD`, `runs/METHOD-2`, ...
        val: labelled images for the probes during training.
        encoder: a timm name, `timm:NAME`, a run, or an exported file; None keeps the recipe's.
        image_size: side of the largest view in pixels; the recipe fits its other sizes to it.
        batch_size: images per optimizer step over all processes.
        epochs: length in passes over the data.
        steps: length in optimizer steps, in place of `epochs`.
        budget: length in wall-clock time, `"10min"` or seconds, in place of both.
        report: build the HTML report at the end.
        overrides: any other field of the configuration, as a nested mapping (`optim={"lr": {"base": 1e-3}}`) or by its
            dotted name (`**{"method.temperature": 0.2}`). Of a recipe of several stages, `stage_2={...}` or
            `**{"stage_2.batch_size": 64}` addresses one; without prefix every stage that has the field is meant.

    Raises:
        ConfigError: for unknown names (the nearest is named) and options that cannot work.
        DataError: for sources that cannot be opened or hold too many damaged images.
        HealthError: when the numbers stop making sense.
    """
    from imprint.cli import resolve, staged
    from imprint.cli.values import budget as read_budget
    from imprint.core.errors import ConfigError

    if isinstance(method, str):
        name, _, inline = method.partition("/")
        if inline and recipe is not None:
            raise ConfigError(f"method '{method}' already names a recipe; drop recipe='{recipe}'.")
        stages = resolve.recipe_stages(f"{name}/{recipe or inline}", image_size=image_size)
    else:
        stages = method if isinstance(method, tuple) else (method,)
    specs, source = _specs_or_source(data)
    short = {
        "data": specs,
        "val": val,
        "encoder": encoder,
        "image_size": image_size,
        "batch_size": batch_size,
        "epochs": epochs,
        "steps": steps,
        "budget": read_budget(budget) if isinstance(budget, str) else budget,
    }
    stages = staged.apply_values(staged.with_short(stages, short), overrides)
    folder = Path(out) if out is not None else resolve.free_folder(Path("runs") / stages[0].name)
    resolve.require_free(folder)
    from imprint.train.entry import pretrain_run

    run = pretrain_run(stages[0] if len(stages) == 1 else stages, folder, source=source)
    if report and resolve.is_main():
        from imprint.viz.report import build_report

        build_report(folder)
    return run


def _specs_or_source(data: Any) -> tuple[list[str] | None, Source | None]:
    """Return SRC strings, which a run can be repeated from, or a source of images that only this process has."""
    from imprint.data.sources import Source

    if isinstance(data, Source):
        return None, data
    if isinstance(data, (str, os.PathLike)):
        return [os.fspath(data)], None
    if isinstance(data, Sequence) and all(isinstance(part, (str, os.PathLike)) for part in data):
        return [os.fspath(part) for part in data], None
    from imprint.data.arrays import ArraySource

    return None, ArraySource(data)


def embed(
    encoder: str | os.PathLike[str] | Encoder,
    data: str | os.PathLike[str] | Source | Sequence[Any],
    out: str | os.PathLike[str],
    *,
    config: ProtocolConfig | None = None,
) -> Path:
    """Write one vector per image to a `.parquet` or `.npy` file, in the order of the source.

    Args:
        encoder: a run, an exported file, `timm:NAME`, or an Encoder.
        data: SRC or an open source.
        out: the file; its ending chooses the format (see `imprint.evals.embed`).
        config: image size, tokens, layers, batch size, device; None takes the encoder's own.

    Raises:
        ConfigError: for an unknown encoder or ending.
        DataError: for a source that cannot be opened or holds nothing.
    """
    from imprint.data.sources import open_source
    from imprint.evals import embed as writer
    from imprint.evals.evaluate import open_encoder
    from imprint.evals.protocol import ProtocolConfig

    writer.check_suffix(Path(out))
    config = config or ProtocolConfig()
    source = open_source(data)
    if isinstance(encoder, (str, os.PathLike)):
        model, normalise = open_encoder(os.fspath(encoder), source, config)
    else:
        model, normalise = encoder, None
    return writer.embed(model, source, out, normalise=normalise, config=config)


def methods() -> tuple[Row, ...]:
    """Return the catalogue of methods, one row each."""
    return CATALOG
