"""From a configuration to the method and the loader that feeds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from imprint.backbones.build import build_encoder
from imprint.data.loader import Loader
from imprint.data.sources import Source
from imprint.dist.world import World
from imprint.methods.base import Method
from imprint.methods.catalog import method_class
from imprint.train.config import RunConfig


def build(config: RunConfig, images: Source, folder: Path, world: World) -> tuple[Method, Loader]:
    """Make the method around a fresh encoder, and the loader of the views and masks that it declares."""
    cls = method_class(config.name)
    method = build_method(config, images.channels)
    method.check_batch(config.batch_size // config.accumulate)
    loader = Loader(
        images,
        cls.views(config.method, config.encoder.image_size),
        cls.masks(config.method, config.encoder.image_size, method.encoder.patch_size),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        rank=world.rank,
        world=world.size,
        bad_limit=config.data.bad_limit,
        quarantine_path=folder / "quarantine.jsonl" if world.main else None,
        pin_memory=world.device.type == "cuda",
    )
    return method, loader


def build_method(config: RunConfig, channels: int) -> Method:
    """Make the method around a fresh encoder for images of `channels` channels, unless the configuration says more."""
    settings = {f.name: getattr(config.encoder, f.name) for f in dataclasses.fields(config.encoder)}
    encoder = build_encoder(**{**settings, "channels": config.encoder.channels or channels})
    method: Method = method_class(config.name)(config.method, encoder)  # every method takes (config, encoder)
    return method
