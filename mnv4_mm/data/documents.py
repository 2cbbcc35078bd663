"""Read users' JSON, YAML, XML and text files safely.

Each function raises a UserError that names the file, whatever is wrong with it. Constructs that no data set needs and
attackers use are refused: entities, aliases and tags, which can run code or grow without bounds, and extreme nesting.
"""

import codecs
import contextlib
import gc
import json
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnv4_mm.errors import UserError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# COCO's largest file has 448 MB. A file of more than ten times that is something else, or does not fit into memory.
MAX_BYTES = 6 * 2**30
PARSED_BYTES = 20 * 2**20  # parsed in less than a second
MAX_YAML_BYTES = 4 * 2**20  # PyYAML reads about 100 kB per second; 10,000 class names have 200 kB
MAX_YAML_DEPTH = 20
# Encodings of several bytes a character that Python's XML parser refuses, by the names of Python's codecs.
WIDE_ENCODINGS = (
    'gb2312', 'gbk', 'gb18030', 'hz', 'big5', 'big5hkscs', 'cp950', 'shift_jis', 'cp932', 'euc_jp', 'iso2022_jp',
    'euc_kr', 'cp949', 'johab',
)  # fmt: skip
DECLARED = re.compile(rb'<\?xml[^>]*encoding\s*=\s*["\']([\w.:-]+)')
BOMS = ((codecs.BOM_UTF8, 'utf-8-sig'), (codecs.BOM_UTF16_LE, 'utf-16'), (codecs.BOM_UTF16_BE, 'utf-16'))


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8 or UTF-16, with or without a byte order mark.

    ``NaN`` and ``Infinity``, which some tools write, are accepted and become floats. Later checks of the values report
    the entry that contains them.

    Raises:
        UserError: The file cannot be read, is too large, is not JSON, repeats a key within an object, or is nested too
            deeply.
    """
    data = _read_bytes(path, MAX_BYTES)
    if not data.strip(b' \t\r\n\0' + codecs.BOM_UTF8 + codecs.BOM_UTF16_LE):
        raise UserError(f'{path} is empty: it should be a JSON file')
    try:
        with collector_paused():
            return json.loads(data, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise UserError(f'{path} is nested too deeply to be the JSON file of a data set') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is neither UTF-8 nor UTF-16 text ({error}): save it as UTF-8') from error
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith('Unterminated string')
        hint = '; perhaps the file ends too early: was it copied in full?' if is_cut else ''
        raise UserError(f'{path} is not JSON: {error}{hint}') from error
    except ValueError as error:
        reason = 'a number has thousands of digits' if 'integer string' in str(error) else error
        raise UserError(f'{path} is not JSON: {reason}') from error


def check_json(path: Path) -> None:
    """Check that a file is JSON. In a file larger than ``PARSED_BYTES``, only the last character is checked.

    That is enough to recognise a file that was not copied in full.

    Raises:
        UserError: The file cannot be read, or is not JSON.
    """
    if path.stat().st_size <= PARSED_BYTES:
        read_json(path)
        return
    with path.open('rb') as file:
        file.seek(-100, 2)
        end = file.read().rstrip(b' \t\r\n\0')
    if end[-1:] not in (b'}', b']'):
        raise UserError(f'{path} is not JSON: it does not end with }} or ]; perhaps it was not copied in full')


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which takes half of the time when millions of objects are created."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key {twice!r} occurs twice in one object')
    return content


def read_yaml(path: Path) -> Any:
    """Read a YAML file in UTF-8, or in UTF-16 with a byte order mark, as lists, mappings and text.

    An empty file gives None.

    Every scalar is returned as the text in the file, so that a class ``no`` does not become False.

    Raises:
        UserError: The file cannot be read, is too large, is not text or not YAML, repeats a key, has aliases or tags,
            or is nested too deeply.
    """
    import yaml  # not part of the base installation

    class Loader(yaml.BaseLoader):
        """Text, lists and mappings only."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or getattr(event, 'tag', None):
                what = 'an alias' if isinstance(event, yaml.AliasEvent) else f'the tag {event.tag}'
                raise yaml.YAMLError(
                    f'{what} in line {event.start_mark.line + 1} is not allowed: write the value itself'
                )
            if self.depth == MAX_YAML_DEPTH:
                raise yaml.YAMLError(f'it is nested more than {MAX_YAML_DEPTH} deep')
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key.value for key, _ in node.value]
            twice = [key for key in keys if isinstance(key, str) and keys.count(key) > 1]
            if twice:
                raise yaml.YAMLError(f'the key {twice[0]!r} occurs twice in one mapping')
            return super().construct_mapping(node, deep)

    text = _decode(path, _read_bytes(path, MAX_YAML_BYTES))
    try:
        return yaml.load(text, Loader)  # noqa: S506 (BaseLoader makes text only)
    except yaml.YAMLError as error:
        raise UserError(f'{path} cannot be read as YAML: {_one_line(error)}') from error


def read_xml(path: Path) -> 'Element':
    """Read an XML file in any encoding that it declares and Python knows, and return its root element.

    Raises:
        UserError: The file cannot be read or is too large, is not XML, or defines or refers to entities.
    """
    from xml.etree.ElementTree import ParseError

    import defusedxml.ElementTree
    from defusedxml import DefusedXmlException

    data = _read_bytes(path, MAX_BYTES)
    if not data.strip():
        raise UserError(f'{path} is empty: it should be an XML file')
    try:
        return defusedxml.ElementTree.fromstring(_decode_wide(data))
    except DefusedXmlException as error:
        raise UserError(
            f'{path} defines or refers to entities, which no annotation file needs: save it without them'
        ) from error
    except (ParseError, ValueError, LookupError) as error:  # the last two for encodings that expat does not know
        hint = '' if _is_utf8(data) else '; save it as UTF-8'
        raise UserError(f'{path} is not XML: {_one_line(error)}{hint}') from error


def _decode_wide(data: bytes) -> bytes | str:
    """Decode an XML file that declares one of ``WIDE_ENCODINGS``. Others are returned as they are."""
    declared = DECLARED.match(data)
    encoding = declared[1].decode() if declared else ''
    try:
        is_wide = codecs.lookup(encoding).name in WIDE_ENCODINGS
    except LookupError:
        return data
    return data.decode(encoding) if is_wide else data


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        UserError: The file cannot be read, is too large or is not text.
    """
    text = _decode(path, _read_bytes(path, MAX_BYTES))
    if '\0' in text:
        raise UserError(f'{path} is not a text file: it contains a zero byte')
    return text


def _decode(path: Path, data: bytes) -> str:
    encoding = next((name for bom, name in BOMS if data.startswith(bom)), 'utf-8')
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 text ({error}): save it as UTF-8') from error


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f'{path} is not a file')
        if size > limit:
            raise UserError(f'{path} has {size:,} bytes; at most {limit:,} are read')
        return path.read_bytes()
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error
    except MemoryError as error:
        raise UserError(f'{path} does not fit into memory') from error


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
