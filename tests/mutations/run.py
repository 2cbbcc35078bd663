"""Plant each fault of ``faults.py`` in a copy of the repository and report whether the short suite catches it.

    python tests/mutations/run.py [--only NAME ...] [--jobs 2]

A fault is caught if the tests named beside it pass without it and one of them fails with it. These tests are part of
``make test``, so a fault caught here is caught there; naming them keeps a whole run at minutes instead of hours.
The exit code is 1 if a fault survives.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
TESTS_FAILED = 1  # pytest's exit code; 2 and above mean that the tests did not run


def copy_repository(to: Path) -> None:
    """Copy the tracked and the new files of the working tree, without what git ignores."""
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests of a copy until one fails.

    Returns:
        pytest's exit code, and the first failed test or the last line of the output.
    """
    environment = dict(os.environ, PYTHONPATH=str(copy), OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    failed = re.search(r'^(?:FAILED|ERROR) (\S+)', done.stdout, re.MULTILINE)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, failed.group(1) if failed else (lines or [''])[-1]


@contextmanager
def planted(fault: Fault, copy: Path) -> Iterator[None]:
    """Plant a fault in a copy for the duration of the context."""
    path = copy / fault.file
    text = path.read_text()
    path.write_text(text.replace(fault.old, fault.new))
    try:
        yield
    finally:
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description='Report which planted faults the short suite catches.')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='run these faults only')
    parser.add_argument('--jobs', type=int, default=2, help='faults tried at the same time (default: 2)')
    args = parser.parse_args()
    unknown = set(args.only or ()) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f'no fault {", ".join(sorted(unknown))}')
    faults = [fault for fault in FAULTS if not args.only or fault.name in args.only]

    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(args.jobs):
            copy = Path(folder) / str(number)
            copy_repository(copy)
            copies.put(copy)

        def check(tests: tuple[str, ...]) -> tuple[int, str]:
            copy = copies.get()
            try:
                return run_tests(copy, tests)
            finally:
                copies.put(copy)

        def attempt(fault: Fault) -> tuple[int, str]:
            copy = copies.get()
            try:
                with planted(fault, copy):
                    return run_tests(copy, fault.tests)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(args.jobs) as pool:
            selections = sorted({fault.tests for fault in faults})
            broken = 0
            for tests, (code, line) in zip(selections, pool.map(check, selections), strict=True):
                if code:
                    broken += 1
                    print(f'fails without a fault: {" ".join(tests)}: {line}', flush=True)
            if broken:
                return 2
            survivors = []
            for fault, (code, line) in zip(faults, pool.map(attempt, faults), strict=True):
                caught = code == TESTS_FAILED
                if not caught:
                    survivors.append(fault.name)
                result = f'caught by {line}' if caught else f'SURVIVES (exit code {code}: {line})'
                print(f'{fault.name}: {result}', flush=True)
    print(f'{len(faults) - len(survivors)} of {len(faults)} faults caught')
    if survivors:
        print(f'survivors: {", ".join(survivors)}')
    return int(bool(survivors))


if __name__ == '__main__':
    sys.exit(main())
