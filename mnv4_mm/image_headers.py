"""Headers of image files: size, channels, bits and orientation, without decoding a pixel.

OpenCV has no function that reads only the header, and exported files run without Pillow. ``images`` compares the size
with its limits before OpenCV allocates memory. It also applies the orientation itself, except for TIFF, because OpenCV
ignores the orientation of WebP (opencv/opencv#16579) and AVIF.
"""

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

Format = Literal['JPEG', 'PNG', 'WEBP', 'AVIF', 'GIF', 'BMP', 'TIFF']
JPEG, PNG, EXIF = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'Exif\0\0'
# Tags of TIFF, which EXIF uses too.
WIDTH, HEIGHT, BITS, ORIENTATION, SAMPLES = 256, 257, 258, 274, 277
INTEGER_TYPES = {3: 'H', 4: 'I', 16: 'Q'}  # TIFF type -> code of struct
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # colour type -> channels; a palette stands for three
PNG_PIXELS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND')
MAX_ENTRIES = 2**16  # maximum number of chunks, boxes or tags that are parsed; real images have fewer
# EXIF orientation of an AVIF. Rows: its rotation in quarter turns anticlockwise. Columns: its reflection (none, top and
# bottom swapped, left and right swapped). Taken from Pillow.
AVIF_ORIENTATIONS = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))


class Header(NamedTuple):
    """Header of an image file.

    Attributes:
        format: File format.
        width: Width of the stored pixels; an ``orientation`` of 5 to 8 swaps width and height.
        height: Height of the stored pixels.
        channels: 1 for grey, 2 for grey and alpha, 3 for colour, 4 for colour and alpha or for CMYK. Always 3 for AVIF
            and GIF.
        bits: Bits per channel; at least 8.
        orientation: EXIF orientation, 1 to 8; 1 if there is none.
        parts: PNG only: start and end, in bytes, of the chunks that decoding needs. The others can be text of any size,
            make libpng print warnings or, in damaged animations, crash OpenCV 4.12 (opencv/opencv#27744).
    """

    format: Format
    width: int
    height: int
    channels: int
    bits: int = 8
    orientation: int = 1
    parts: tuple[tuple[int, int], ...] = ()


