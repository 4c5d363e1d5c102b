"""Load what a user calls an encoder: a run, a file, `timm:NAME`, `random:NAME`, `hf:FOLDER`, a public checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprint.backbones.clip_folder import described_kind, folder_normalise, load_folder
from imprint.backbones.encoder import Encoder
from imprint.backbones.read import PICKLES, SAFETENSORS, read_state
from imprint.backbones.stored import IMAGENET_MEAN, IMAGENET_STD, description_of, stored_tokenizer, verified
from imprint.core.errors import CheckpointError, ConfigError


def load_encoder(name: str | Path, *, image_size: int | None = None) -> Encoder:
    """Load an encoder, in evaluation mode, on the CPU.

    Args:
        name: one of

            - a run folder or an exported encoder (folder, `.safetensors` or its `.json`);
            - `timm:NAME`: timm's published weights (downloaded once, then from its cache);
            - `random:NAME`: the same model untrained; NAME may be a run or an exported encoder, too, whose untrained
              twin this is (the baseline to compare it with);
            - `hf:FOLDER` or the folder itself: a CLIP or SigLIP model of transformers with its tokenizer (a
              `DualEncoder`), or a standard ViT or ResNet; local, nothing is downloaded;
            - a `.pth`, `.pt`, `.tar` or `.safetensors` file of a standard ViT or ResNet in a public layout.
        image_size: side to build it for; None takes the stored one, or timm's own.

    Raises:
        ConfigError: for a name that is none of these, or an unknown timm model.
        CheckpointError: for damaged or foreign files.
    """
    from imprint.backbones.build import build_encoder

    text = str(name)
    prefix, _, bare = text.partition(":")
    if prefix == "random" and is_stored(bare):
        config = dict(stored_config(bare))
        if image_size is not None:
            config["image_size"] = image_size
        twin = build_encoder(**config).eval()
        twin.tokenizer = stored_tokenizer(bare)
        return twin
    if prefix in ("timm", "random"):
        size = image_size or _timm_size(bare)
        encoder: Encoder = build_encoder(bare, image_size=size, pretrained=prefix == "timm")
        return encoder.eval()
    text = _local(text)
    if described_kind(text) is not None:
        encoder = load_folder(text)
        if image_size is not None and image_size != encoder.image_size:
            raise ConfigError(
                f"'{text}' was built for {encoder.image_size} pixels and its positions stay as they are stored; "
                "evaluate it at another size by --image-size, without building it anew."
            )
    elif is_stored(text):
        config = dict(stored_config(text))
        if image_size is not None:
            config["image_size"] = image_size
        encoder = build_encoder(**config, weights=stored_weights(text))
        encoder.tokenizer = stored_tokenizer(text)
    else:
        raise _not_found(text)
    return encoder.eval()


def load_normalise(name: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) of the images an encoder expects, in [0, 1]; ImageNet's where a checkpoint says nothing.

    Raises:
        ConfigError: for a name that is no encoder.
    """
    text = str(name)
    prefix, _, bare = text.partition(":")
    if prefix == "random" and is_stored(bare):
        return load_normalise(bare)
    if prefix in ("timm", "random"):
        from imprint.backbones.build import published_config

        published = published_config(bare)
        return tuple(published.get("mean", IMAGENET_MEAN)), tuple(published.get("std", IMAGENET_STD))
    text = _local(text)
    described = description_of(text)
    if described is not None:
        normalise: Mapping[str, list[float]] = described[1]["normalise"]
        return tuple(normalise["mean"]), tuple(normalise["std"])
    if described_kind(text) is not None:
        return folder_normalise(text)
    if not is_stored(text):
        raise _not_found(text)
    return IMAGENET_MEAN, IMAGENET_STD


def is_stored(name: str) -> bool:
    """Tell whether `name` is a file or folder with an encoder, rather than the name of a model."""
    path = Path(name).expanduser()
    if path.is_file():
        return path.suffix in (SAFETENSORS, ".json", *PICKLES)
    return path.is_dir() and (description_of(path) is not None or (path / "model.safetensors").is_file())


def stored_config(name: str) -> dict[str, Any]:
    """Return the arguments for `build_encoder` of a stored encoder; read off the weights when nothing describes them.

    Raises:
        CheckpointError: when they cannot be read off.
    """
    described = description_of(name)
    if described is not None:
        return dict(described[1]["encoder"])
    from imprint.backbones.infer import config_beside, infer_config

    path = Path(name).expanduser()
    state = read_state(path)
    return config_beside(path, state, name) if path.is_dir() else infer_config(state, name)


def stored_weights(name: str) -> Path:
    """Return the file with the weights of a stored encoder, its checksum verified where one was recorded."""
    described = description_of(name)
    return Path(name).expanduser() if described is None else verified(*described)


def _local(text: str) -> str:
    """Return the folder of `hf:FOLDER`, or the name as it is.

    Raises:
        ConfigError: for a name of the Hugging Face hub, since nothing is downloaded.
    """
    prefix, _, folder = text.partition(":")
    if prefix != "hf":
        return text
    if not Path(folder).expanduser().is_dir():
        raise ConfigError(
            f"encoder '{text}': there is no folder '{folder}', and nothing is downloaded. Fetch the model first (for "
            f"example: hf download {folder} --local-dir FOLDER), then give hf:FOLDER."
        )
    return folder


def _timm_size(name: str) -> int:
    from imprint.backbones.build import published_config

    return int(published_config(name).get("input_size", (3, 224, 224))[-1])


def _not_found(text: str) -> ConfigError | CheckpointError:
    looks_like_path = "/" in text or Path(text).suffix in (SAFETENSORS, *PICKLES) or Path(text).exists()
    if looks_like_path:
        return CheckpointError(
            f"encoder '{text}': no run or exported encoder there. Give a run folder that has finished or checkpointed "
            "(with encoder.safetensors and encoder.json), a .safetensors or .pth file, timm:NAME or random:NAME."
        )
    return ConfigError(
        f"encoder '{text}': write timm:{text} for published weights or random:{text} for an untrained model."
    )
