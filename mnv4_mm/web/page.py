"""The files of the page, and the description of a model that the page reads."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal

from mnv4_mm.runtime.draw import palette

PAGE = 'index.html'
DESCRIPTION = 'model.json'
# Scripts for a model that runs in the browser: runner.js is a worker, prepare.js its preprocessing.
SCRIPTS = ('runner.js', 'prepare.js')
# What the page may load: nothing from elsewhere. The page itself has the same policy, for servers without headers.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "img-src data: blob:; media-src blob:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def source(name: str) -> bytes:
    """Return the content of ``PAGE`` or of one of ``SCRIPTS``."""
    return files('mnv4_mm.web').joinpath(name).read_bytes()


def description(
    backend: Literal['server', 'browser'],
    name: str,
    task: str,
    classes: Sequence[str],
    colours: Sequence[Sequence[int]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the description of a model for the page, which is the content of ``model.json``.

    Args:
        backend: Where the model runs: ``server`` or ``browser``.
        name: Title of the page. For ``browser``, also the name of the ONNX file beside the page, whose metadata is in
            ``<name>.json``.
        task: ``detection`` or ``segmentation``.
        classes: Class names, in the order of labels.
        colours: RGB of each class, 0 to 255; those of ``runtime.draw.palette`` if None or empty.
        **more: Further keys. For ``server``, ``max_bytes`` is the size limit of an image file in bytes.
    """
    chosen = [list(map(int, colour)) for colour in colours or palette(len(classes))]
    return dict(backend=backend, name=name, task=task, classes=list(classes), palette=chosen, **more)
