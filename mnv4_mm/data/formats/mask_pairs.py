"""Find images and their masks in a folder, by the names of folders and files."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, MaskedImage
from mnv4_mm.data.formats.files import SPLIT_NAMES, refuse_folder
from mnv4_mm.images import IMAGE_SUFFIXES, JPEG_SUFFIXES

MASK_SUFFIXES = IMAGE_SUFFIXES
# Names of folders, in lower case; the first that fits is used.
IMAGE_FOLDERS = (
    'images', 'image', 'imgs', 'img', 'img_dir', 'jpegimages', 'leftimg8bit', 'photos', 'pictures', 'inputs', 'input',
    'originals', 'original_images', 'rgb',
)  # fmt: skip
MASK_FOLDERS = (
    'masks', 'mask', 'annotations', 'annotation', 'segmentationclass', 'segmentationclasspng', 'segmentationclassraw',
    'labels', 'label', 'ann_dir', 'gtfine', 'gtcoarse', 'gt', 'ground_truth', 'groundtruth', 'segmentations',
    'segmentation', 'label_images_semantic', 'labelmaps', 'targets', 'target',
)  # fmt: skip
# Text files with the images of a split, one a line: <folder>/<name of a split>.txt. CVAT writes default.txt.
LIST_FOLDERS = ('ImageSets/Segmentation', 'ImageSets', 'splits', '.')
WHOLE_LISTS = ('default', 'trainval', 'all')
MAX_LIST_BYTES = 64 * 2**20
# Endings of mask names, best first: where an image has several files, these say which one is the mask.
PREFERRED_ENDINGS = ('labeltrainids', 'labelids', 'mask', 'label', 'labels', 'l', 'gt', 'seg')
# Endings of files beside masks that show the same labels in another form.
COMPANION_ENDINGS = ('color', 'colors', 'colour', 'instanceids', 'instancetrainids', 'labelids', 'vis', 'overlay')
_MASK_ENDING = re.compile(r'[-_. ](mask|masks|label|labels|l|gt|seg|segmentation|annotation)$', re.IGNORECASE)
_IMAGE_ENDING = re.compile(r'[-_. ](leftimg8bit|image|img|sat|rgb)$', re.IGNORECASE)
_BEGINNING = re.compile(r'^(image|img|im|mask|label|gt|seg)s?[-_. ]?(?=.)', re.IGNORECASE)


class Pairs(NamedTuple):
    """Images with their masks.

    Attributes:
        folder: Folder that holds the images and masks, or their folders. Lists of image names and of class names are
            looked for there.
        splits: Pairs of each split, ordered by name.
        ending: Ending that mask names have and image names do not, e.g. ``_mask``. Empty if there is none.
        findings: Findings on images without a mask, masks without an image, masks of several images, images with
            several masks, and names in lists without an image.
        notes: What was decided, one sentence each.
    """

    folder: Path
    splits: dict[str, list[MaskedImage]]
    ending: str
    findings: list[Finding]
    notes: list[str]


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder is named after, e.g. ``TRAIN`` for ``train2017``. None if it names no split.

    Args:
        name: Name of the folder without parent folders, in any mix of upper and lower case.
    """
    return SPLIT_NAMES.get(re.sub(r'[-_]?\d+$', '', name.lower()))


class _File(NamedTuple):
    split: str
    folder: str  # below the folder of the split
    name: str  # relative to the root

    @property
    def stem(self) -> str:
        return self.name.rpartition('/')[2].rpartition('.')[0]


class _Match(NamedTuple):
    partner: dict[str, _File]  # image name -> mask
    ending: str
    spare: list[_File]  # masks without an image
    extra: list[tuple[str, _File]]  # further masks, each with the name of an image that already has one


