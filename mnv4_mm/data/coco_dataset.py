"""A COCO data set whose annotation file is parsed once and then memory-mapped by all processes."""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import os.path as osp
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
from mmengine.dataset import force_full_init
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import get_worker_info

from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.quiet import MISSING_OPTIONAL, without_lines

with without_lines(MISSING_OPTIONAL):
    from mmdet.datasets import CocoDataset

# Version of the cache format. A cache of another version is not read.
FORMAT = 2
# A smaller JSON is parsed in about a second, which is not worth a file in the user's folder. COCO's own has 448 MB.
MIN_CACHE_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Columns:
    """Annotations of M images with N boxes of C classes as mmdet's ``CocoDataset`` holds them, without the polygons.

    Attributes:
        cat_ids: (C,) int64, category ids of the JSON in the order of labels.
        image_id: (M,) int64.
        size: (M, 2) int64, width and height in pixels.
        name: (B,) uint8, the B bytes of the concatenated file names in UTF-8.
        name_start: (M + 1,) int64, offset of each image's file name in ``name``.
        box_start: (M + 1,) int64, offset of each image's boxes in ``box``, ``is_int``, ``label`` and ``ignore``.
        box: (N, 4) float64, (x1, y1, x2, y2) in pixels.
        is_int: (N, 4) bool, True for coordinates that mmdet holds as int because the JSON has no decimal point.
        label: (N,) int64, index of the class.
        ignore: (N,) int64, 1 for crowds.
        source: Path and key (see ``read_columns``) of the memory-mapped file; None if the columns are in memory.
    """

    cat_ids: np.ndarray
    image_id: np.ndarray
    size: np.ndarray
    name: np.ndarray
    name_start: np.ndarray
    box_start: np.ndarray
    box: np.ndarray
    is_int: np.ndarray
    label: np.ndarray
    ignore: np.ndarray
    source: tuple[Path, str] | None = None

    @classmethod
    def pack(cls, entries: Sequence[dict[str, Any]], cat_ids: Sequence[int]) -> 'Columns':
        """Convert the entries of mmdet's ``CocoDataset`` to columns.

        Args:
            entries: mmdet's ``data_list``, in which ``img_path`` must be the ``file_name`` of the JSON alone.
            cat_ids: Category ids in the order of labels.

        Raises:
            ValueError: An id, width or height is not an integer or overflows int64, or a coordinate is not a number.
        """
        names = [entry['img_path'].encode() for entry in entries]
        instances = [instance for entry in entries for instance in entry['instances']]
        boxes = [instance['bbox'] for instance in instances]
        if not {type(value) for box in boxes for value in box} <= {int, float}:
            raise ValueError('a box has coordinates that are not numbers')
        return cls(
            cat_ids=_ints(cat_ids),
            image_id=_ints(entry['img_id'] for entry in entries),
            size=_ints(value for entry in entries for value in (entry['width'], entry['height'])).reshape(-1, 2),
            name=np.frombuffer(b''.join(names), np.uint8),
            name_start=_starts(map(len, names)),
            box_start=_starts(len(entry['instances']) for entry in entries),
            box=np.array(boxes, np.float64).reshape(-1, 4),
            is_int=np.array([[type(value) is int for value in box] for box in boxes], bool).reshape(-1, 4),
            label=_ints(instance['bbox_label'] for instance in instances),
            ignore=_ints(instance['ignore_flag'] for instance in instances),
        )

    def __len__(self) -> int:
        return len(self.image_id)

    def __deepcopy__(self, memo: dict) -> 'Columns':
        return self  # columns are never modified

    def __reduce__(self) -> tuple:
        """Pickle mapped columns as their path: the receiving process maps the file. Columns in memory are copied."""
        return (read_columns, self.source) if self.source else (Columns, tuple(self.arrays().values()))

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != 'source'}

    def entry(self, row: int, folder: str) -> dict[str, Any]:
        """Return the entry of an image as mmdet's ``CocoDataset`` returns it.

        Args:
            row: Index of the image in the columns.
            folder: Folder of the images.
        """
        name = self.name[self.name_start[row] : self.name_start[row + 1]].tobytes().decode()
        rows = slice(self.box_start[row], self.box_start[row + 1])
        boxes, is_int = self.box[rows].tolist(), self.is_int[rows]
        if is_int.any():
            boxes = [
                [int(value) if flag else value for value, flag in zip(box, flags, strict=True)]
                for box, flags in zip(boxes, is_int.tolist(), strict=True)
            ]
        width, height = self.size[row].tolist()
        return dict(
            img_path=osp.join(folder, name),
            img_id=self.image_id[row].item(),
            seg_map_path=None,
            height=height,
            width=width,
            instances=[
                dict(ignore_flag=ignore, bbox=box, bbox_label=label)
                for ignore, box, label in zip(self.ignore[rows].tolist(), boxes, self.label[rows].tolist(), strict=True)
            ],
        )

    def write(self, path: Path, key: str) -> None:
        """Write the columns to a file, atomically.

        Args:
            path: The file.
            key: Identifies what the columns were made from, e.g. a digest of the JSON. ``read_columns`` must be given
                the same key.

        Raises:
            UserError: The file cannot be written.
        """
        arrays = self.arrays()
        # Not safetensors' save_file: only the owner can read its files, and data folders are shared.
        write_whole(path, save(arrays, dict(key=key, sha256=_digest(arrays))))


