"""From what masks store to class numbers: one table for train and test, checked before anything is trained.

Shapes: H x W pixels, K classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError
from imprint.data.mask_folders import MaskedImages
from imprint.ops.confusion import IGNORED

Labels = npt.NDArray[np.int16]
MAX_COLOURS = 256


@dataclass(frozen=True)
class Scan:
    """What the masks of a source hold.

    Attributes:
        colours: whether they store colours (packed as R * 65536 + G * 256 + B) instead of label values.
        values: distinct values, ascending.
        pixels: how often each occurs.
        first: position of the first mask that has it.
        thin: whether no mask has a solid 3 x 3 block of it.
        sizes: (height, width) of every image.
    """

    colours: bool
    values: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    thin: npt.NDArray[np.bool_]
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LabelTable:
    """How stored values become classes.

    Attributes:
        colours: see Scan.
        values: stored value of each class, by class.
        names: of the classes.
        ignored: stored values that never count.
    """

    colours: bool
    values: tuple[int, ...]
    names: tuple[str, ...]
    ignored: tuple[int, ...]

    def __len__(self) -> int:
        """Return K."""
        return len(self.values)

    def labels(self, stored: npt.NDArray[Any]) -> Labels:
        """Return int16 (H, W): class numbers, and `IGNORED` for ignored values."""
        packed = pack(stored)
        if not self.colours:
            table = np.full(65536, IGNORED, np.int16)
            table[list(self.values)] = np.arange(len(self.values))
            return np.asarray(table[packed])
        known = np.array(self.values, dtype=np.int64)
        order = np.argsort(known)
        place = np.searchsorted(known[order], packed).clip(0, len(known) - 1)
        return np.where(known[order][place] == packed, order[place], IGNORED).astype(np.int16)


def pack(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one integer per pixel: the label value, or the packed colour."""
    if stored.ndim == 2:
        return stored
    wide = stored.astype(np.int64)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def scan(source: MaskedImages, workers: int | None = None) -> Scan:
    """Look at every mask once.

    Raises:
        DataError: for an image and a mask of different sizes, masks of both kinds in one source, and more than
            65,536 colours.
    """

    def look(i: int) -> tuple[bool, tuple[int, int], Any, Any, Any]:
        stored, size = source.mask(i), source.size(i)
        if stored.shape[:2] != size:
            pair = source.pairs[i]
            raise DataError(
                f"{source.spec}: the image '{pair.image}' has {size[1]} x {size[0]} pixels and its mask '{pair.mask}' "
                f"{stored.shape[1]} x {stored.shape[0]}; they must be equal (resize masks without interpolation)."
            )
        packed = pack(stored)
        values, counts = np.unique(packed, return_counts=True)
        return stored.ndim == 3, size, values.astype(np.int64), counts, _solid(stored, packed, values)

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        looks = list(pool.map(look, range(len(source))))
    kinds = {colour for colour, *_ in looks}
    if len(kinds) == 2:
        one = next(i for i, found in enumerate(looks) if found[0])
        other = next(i for i, found in enumerate(looks) if not found[0])
        raise DataError(
            f"{source.spec}: the mask '{source.pairs[one].mask}' stores colours and '{source.pairs[other].mask}' label "
            "values; store all masks alike."
        )
    stacked = np.concatenate([v for _, _, v, _, _ in looks])
    values, first_row, place = np.unique(stacked, return_index=True, return_inverse=True)
    owner = np.repeat(np.arange(len(looks)), [len(v) for _, _, v, _, _ in looks])
    pixels = np.bincount(place, weights=np.concatenate([c for *_, c, _ in looks])).astype(np.int64)
    solid = np.bincount(place, weights=np.concatenate([s for *_, s in looks])) > 0
    return Scan(kinds.pop(), values, pixels, owner[first_row], ~solid, tuple(size for _, size, *_ in looks))


