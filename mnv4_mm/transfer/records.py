"""Records of transfer runs in JSON Lines. Several processes may append to a file. Imports nothing heavy.

A record holds what is needed to repeat its run and to compare it with others (``FIELDS``).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.errors import UserError
from mnv4_mm.transfer.job import Job
from mnv4_mm.transfer.protocol import Run

Record = dict[str, Any]

# Fields of a run that has succeeded. Newer records also have ``teacher``, which describes the teacher of a distilled
# run, ``curve``, the scores of evaluations during the training: [[step or epoch, value], ...], ``gpu_memory_mib``, None
# for a run on the CPU, and ``blocks``, the number of blocks of test images in each sample of ``resampled``.
FIELDS = (
    'protocol', 'head', 'net', 'start', 'control', 'seed',  # the run
    'recipe', 'data',  # digests: records with different ones are never compared
    'weights',  # name and SHA-256 of the weights that the backbone starts from; None for random ones
    'metric', 'score', 'scores',  # name and value of the main metric in [0, 1], and all values by name
    'resampled',  # the main metric on each sample of the test images, see bootstrap.py
    'chance',  # chance level: score of a model that ignores the image, see run.chance_iou; 0 for detection
    'loss',  # training loss: [[step, value], ...]
    'steps', 'minutes', 'processor_minutes', 'memory_mib', 'parameters', 'macs', 'latency_ms', 'size',
    'threads', 'machine', 'date',
)  # fmt: skip
COSTS = ('parameters', 'macs', 'latency_ms')  # fields that are None if they could not be measured
# Fields of a run that has failed, in addition to the fields of ``Run``.
FAILED = ('recipe', 'data', 'error')


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_text_or_null(value: Any) -> bool:
    return value is None or _is_text(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_source(value: Any) -> bool:
    """Return True for a description of weights or of a teacher, or null."""
    return value is None or (
        isinstance(value, dict) and _is_text(value.get('sha256')) and _is_number_or_null(value.get('score'))
    )


def _is_machine(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    versions, instructions = value.get('versions') or {}, value.get('instructions') or []
    return (
        _is_text(value.get('cpu'))
        and _is_text_or_null(value.get('gpu'))
        and _is_number_or_null(value.get('cores'))
        and isinstance(versions, dict)
        and _is_text_or_null(versions.get('onnxruntime'))
        and isinstance(instructions, list)
        and all(map(_is_text, instructions))
    )


# Field -> whether a value can be computed with, and what it should be. Fields that a record lacks are not checked.
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(('protocol', *Run._fields[:-1], 'recipe', 'data', 'metric'), (_is_text, 'a text')),
    **dict.fromkeys(('seed', 'score', 'chance', 'steps', 'processor_minutes'), (_is_number, 'a number')),
    **dict.fromkeys((*COSTS, 'blocks'), (_is_number_or_null, 'a number or null')),
    **dict.fromkeys(('weights', 'teacher'), (_is_source, 'null or an object with a sha256')),
    'machine': (_is_machine, 'a description of a machine'),
    'latency_machine': (lambda value: value is None or _is_machine(value), 'a description of a machine'),
    'size': (lambda value: _are_numbers(value) and len(value) == 2, 'height and width'),
    'resampled': (_are_numbers, 'a list of scores'),
    'curve': (
        lambda value: isinstance(value, list) and all(_are_numbers(point) and len(point) == 2 for point in value),
        'a list of [step, score]',
    ),
}


def run_of(record: Mapping[str, Any]) -> Run:
    """Return the run of a record."""
    return Run(*(record[key] for key in Run._fields))


def failure(job: Job, reason: str) -> Record:
    """Return the record of a run that has failed."""
    run = job.run._asdict()
    return {'protocol': Path(job.protocol).stem, **run, 'recipe': job.recipe, 'data': job.data_digest, 'error': reason}


def read_records(path: str | Path) -> list[Record]:
    """Read a file of records. An incomplete last line is skipped.

    Raises:
        UserError: The file cannot be read, or a line is not a record.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding='utf-8').split('\n')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} cannot be read: it is not UTF-8') from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and line.startswith('{"'):
                break
            raise UserError(f'{path}, line {number} is not a record of a transfer run: {error}') from error
        try:
            required = FAILED if 'error' in record else FIELDS
            missing = [key for key in (*Run._fields, *required) if key not in record]
            if not missing:
                _check_values(record)
        except (ValueError, TypeError) as error:
            raise UserError(f'{path}, line {number} is not a record of a transfer run: {error}') from error
        if missing:
            raise UserError(f'{path}, line {number} is not a record of a transfer run: it has no {missing[0]}')
        records.append(record)
    return records


def _check_values(record: Record) -> None:
    """Raise ``ValueError`` if a value from which tables are computed is of another type."""
    for name, (is_right, expected) in VALUES.items():
        if name in record and not is_right(record[name]):
            raise ValueError(f'{name} is {json.dumps(record[name])[:60]}, not {expected}')


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each run, or its last success if it has failed, too.

    Records of the same run with different protocols, recipes, data, weights or teachers are all kept.
    """
    last: dict[tuple, dict[tuple[str, str], Record]] = {}
    for record in records:
        key = record['protocol'], record['recipe'], record['data'], run_of(record)
        weights = digests_of(record)
        known = last.setdefault(key, {})
        if 'error' in record and any('error' not in one for one in known.values()):
            continue
        if any('error' in one for one in known.values()):
            known.clear()
        known[weights] = record
    return [record for by_weights in last.values() for record in by_weights.values()]


def digests_of(record: Record) -> tuple[str, str]:
    """Return the SHA-256 of the weights that the net started from, and of the checkpoint of its teacher.

    They are empty for random weights and without a teacher.
    """
    sources = record.get('weights'), record.get('teacher')
    first, second = ((source or {}).get('sha256', '') for source in sources)
    return first, second