def read_columns(path: Path, key: str) -> Columns:
    """Memory-map a file written by ``Columns.write``. All processes share the pages of the file.

    Args:
        path: The file.
        key: Key that was given to ``Columns.write``.

    Raises:
        FileNotFoundError: The file does not exist.
        UserError: The file is damaged, or was written with another key.
    """
    try:
        with safe_open(path, framework='pt') as file:  # 'pt' maps the file, 'numpy' copies it
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    # TypeError: raised for bfloat16, which numpy does not have.
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f'{path} is not a readable cache, perhaps cut short ({error})') from error
    if metadata.get('key') != key:
        raise UserError(f'{path} is not a cache of these annotations')
    if metadata.get('sha256') != _digest(arrays):
        raise UserError(f'{path} is damaged: its checksum is wrong')
    for array in arrays.values():
        array.flags.writeable = False
    return Columns(**arrays, source=(path, key))


def _ints(values: Iterable[Any]) -> np.ndarray:
    values = list(values)
    if not set(map(type, values)) <= {int}:
        raise ValueError('an id, a width or a height is not an integer')
    try:
        return np.array(values, np.int64)
    except OverflowError as error:
        raise ValueError('an id, a width or a height has more than 64 bits') from error


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.array([*itertools.accumulate(lengths, initial=0)], np.int64)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(array.reshape(-1).data)  # hashlib takes one dimension
    return digest.hexdigest()


