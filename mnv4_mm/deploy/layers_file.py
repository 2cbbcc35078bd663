"""The file ``<exported file>.layers.json``: how a net was quantised, and the sensitivity of its layers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mnv4_mm.deploy.quantize import QuantizedModel

LAYERS_SUFFIX = '.layers.json'


class Step(NamedTuple):
    """A step of quantisation that was tried.

    Attributes:
        name: Description of the step, such as ``channels equalised``.
        output_db: SQNR in dB of the outputs of the quantised net after this step and the steps kept before it, see
            ``sensitivity.net_db``.
        used: True if the exported file includes this step.
    """

    name: str
    output_db: float
    used: bool


def write_layers(
    path: Path,
    quantised: 'QuantizedModel | None',
    calibration: Sequence[str] = (),
    *,
    note: str = '',
) -> list[Path]:
    """Write a JSON file next to an exported file that describes how the file was quantised.

    The SQNRs are those of the net as ONNX Runtime computes it, for each format.

    Args:
        path: The exported file.
        quantised: How the net of the file was quantised. Nothing is written if this is None or has no measured layers.
        calibration: Names of the calibration images.
        note: What else differs from the net that was measured, in a clause that ``describe_layers`` appends.

    Returns:
        A list with the path of the JSON file, or an empty list if nothing was written.
    """
    if quantised is None or not quantised.layers:
        return []
    content = dict(
        calibration=list(calibration),
        measured_in='ONNX Runtime',
        steps=[_finite(step) for step in quantised.steps],
        layers=[_finite(layer) for layer in quantised.layers],
        **(dict(note=note) if note else {}),
    )
    json_path = path.with_name(path.name + LAYERS_SUFFIX)
    json_path.write_text(json.dumps(content, indent=1))
    return [json_path]


def describe_layers(path: Path) -> str:
    """Summarise in one line how an exported file was quantised.

    Args:
        path: The exported file.

    Returns:
        The number of calibration images, the SQNR after each step, the number of layers in float and their share of
        the MACs, and the note of ``write_layers``. An empty string if the exported file has no file of layers.
    """
    json_path = path.with_name(path.name + LAYERS_SUFFIX)
    if not json_path.is_file():
        return ''
    content = json.loads(json_path.read_text())
    values = ['no noise' if step['output_db'] is None else f'{step["output_db"]:.1f}' for step in content['steps']]
    steps = ', '.join(
        f'{step["name"]} {value}{"" if step["used"] else " (not used)"}'
        for step, value in zip(content['steps'], values, strict=True)
    )
    macs = sum(layer['macs'] for layer in content['layers']) or 1
    share = sum(layer['macs'] for layer in content['layers'] if layer['in_float']) / macs
    count = sum(layer['in_float'] for layer in content['layers'])
    return (
        f'calibrated on {len(content["calibration"])} images; signal-to-noise ratio of the outputs in dB, '
        f'in ONNX Runtime: {steps}; '
        f'{count} of {len(content["layers"])} layers in float ({100 * share:.1f} % of the MACs)'
        + (f'; {content["note"]}' if 'note' in content else '')
    )


def _finite(values: Any) -> dict[str, Any]:
    """Return a named tuple as a dictionary for JSON, which has no infinity."""
    items = values._asdict().items()
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in items}
