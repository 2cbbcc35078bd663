"""Image and category ids of a data set's annotation file, for use in predictions on the same images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mnv4_mm.data.documents import read_json
from mnv4_mm.errors import UserError


class DataIds:
    """Image and category ids of a COCO annotation file, by file name and class name.

    Args:
        path: The annotation file. Only its lists ``images`` and ``categories`` are used.

    Raises:
        UserError: The file cannot be read, or is not a COCO annotation file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            content = read_json(Path(path))
            images, categories = content['images'], content['categories']
            names = [str(image['file_name']).replace('\\', '/') for image in images]
            self.images = [(image['id'], image.get('width'), image.get('height')) for image in images]
            self.category_ids = {str(category['name']): category['id'] for category in categories}
        except UserError as error:
            raise UserError(f'--annotations {error}') from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'--annotations {path} is not a COCO annotation file, with the lists images (id, file_name) and '
                f'categories (id, name): {type(error).__name__} {" ".join(str(error).split())[:100]}'
            ) from error
        parts = [PurePosixPath(name).parts for name in names]
        self.by_path = {part: index for index, part in enumerate(parts)}
        # Tools may write paths of another machine. They are matched by the file name alone, if it is unique.
        counts = Counter(part[-1:] for part in parts)
        self.by_name = {part[-1:]: index for index, part in enumerate(parts) if counts[part[-1:]] == 1}

    def index(self, file: Path) -> int:
        """Return the index, from 0, of an image file's entry in the list ``images`` of the annotation file.

        An entry matches if the absolute path of the file ends with its ``file_name``. If several match, the longest is
        used. If none matches, entries are compared by the last part of ``file_name`` alone.

        Raises:
            UserError: No entry matches, or several entries match by the last part alone.
        """
        parts = file.resolve().parts
        for start in range(len(parts)):
            if parts[start:] in self.by_path:
                return self.by_path[parts[start:]]
        if parts[-1:] not in self.by_name:
            raise UserError(
                f'--annotations {self.path} does not list {file}, or lists several files of this name: name the '
                'annotation file of these images, or leave it out'
            )
        return self.by_name[parts[-1:]]

    def indices(self, files: Sequence[Path]) -> list[int]:
        """Return the position of each file in the annotation file.

        Raises:
            UserError: A file has no entry, or two files have the same entry.
        """
        indices = [self.index(file) for file in files]
        for index, count in Counter(indices).items():
            if count > 1:
                first, second = [file for file, other in zip(files, indices, strict=True) if other == index][:2]
                raise UserError(f'--annotations {self.path} has one entry for {first} and {second}')
        return indices

    def image_id(self, index: int, width: int, height: int) -> int:
        """Return the id of an image, and check the size in its entry, if the entry has one.

        Args:
            index: Index of the image's entry, as the method ``index`` returns it.
            width: Width of the decoded image in pixels.
            height: Height of the decoded image in pixels.

        Raises:
            UserError: The image has another size in the annotation file.
        """
        number, expected_width, expected_height = self.images[index]
        expected = (expected_width or width, expected_height or height)
        if expected != (width, height):
            raise UserError(
                f'image {number} is {width}x{height}, but {expected[0]}x{expected[1]} in --annotations {self.path}: it '
                'is another image, or was labelled without its EXIF orientation'
            )
        return number

    def categories(self, classes: Sequence[str]) -> tuple[int, ...]:
        """Return the category id of each class.

        Raises:
            UserError: A class has no category in the annotation file.
        """
        missing = [name for name in classes if name not in self.category_ids]
        if missing:
            raise UserError(
                f'--annotations {self.path} has no category {missing[0]!r}, a class of the model; it has '
                f'{", ".join(self.category_ids)[:200]}'
            )
        return tuple(self.category_ids[name] for name in classes)
