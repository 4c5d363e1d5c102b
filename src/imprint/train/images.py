"""The images of a run: any source, or a stream of shards that is read once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from imprint.backbones.language_model import PREFIX as TEXT_PREFIX
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs
from imprint.data.clips import ClipSource
from imprint.data.sources import Source, open_source
from imprint.data.stream import Stream, is_streamable, open_stream
from imprint.data.texts import TextConfig
from imprint.data.video_sources import videos_of
from imprint.dist.collectives import broadcast_object
from imprint.dist.world import World
from imprint.methods.catalog import method_class, row
from imprint.train.config import RunConfig
from imprint.train.texts import open_words


def open_images(config: RunConfig, world: World, source: Source | None) -> tuple[RunConfig, Source]:
    """Open the training images, and return the configuration with what opening them settled.

    A stream whose length is given in epochs is counted first, unless `data.images` says how many there are; the number
    is put there, so that a resumed run need not count again. Every process must call it.

    Args:
        config: the run's.
        world: this process among others.
        source: images that no SRC string names, which are taken as they are.

    Raises:
        ConfigError: for a stream over no shards, or for more than one pass over one.
        DataError: when the images cannot be opened.
    """
    data = config.data
    if source is not None:
        return config, source
    if data.stream == "off" or taken(config) != "images":
        return config, opened(config)
    if data.stream == "auto" and not is_streamable(data.train):
        return config, open_source(data.train)
    stream = open_stream(data.train, seed=config.seed, window=data.window, images=data.images, processes=world.size)
    if isinstance(config.length, Epochs):
        if config.length.n > 1:
            raise ConfigError(
                f"a stream is read once, and the length is {config.length.n:g} epochs. Use --epochs 1 or less, a "
                "length in steps, or --data.stream off to go over the shards again."
            )
        if stream.images is None:
            stream.images = broadcast_object(stream.chain.count() if world.main else 0)
            config = dataclasses.replace(config, data=dataclasses.replace(data, images=stream.images))
    return config, stream


def taken(config: RunConfig) -> Literal["images", "pairs", "text"]:
    """Return what the run learns from: what the catalogue says of its method, and text for any network for text."""
    return "text" if config.encoder.name.startswith(TEXT_PREFIX) else row(config.name).takes


def opened(config: RunConfig) -> Source:
    """Return the training data as the method takes them: images, images with captions, or texts.

    Raises:
        DataError: when they cannot be opened.
        ConfigError: for words that name none.
    """
    takes, words = taken(config), config.data.train
    if takes == "images":
        return open_source(words)
    text = config.data.text or TextConfig()
    return open_words(words, takes, text, config.data.bad_limit)


def as_clips(config: RunConfig, images: Source) -> Source:
    """Return the runs of frames that a method of video learns from, or the images as they are for all others.

    Every folder of images and every video file is a video.

    Raises:
        DataError: when no video is long enough.
        ConfigError: for a stream, whose order has no neighbouring frames.
    """
    clips = method_class(config.name).clips(config.method, config.encoder.image_size)
    if not clips:
        return images
    if isinstance(images, ClipSource):
        return images
    if isinstance(images, Stream):
        raise ConfigError(f"{config.name} learns from videos, which cannot be streamed; use --data.stream off.")
    videos, left_out = videos_of(images)
    return ClipSource(
        videos,
        max(clip.span for clip in clips),
        images.spec,
        motion=any(clip.motion for clip in clips),
        left_out=left_out,
    )