@DATASETS.register_module()
class CachedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` for boxes with a cache of the parsed JSON.

    The annotations are written to ``<stem>.<key>.cache.safetensors`` beside the JSON. The key is a digest of the JSON's
    content and of all settings that affect what is read. Later runs memory-map that file, shared between all processes
    and workers. The file may be deleted at any time before a run starts. A damaged file is reported and written again.
    If the file cannot be written, the columns stay in memory.

    Entries equal mmdet's, but have no ``mask``: polygons, which make up most of the JSON, are left out. The attribute
    ``cat_img_map`` does not exist.

    The data set behaves like ``CocoDataset``, without a cache, for a JSON smaller than ``min_cache_bytes``, and for
    settings that need more than the columns hold: masks (a transform with ``with_mask``), keys of ``data_prefix`` other
    than ``img``, proposals, ``return_classes``, ``backend_args``, ``serialize_data=False``. It also does so, with a
    warning, for a JSON with values that ``Columns.pack`` rejects, such as ids that are not integers.

    Args:
        *args: See ``CocoDataset``.
        min_cache_bytes: Size in bytes of the smallest JSON that is cached.
        **kwargs: See ``CocoDataset``.
    """

    columns: Columns | None = None
    # Attributes of mmengine's BaseDataset, which has no annotations for them.
    _fully_initialized: bool
    data_prefix: dict[str, str]
    data_list: list[dict[str, Any]]

    def __init__(self, *args: Any, min_cache_bytes: int = MIN_CACHE_BYTES, **kwargs: Any) -> None:
        self.min_cache_bytes = min_cache_bytes
        super().__init__(*args, **kwargs)

    def full_init(self) -> None:
        """Load the annotations: memory-map the cache, which is written first if needed.

        A JSON that is not cached (see the class) is loaded by ``CocoDataset.full_init``, which raises its own errors.

        Raises:
            UserError: The JSON is not in COCO's format, or no image is left for its classes and ``filter_cfg``.
        """
        if self._fully_initialized:
            return
        self.columns = self._load_columns_in_turn() if self._fits_columns() else None
        if self.columns is None:
            super().full_init()
            return
        if not len(self.columns):
            classes = ', '.join(self._metainfo['classes'])
            raise UserError(
                f'{self.ann_file}: no images remain with filter_cfg={self.filter_cfg}, classes {classes}: check both'
            )
        self.cat_ids = self.columns.cat_ids.tolist()
        self.cat2label = {cat_id: label for label, cat_id in enumerate(self.cat_ids)}
        # mmengine keeps its pickled entries in data_bytes and the end of each in data_address. Here data_bytes is empty
        # and data_address has the rows of the columns, so that mmengine's methods for lengths and subsets work.
        self.data_bytes, self.data_address = np.empty(0, np.uint8), np.arange(len(self.columns))
        if self._indices is not None:
            self.data_address = self._get_serialized_subset(self._indices)[1]
        self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return the entry of an image. A negative ``idx`` counts from the end; ``sample_idx`` is never negative."""
        if self.columns is None:
            return super().get_data_info(idx)
        info = self.columns.entry(self.data_address[idx].item(), self.data_prefix['img'])
        info['sample_idx'] = idx if idx >= 0 else len(self) + idx
        return info

    def _get_serialized_subset(self, indices: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if self.columns is None:
            return super()._get_serialized_subset(indices)
        rows = self.data_address
        if isinstance(indices, int):
            return self.data_bytes, rows[:indices] if indices >= 0 else rows[indices:]
        if not isinstance(indices, Sequence):
            raise TypeError(f'indices must be an int or a sequence of int, got {type(indices)}')
        return self.data_bytes, rows[np.array(indices, np.int64)]

    def _fits_columns(self) -> bool:
        needs_more = self.return_classes or self.proposal_file or self.backend_args or not self.serialize_data
        masks = any(getattr(transform, 'with_mask', False) for transform in self.pipeline.transforms)
        path = Path(self.ann_file)
        return (
            not (needs_more or masks or set(self.data_prefix) != {'img'})
            and path.is_file()
            and path.stat().st_size >= self.min_cache_bytes
        )

    def _load_columns_in_turn(self) -> Columns | None:
        """Let the first process of a machine write the cache while the others wait; they then map it.

        If the first process fails, the others continue: each parses the JSON, or fails, by itself.
        """
        # A data loader's worker comes here if the data set was not initialised when the worker started. It has the rank
        # of its process, but the other ranks do not wait for it.
        is_rank = get_worker_info() is None
        is_first = int(os.environ.get('LOCAL_RANK', get_rank())) == 0
        if is_rank and not is_first:
            barrier()
        try:
            return self._load_columns()
        finally:
            if is_rank and is_first:
                barrier()

    def _load_columns(self) -> Columns | None:
        key = self._key()
        path = Path(self.ann_file)
        path = path.with_name(f'{path.stem}.{key[:16]}.cache.safetensors')
        try:
            return read_columns(path, key)
        except FileNotFoundError:
            pass
        except UserError as error:
            print_log(f'{error}; the cache is written again', logger='current', level=logging.WARNING)
        entries = self._parse()
        try:
            columns = Columns.pack(entries, self.cat_ids)
        except ValueError as error:
            text = f'{self.ann_file} cannot be cached and is parsed in every run: {error}'
            print_log(text, logger='current', level=logging.WARNING)
            return None
        try:
            columns.write(path, key)
            columns = read_columns(path, key)
        except UserError as error:
            text = f'annotations stay in memory and the next run parses them again: {error}'
            print_log(text, logger='current', level=logging.WARNING)
        else:
            print_log(
                f'annotations are cached in {path}, which the next run reads; older caches may be deleted',
                logger='current',
            )
        return columns

    def _key(self) -> str:
        digest = file_digest(self.ann_file)
        # The folder of the images is not part of the key: names in the columns are relative to it.
        settings = (
            FORMAT,
            mmdet.__version__,
            f'{type(self).__module__}.{type(self).__qualname__}',
            self._metainfo['classes'],
            self.filter_cfg,
            self.test_mode,
        )
        digest.update(json.dumps(settings, sort_keys=True, default=repr).encode())
        return digest.hexdigest()

    def _parse(self) -> list[dict[str, Any]]:
        """Parse and filter the entries like mmdet, with the file name alone as ``img_path``."""
        prefix, self.data_prefix = self.data_prefix, dict(img='')
        try:
            self.data_list = self.load_data_list()
            return self.filter_data()
        except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
            raise UserError(
                f'{self.ann_file} is not a COCO annotation file: {type(error).__name__}: {" ".join(str(error).split())}'
            ) from error
        finally:
            self.data_prefix, self.data_list = prefix, []
            self.__dict__.pop('cat_img_map', None)


def order_by_name(ids: Sequence[int], categories: Mapping[int, dict[str, Any]], names: Sequence[str]) -> list[int]:
    """Sort category ids in the order of class names.

    Args:
        ids: Category ids.
        categories: Categories of a COCO file by id.
        names: Class names in the order of labels. They must include the name of every category in ``ids``.
    """
    places = {name: place for place, name in enumerate(names)}
    return sorted(ids, key=lambda number: places[categories[number]['name']])


class _NamedCoco(CocoDataset.COCOAPI):
    """mmdet's interface to pycocotools, with category ids in the order of the requested names."""

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        ids = super().get_cat_ids(cat_names, sup_names, cat_ids)
        return order_by_name(ids, self.cats, cat_names) if cat_names else ids


@DATASETS.register_module()
class NamedCocoDataset(CachedCocoDataset):
    """``CachedCocoDataset`` whose labels are in the order of the class names.

    mmdet's ``CocoDataset`` orders labels by the categories in the JSON, whatever ``metainfo`` says. A checkpoint
    trained on another file with the same categories in another order would then be evaluated with its classes permuted
    (open-mmlab/mmdetection#2916). ``FastCocoMetric`` needs ``named_labels=True`` for this data set.
    """

    COCOAPI = _NamedCoco
