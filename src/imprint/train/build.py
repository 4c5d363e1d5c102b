"""From a configuration to the method and the loader that feeds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import DataError
from imprint.data.batch import Normalise
from imprint.data.loader import Loader, sweep
from imprint.data.sources import Source
from imprint.data.view_recipes import evaluation_views
from imprint.dist.world import World
from imprint.methods.base import Method
from imprint.methods.catalog import method_class
from imprint.train.config import RunConfig
from imprint.train.probe import sampled


def build(
    config: RunConfig, images: Source, folder: Path, world: World, tokenizer: TextTokenizer | None = None
) -> tuple[Method, Loader]:
    """Make the method around a fresh encoder, and the loader of the views (or clips) and masks that it declares."""
    cls = method_class(config.name)
    method = build_method(config, images.channels if images.pixels else 3, tokenizer)
    method.check_batch(config.batch_size // config.accumulate)
    size = config.encoder.image_size
    loader = Loader(
        images,
        (cls.clips(config.method, size) or cls.views(config.method, size)) if images.pixels else (),
        cls.masks(config.method, size, method.encoder.patch_size),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        rank=world.rank,
        world=world.size,
        bad_limit=config.data.bad_limit,
        quarantine_path=folder / "quarantine.jsonl" if world.main else None,
        pin_memory=world.device.type == "cuda",
    )
    for gone in getattr(images, "left_out", ()):  # videos that cannot be used; their clips never were samples
        loader.quarantine.mention(gone.name, gone.reason, gone.detail)
    return method, loader


def fit(method: Method, images: Source, config: RunConfig) -> None:
    """Show the method the plain images that `Method.fit` learns from; the same on every process."""
    if method.fit_images == 0:
        return
    normalise = Normalise(config.data.mean, config.data.std)
    views = evaluation_views(config.encoder.image_size)
    sample = sampled(images, method.fit_images)
    batches = [batch.views["eval"][0] for batch in sweep(sample, views, batch_size=256, workers=config.workers)]
    if not batches:
        raise DataError(f"{config.name} first looks at some images, and none of '{images.spec}' could be read.")
    with torch.no_grad():
        method.fit(normalise(torch.cat(batches)))


def build_method(config: RunConfig, channels: int, tokenizer: TextTokenizer | None = None) -> Method:
    """Make the method around a fresh encoder for images of `channels` channels, unless the configuration says more.

    An encoder of text alone gets its vocabulary and context from the method's configuration.
    """
    settings = {f.name: getattr(config.encoder, f.name) for f in dataclasses.fields(config.encoder)}
    texts = method_class(config.name).texts(config.method)
    if texts is not None and config.encoder.name.startswith("text:"):
        settings |= {"vocabulary": getattr(config.method, "vocabulary", 0), "context": texts.length}
    encoder = build_encoder(**{**settings, "channels": config.encoder.channels or channels})
    method: Method = method_class(config.name)(config.method, encoder)  # every method takes (config, encoder)
    method.normalised_by(Normalise(config.data.mean, config.data.std))
    if tokenizer is not None:
        method.tokenized_by(tokenizer)
    return method
