"""A list of texts against a set of images: the best images of each text, as a page with a filter and as a sheet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imprint.core.errors import BadImage
from imprint.data.decode import decode
from imprint.data.sources import Source
from imprint.viz.lettering import lettered
from imprint.viz.page import Section, filter_box, page, text, write_page
from imprint.viz.raster import Picture, data_uri, mosaic, picture, thumbnail

SIDE = 112
_COLUMNS = 24  # of the sprite


@dataclass(frozen=True)
class Found:
    """What a text found.

    Attributes:
        words: the text.
        rows: images, the most similar first.
        similarity: cosine of each.
        right: the image that the text was written for, or None for a text of the user's own.
        rank: place of that image among all, from 1.
    """

    words: str
    rows: tuple[int, ...]
    similarity: tuple[float, ...]
    right: int | None = None
    rank: int | None = None


def thumbnails(source: Source, rows: Iterable[int], side: int = SIDE) -> dict[int, Picture]:
    """Return the centre squares of some images by their position; one that cannot be read is grey."""
    found: dict[int, Picture] = {}
    for row in sorted(set(rows)):
        try:
            sample = source.read(row)
            image = decode(sample, channels=source.channels, min_side=side) if isinstance(sample, bytes) else sample
            found[row] = thumbnail(picture(image), side)
        except (BadImage, OSError):
            found[row] = np.full((side, side, 3), 128, np.uint8)
    return found


def search_page(
    found: Sequence[Found], images: Mapping[int, Picture], names: Mapping[int, str], title: str, about: str
) -> str:
    """Return the page: one row per text, the image it was written for framed, a field that filters by words.

    Args:
        found: the texts with their images.
        images: thumbnails of all of those images, square and of one size.
        names: their names, shown under the pointer.
        title: heading.
        about: what was searched by what, plain text.
    """
    order = {row: i for i, row in enumerate(sorted(images))}
    sprite = mosaic([images[row] for row in sorted(images)], SIDE, _COLUMNS) if images else None
    style = (
        "<style>.hood.text{flex-direction:column}"
        ".hood.text .asked{font-size:15px;max-width:90ch;overflow-wrap:anywhere}"
        ".hood.text .asked small{color:var(--muted);margin-left:8px}.hood.text .hits{display:flex;gap:8px}"
        + (f".face{{background-image:url({data_uri(sprite, 'jpeg', 82)})}}" if sprite is not None else "")
        + "</style>"
    )
    rows = "".join(_row(one, order, names) for one in found)
    body = f'{style}<p class="about">{text(about)}</p>{filter_box(".hood", "Filter by word or file name")}'
    parts = [Section("search", "Texts", f'{body}<div class="hoods">{rows}</div>')]
    return page(title, f"{len(found)} texts", "", parts, "Texts and similarities were fixed when the page was made.")


def save_search_page(
    found: Sequence[Found],
    images: Mapping[int, Picture],
    names: Mapping[int, str],
    path: str | Path,
    *,
    title: str = "Search by text",
    about: str = "",
) -> Path:
    """Write the page as a file and return its path."""
    return write_page(search_page(found, images, names, title, about), Path(path))


def search_sheet(found: Sequence[Found], images: Mapping[int, Picture], side: int = 72) -> Picture:
    """Return a sheet: under each text its images, the one it was written for in a green frame."""
    rows = [[_framed(thumbnail(images[row], side), row == one.right) for row in one.rows] for one in found]
    names = [one.words if one.rank is None else f"[rank {one.rank}] {one.words}" for one in found]
    return lettered(rows, names=names)


def _framed(image: Picture, right: bool) -> Picture:
    if right:
        image = image.copy()
        for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
            edge[:] = (30, 160, 80)
    return image


def _row(one: Found, order: Mapping[int, int], names: Mapping[int, str]) -> str:
    cells = []
    for row, cosine in zip(one.rows, one.similarity, strict=True):
        kind = " same" if row == one.right else ""
        name = names.get(row, "")
        under = text(name.rpartition("/")[2])  # the whole name shows under the pointer
        cells.append(
            f'<div class="cell{kind}" title="{text(name)}">{_face(order[row])}<div>{under}</div>{cosine:.3f}</div>'
        )
    rank = f"<small>its image has rank {one.rank}</small>" if one.rank is not None else ""
    words = text(" ".join([one.words, *(names.get(row, "") for row in one.rows)]))
    asked = f'<div class="asked">{text(one.words)}{rank}</div>'
    return f'<div class="panel hood text" data-words="{words}">{asked}<div class="hits">{"".join(cells)}</div></div>'


def _face(place: int) -> str:
    side = 84
    x, y = place % _COLUMNS * side, place // _COLUMNS * side
    return (
        f'<div class="face" style="background-size:{_COLUMNS * side}px auto;background-position:-{x}px -{y}px"></div>'
    )
