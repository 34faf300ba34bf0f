"""Finds JPEG files of which a part is missing although they have an end marker.

libjpeg paints missing parts gray with a warning, which Pillow does not pass on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

START, END, SCAN, RESTART_INTERVAL, FIRST_RESTART = 0xD8, 0xD9, 0xDA, 0xDD, 0xD0
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
WITHOUT_CONTENT = (0x01, START, *range(0xD0, 0xD8))
LAST_COEFFICIENT = 63
MARKER = re.compile(rb"\xff+([^\x00\xff])")
PADDING = bytes(np.random.default_rng(0).integers(0, 255, 256, np.uint8))
"""Any bytes that begin no marker, which a whole image does not need."""


class Scan(NamedTuple):
    """A scan of a JPEG file.

    Attributes:
        coefficients: (component, coefficient) that it contains.
        missing_bits: lowest bits of these that a later scan has to add.
        blocks: units of which ``restart_interval`` are between two restart markers.
        restart_interval: 0 for none.
        ends: positions in the file at which coded data end: at restart markers and at the end.
        restarts: numbers of the restart markers, 0 to 7.
    """

    coefficients: set[tuple[int, int]]
    missing_bits: int
    blocks: int
    restart_interval: int
    ends: list[int]
    restarts: list[int]


class Frame(NamedTuple):
    """Size and components, (id, horizontal, vertical sampling factor), of a JPEG file."""

    is_progressive: bool
    height: int
    width: int
    components: list[tuple[int, int, int]]


def missing_part(data: bytes, image: Image.Image) -> str | None:
    """Return which part of a JPEG file is missing, in words, or None if all is there.

    Sequential and progressive Huffman coding is checked: all scans, all restart markers, and for every run of coded
    data whether decoding needs more than is there. What it cannot find are damaged bytes that are still valid codes,
    and files in arithmetic coding.

    Args:
        data: the file; what follows its first image is ignored.
        image: decoded from it, not turned and not converted.
    """
    frame, scans = _parse(data)
    if frame is None or not scans:
        return None
    found = dict.fromkeys(((name, k) for name, _, _ in frame.components for k in range(LAST_COEFFICIENT + 1)), 1)
    for scan in scans:
        found.update(dict.fromkeys(scan.coefficients, scan.missing_bits))
    if any(found.values()):
        return "it ends before its last scan"
    for scan in scans:
        expected = -(-scan.blocks // scan.restart_interval) - 1 if scan.restart_interval else 0
        if scan.restarts[:expected] != [number % 8 for number in range(expected)]:
            return f"{len(scan.restarts)} of {expected} restart markers are there in order"
    if _may_lack_data(frame, scans, image) and _needs_more(data, scans, image):
        return "its coded data end before the image does"
    return None


def _may_lack_data(frame: Frame, scans: list[Scan], image: Image.Image) -> bool:
    """Return False if the end of the only run of coded data is visible: where data lack, libjpeg paints mid-gray."""
    if frame.is_progressive or len(scans) > 1 or scans[0].restarts or image.mode not in ("L", "RGB"):
        return True
    corner = np.asarray(image.crop((image.width - 1, image.height - 1, image.width, image.height)))
    return bool((np.abs(corner.astype(int) - 128) <= 1).all())


def _needs_more(data: bytes, scans: list[Scan], image: Image.Image) -> bool:
    """Return whether the image changes if other bytes follow the coded data."""
    ends = [0, *(end for scan in scans for end in scan.ends)]
    parts = [data[start:end] for start, end in pairwise(ends)]
    # Not Image.open, which looks for the further images of an MPO at their old places.
    with JpegImageFile(BytesIO(PADDING.join([*parts, data[ends[-1] :]]))) as padded:
        if padded.mode != image.mode:
            padded.draft(image.mode, padded.size)
        return not np.array_equal(np.asarray(padded), np.asarray(image))


def _parse(data: bytes) -> tuple[Frame | None, list[Scan]]:
    """Return frame and scans of the first image; no frame if it is not Huffman-coded."""
    frame, interval, scans = None, 0, []
    for code, start, end in _segments(data):
        content = data[start:end]
        if code in SEQUENTIAL + PROGRESSIVE:
            parts = [content[6 + 3 * index : 9 + 3 * index] for index in range(content[5])]
            components = [(part[0], part[1] >> 4, part[1] & 15) for part in parts]
            height, width = (int.from_bytes(content[first : first + 2], "big") for first in (1, 3))
            frame = Frame(code in PROGRESSIVE, height, width, components)
        elif code == RESTART_INTERVAL:
            interval = int.from_bytes(content[:2], "big")
        elif code == SCAN and frame is not None:
            scans.append(_scan(data, end, content, frame, interval))
    return frame, scans


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield code, start and end of the content of each marker up to the end of the first image."""
    position = 0
    while match := MARKER.search(data, position):
        code, position = match[1][0], match.end()
        if code == END:
            return
        if code not in WITHOUT_CONTENT:
            end = position + int.from_bytes(data[position : position + 2], "big")
            yield code, position + 2, end
            position = end


def _scan(data: bytes, start: int, header: bytes, frame: Frame, interval: int) -> Scan:
    names = [header[1 + 2 * index] for index in range(header[0])]
    first, last, bits = header[1 + 2 * header[0] :][:3]
    if not frame.is_progressive:
        first, last, bits = 0, LAST_COEFFICIENT, 0
    ends, restarts = [], []
    for match in MARKER.finditer(data, start):
        ends.append(match.start())
        if match[1][0] & 0xF8 != FIRST_RESTART:
            break
        restarts.append(match[1][0] & 7)
    coefficients = {(name, k) for name in names for k in range(first, last + 1)}
    return Scan(coefficients, bits & 15, _blocks(frame, names), interval, ends, restarts)


def _blocks(frame: Frame, names: list[int]) -> int:
    """Return the number of units of a scan: blocks of its only component, or groups of blocks of all components."""
    across, down = (max(component[axis] for component in frame.components) for axis in (1, 2))
    horizontal, vertical = next((h, v) for name, h, v in frame.components if name == names[0])
    if len(names) > 1:
        horizontal = vertical = 1
    return -(-frame.width * horizontal // (8 * across)) * -(-frame.height * vertical // (8 * down))