def read_header(data: np.ndarray) -> Header | None:
    """Read the header of an image file.

    Args:
        data: Content of the file, (N,) uint8.

    Returns:
        The header; None if it is damaged or the format is not one of ``Format``.
    """
    view = memoryview(data.data)
    start = bytes(view[:16])
    try:
        if start.startswith(JPEG):
            return _jpeg(view)
        if start.startswith(PNG):
            return _png(view)
        if start[:4] == b'RIFF' and start[8:12] == b'WEBP':
            return _webp(view)
        if start[4:8] == b'ftyp':
            return _avif(view)
        if start[:4] == b'GIF8':
            width, height = struct.unpack_from('<HH', view, 6)
            return Header('GIF', width, height, 3)
        if start[:2] == b'BM':
            return _bmp(view)
        if start[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
            tags = _tiff_tags(view)
            return Header(
                'TIFF', tags[WIDTH], tags[HEIGHT], tags.get(SAMPLES, 1), max(8, tags.get(BITS, 1)), _orientation(tags)
            )
    except (struct.error, IndexError, KeyError, OverflowError):  # truncated, or a required field is missing
        pass
    return None


def _jpeg(view: memoryview) -> Header | None:
    orientation, frame, position = 0, None, 2
    for _ in range(MAX_ENTRIES):
        if view[position] != 0xFF:
            return None
        marker = view[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in (0xD9, 0xDA):  # end, or the pixels
            break
        content, length = position + 4, struct.unpack_from('>H', view, position + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack_from('>BHHB', view, content)
            frame = frame or (width, height, channels, max(8, bits))
        elif marker == 0xE1 and not orientation and view[content : content + 6] == EXIF:
            orientation = _exif_orientation(view[content + 6 : position + 2 + length])
        position += 2 + length
    return Header('JPEG', *frame, orientation or 1) if frame else None


def _png(view: memoryview) -> Header | None:
    width, height, bits, colour = struct.unpack_from('>IIBB', view, 16)
    orientation, parts, position = 1, [(0, 8)], 8
    for _ in range(MAX_ENTRIES):
        if position + 12 > len(view):
            break
        length, kind = struct.unpack_from('>I4s', view, position)
        end = position + length + 12
        if end > len(view):
            return None  # OpenCV would allocate that many bytes
        if kind == b'eXIf':
            orientation = _exif_orientation(view[position + 8 : end - 4])
        elif kind in PNG_PIXELS:
            parts.append((position, end))
        position = end
        if kind == b'IEND':
            break
    return Header('PNG', width, height, PNG_CHANNELS[colour], max(8, bits), orientation, tuple(parts))


def _webp(view: memoryview) -> Header | None:
    size, orientation, position = None, 1, 12
    for _ in range(MAX_ENTRIES):
        if position + 8 > len(view):
            break
        kind, length = struct.unpack_from('<4sI', view, position)
        content = position + 8
        if kind == b'EXIF':
            exif = view[content : content + length]
            orientation = _exif_orientation(exif[6:] if exif[:6] == EXIF else exif)
        elif size:
            pass
        elif kind == b'VP8X':  # 24 bits each
            width, height = (int.from_bytes(view[content + i : content + i + 3], 'little') + 1 for i in (4, 7))
            size = width, height, 4 if view[content] & 16 else 3
        elif kind == b'VP8L':  # 14 bits each, and one for alpha
            bits = struct.unpack_from('<I', view, content + 1)[0]
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 4 if bits >> 28 & 1 else 3
        elif kind == b'VP8 ':
            width, height = struct.unpack_from('<HH', view, content + 6)
            size = width & 0x3FFF, height & 0x3FFF, 3
        position = content + length + length % 2
    return Header('WEBP', *size, orientation=orientation) if size else None


def _avif(view: memoryview) -> Header | None:
    """Read size, rotation and reflection of the primary item. Rotation and reflection take precedence over EXIF."""
    meta = next((content for kind, content in _boxes(view) if kind == b'meta'), None)
    if meta is None:
        return None
    parts = dict(_boxes(meta[4:]))
    item = int.from_bytes(parts[b'pitm'][4:6] if parts[b'pitm'][0] == 0 else parts[b'pitm'][4:8], 'big')
    shared = dict(_boxes(parts[b'iprp']))
    properties = [box for i, box in enumerate(_boxes(shared[b'ipco']), 1) if i in _associations(shared[b'ipma'], item)]
    values = dict(properties)
    width, height = struct.unpack_from('>II', values[b'ispe'], 4)
    bits = values[b'pixi'][5] if b'pixi' in values else 8
    turns = values[b'irot'][0] & 3 if b'irot' in values else 0
    reflection = 1 + (values[b'imir'][0] & 1) if b'imir' in values else 0
    return Header('AVIF', width, height, 3, max(8, bits), AVIF_ORIENTATIONS[turns][reflection])


def _boxes(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the type and the content of each box of an ISO base media file."""
    position = 0
    for _ in range(MAX_ENTRIES):
        if position + 8 > len(view):
            return
        length, kind = struct.unpack_from('>I4s', view, position)
        start = position + 8
        if length == 1:
            length, start = struct.unpack_from('>Q', view, start)[0], position + 16
        end = len(view) if length == 0 else position + length
        if end < start:
            return
        yield kind, view[start:end]
        position = end


def _associations(view: memoryview, item: int) -> set[int]:
    """Read which properties an item has from the content of an ``ipma`` box: their indices, counted from 1."""
    version, flags, count = view[0], view[3], struct.unpack_from('>I', view, 4)[0]
    position, entry, index = 8, '>HB' if version == 0 else '>IB', '>H' if flags & 1 else '>B'
    for _ in range(min(count, MAX_ENTRIES)):
        number, length = struct.unpack_from(entry, view, position)
        position += struct.calcsize(entry)
        step = struct.calcsize(index)
        # The highest bit is not part of the index: it marks properties that a reader must support.
        indices = {
            struct.unpack_from(index, view, position + i * step)[0] & (0x7FFF if step == 2 else 0x7F)
            for i in range(length)
        }
        if number == item:
            return indices
        position += length * step
    return set()


def _bmp(view: memoryview) -> Header:
    if struct.unpack_from('<I', view, 14)[0] == 12:  # OS/2
        width, height, _, bits = struct.unpack_from('<HHHH', view, 18)
    else:
        width, height, _, bits = struct.unpack_from('<iiHH', view, 18)
    return Header('BMP', width, abs(height), 4 if bits == 32 else 3)  # a negative height: top row first


def _exif_orientation(view: memoryview) -> int:
    """Return the orientation of an EXIF block; 1 for a block that is damaged or not EXIF at all."""
    try:
        return _orientation(_tiff_tags(view))
    except (struct.error, OverflowError):
        return 1


def _orientation(tags: dict[int, int]) -> int:
    value = tags.get(ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def _tiff_tags(view: memoryview) -> dict[int, int]:
    """Return the first value of each integer tag in the first directory of a TIFF, a BigTIFF or an EXIF block."""
    order = {b'II': '<', b'MM': '>'}.get(bytes(view[:2]), '')
    magic = struct.unpack_from(f'{order}H', view, 2)[0] if order else 0
    if magic not in (42, 43):
        return {}
    is_big = magic == 43
    position = struct.unpack_from(f'{order}Q' if is_big else f'{order}I', view, 8 if is_big else 4)[0]
    count = struct.unpack_from(f'{order}Q' if is_big else f'{order}H', view, position)[0]
    position += 8 if is_big else 2
    entry, offset, room = (f'{order}HHQ', f'{order}Q', 8) if is_big else (f'{order}HHI', f'{order}I', 4)
    step = struct.calcsize(entry) + room
    tags: dict[int, int] = {}
    for _ in range(min(count, MAX_ENTRIES)):
        tag, kind, length = struct.unpack_from(entry, view, position)
        if kind in INTEGER_TYPES and length:
            code = order + INTEGER_TYPES[kind]
            place = position + step - room
            if struct.calcsize(code) * length > room:
                place = struct.unpack_from(offset, view, place)[0]
            if place + struct.calcsize(code) <= len(view):
                tags.setdefault(tag, struct.unpack_from(code, view, place)[0])
        position += step
    return tags
