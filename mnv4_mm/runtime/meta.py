"""Metadata of an exported file: its input, its outputs and its origin.

The metadata is always written as JSON to ``<file>.json`` beside the file, and also into the file if its format can
store text. Reading the JSON needs only the standard library.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError

FORMAT = 1
MAX_INPUT = 2**14  # largest side of an input in pixels
META_KEY = 'mnv4_mm'  # the key of the JSON inside a file
Kind = Literal['raw', 'nms', 'logits', 'class_map']
Task = Literal['detection', 'segmentation']
Precision = Literal['fp32', 'fp16', 'bf16', 'int8']
# Outputs of each kind, in this order.
OUTPUTS: dict[str, tuple[str, ...]] = {
    'raw': ('boxes', 'scores'),
    'nms': ('boxes', 'scores', 'labels'),
    'logits': ('logits',),
    'class_map': ('class_map',),
}


@dataclass(frozen=True)
class Input:
    """Input tensor of an exported file.

    Attributes:
        size: Height and width in pixels. None for a dynamic input, whose height and width can be any multiple of
            ``divisor``.
        layout: ``NHWC`` or ``NCHW``.
        dtype: ``uint8`` or ``float32``.
        channel_order: ``RGB`` or ``BGR``.
        normalise: True if the caller has to normalise: (pixel - mean) / std. If False, the caller passes pixel values
            from 0 to 255, and the model in the file normalises them.
        mean: Mean of each channel, in ``channel_order``.
        std: Standard deviation of each channel, in ``channel_order``.
        divisor: Divisor of height and width if ``size`` is None.
    """

    size: tuple[int, int] | None
    layout: Literal['NHWC', 'NCHW']
    dtype: Literal['uint8', 'float32']
    channel_order: Literal['RGB', 'BGR']
    normalise: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divisor: int = 32


@dataclass(frozen=True)
class Resize:
    """Resizing of an image to the size of the input.

    Attributes:
        mode: ``stretch``, or ``letterbox``: keep the aspect ratio, place the image at the top left, pad the rest.
        pad: Value of the padding, in the input's ``channel_order``.
        scale: Only if the input can have any size, otherwise None. Two lengths in pixels, in any order: images are
            scaled to the largest size whose longer side is at most the larger and whose shorter side is at most the
            smaller of the two.
    """

    mode: Literal['stretch', 'letterbox']
    pad: tuple[int, int, int]
    scale: tuple[int, int] | None = None


@dataclass(frozen=True)
class Selection:
    """Selection of detections from boxes and scores: mmdet's ``test_cfg``.

    Attributes:
        score_thr: Score threshold: scores must be above it.
        iou_thr: IoU threshold of non-maximum suppression, which runs for each class: a box is removed if its IoU with a
            box of higher score is above it.
        max_per_img: Maximum number of detections.
        min_size: Width and height of a box, in pixels of the input, must be above it; -1 keeps all boxes.
        candidates: Maximum number of pairs of a box and a class that enter the suppression; those with the highest
            scores are kept. It is mmdet's ``nms_pre`` times the number of levels, or 2**31 - 1 without a limit.
    """

    score_thr: float
    iou_thr: float
    max_per_img: int
    min_size: float
    candidates: int


@dataclass(frozen=True)
class Meta:
    """Metadata of an exported file.

    Attributes:
        task: ``detection`` or ``segmentation``.
        kind: Kind of the outputs, see ``OUTPUTS``. Detection: ``raw``: boxes (N, A, 4) as (x1, y1, x2, y2) in pixels of
            the input, and scores (N, A, classes); ``nms``: boxes (K, 4), scores (K,), labels (K,), best first.
            Segmentation: ``logits`` (N, classes, H / s, W / s) with output stride s, or ``class_map`` (N, H, W).
        target: Name of the runtime.
        precision: ``fp32``, ``fp16``, ``int8``, or ``bf16``, which is the precision of the arithmetic.
        classes: Class names, in the order of labels.
        input: Input of the file.
        resize: Resizing of an image to the input.
        selection: Detection: selection of boxes.
        category_ids: Detection: category id of each class in the data set; None if ids count from 1.
        first_value: Segmentation: value of the first class in the masks of the data set: 1 if 0 stands for unlabelled,
            else 0.
        palette: Segmentation: RGB of each class, 0 to 255.
        source: Origin of the export: checkpoint, its SHA-256, config, and versions.
        files: SHA-256 of each file that the runtime needs, by its path relative to the folder of the exported file.
    """

    task: Task
    kind: Kind
    target: str
    precision: Precision
    classes: tuple[str, ...]
    input: Input
    resize: Resize
    selection: Selection | None = None
    category_ids: tuple[int, ...] | None = None
    first_value: int = 0
    palette: tuple[tuple[int, int, int], ...] | None = None
    source: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def dynamic_batch(self) -> bool:
        """True if the batch size is dynamic: raw outputs or logits of a dynamic export."""
        return self.input.size is None and self.kind in ('raw', 'logits')

    def to_json(self) -> str:
        content = dict(format=FORMAT, **dataclasses.asdict(self))
        return json.dumps(dict(content, sha256=checksum(content)), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, name: str | Path) -> 'Meta':
        """Read and check the output of ``to_json``.

        Args:
            text: The JSON.
            name: Source of the JSON, for messages.

        Raises:
            UserError: The text is not metadata, is damaged, or was written by a later version.
        """
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or 'format' not in content:
                raise ValueError('it was not written by `mnv4 export`')
            if content['format'] != FORMAT:
                raise ValueError('it was written by a later version of mnv4_mm')
            if content.pop('sha256', '') != checksum(content):
                raise ValueError('it is damaged or was changed (its SHA-256 does not match its content): export again')
            del content['format']
            meta: Meta = _parse(cls, content, 'meta')
            if meta.kind not in (('raw', 'nms') if meta.task == 'detection' else ('logits', 'class_map')):
                raise ValueError(f'kind {meta.kind!r} does not fit {meta.task}')
            if meta.task == 'detection' and meta.selection is None:
                raise ValueError('selection is missing')
            _check_values(meta)
            return meta
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f'{name} cannot be read: {" ".join(str(error).split())}') from error
        except RecursionError:
            raise UserError(f'{name} cannot be read: its brackets are nested too deeply') from None


def _parse(kind: Any, value: Any, key: str) -> Any:
    """Check a JSON value against a type and convert it; only the types that occur in ``Meta`` are supported."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _parse(arguments[0], value, key)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints, fields = typing.get_type_hints(kind), {item.name: item for item in dataclasses.fields(kind)}
        for name in fields.keys() ^ value.keys():
            raise ValueError(f'{key}.{name} is {"missing" if name in fields else "unknown"}')
        return kind(**{name: _parse(hints[name], value[name], f'{key}.{name}') for name in fields})
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_parse(a, b, key) for a, b in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: _parse(arguments[1], item, f'{key}.{name}') for name, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f'{key} is {value!r:.60}')


