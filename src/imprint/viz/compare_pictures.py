"""The same images as several runs see them: attention of the last block and patch features, one strip a run.

Shapes: B images, N = gh * gw patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, ImprintError
from imprint.data.loader import sweep
from imprint.data.sources import Source, open_source, spread
from imprint.evals.represent import evaluation_view, pick_device, resting
from imprint.viz.attention import attention_maps, overlay
from imprint.viz.league import Entry
from imprint.viz.page import Section, text
from imprint.viz.patch_pca import component_pictures, patch_components
from imprint.viz.raster import Picture, data_uri, picture, resized, sheet
from imprint.viz.run_folder import Absent, RunFolder

IMAGES = 6
SIDE = 112


@dataclass(frozen=True)
class Strips:
    """What one run shows: a picture of attention and one of patch components, or why there is none."""

    attention: Picture | str
    components: Picture | str


def pictures_section(entries: Sequence[Entry], first: RunFolder | None = None, device: str = "auto") -> Section:
    """Return attention and patch components of all runs on the same few images of `first`'s data, side by side."""
    key, title = "pictures", "The same images"
    runs = [(entry, entry.run) for entry in entries if entry.run is not None]
    if not runs:
        return Section(key, title, reason="Only report files are compared; pictures need run folders.")
    source, told = chosen_source(first or runs[0][1])
    rows = []
    for entry, run in runs:
        rows.append((entry, strips(run, source, device)))
        run.__dict__.pop("encoder", None)  # the cached weights: ten large models would not fit together
    if all(isinstance(found.attention, str) and isinstance(found.components, str) for _, found in rows):
        reasons = "; ".join(f"{entry.name}: {found.components}" for entry, found in rows)
        return Section(key, title, reason=reasons)
    images, why = shown_images(source, max(run.image_size for _, run in runs))
    if images is None:
        return Section(key, title, reason=why)
    top = _strip("image", images)
    parts = [f'<p class="about">{text(told)} Each run sees them at its own size and with its own normalisation.</p>']
    parts.append("<h3>Attention of the last block, mean over heads</h3>")
    parts.append(_panel([top, *(_strip(entry.name, found.attention) for entry, found in rows)]))
    about = (
        "Brightness is the first principal component of a run's patches (what lies below 0 is dark), colours the next"
    )
    parts.append(
        f"<h3>Patch features</h3><p class='about'>{about} three; like colours of one run are like features.</p>"
    )
    parts.append(_panel([top, *(_strip(entry.name, found.components) for entry, found in rows)]))
    return Section(key, title, "".join(parts))


def chosen_source(first: RunFolder) -> tuple[Source, str]:
    """Return the images to look at: the first run's data, the bundled photographs where it is gone; and say so."""
    source = first.source
    if not isinstance(source, Absent) and len(source) > 0:
        return source.subset(spread(len(source), IMAGES)), f"{IMAGES} images of {source.spec}."
    photos = open_source("photos")
    return photos.subset(spread(len(photos), IMAGES)), "Bundled photographs, since the first run's data is gone."


def shown_images(source: Source, size: int) -> tuple[Picture | None, str]:
    """Return the images themselves as one strip, or why they cannot be read."""
    view = evaluation_view(size)
    try:
        crops = torch.cat([batch.views[view.name][0].clone() for batch in sweep(source, view, batch_size=IMAGES)])
    except (ImprintError, OSError, RuntimeError) as error:
        return None, f"The images cannot be read: {error}"
    return _row([picture(crop.numpy(), channels_first=True) for crop in crops]), ""


def strips(run: RunFolder, source: Source, device: str = "auto") -> Strips:
    """Return the strips of one run; a reason in their place for encoders without tokens, attention or weights."""
    encoder = run.encoder
    if not isinstance(encoder, Encoder):
        return Strips(encoder.reason, encoder.reason)
    if not encoder.has_tokens:
        reason = f"{encoder.name} has no patch tokens."
        return Strips(reason, reason)
    view = evaluation_view(run.image_size)
    place = pick_device(device, encoder)
    try:
        crops = torch.cat([batch.views[view.name][0].clone() for batch in sweep(source, view, batch_size=IMAGES)])
        images = [picture(crop.numpy(), channels_first=True) for crop in crops]
        inputs = run.normalise(crops[:, : encoder.channels].to(place))
        with resting(encoder, place), torch.no_grad():
            features = encoder.encode(inputs)
            pairs = component_pictures(patch_components(features.patches_BND.float().cpu().numpy()), features.grid)
            components = _row([pair[1] for pair in pairs], smooth=False)
            try:
                maps = attention_maps(encoder, inputs).mean(1)
                bases = [resized(image, SIDE, SIDE) for image in images]
                attention: Picture | str = _row([overlay(b, own) for b, own in zip(bases, maps, strict=True)])
            except ConfigError as error:
                attention = str(error)
        return Strips(attention, components)
    except (ImprintError, OSError, RuntimeError, ValueError) as error:
        return Strips(f"The images cannot be encoded: {error}", f"The images cannot be encoded: {error}")


def _row(images: Sequence[Picture], smooth: bool = True) -> Picture:
    return sheet([[resized(image, SIDE, SIDE, smooth=smooth) for image in images]])


def _strip(name: str, shown: Picture | str) -> str:
    if isinstance(shown, str):
        return f'<div class="name">{text(name)}</div><p class="reason">{text(shown)}</p>'
    size = f'width="{shown.shape[1]}" height="{shown.shape[0]}"'
    image = f'<img {size} src="{data_uri(shown, "png")}" alt="{text(name)}">'
    return f'<div class="name">{text(name)}</div><div class="scroll">{image}</div>'


def _panel(strips_html: Sequence[str]) -> str:
    return f'<div class="panel strips">{"".join(strips_html)}</div>'
