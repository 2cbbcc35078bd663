"""Measurements on other devices: the lines of JSON that the web page of ``mnv4 export --to web`` shows.

The lines may come from untrusted sources, so each value is checked before it is used or printed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.deploy.artifacts import Artifact
from mnv4_mm.errors import UserError

FORMAT = 1
MAX_BYTES = 2**20
MAX_LINES = 1000
MAX_TEXT = 200  # characters of a device or a browser
MAX_THREADS = 1024
MAX_IMAGES = 10**6
MAX_MS = 3.6e6  # an hour
BACKENDS = {'wasm': 'WASM', 'webgpu': 'WebGPU'}


class Measurement(NamedTuple):
    """Latency of an exported file in a browser.

    Attributes:
        place: File and line that the measurement was read from, for error messages.
        file: Name of the ONNX file.
        sha256: SHA-256 of the ONNX file.
        device: Name of the device.
        browser: Name and version of the browser.
        backend: ``wasm`` or ``webgpu``.
        threads: Number of threads of WebAssembly; 1 with ``webgpu``.
        images: Number of images measured.
        p50: Median time of the model in milliseconds, from its input to its outputs.
        p95: 95th percentile of the time of the model in milliseconds.
        whole: Median time in milliseconds from a decoded image to results.
    """

    place: str
    file: str
    sha256: str
    device: str
    browser: str
    backend: str
    threads: int
    images: int
    p50: float
    p95: float
    whole: float

    def __str__(self) -> str:
        threads = f', {self.threads} thread{"s" if self.threads > 1 else ""}' if self.backend == 'wasm' else ''
        return f'{self.browser}, {BACKENDS[self.backend]}{threads}, on {self.device}'


def read_measurements(files: Sequence[str]) -> list[Measurement]:
    """Read and check measurements.

    Args:
        files: Text files with one measurement per line, in JSON. Empty lines are skipped.

    Returns:
        The measurements, in the order of files and lines.

    Raises:
        UserError: A file cannot be read, has no measurements or is too large, or a line is not a measurement.
    """
    return [
        _measurement(text, f'--measured {file}, line {number}') for file in files for number, text in _lines(Path(file))
    ]


def measured_files(measurements: Sequence[Measurement], artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Find the exported file that each measurement belongs to, by the name and the SHA-256 of the ONNX file.

    Args:
        measurements: The measurements.
        artifacts: The exported files to choose from.

    Returns:
        An exported file for each measurement, in the same order. If the same ONNX file has been exported for several
        targets, that for ``web``.

    Raises:
        UserError: A measurement belongs to none of the exported files.
    """
    found = []
    for one in measurements:
        matching = [
            artifact
            for artifact in artifacts
            if any(Path(name).name == one.file and one.sha256 == sha for name, sha in artifact.meta.files.items())
        ]
        if not matching:
            raise UserError(f'{one.place}: no compared file is the measured {one.file}: its name or SHA-256 differs')
        # The same ONNX file may have been exported for ONNX Runtime, too.
        found.append(next((artifact for artifact in matching if artifact.meta.target == 'web'), matching[0]))
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise UserError(f'--measured {path}: no such file')
    try:
        with path.open('rb') as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f'--measured {path}: larger than {MAX_BYTES // 2**20} MiB, not a file of measurements')
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError:
        raise UserError(f'--measured {path}: not text in UTF-8') from None
    except OSError as error:
        raise UserError(f'--measured {path} cannot be read: {error.strerror}') from None
    # Not splitlines(), which also splits at characters that JSON allows in strings.
    lines = [(number, line) for number, line in enumerate(text.split('\n'), 1) if line.strip()]
    if not lines:
        raise UserError(f'--measured {path}: empty; it takes the lines that the page shows after a measurement')
    if len(lines) > MAX_LINES:
        raise UserError(f'--measured {path}: {len(lines)} lines; at most {MAX_LINES} are read')
    return lines


def _measurement(text: str, place: str) -> Measurement:
    try:
        content = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{place}: not JSON: {" ".join(str(error).split())[:100]}') from None
    if not isinstance(content, dict) or type(content.get('format')) is not int:
        raise UserError(f'{place}: not a line that the page has shown')
    if content['format'] != FORMAT:
        raise UserError(f'{place}: written by a page of another version of mnv4_mm')
    expected = {'format', *Measurement._fields} - {'place'}
    for name in sorted(expected ^ content.keys()):
        raise UserError(f'{place}: {name:.40} is {"missing" if name in expected else "unknown"}'.replace('\n', ' '))
    values: dict[str, Any] = {
        **{name: _text(content, name, place) for name in ('file', 'sha256', 'device', 'browser')},
        'threads': _number(content, 'threads', place, (int,), MAX_THREADS),
        'images': _number(content, 'images', place, (int,), MAX_IMAGES),
        **{name: float(_number(content, name, place, (int, float), MAX_MS)) for name in ('p50', 'p95', 'whole')},
    }
    backend = content['backend']
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise UserError(f'{place}: backend is {backend!r:.40}; there are {", ".join(BACKENDS)}')
    if not values['p50'] <= min(values['p95'], values['whole']):
        raise UserError(f'{place}: p50 is above p95 or whole')
    return Measurement(place, backend=backend, **values)


def _text(content: dict[str, Any], name: str, place: str) -> str:
    value = content[name]
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT or not value.isprintable():
        raise UserError(f'{place}: {name} is {value!a:.60}, not 1 to {MAX_TEXT} printable characters')
    return value


def _number(content: dict[str, Any], name: str, place: str, kinds: tuple[type, ...], largest: float) -> int | float:
    value = content[name]
    # Not isinstance: bool is a subclass of int.
    if type(value) not in kinds or not 0 < value <= largest:
        raise UserError(f'{place}: {name} is {value!a:.40}, not a number above 0 and up to {largest:g}')
    return value


def _refuse(name: str) -> float:
    raise ValueError(f'{name} is not a JSON number')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError('a key occurs twice')
    return content