def find_pairs(root: Path) -> Pairs | None:
    """Find images and their masks in the known layouts, e.g. ``images/`` and ``masks/``.

    If ``root`` has no such layout and only one subfolder, that subfolder is searched, up to two levels down as in
    ``VOCdevkit/VOC2012``.

    Args:
        root: Folder of the data set.

    Returns:
        The pairs. None if no image has a mask.

    Raises:
        UserError: A folder cannot be listed.
    """
    for base in _bases(root):
        for images, masks, is_deep in _candidates(base):
            if not any(_has_files(folder, MASK_SUFFIXES) for folder in masks.values()):
                continue
            pairs = _pair(root, base, _list(root, images, IMAGE_SUFFIXES, is_deep), _list(root, masks, MASK_SUFFIXES))
            if pairs is not None:
                return pairs
        pairs = _pair_in_one_folder(root, base)
        if pairs is not None:
            return pairs
    return None


def find_lone_masks(root: Path) -> Path | None:
    """Return the folder ``SegmentationClass`` if there is one with masks, otherwise None.

    If ``find_pairs`` finds nothing, this function tells whether the reason is that masks have no images. Other folder
    names are not looked for, because labelling tools use them for more than masks.

    Raises:
        UserError: A folder cannot be listed.
    """
    for base in _bases(root):
        folder = _folders(base).get('segmentationclass')
        if folder is not None and _has_files(folder, MASK_SUFFIXES):
            return folder
    return None


def _bases(root: Path) -> Iterator[Path]:
    """Yield the folder and, up to two levels down, the folder in it if it is the only one, as in VOCdevkit/VOC2012."""
    for _ in range(3):
        yield root
        folders = _folders(root)
        if len(folders) != 1:
            return
        root = next(iter(folders.values()))