def _check_values(meta: Meta) -> None:
    """Check sizes, from which memory is allocated, numbers by which preprocessing divides, and colours."""
    for key, sides in (('input.size', meta.input.size), ('resize.scale', meta.resize.scale)):
        if sides and not all(1 <= side <= MAX_INPUT for side in sides):
            raise ValueError(f'{key} is {sides}, not 1 to {MAX_INPUT} pixels')
    if meta.input.size is None and meta.resize.scale is None:
        raise ValueError('neither input.size nor resize.scale has a value')
    if not 1 <= meta.input.divisor <= MAX_INPUT:
        raise ValueError(f'input.divisor is {meta.input.divisor}, not 1 to {MAX_INPUT}')
    numbers = (*meta.input.mean, *meta.input.std)
    if not all(math.isfinite(number) for number in numbers) or 0 in meta.input.std:
        raise ValueError(f'input.mean and input.std are {numbers}: a value is not finite, or a deviation of 0')
    if not all(0 <= value <= 255 for colour in (meta.resize.pad, *(meta.palette or ())) for value in colour):
        raise ValueError('resize.pad or palette has a value outside of 0 to 255')


def sidecar(path: Path) -> Path:
    """Return the path of the JSON metadata beside an exported file: ``<file>.json``."""
    return path.parent / f'{path.name}.json'  # not with_name, which refuses '.' and '..'


def read_meta(path: str | Path) -> Meta:
    """Read the JSON beside an exported file and check the files of the export against its checksums.

    Raises:
        UserError: The JSON or a file of the export is missing, damaged or was changed.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'no file {path}')
    if not sidecar(path).is_file():
        if path.suffix == '.pth' and path.is_file():
            raise UserError(f'{path} is a checkpoint: export it first, mnv4 export {path}')
        raise UserError(
            f'{path} has no {sidecar(path).name} beside it: it was not written by `mnv4 export`, or was moved without '
            'its JSON'
        )
    meta = Meta.from_json(sidecar(path).read_bytes(), sidecar(path))
    if not meta.files:
        raise UserError(f'{sidecar(path)} cannot be read: it names no files')
    for name, expected in meta.files.items():
        part = path.parent / name
        if not part.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f'{sidecar(path)} cannot be read: it names {name}, which is not beside it')
        if not part.is_file():
            raise UserError(f'{part} is missing: {path} does not work without it')
        if sha256(part) != expected:
            raise UserError(
                f'{part} is damaged or was changed since it was exported (its SHA-256 is not the one in '
                f'{sidecar(path).name}): export it again'
            )
    return meta


def checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, independent of formatting and key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return file_digest(path).hexdigest()
