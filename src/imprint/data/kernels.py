"""Compiled kernels of the CPU view engine: crop and resize, colour, blur, in one call per view and image.

Every pass runs over contiguous memory, so that the compiler turns it into SIMD code:

1. Rows: output rows are weighted sums of source rows, read straight from the decoded image.
2. Tiles of 16 rows are transposed while they are in the cache.
3. Columns: the same weighted sum, now over what were columns. The image is P[x][channel][y] from here on.
4. Colour: pointwise, on a few rows of P at a time in float32; contrast needs a mean and splits this into two passes.
5. Blur along x; a transposition to [channel][y][x], which also flips; blur along y; solarise.

Values between operations are integers, rounded or truncated exactly where torchvision does. All functions are generic
in the pixel type (uint8 and uint16); arrays are flat, and places in them are offsets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from imprint.data import draws as column
from imprint.data.compiled import kernel
from imprint.data.simd import LANES, transpose_tile, weigh_16, weigh_64

F: Any = np.float32
ZERO, HALF, ONE, TWO, FOUR, SIX = F(0), F(0.5), F(1), F(2), F(4), F(6)
LUMA_R, LUMA_G, LUMA_B = F(0.2989), F(0.587), F(0.114)  # ITU-R 601, as torchvision rounds it

FLIP, FIRST_OPERATION, FIRST_FACTOR = column.FLIP, column.FIRST_OPERATION, column.FIRST_FACTOR
GREY, SIGMA, SOLARISE = column.GREY, column.SIGMA, column.SOLARISE
BRIGHTNESS, CONTRAST, SATURATION, HUE = column.BRIGHTNESS, column.CONTRAST, column.SATURATION, column.HUE

TAIL = 1.0 / 512.0  # a Gaussian is cut where less than this share of it lies outside: under half a level of 8 bits
COLOUR_BLOCK = 2048  # float32 values worked on at a time: 8 KB


@kernel
def _weights(start, step, first, end, size, cubic, begin, count, weight):  # type: ignore[no-untyped-def]
    """Fill the taps of an antialiased resize: output i is the sum of weight[i, k] / 2^14 * source[begin[i] + k]."""
    scale = max(step, 1.0)
    support = (2.0 if cubic else 1.0) * scale
    inverse = 1.0 / scale
    exact = np.empty(weight.shape[1], np.float64)
    for i in range(size):
        centre = start + (i + 0.5) * step
        low = max(int(math.floor(centre - support + 0.5)), int(first))
        high = min(int(math.floor(centre + support + 0.5)), int(end))
        low = min(low, int(end) - 1)
        high = max(high, low + 1)
        for k in range(high - low):
            x = abs(low + k - centre + 0.5) * inverse
            exact[k] = 0.0
            if not cubic:
                exact[k] = max(0.0, 1.0 - x)
            elif x < 1.0:
                exact[k] = (1.5 * x - 2.5) * x * x + 1.0
            elif x < 2.0:
                exact[k] = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        skip, taps = _quantise(exact, high - low, weight[i])
        begin[i] = low + skip
        count[i] = taps


@kernel
def _quantise(exact, taps, weight):  # type: ignore[no-untyped-def]
    """Write exact[:taps] / sum * 2^14 as integers of sum 2^14, zeros at the ends left out; return first and number."""
    total = 0.0
    for k in range(taps):
        total += exact[k]
    if total == 0.0:
        exact[0] = total = 1.0
    scale = 16384.0 / total
    reached, before, skip, number, end = 0.0, 0, 0, 0, 0
    for k in range(taps):  # differences of the rounded running sum add up exactly
        reached += exact[k] * scale
        now = int(math.floor(reached + 0.5))
        value = now - before
        before = now
        if value == 0 and number == 0:
            skip += 1
            continue
        weight[number] = value
        number += 1
        if value != 0:
            end = number
    return skip, end


@kernel
def _copy(source, at, target, to, length):  # type: ignore[no-untyped-def]
    a, b = source[at : at + length], target[to : to + length]
    for x in range(length):
        b[x] = a[x]


@kernel
def _weighted_sum(source, at, pitch, weight, count, target, to, length, bound):  # type: ignore[no-untyped-def]
    """target[to + x] = round(sum_k weight[k] / 2^14 * source[at + k * pitch + x]), clamped, for x < length."""
    if count == 1:
        _copy(source, at, target, to, length)
    elif length >= 64:
        for x in range(0, length, 64):
            x = min(x, length - 64)  # the last block may overlap the one before
            weigh_64(source, at + x, pitch, weight, count, target, to + x)
    elif length >= 16:
        for x in range(0, length, 16):
            x = min(x, length - 16)
            weigh_16(source, at + x, pitch, weight, count, target, to + x)
    else:
        for x in range(length):
            total = 8192
            for k in range(count):
                total += int(weight[k]) * int(source[at + k * pitch + x])
            target[to + x] = min(max(total >> 14, 0), bound)


@kernel
def _hue(r, g, b, shift, bound):  # type: ignore[no-untyped-def]
    """Turn the hue by `shift` sixths of a turn, keeping HSV's value and saturation; without branches.

    With h in sixths, m = max and d = max - min, a channel at offset n (5 red, 3 green, 1 blue) is
    m - d * clamp(min(k, 4 - k), 0, 1) where k = (n + h) mod 6.
    """
    scale = (bound + ONE - F(1e-3)) / bound  # torchvision's conversion from [0, 1] to integers, truncating
    for x in range(r.size):
        red, green, blue = r[x], g[x], b[x]
        top = max(max(red, green), blue)
        chroma = top - min(min(red, green), blue)
        inverse = ONE / max(chroma, ONE)
        h = FOUR + (red - green) * inverse
        h = TWO + (blue - red) * inverse if green == top else h
        h = (green - blue) * inverse if red == top else h
        h += shift
        for n in range(3):
            k = h + F(5 - 2 * n)
            k -= SIX * np.floor(k * F(1.0 / 6.0))
            value = np.floor((top - chroma * max(min(min(k, FOUR - k), ONE), ZERO)) * scale)
            if n == 0:
                r[x] = value
            elif n == 1:
                g[x] = value
            else:
                b[x] = value


@kernel
def _operate(operation, block, rows, lanes, look, mean, bound):  # type: ignore[no-untyped-def]
    """Apply one jitter operation in place to float32 rows [row][channel][lane] with integer values."""
    factor = look[FIRST_FACTOR + operation]
    if operation == BRIGHTNESS:
        for x in range(block.size):
            block[x] = np.floor(min(block[x] * factor, bound))
    elif operation == CONTRAST:
        offset = mean * (ONE - factor)
        for x in range(block.size):
            block[x] = np.floor(min(max(block[x] * factor + offset, ZERO), bound))
    else:
        for row in range(rows):
            at = row * 3 * lanes
            r, g, b = block[at : at + lanes], block[at + lanes : at + 2 * lanes], block[at + 2 * lanes : at + 3 * lanes]
            if operation == HUE:
                _hue(r, g, b, factor * SIX, bound)
                continue
            rest = ONE - factor
            for x in range(lanes):
                grey = np.floor(LUMA_R * r[x] + LUMA_G * g[x] + LUMA_B * b[x]) * rest
                r[x] = np.floor(min(max(r[x] * factor + grey, ZERO), bound))
                g[x] = np.floor(min(max(g[x] * factor + grey, ZERO), bound))
                b[x] = np.floor(min(max(b[x] * factor + grey, ZERO), bound))


@kernel
def _grey_sum(block, rows, channels, lanes, size):  # type: ignore[no-untyped-def]
    """Sum the grey values of rows [row][channel][lane], lanes < size; any channels but three count alike."""
    total = 0.0
    for row in range(rows):
        at = row * channels * lanes
        part = ZERO
        if channels == 3:
            r, g, b = (
                block[at : at + size],
                block[at + lanes : at + lanes + size],
                block[at + 2 * lanes : at + 2 * lanes + size],
            )
            for x in range(size):
                part += np.floor(LUMA_R * r[x] + LUMA_G * g[x] + LUMA_B * b[x])
            total += part
            continue
        for channel in range(channels):
            part = ZERO
            values = block[at + channel * lanes : at + channel * lanes + size]
            for x in range(size):
                part += values[x]
            total += part / channels
    return total


@kernel
def _colour(P, base, size, channels, lanes, look, bound):  # type: ignore[no-untyped-def]
    """Apply jitter and grey to the rows of P, in one pass, or in two when there is a contrast to find the mean for."""
    row = channels * lanes
    split = 4
    count = 0
    for n in range(4):
        operation = int(look[FIRST_OPERATION + n])
        if operation >= 0:
            count += 1
        if operation == CONTRAST:
            split = n
    grey = look[GREY] > ZERO
    if count == 0 and not grey:
        return
    step = max(1, COLOUR_BLOCK // row)
    buffer = np.empty(step * row, np.float32)
    mean = ZERO
    for part in range(2):
        if part == 0 and split == 4:
            continue
        begin, end = (0, split) if part == 0 else (split if split < 4 else 0, 4)
        total = 0.0
        for x in range(0, size, step):
            rows = min(step, size - x)
            pixels = P[base + x * row : base + (x + rows) * row]
            block = buffer[: rows * row]
            for i in range(block.size):
                block[i] = F(pixels[i])
            changed = False
            for n in range(begin, end):
                operation = int(look[FIRST_OPERATION + n])
                if operation >= 0:
                    changed = True
                    _operate(operation, block, rows, lanes, look, mean, bound)
            if part == 0:
                total += _grey_sum(block, rows, channels, lanes, size)
            elif grey:
                changed = True
                for i in range(rows):
                    at = i * row
                    r, g, b = (
                        block[at : at + lanes],
                        block[at + lanes : at + 2 * lanes],
                        block[at + 2 * lanes : at + row],
                    )
                    for j in range(lanes):
                        value = np.floor(LUMA_R * r[j] + LUMA_G * g[j] + LUMA_B * b[j])
                        r[j] = value
                        g[j] = value
                        b[j] = value
            if changed:
                for i in range(block.size):
                    pixels[i] = block[i]
        if part == 0:
            mean = F(total / (size * size))


@kernel
def _gaussian(sigma, radius, weight):  # type: ignore[no-untyped-def]
    """Fill `weight` with a Gaussian of at most 2 * radius + 1 taps, cut to what matters; return its radius."""
    exact = np.empty(2 * radius + 1, np.float64)
    total = 1.0
    for j in range(1, radius + 1):
        total += 2.0 * math.exp(-0.5 * (j / sigma) ** 2)
    inside, cut = 1.0, 0
    while cut < radius and inside < (1.0 - TAIL) * total:
        cut += 1
        inside += 2.0 * math.exp(-0.5 * (cut / sigma) ** 2)
    for j in range(-cut, cut + 1):
        exact[cut + j] = math.exp(-0.5 * (j / sigma) ** 2)
    skip, _ = _quantise(exact, 2 * cut + 1, weight)
    return cut - skip


@kernel
def _blur_rows(image, base, rows, pitch, weight, radius, target, to, to_pitch, length, bound):  # type: ignore[no-untyped-def]
    """Weigh 2 * radius + 1 rows around each; the margins of `image` are filled with reflected rows first."""
    for j in range(1, radius + 1):
        above, below = base - j * pitch, base + (rows - 1 + j) * pitch
        _copy(image, base + j * pitch, image, above, length)
        _copy(image, base + (rows - 1 - j) * pitch, image, below, length)
    for y in range(rows):
        at = base + (y - radius) * pitch
        _weighted_sum(image, at, pitch, weight, 2 * radius + 1, target, to + y * to_pitch, length, bound)


@kernel
def scratch_size(size, channels, widest, margin):  # type: ignore[no-untyped-def]
    """Return how many pixels `render` needs to work in: bands, columns, two images with margins."""
    side = (size + LANES - 1) // LANES * LANES
    pitch = (widest * channels + LANES - 1) // LANES * LANES
    return LANES * pitch + pitch * side + 2 * (side + 2 * margin) * channels * side


@kernel
def render(source, width, channels, boxes, looks, size, cubic, radii, thresholds, bound, out, at, step, scratch):  # type: ignore[no-untyped-def]
    """Make every copy of one view of one image.

    Args:
        source: the decoded image, flat, row by row, channels last.
        width: its pixels per row.
        channels: C.
        boxes: (V, 8), see `boxes.Boxes`.
        looks: (V, P), see `draws.ViewDraws`.
        size: side of the view.
        cubic: Keys' cubic filter (a = -0.5) instead of the triangle.
        radii: largest radius of the blur, per copy.
        thresholds: solarise values at or above it, per copy.
        bound: the largest pixel value.
        out: flat output; copy v is written at at + v * step as (C, size, size).
        at: see `out`.
        step: see `out`.
        scratch: as many pixels as `scratch_size` says.
    """
    side = (size + LANES - 1) // LANES * LANES
    radius = radii.max()
    margin = max(LANES, radius)
    row = channels * side
    begin, count = np.empty(size, np.int64), np.empty(size, np.int64)
    blur = np.empty(2 * radius + 1, np.int16)
    top = F(bound)
    for v in range(boxes.shape[0]):
        box, look = boxes[v], looks[v]
        x0, x1 = int(box[6]), int(box[7])
        length = (x1 - x0) * channels
        pitch = (length + LANES - 1) // LANES * LANES
        band, rest = scratch[: LANES * pitch], scratch[LANES * pitch :]
        columns, rest = rest[: pitch * side], rest[pitch * side :]
        image = (side + 2 * margin) * row
        P, Q = rest[:image], rest[image : 2 * image]
        taps = int(max(box[1], box[5], 1.0) * (4.0 if cubic else 2.0)) + 3
        weight = np.empty((size, taps), np.int16)

        _weights(box[0], box[1], box[2], box[3], size, cubic, begin, count, weight)
        for y in range(0, size, LANES):
            for i in range(min(LANES, size - y)):
                first = (begin[y + i] * width + x0) * channels
                _weighted_sum(
                    source, first, width * channels, weight[y + i], count[y + i], band, i * pitch, length, bound
                )
            for x in range(0, pitch, LANES):
                transpose_tile(band, x, pitch, columns, x * side + y, side)

        _weights(box[4], box[5], box[6], box[7], size, cubic, begin, count, weight)
        base = margin * row
        for x in range(size):
            first = (begin[x] - x0) * row
            _weighted_sum(columns, first, row, weight[x], count[x], P, base + x * row, row, bound)

        _colour(P, base, size, channels, side, look, top)

        cut = 0
        if look[SIGMA] > ZERO:
            cut = _gaussian(float(look[SIGMA]), radii[v], blur)
        if cut > 0:
            _blur_rows(P, base, size, row, blur, cut, Q, base, row, row, bound)
            P, Q = Q, P
        flip = look[FLIP] > ZERO
        position = at + v * step
        direct = cut == 0 and size == side
        plane = (side + 2 * margin) * side
        for channel in range(channels):
            target, to, to_step = out, position + channel * size * size, size
            if not direct:
                target, to, to_step = Q, channel * plane + margin * side, side
            for x in range(0, size, LANES):
                first = base + ((size - 1 - x) if flip else x) * row + channel * side
                for y in range(0, size, LANES):
                    transpose_tile(P, first + y, -row if flip else row, target, to + y * to_step + x, to_step)
            if direct:
                continue
            final = position + channel * size * size
            if cut > 0:
                _blur_rows(Q, to, size, side, blur, cut, out, final, size, size, bound)
            else:
                for y in range(size):
                    _copy(Q, to + y * side, out, final + y * size, size)
        if look[SOLARISE] > ZERO:
            values = out[position : position + channels * size * size]
            for i in range(values.size):
                value = values[i]
                values[i] = bound - value if value >= thresholds[v] else value
