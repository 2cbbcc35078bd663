"""Splits of a segmentation data set as a config names them, and their check by the rules of ``data/check_masks.py``.

The check is for data that has not been checked and prepared by ``data/prepare_masks.py``. mmseg reads these files
itself, so nothing can be left out. What ``--data`` would leave out is refused.

Imports neither torch nor OpenMMLab, so that the command line can report a mistake at once.
"""

import os
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.data.check_masks import check_pair, label_table
from mnv4_mm.data.checked import describe
from mnv4_mm.data.decode import decode_images
from mnv4_mm.data.findings import CORRECT, Finding
from mnv4_mm.data.form import ALL, MaskData, MaskedImage
from mnv4_mm.data.formats.files import first
from mnv4_mm.data.mask_values import decode_masks
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_data

IGNORE_INDEX = 255  # mmseg's default


class MaskSplit(NamedTuple):
    """Training or validation split of a segmentation data set.

    Image and mask are ``<images>/<name><image_suffix>`` and ``<masks>/<name><mask_suffix>``.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: End of the images' file names; empty if the names in ``names_file`` include their suffixes.
        mask_suffix: End of the masks' file names.
        names_file: Text file with the names to use, one per line, without ``image_suffix``. None uses all files.
    """

    images: Path
    masks: Path
    image_suffix: str = '.jpg'
    mask_suffix: str = '.png'
    names_file: Path | None = None

    def image_files(self) -> list[Path]:
        """Return the paths of the images: those in ``names_file``, in its order, or all in the folder, sorted.

        Raises:
            UserError: ``names_file`` cannot be read.
        """
        if self.names_file:
            return [self.images / f'{name}{self.image_suffix}' for name in read_names(self.names_file)]
        return sorted(
            self.images / f'{name}{self.image_suffix}' for name in _list_names(self.images, self.image_suffix)
        )


def read_names(path: Path) -> list[str]:
    """Read a list of names, one per line, as mmseg does.

    Raises:
        UserError: The file cannot be read, e.g. because the cache has been deleted.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'the list of names {path} cannot be read: {getattr(error, "strerror", error)}') from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_pairs(split: MaskSplit, num_classes: int, reduce_zero_label: bool, hint: str = '') -> None:
    """Check the pairs of image and mask of a split by the rules for the data of ``--data``.

    With ``names_file`` only the pairs that it lists are checked. mmseg checks nothing when it loads the data: it stops
    in the middle of training at the first missing mask.

    Args:
        split: Images and masks.
        num_classes: Number of classes.
        reduce_zero_label: If True, 0 and 255 are unlabelled and the classes are 1 to ``num_classes``. If False, the
            classes are 0 to ``num_classes - 1`` and 255 is unlabelled.
        hint: Advice in the error message for a user who does not have the data.

    Raises:
        UserError: Images or masks are missing or invalid, as the message says, or the cache cannot be written.
    """
    check_data((split.images, split.masks, *([split.names_file] if split.names_file else [])), hint)
    # The list selects from the folders: files that it does not name are not a mistake.
    names = (
        set(read_names(split.names_file))
        if split.names_file
        else _list_names(split.images, split.image_suffix) | _list_names(split.masks, split.mask_suffix)
    )
    if not names:
        raise UserError(f'no images *{split.image_suffix} in {split.images}')
    images, masks = os.path.abspath(split.images), os.path.abspath(split.masks)
    root = Path(os.path.commonpath([images, masks]))
    to_images, to_masks = (Path(os.path.relpath(folder, root)) for folder in (images, masks))
    pairs = [
        MaskedImage((to_images / (n + split.image_suffix)).as_posix(), (to_masks / (n + split.mask_suffix)).as_posix())
        for n in sorted(names)
    ]
    offset = int(reduce_zero_label)
    data = MaskData(
        root,
        'masks',
        tuple(map(str, range(num_classes))),
        {ALL: pairs},
        {label + offset: label for label in range(num_classes)},
        ignored={0, IGNORE_INDEX} if reduce_zero_label else {IGNORE_INDEX},
    )
    if mistakes := _find_mistakes(data):
        raise UserError(f'{split.images} with the masks in {split.masks}: {"; ".join(mistakes)}')


def _find_mistakes(data: MaskData) -> list[str]:
    """Describe what is wrong, one line for each kind of mistake."""
    pairs = data.splits[ALL]
    decoded = decode_images(data.root, [pair.name for pair in pairs])
    masks = decode_masks(data.root, [pair.mask for pair in pairs])
    labels = label_table(data)
    findings: dict[str, list[Finding]] = {}
    others = []
    for pair in pairs:
        mask = masks[pair.mask]
        if not (mask.is_plain or mask.is_jpeg or mask.problem):
            others.append(pair.mask)
        elif finding := check_pair(data, pair, decoded[pair.name], mask, labels):
            findings.setdefault(finding.kind, []).append(finding)
    mistakes = [describe(same, data.root, CORRECT) for same in findings.values()]
    if others:
        mistakes.append(
            f'masks that a config names are 8-bit PNG files of one channel, which {first(others)} '
            f'{"is" if len(others) == 1 else "are"} not: convert them, or name the folder of the data by --data, which '
            'reads other masks, too'
        )
    return mistakes


def _list_names(folder: Path, suffix: str) -> set[str]:
    """List file names without suffix, relative to the folder, as mmseg does: hidden files are left out."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f'*{suffix}'))
    return {path.removesuffix(suffix) for path in paths if not path.split('/')[-1].startswith('.')}
