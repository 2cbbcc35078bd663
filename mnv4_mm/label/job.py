"""A job: a folder with the plan of the work and a Parquet file for each part that is done.

A part's file appears under its name only when it is complete. Therefore a run that was stopped at any moment and is
started again makes exactly the parts that are missing: no image is left out, and none is labelled twice.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.label.items import items_of
from mnv4_mm.label.labeller import Labeller
from mnv4_mm.label.source import Entry, into_parts, open_parquet
from mnv4_mm.label.table import Tally, tally, to_table
from mnv4_mm.runtime.meta import checksum, read_meta

PLAN, ENTRIES, PARTS = 'label.json', 'entries.parquet', 'parts'
ROWS_AT_ONCE = 512  # rows in memory; also the size of a row group
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What a job does. Two runs with different plans cannot share a folder.

    Attributes:
        file: Absolute path of the exported file.
        file_sha256: SHA-256 of the metadata of the file, which hold the checksums of all its parts.
        source: Absolute path of the source.
        source_sha256: SHA-256 of the list of its entries.
        part: Images per part.
        score_thr: See ``Labeller``.
        batch: See ``Labeller``.
    """

    file: str
    file_sha256: str
    source: str
    source_sha256: str
    part: int
    score_thr: float | None
    batch: int


class Job:
    """A folder of results, and its plan.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.plan = Plan(**_read_json(self.folder / PLAN)['plan'])
        self._entries = open_parquet(self.folder / ENTRIES)
        self.count = self._entries.num_row_groups

    def labeller(self) -> Labeller:
        """Load the exported file.

        Raises:
            UserError: The file cannot be loaded, or was changed since the job was started.
        """
        labeller = Labeller(self.plan.file, score_thr=self.plan.score_thr, batch=self.plan.batch)
        if _meta_digest(self.plan.file) != self.plan.file_sha256:
            raise UserError(f'{self.plan.file} was changed since {self.folder} was started: label into another folder')
        return labeller

    def entries(self, part: int) -> list[Entry]:
        """Return the entries of a part."""
        return [Entry(**row) for row in self._entries.read_row_group(part).to_pylist()]

    def path(self, part: int) -> Path:
        """Return the path of the results of a part."""
        return self.folder / PARTS / f'part-{part:06d}.parquet'

    def tally(self, part: int) -> Tally | None:
        """Count the rows of a part; None if it is not done. A damaged file of results is removed first."""
        path = self.path(part)
        try:
            return tally(path)
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException):
            path.unlink()
            return None

    def done(self) -> dict[int, Tally]:
        """Return the tallies of the parts that are done."""
        found = {part: self.tally(part) for part in range(self.count)}
        return {part: rows for part, rows in found.items() if rows is not None}

    def make(self, part: int, labeller: Labeller) -> Tally:
        """Label a part and write its results.

        Raises:
            OSError: The results cannot be written.
        """
        path = self.path(part)
        unfinished = path.with_name(f'.{uuid4().hex}.unfinished')
        rows, errors = 0, 0
        try:
            with pq.ParquetWriter(unfinished, labeller.schema, compression='zstd') as writer:
                for chunk in _chunks(labeller.rows(items_of(self.entries(part))), ROWS_AT_ONCE):
                    writer.write_table(to_table(chunk, labeller.schema))
                    rows += len(chunk)
                    errors += sum(row.error is not None for row in chunk)
            with unfinished.open('rb') as file:
                os.fsync(file.fileno())  # or a power cut could leave an empty file under the final name
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return Tally(rows, errors)

    def remove_unfinished(self) -> None:
        """Remove what processes have left that were killed."""
        for path in (self.folder / PARTS).glob('.*.unfinished'):
            path.unlink()


def open_job(folder: Path, file: str, source: str, entries: Sequence[Entry], **options: Any) -> Job:
    """Start a job in a new or empty folder, or continue the one that is in it.

    Args:
        folder: The folder.
        file: Exported file.
        source: The source.
        entries: Entries of the source.
        **options: The other attributes of ``Plan``.

    Raises:
        UserError: The folder holds something else, or a job with another plan or of other images.
    """
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(entry).encode())
    plan = Plan(os.path.abspath(file), _meta_digest(file), os.path.abspath(source), digest.hexdigest(), **options)
    if (folder / PLAN).exists():
        _check_same(folder, plan, entries)
        return Job(folder)
    if folder.exists() and any(not path.name.startswith('.') and path.name != ENTRIES for path in folder.iterdir()):
        raise UserError(f'--out {folder} is not empty, and holds no results of `mnv4 label`: name another folder')
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    _write_entries(folder / ENTRIES, into_parts(list(entries), plan.part))
    # Last: a folder with a plan is complete.
    write_whole(folder / PLAN, json.dumps(dict(format=FORMAT, plan=dataclasses.asdict(plan)), indent=1))
    return Job(folder)


def _check_same(folder: Path, plan: Plan, entries: Sequence[Entry]) -> None:
    """Check that a job has a plan.

    Raises:
        UserError: It has another one.
    """
    before = Job(folder)
    if before.plan == plan:
        return
    if before.plan.source_sha256 != plan.source_sha256:
        old = {entry.id for part in range(before.count) for entry in before.entries(part)}
        new = {entry.id for entry in entries}
        if old == new:
            changed = f'its images were at {before.plan.source}'
        else:
            changed = f'{len(new - old)} are new and {len(old - new)} are gone'
        raise UserError(
            f'--out {folder} was begun with other images: {changed}. Label into another folder; a text file can list '
            'the new ones'
        )
    old_plan, new_plan = dataclasses.asdict(before.plan), dataclasses.asdict(plan)
    name = next(key for key, value in new_plan.items() if old_plan[key] != value)
    if name == 'file_sha256':
        raise UserError(f'--out {folder} was begun with another {plan.file}: label into another folder')
    raise UserError(
        f'--out {folder} was begun with {name.replace("_", "-")} {old_plan[name]}, now {new_plan[name]}: use the '
        'same, or another folder'
    )


def _meta_digest(file: str) -> str:
    return checksum(dataclasses.asdict(read_meta(file)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if content['format'] != FORMAT or {field.name for field in dataclasses.fields(Plan)} != content['plan'].keys():
            raise ValueError('it was written by another version of mnv4_mm')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    return content


def _write_entries(path: Path, parts: list[list[Entry]]) -> None:
    """Write the entries, a row group per part."""
    schema = pa.schema([('id', pa.string()), ('kind', pa.string()), ('path', pa.string()), ('group', pa.int32())])
    with pq.ParquetWriter(path, schema, compression='zstd') as writer:
        for part in parts:
            columns = [pa.array(values) for values in zip(*part, strict=True)]
            writer.write_table(
                pa.Table.from_arrays([a.cast(f.type) for a, f in zip(columns, schema, strict=True)], schema=schema)
            )


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, size)):
        yield chunk