def _solid(stored: npt.NDArray[Any], packed: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each value whether it fills a 3 x 3 block somewhere; blends at edges never do."""
    rows = np.ascontiguousarray(stored if stored.ndim == 3 else packed)
    block = np.ones((3, 3), np.uint8)
    same = cv2.erode(rows, block) == cv2.dilate(rows, block)
    inner = packed[same if same.ndim == 2 else same.all(2)]
    return np.isin(values, np.unique(inner))


def label_table(
    train: MaskedImages, found: Scan, *, palette: str = "", classes: str = "", ignore: Sequence[int] = ()
) -> LabelTable:
    """Return the classes of a training source.

    Without files the classes are the values that occur in it, in ascending order. A palette file gives colours (and
    names) in the order of the classes; a class file gives names. Ignored labels are label values, or positions in the
    palette.

    Raises:
        DataError: for anti-aliased colours, labels without a name, and fewer than two classes.
        ConfigError: for files that cannot be read as what they should be.
    """
    colour_rows = read_palette(palette) if palette else []
    if palette and not found.colours:
        raise ConfigError(
            f"--palette says what colours mean, and the masks of '{train.spec}' store label values; leave it out, or "
            "give names with --classes."
        )
    names = {i: name for i, (_, name) in enumerate(colour_rows)}
    if found.colours:
        if not colour_rows:
            _refuse_blends(train, found)
            colour_rows = [(int(value), _hex(int(value))) for value in found.values]
            names = {i: name for i, (_, name) in enumerate(colour_rows)}
        numbers = list(range(len(colour_rows)))
    else:
        numbers = [int(value) for value in found.values]
    ignored = {n for n in ignore if n >= 0}
    if classes:
        names = read_classes(classes, ignored)
        numbers = sorted(names) if not found.colours else numbers
        if found.colours and len(names) < len(colour_rows):
            raise DataError(f"'{classes}' names {len(names)} classes and the masks have {len(colour_rows)} colours.")
    kept = [n for n in numbers if n not in ignored]
    stored = [colour_rows[n][0] if found.colours else n for n in kept]
    table = LabelTable(
        found.colours,
        tuple(stored),
        tuple(names.get(n) or f"label {n}" for n in kept),
        tuple(colour_rows[n][0] if found.colours else n for n in sorted(ignored) if not found.colours or n in numbers),
    )
    if len(table) < 2:
        raise DataError(
            f"'{train.spec}': the masks hold {'one class' if len(table) == 1 else 'no class'} beside what is ignored "
            f"({', '.join(map(str, sorted(ignored))) or 'nothing'}). Masks of 0 and 255 mark 255 as a class only with "
            "--ignore-label -1 (ignore nothing)."
        )
    if len(table) > 30000:
        raise DataError(f"'{train.spec}': {len(table)} classes; are these instance numbers instead of classes?")
    check(train, found, table, "train")
    return table


def check(source: MaskedImages, found: Scan, table: LabelTable, role: str, known: Scan | None = None) -> None:
    """Refuse values that the table does not know, and classes that `known` (the training scan) never shows.

    Raises:
        DataError: naming value and file.
    """
    if found.colours != table.colours:
        raise DataError(
            f"the {role} masks of '{source.spec}' store {'colours' if found.colours else 'label values'}, those of the "
            f"training source {'colours' if table.colours else 'label values'}; store them alike."
        )
    fine = np.isin(found.values, [*table.values, *table.ignored])
    if not fine.all():
        odd = np.flatnonzero(~fine)
        name = source.pairs[int(found.first[odd[0]])].mask
        value = int(found.values[odd[0]])
        share = found.pixels[odd].sum() / found.pixels.sum()
        if table.colours:
            raise DataError(
                f"{source.spec}: the {role} masks hold {len(odd)} colours that are no class ({share:.2%} of the "
                f"pixels), such as {_hex(value)} in '{name}'. Colours blended at edges come from resizing with "
                "interpolation or lossy files; resize masks with nearest neighbour, or add the colour to --palette."
            )
        raise DataError(
            f"{source.spec}: the {role} mask '{name}' has label {value}, which is no class: known are "
            f"{_short(table.values)}, ignored {_short(table.ignored) or 'none'}. Add it to the class file or "
            f"leave it out with --ignore-label {' '.join(map(str, (*table.ignored, value)))}."
        )
    if known is not None:
        seen = set(known.values.tolist())
        strange = [
            (table.names[k], value)
            for k, value in enumerate(table.values)
            if value not in seen and value in set(found.values.tolist())
        ]
        if strange:
            shown = ", ".join(f"'{name}'" for name, _ in strange[:5])
            raise DataError(
                f"{len(strange)} classes of the test masks never occur in the training masks: {shown}. Nothing could "
                "learn them; give more training images, or ignore them with --ignore-label."
            )


def read_palette(path: str) -> list[tuple[int, str]]:
    """Return (packed colour, name) per line of a file: `R G B [name]` or `#rrggbb [name]`, separators blank or comma.

    Raises:
        ConfigError: naming the line that is none, or a colour given twice.
    """
    rows: list[tuple[int, str]] = []
    for number, line in _lines(path):
        hexes = re.match(r"^#?([0-9a-fA-F]{6})(?:[\s,;:]+(.*))?$", line)
        triple = re.match(r"^(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?:[\s,;:]+(.*))?$", line)
        if triple is not None and max(int(triple[i]) for i in (1, 2, 3)) < 256:
            value, name = int(triple[1]) << 16 | int(triple[2]) << 8 | int(triple[3]), triple[4]
        elif hexes is not None:
            value, name = int(hexes[1], 16), hexes[2]
        else:
            raise ConfigError(f"{path}, line {number}: '{line}' is no colour; write 'R G B name' or '#rrggbb name'.")
        rows.append((value, (name or _hex(value)).strip()))
    if len({value for value, _ in rows}) < len(rows):
        raise ConfigError(f"{path}: a colour stands there twice; each class has its own.")
    return rows


def read_classes(path: str, ignored: set[int]) -> dict[int, str]:
    """Return names by label: line n names label n, or lines say `number name`.

    A file with one name for every label that is not ignored may leave the ignored ones out at its start (ADE20K
    ignores 0 and names 1 to 150).

    Raises:
        ConfigError: for an empty file.
    """
    lines = [line for _, line in _lines(path)]
    if not lines:
        raise ConfigError(f"{path}: no class names in it.")
    numbered = [re.match(r"^(\d+)[\s,;:]+(\S.*)$", line) for line in lines]
    if all(numbered):
        return {int(m[1]): m[2].strip() for m in numbered if m is not None}
    first = 0
    while first in ignored:
        first += 1
    return {first + n: name for n, name in enumerate(lines)}


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read as text: {error}.") from error
    lines = ((n, line.strip()) for n, line in enumerate(text.splitlines(), start=1))
    return [(n, line) for n, line in lines if line and not line.startswith(("# ", "//"))]


def _refuse_blends(train: MaskedImages, found: Scan) -> None:
    """Refuse colours that nobody chose: too many, or ones that never fill a 3 x 3 block."""
    blends = found.values[found.thin]
    if len(found.values) <= MAX_COLOURS and not len(blends):
        return
    shown = ", ".join(_hex(int(value)) for value in blends[:3])
    name = train.pairs[int(found.first[found.thin][0])].mask if len(blends) else train.pairs[0].mask
    more = ", ..." if len(blends) > 3 else ""
    raise DataError(
        f"{train.spec}: the masks have {len(found.values)} colours, and {len(blends)} of them ({shown}{more}) never "
        f"fill a 3 x 3 block, first in '{name}': they look blended by anti-aliasing. Save masks without smoothing "
        "(resize with nearest neighbour), or say which colours are classes with --palette FILE."
    )


def _hex(value: int) -> str:
    return f"#{value:06x}"


def _short(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:12]))
    return shown + (f", ... {values[-1]}" if len(values) > 12 else "")
