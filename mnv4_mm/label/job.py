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

import pyarrow as pa
import pyarrow.parquet as pq

from mnv4_mm.errors import UserError
from mnv4_mm.files import PART_SUFFIX, replacing, write_whole
from mnv4_mm.label.items import items_of
from mnv4_mm.label.labeller import Labeller
from mnv4_mm.label.source import Entry, into_parts, open_parquet
from mnv4_mm.label.table import Tally, tally, to_table
from mnv4_mm.runtime.meta import checksum, read_meta

PLAN, ENTRIES, PARTS, LOCK = 'label.json', 'entries.parquet', 'parts', '.lock'
ROWS_AT_ONCE = 512  # rows in memory; also the size of a row group
FORMAT = 1
# Paths are bytes: a file name need not be UTF-8.
SCHEMA = pa.schema([('id', pa.string()), ('kind', pa.string()), ('path', pa.binary()), ('group', pa.int32())])


@dataclass(frozen=True)
class Plan:
    """The settings of a job. Two runs with different plans cannot share a folder.

    Attributes:
        file: Absolute path of the exported file.
        file_sha256: SHA-256 of the metadata of the exported file, which contain the checksums of all files of the
            export.
        source: Absolute path of the source.
        source_sha256: SHA-256 of the list of the source's entries. For files that hold several images, it also covers
            the size and modification time.
        part: Images per part.
        score_thr: Detection: boxes with lower scores are left out; the score threshold of the exported file if None.
        fast_jpeg: See ``runtime.predictor.Predictor``.
    """

    file: str
    file_sha256: str
    source: str
    source_sha256: str
    part: int
    score_thr: float | None
    fast_jpeg: bool


