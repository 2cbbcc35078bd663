"""Download of onnxruntime-web, the ONNX Runtime for browsers, from npm into the user's cache."""

import base64
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.paths import user_cache

VERSION = '1.30.0'
PACKAGE = f'onnxruntime-web@{VERSION}'
# SHA-512 of the package's archive, as npm's lock files state it.
INTEGRITY = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
ARCHIVE = f'onnxruntime-web-{VERSION}.tgz'
# The builds for WebAssembly and for WebGPU, a quarter of the package: each is an interface, a loader and a binary. All
# binaries have SIMD and threads. Of the two for WebGPU, asyncify's is the larger one, but runs in every browser.
FILES = (
    'ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm',
    'ort.webgpu.min.mjs', 'ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm',
)  # fmt: skip
TIMEOUT = 600  # seconds for 33 MB
ADVICE = f'on a computer with npm and a network run `npm pack {PACKAGE}`'


def cached_archive() -> Path:
    """Return the path of the package's archive in the user's cache, whether or not the file exists."""
    return user_cache() / 'npm' / ARCHIVE


def absent() -> str | None:
    """Return an error message if the archive is not in the cache and npm is not installed, otherwise None."""
    if cached_archive().is_file() or shutil.which('npm'):
        return None
    return f'{PACKAGE} is not on this computer, and neither is npm: {ADVICE} and put {ARCHIVE} at {cached_archive()}'


def archive() -> Path:
    """Return the path of the package's archive in the cache. If it is not there, it is fetched with npm first.

    Raises:
        UserError: The archive cannot be fetched or written, or its checksum is not that of the pinned version.
    """
    path = cached_archive()
    if path.is_file():
        _check(path)
        return path
    if message := absent():
        raise UserError(message)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the folder of the cache: the archive appears there whole, or not at all.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fetched = _fetch(Path(folder))
            _check(fetched)
            fetched.replace(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from error
    return path


def extract(folder: Path) -> list[Path]:
    """Extract ``FILES`` from the package's archive into a folder, which is created if it does not exist.

    Returns:
        The paths of the extracted files, in the order of ``FILES``.

    Raises:
        UserError: See ``archive``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with tarfile.open(archive()) as packed:
        for name in FILES:
            file = packed.extractfile(f'package/dist/{name}')
            assert file is not None  # the archive has the pinned checksum
            (folder / name).write_bytes(file.read())
            paths.append(folder / name)
    return paths


def integrity(path: Path) -> str:
    """Return the SHA-512 of a file in base64, as in npm's lock files but without the prefix ``sha512-``."""
    return base64.b64encode(file_digest(path, 'sha512').digest()).decode()


def _fetch(folder: Path) -> Path:
    npm = shutil.which('npm')
    assert npm is not None  # ``absent`` has looked for it
    command = [npm, 'pack', PACKAGE, '--pack-destination', str(folder), '--fetch-retries', '0', '--loglevel', 'error']
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
        )
        code = re.search(r'^npm \S+ code (\S+)', done.stderr, re.M)
        reason = f'npm: {code.group(1) if code else f"exit code {done.returncode}"}'
    except subprocess.TimeoutExpired:
        reason = f'npm has not ended after {TIMEOUT} s'
    path = folder / ARCHIVE
    if not path.is_file():
        raise UserError(f'{PACKAGE} cannot be fetched ({reason}): {ADVICE} and put {ARCHIVE} at {cached_archive()}')
    return path


def _check(path: Path) -> None:
    if integrity(path) != INTEGRITY:
        raise UserError(f'{path} is not {PACKAGE} as published: its SHA-512 is another one; delete it and try again')
