"""What the loader hands over and a method reads."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's data; a method reads only what it declared.

    From the loader views are uint8 or uint16 (V, B, C, H, W) in pinned or plain host memory; after `prepared` they are
    normalised floats on the device.

    Attributes:
        views: images by view name, (V, B, C, H, W).
        masks: bool by mask name, (V, B, N), True = masked.
        places: by mask name where the mask is True, int64 indices into its flattened (V B N), ascending; made by
            `prepared` while the masks are still on the host, so that nobody waits for a device to know how many.
        clips: video by name, (V, B, T, C, H, W).
        tokens: text by name, (B, L) int64, -1 where there is no token; and integers that belong to it.
        targets: numbers that belong to samples, by name, (B, ...): soft labels, what a teacher said.
        index_B: position of each sample in its source, int64.
        labels_B: int64 class labels, or None for an unlabelled source.
    """

    views: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, Tensor] = field(default_factory=dict)
    clips: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    index_B: Tensor
    labels_B: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples B."""
        return int(self.index_B.shape[0])

    def map(self, fn: Any) -> Batch:
        """Return the batch with `fn` applied to every tensor."""
        return Batch(
            views={k: fn(v) for k, v in self.views.items()},
            masks={k: fn(v) for k, v in self.masks.items()},
            places={k: fn(v) for k, v in self.places.items()},
            clips={k: fn(v) for k, v in self.clips.items()},
            tokens={k: fn(v) for k, v in self.tokens.items()},
            targets={k: fn(v) for k, v in self.targets.items()},
            index_B=fn(self.index_B),
            labels_B=None if self.labels_B is None else fn(self.labels_B),
        )

    def part(self, start: int, stop: int) -> Batch:
        """Return samples start..stop (gradient accumulation)."""

        def cut_second(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v[:, start:stop] for k, v in tensors.items()}

        return replace(
            self,
            views=cut_second(self.views),
            masks=cut_second(self.masks),
            places={},
            clips=cut_second(self.clips),
            tokens={k: v[start:stop] for k, v in self.tokens.items()},
            targets={k: v[start:stop] for k, v in self.targets.items()},
            index_B=self.index_B[start:stop],
            labels_B=None if self.labels_B is None else self.labels_B[start:stop],
        )

    def prepared(self, device: torch.device, normalise: Normalise) -> Batch:
        """Return the batch on `device` with images normalised there; the host copies stay small integers."""
        places = {name: mask.flatten().nonzero().squeeze(1) for name, mask in self.masks.items()}
        moved = replace(self, places=places).map(lambda x: x.to(device, non_blocking=True))
        return replace(
            moved,
            views={k: normalise(v) for k, v in moved.views.items()},
            clips={k: normalise(v) for k, v in moved.clips.items()},
        )


@dataclass(frozen=True)
class Normalise:
    """(x / full scale - mean) / std per channel, full scale 255 for uint8 and 65535 for uint16; float32 out.

    A mean of one value serves any number of channels. Tensors have their channels third from the end.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of the same shape; floats pass through unchanged."""
        if images.is_floating_point():
            return images
        full = 65535.0 if images.dtype == torch.uint16 else 255.0
        scale, shift = _scale_and_shift(*self.per_channel(images.shape[-3]), full, images.device)
        return torch.addcmul(shift, images.float(), scale)

    def per_channel(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std with one value per channel; those of another number of channels give their average."""

        def spread(values: tuple[float, ...]) -> tuple[float, ...]:
            return values if len(values) == channels else (sum(values) / len(values),) * channels

        return spread(self.mean), spread(self.std)

    def undo(self, images: Tensor) -> Tensor:
        """Return values in [0, 1] for pictures."""
        mean, std = self.per_channel(images.shape[-3])
        out = images * torch.tensor(std, device=images.device).view(-1, 1, 1)
        return (out + torch.tensor(mean, device=images.device).view(-1, 1, 1)).clamp(0, 1)


@functools.lru_cache(maxsize=64)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], full: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Kept, because making a tensor from numbers on a GPU waits for all work queued there, once per view and step.
    scale = torch.tensor([1.0 / (full * s) for s in std], device=device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(-1, 1, 1)
    return scale, shift