class Job:
    """A folder of results with its plan. The parts of the job are numbered from 0.

    Args:
        folder: The folder, in which ``open_job`` has started a job.

    Attributes:
        plan: The plan.
        count: Number of parts.

    Raises:
        UserError: The plan or the list of entries is damaged, or was written by another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.plan = Plan(**_read_plan(self.folder / PLAN))
        self._entries = open_parquet(self.folder / ENTRIES)
        self.count = self._entries.num_row_groups

    def labeller(self) -> Labeller:
        """Load the exported file.

        Raises:
            UserError: The file cannot be loaded, or was changed since the job was started.
        """
        if _meta_digest(self.plan.file) != self.plan.file_sha256:
            raise UserError(f'{self.plan.file} was changed since {self.folder} was started: use another --out')
        return Labeller(self.plan.file, score_thr=self.plan.score_thr, fast_jpeg=self.plan.fast_jpeg)

    def entries(self, part: int) -> list[Entry]:
        """Return the entries of a part."""
        rows = self._entries.read_row_group(part).to_pylist()
        return [Entry(row['id'], row['kind'], os.fsdecode(row['path']), row['group']) for row in rows]

    def path(self, part: int) -> Path:
        """Return the path of the results of a part."""
        return self.folder / PARTS / f'part-{part:06d}.parquet'

    def tally(self, part: int) -> Tally | None:
        """Count the rows of the results of a part.

        Returns:
            The numbers of rows and errors; None if the part is not done. A part whose file of results is damaged counts
            as not done, and the file is deleted.
        """
        path = self.path(part)
        if not path.exists():
            return None
        try:
            return tally(path)
        except pa.ArrowException:
            path.unlink()
            return None

    def done(self) -> dict[int, Tally]:
        """Return the numbers of rows and errors of each part that is done, by the number of the part."""
        found = {part: self.tally(part) for part in range(self.count)}
        return {part: rows for part, rows in found.items() if rows is not None}

    def make(self, part: int, labeller: Labeller) -> Tally:
        """Label the images of a part and write the results.

        Args:
            part: Number of the part.
            labeller: The exported file, as ``labeller`` loads it.

        Returns:
            The numbers of rows and errors.

        Raises:
            OSError: The results cannot be written.
        """
        rows, errors = 0, 0
        with (
            replacing(self.path(part), sync=True) as unfinished,
            pq.ParquetWriter(unfinished, labeller.schema, compression='zstd') as writer,
        ):
            for chunk in _chunks(labeller.rows(items_of(self.entries(part))), ROWS_AT_ONCE):
                writer.write_table(to_table(chunk, labeller.schema))
                rows += len(chunk)
                errors += sum(row.error is not None for row in chunk)
        return Tally(rows, errors)

    def begin(self, part: int) -> int:
        """Record an attempt to make a part, and return the number of attempts since the last call of ``clear``."""
        with (self.folder / PARTS / f'.{part}.attempts').open('ab') as file:
            file.write(b'.')
            return file.tell()

    def clear(self) -> None:
        """Delete the records of attempts, and the unfinished files that killed processes have left."""
        parts = self.folder / PARTS
        parts.mkdir(exist_ok=True)
        for path in (*parts.glob(f'.*{PART_SUFFIX}'), *parts.glob('.*.attempts')):
            path.unlink(missing_ok=True)  # a worker that outlived its job may still rename its own


def check_folder(folder: Path) -> None:
    """Check that a folder does not exist yet, is empty or contains a job.

    Raises:
        UserError: The folder contains anything else.
    """
    if not folder.exists() or (folder / PLAN).exists():
        return
    # A run that was stopped before it had a plan may have left entries.
    if any(path.name not in (LOCK, ENTRIES) for path in folder.iterdir()):
        raise UserError(f'--out {folder} is not empty, and holds no results of `mnv4 label`: name another folder')


def open_job(folder: Path, file: str, source: str, entries: Sequence[Entry], **options: Any) -> Job:
    """Start a job in a folder, or open the job that the folder contains.

    Args:
        folder: The folder, which must exist.
        file: Path of the exported file.
        source: Path of the source.
        entries: Entries of the source.
        **options: The other attributes of ``Plan``: ``part``, ``score_thr`` and ``fast_jpeg``.

    Raises:
        UserError: The folder cannot be written, or holds a job with another plan or of other images.
    """
    plan = Plan(os.path.abspath(file), _meta_digest(file), os.path.abspath(source), _digest(entries), **options)
    if (folder / PLAN).exists():
        _check_same(folder, plan, entries)
    else:
        try:
            with pq.ParquetWriter(folder / ENTRIES, SCHEMA, compression='zstd') as writer:
                for part in into_parts(entries, plan.part):
                    writer.write_table(_to_table(part))
        except OSError as error:
            raise UserError(f'--out {folder} cannot be written: {error.strerror or error}') from error
        write_whole(folder / PLAN, json.dumps(dict(format=FORMAT, plan=dataclasses.asdict(plan)), indent=1))
    job = Job(folder)
    job.clear()
    return job


def _digest(entries: Sequence[Entry]) -> str:
    """Return the SHA-256 of entries. The content of image files is not part of it, and may change."""
    digest = hashlib.sha256()
    for entry in entries:
        stamp = []
        if entry.kind != 'image' and os.path.exists(entry.path):
            status = os.stat(entry.path)
            stamp = [status.st_size, status.st_mtime_ns]
        digest.update(json.dumps([*entry, *stamp]).encode())
    return digest.hexdigest()


def _to_table(part: Sequence[Entry]) -> pa.Table:
    rows = [(entry.id, entry.kind, os.fsencode(entry.path), entry.group) for entry in part]
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _check_same(folder: Path, plan: Plan, entries: Sequence[Entry]) -> None:
    """Check that a job has a plan.

    Raises:
        UserError: It has another one.
    """
    job = Job(folder)
    before, now = dataclasses.asdict(job.plan), dataclasses.asdict(plan)
    changed = next((key for key in now if now[key] != before[key]), None)
    if changed is None:
        return
    if changed == 'file_sha256':
        raise UserError(f'--out {folder} has results of another version of {plan.file}: use another --out')
    if changed in ('source', 'source_sha256') and before['source_sha256'] != now['source_sha256']:
        old = {(entry.id, entry.group) for part in range(job.count) for entry in job.entries(part)}
        new = {(entry.id, entry.group) for entry in entries}
        what = f'{len(new - old)} added, {len(old - new)} removed' if new != old else 'a file has been replaced'
        raise UserError(
            f'--out {folder} has results for other images ({what}): use another --out. To label only new images, list '
            'them in a .txt file'
        )
    if changed == 'fast_jpeg':
        was, other = ('with', 'without') if job.plan.fast_jpeg else ('without', 'with')
        raise UserError(f'--out {folder} was started {was} --fast-jpeg, not {other} it: use another --out')
    name = dict(file='the file', source='the source').get(changed, f'--{changed.replace("_", "-")}')
    raise UserError(f'--out {folder} was started with {name} {before[changed]}, not {now[changed]}: use another --out')


def _meta_digest(file: str) -> str:
    return checksum(dataclasses.asdict(read_meta(file)))


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        plan = dict(fast_jpeg=False) | content['plan']  # earlier versions had no fast_jpeg
        if content['format'] != FORMAT or {field.name for field in dataclasses.fields(Plan)} != plan.keys():
            raise ValueError('it was written by another version of mnv4_mm')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    return plan


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, size)):
        yield chunk