def _folders(folder: Path) -> dict[str, Path]:
    """Return the subfolders of a folder by lower-case name, without hidden ones."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        refuse_folder(error)
    return {path.name.lower(): path for path in entries if not path.name.startswith('.') and path.is_dir()}


def _candidates(base: Path) -> Iterator[tuple[dict[str, Path], dict[str, Path], bool]]:
    """Yield candidates: folders of images by split, folders of masks by split, and whether to search image subfolders.

    Folders under ``ALL`` may have a subfolder for each split.
    """
    folders = _folders(base)
    masks = [folders[name] for name in MASK_FOLDERS if name in folders]
    for name in IMAGE_FOLDERS:
        if name in folders:
            yield from (({ALL: folders[name]}, {ALL: path}, True) for path in masks)
    # train/images and train/masks.
    of_splits = {split: path for name, path in reversed(folders.items()) if (split := split_of_folder(name))}
    inside = {split: _folders(path) for split, path in of_splits.items()}
    names = [set(content) for content in inside.values()]
    for image in IMAGE_FOLDERS:
        for mask in MASK_FOLDERS:
            if any({image, mask} <= content for content in names):
                has_both = {split: content for split, content in inside.items() if {image, mask} <= set(content)}
                yield (
                    {split: content[image] for split, content in has_both.items()},
                    {split: content[mask] for split, content in has_both.items()},
                    True,
                )
    # train and trainannot, or train_images and train_masks.
    images, annotations = {}, {}
    for name, path in folders.items():
        match = re.fullmatch(r'([a-z]+?)[-_]?(images?|imgs?)?', name)
        if match and match[1] in SPLIT_NAMES:
            images[SPLIT_NAMES[match[1]]] = path
        match = re.fullmatch(r'([a-z]+?)[-_]?(annot|annotations?|labels?|masks?|gt)', name)
        if match and match[1] in SPLIT_NAMES:
            annotations[SPLIT_NAMES[match[1]]] = path
    both = images.keys() & annotations.keys()
    if both:
        yield {split: images[split] for split in both}, {split: annotations[split] for split in both}, True
    # masks/ in the folder of the images.
    for mask in MASK_FOLDERS:
        if mask in folders:
            yield {ALL: base}, {ALL: folders[mask]}, False
        with_masks = {split: content[mask] for split, content in inside.items() if mask in content}
        if with_masks:
            yield {split: of_splits[split] for split in with_masks}, with_masks, False


def _walk(folder: Path, suffixes: tuple[str, ...], is_deep: bool = True) -> Iterator[Path]:
    """Yield the files with one of the suffixes. Links are followed; hidden files and folders are skipped."""
    visited = set()
    for place, folders, names in os.walk(folder, onerror=refuse_folder, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in visited or not is_deep:
            folders.clear()
        visited.add((state.st_dev, state.st_ino))
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield from (Path(place, name) for name in names if name.lower().endswith(suffixes) and not name.startswith('.'))


def _has_files(folder: Path, suffixes: tuple[str, ...]) -> bool:
    return any(True for _ in _walk(folder, suffixes))


def _list(root: Path, folders: Mapping[str, Path], suffixes: tuple[str, ...], is_deep: bool = True) -> list[_File]:
    """List the files of splits in the order of names."""
    files = []
    for split, folder in folders.items():
        for path in _walk(folder, suffixes, is_deep):
            part_of, below = split, path.relative_to(folder).parts[:-1]
            if split == ALL and below and (named := split_of_folder(below[0])):
                part_of, below = named, below[1:]
            files.append(_File(part_of, '/'.join(below), path.relative_to(root).as_posix()))
    return sorted(files, key=lambda file: file.name)


def _pair(root: Path, base: Path, images: list[_File], masks: list[_File]) -> Pairs | None:
    """Pair images and masks by the rule that pairs the most images. None if no rule pairs any."""
    if not images:
        return None
    best = max((rule(images, masks) for rule in (_by_ending, _by_words, _by_stem_alone)), key=lambda m: len(m.partner))
    partner = best.partner
    if not partner:
        return None
    findings: list[Finding] = []
    notes: list[str] = []
    for name, mask in best.extra:
        problem = f'{name} has the mask {partner[name].name} too: an image has one mask, with all objects in it'
        findings.append(Finding('mask-extra', root / mask.name, problem))
    shared: dict[str, list[str]] = defaultdict(list)
    for name, mask in partner.items():
        shared[mask.name].append(name)
    splits: dict[str, list[MaskedImage]] = defaultdict(list)
    unpaired = []
    for image in images:
        if image.name not in partner:
            unpaired.append(image)
            continue
        mask = partner[image.name]
        if len(shared[mask.name]) > 1:
            others = ', '.join(name for name in shared[mask.name] if name != image.name)
            findings.append(Finding('mask-shared', root / image.name, f'{others} has the same mask, {mask.name}'))
            continue
        # If only the folder of the masks is divided into splits, the mask tells the split.
        split = image.split if image.split != ALL else mask.split
        splits[split].append(MaskedImage(image.name, mask.name))
    splits, listed = _apply_lists(root, base, dict(splits), unpaired, findings, notes)
    test = [image for image in unpaired if image.split == TEST]
    if test:
        notes.append(f'{len(test)} test images have no mask and are not used')
        unpaired = [image for image in unpaired if image.split != TEST]
    if not listed and unpaired and 'jpegimages/' in unpaired[0].name.lower():
        # Most images of Pascal VOC have boxes but no mask.
        notes.append(f'{len(unpaired)} images without a mask are not used')
    elif not listed:
        findings += [Finding('mask-missing', root / image.name, 'the image has no mask') for image in unpaired]
    if not listed:
        findings += [Finding('mask-without-image', root / mask.name, 'the mask has no image') for mask in best.spare]
    if best.ending:
        notes.append(f'a mask has the name of its image with {best.ending!r} at its end')
    return Pairs(base, splits, best.ending, findings, notes)


def _apply_lists(
    root: Path,
    base: Path,
    splits: dict[str, list[MaskedImage]],
    unpaired: list[_File],
    findings: list[Finding],
    notes: list[str],
) -> tuple[dict[str, list[MaskedImage]], bool]:
    """Select images by lists of names, if there are any and folders do not split the images.

    Returns:
        The splits, and True if lists were used.
    """
    if set(splits) != {ALL}:
        return splits, False
    lists = _read_lists(base)
    if not lists:
        return splits, False
    pairs: dict[str, MaskedImage] = {}
    for pair in splits[ALL]:
        for form in _keys(pair.name):
            pairs[form] = pair
    without = {form: image.name for image in unpaired for form in _keys(image.name)}
    selected: dict[str, list[MaskedImage]] = {}
    used: set[str] = set()
    for split, (path, names) in lists.items():
        chosen = {}
        for number, name in names:
            key = next((form for form in _keys(name) if form in pairs or form in without), None)
            entry = f'line {number}'
            if key is None:
                findings.append(Finding('missing-image', path, f'there is no image {name}', entry))
            elif key in pairs:
                chosen[pairs[key].name] = pairs[key]
            else:
                findings.append(
                    Finding('mask-missing', root / without[key], f'{path.name} lists it, and it has no mask', entry)
                )
        selected[split] = [chosen[name] for name in sorted(chosen)]
        used |= chosen.keys()
    left_out = len(splits[ALL]) - len(used)
    lists_read = ', '.join(str(path.relative_to(root)) for path, _ in lists.values())
    rest = f'; {left_out} other images with masks are not used' if left_out else ''
    notes.append(f'the images of each split are those in {lists_read}{rest}')
    return selected, True


def _read_lists(base: Path) -> dict[str, tuple[Path, list[tuple[int, str]]]]:
    """Read the lists of image names. Return, by split, the file and its names with their line numbers."""
    for place in LIST_FOLDERS:
        found: dict[str, Path] = {}
        whole: dict[str, Path] = {}
        for path in sorted((base / place).glob('*.txt')):
            stem = path.stem.lower()
            if stem in SPLIT_NAMES:
                found[SPLIT_NAMES[stem]] = path
            elif stem in WHOLE_LISTS:
                whole[ALL] = path
        # Without a list for validation the whole list, or the one for training, is split.
        chosen = found if {TRAIN, VAL} <= found.keys() else whole or found
        lists = {split: (path, _read_names(path)) for split, path in chosen.items()}
        if any(names for _, names in lists.values()):
            return lists
    return {}


def _read_names(path: Path) -> list[tuple[int, str]]:
    if path.stat().st_size > MAX_LIST_BYTES:
        return []
    lines = path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
    return [(number, line.strip().replace('\\', '/')) for number, line in enumerate(lines, 1) if line.strip()]


def _keys(name: str) -> Iterator[str]:
    """Yield the forms in which a list can name an image, the most exact one first."""
    yield name
    yield name.rpartition('/')[2]
    yield name.rpartition('/')[2].rpartition('.')[0] or name.rpartition('/')[2]


def _by_ending(images: list[_File], masks: list[_File]) -> _Match:
    """Pair images with masks of the same name, apart from the ending of mask names, in the same folder of a split."""
    groups: dict[tuple[str, str], dict[str, list[_File]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        place = groups[image.split, image.folder]
        # Also by the whole name: a.jpg.png and a.png.png are the masks of a.jpg and a.png.
        file = image.name.rpartition('/')[2]
        for stem in dict.fromkeys((file, image.stem, _IMAGE_ENDING.sub('', image.stem))):
            place[stem].append(image)
    by_ending: dict[str, list[tuple[list[_File], _File]]] = defaultdict(list)
    spare = []
    for mask in masks:
        place = groups.get((mask.split, mask.folder)) or groups.get((ALL, mask.folder)) or {}
        for stem in _beginnings(mask.stem):
            if stem in place:
                by_ending[mask.stem[len(stem) :]].append((place[stem], mask))
                break
        else:
            spare.append(mask)
    return _choose(by_ending, spare)


def _by_words(images: list[_File], masks: list[_File]) -> _Match:
    """Pair by names without words such as ``image_`` at their beginning and ``_mask`` at their end."""

    def reduce(stem: str) -> str:
        return _BEGINNING.sub('', _IMAGE_ENDING.sub('', _MASK_ENDING.sub('', stem))).lower()

    places: dict[tuple[str, str, str], list[_File]] = defaultdict(list)
    for image in images:
        places[image.split, image.folder, reduce(image.stem)].append(image)
    pairs: list[tuple[list[_File], _File]] = []
    spare = []
    for mask in masks:
        found = places.get((mask.split, mask.folder, reduce(mask.stem)))
        pairs.append((found, mask)) if found else spare.append(mask)
    return _choose({'': pairs}, spare)


def _by_stem_alone(images: list[_File], masks: list[_File]) -> _Match:
    """Pair by names that occur once among the images and once among the masks, in any folders."""
    places: dict[str, list[_File]] = defaultdict(list)
    for image in images:
        places[image.stem].append(image)
    counts: dict[str, int] = defaultdict(int)
    for mask in masks:
        counts[mask.stem] += 1
    pairs, spare = [], []
    for mask in masks:
        found = places.get(mask.stem, [])
        pairs.append((found, mask)) if len(found) == counts[mask.stem] == 1 else spare.append(mask)
    return _choose({'': pairs}, spare)


def _beginnings(stem: str) -> Iterator[str]:
    """Yield the stem, and its part before each character that is neither a letter nor a digit, the longest first."""
    yield stem
    for end in range(len(stem) - 1, 0, -1):
        if not stem[end].isalnum():
            yield stem[:end]


def _choose(by_ending: Mapping[str, list[tuple[list[_File], _File]]], spare: list[_File]) -> _Match:
    """Choose the ending of the masks, and pair by it.

    Only endings that are at least half as frequent as the most frequent one are considered. Of these, no ending is
    preferred, then the endings in the order of ``PREFERRED_ENDINGS``.
    """
    if not any(by_ending.values()):
        return _Match({}, '', spare, [])
    words = {ending: re.split(r'[-_. ]', ending)[-1].lower() for ending in by_ending}
    most = max(map(len, by_ending.values()))

    def rank(ending: str) -> tuple[bool, bool, bool, int, str]:
        word = words[ending]
        order = PREFERRED_ENDINGS.index(word) if word in PREFERRED_ENDINGS else len(PREFERRED_ENDINGS)
        is_companion = word in COMPANION_ENDINGS and word not in PREFERRED_ENDINGS
        return (is_companion, 2 * len(by_ending[ending]) < most, ending != '', order, ending)

    chosen = min(by_ending, key=rank)
    partner: dict[str, _File] = {}
    extra = []
    for images, mask in by_ending[chosen]:
        for image in images:
            if image.name in partner:
                extra.append((image.name, mask))
            else:
                partner[image.name] = mask
    spare = list(spare)
    for ending, pairs in by_ending.items():
        if ending == chosen or words[ending] in COMPANION_ENDINGS:
            continue
        for images, mask in pairs:
            taken = [image.name for image in images if image.name in partner]
            if taken:
                extra.append((taken[0], mask))
            else:
                # The only mask of its image, with another ending than most.
                partner.update({image.name: mask for image in images})
    return _Match(partner, chosen, spare, extra)


def _pair_in_one_folder(root: Path, base: Path) -> Pairs | None:
    """Pair ``a.jpg`` with ``a_mask.png`` in the same folder, as Roboflow writes them, or with ``a.png``."""
    folders = _folders(base)
    found = {split: path for name, path in reversed(folders.items()) if (split := split_of_folder(name))}
    if not found:
        image_folder = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
        found = {ALL: image_folder or base}
    files = [
        _File(split, '', path.relative_to(root).as_posix())
        for split, folder in found.items()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in MASK_SUFFIXES and not path.name.startswith('.')
    ]
    masks = [file for file in files if _MASK_ENDING.search(file.stem)]
    if masks:
        names = {file.name for file in masks}
        images = [file for file in files if file.name not in names and not file.name.lower().endswith('.gif')]
    else:
        images = [file for file in files if file.name.lower().endswith(JPEG_SUFFIXES)]
        masks = [file for file in files if file.name.lower().endswith('.png')]
        if not _have_one_channel(root, masks) or {i.stem for i in images}.isdisjoint(m.stem for m in masks):
            return None
    return _pair(root, base, images, masks) if masks else None


def _have_one_channel(root: Path, files: Iterable[_File], count: int = 20) -> bool:
    """Return True if the first files have one channel, as masks have and photographs seldom do."""
    from PIL import Image

    for file in itertools.islice(files, count):
        try:
            with Image.open(root / file.name) as image:
                if image.mode not in ('1', 'L', 'P', 'I', 'I;16'):
                    return False
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return False
    return True
