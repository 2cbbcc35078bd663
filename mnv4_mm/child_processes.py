"""Python modules that run as processes of their own, and end when the process that started them ends."""

import os
import subprocess
import sys
import threading
from pathlib import Path


def run_child(module: str, line: str, log: Path, threads: int, processes: set[subprocess.Popen] | None = None) -> int:
    """Run a module in a process of its own, and return its exit code.

    The module reads its task by ``read_task``.

    Args:
        module: Name of the module, for ``python -m``.
        line: Its task, one line of text.
        log: File for what the process prints.
        threads: Number of threads of the process.
        processes: Set that contains the process while it runs, so that the caller can kill it; None if not needed.
    """
    processes = set() if processes is None else processes
    with log.open('w') as output:
        # Stdin stays open: when it is closed, because this process has died, the child exits.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, '-m', module],
            stdin=subprocess.PIPE,
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'OMP_NUM_THREADS': str(threads)},
            start_new_session=True,  # Ctrl-C in a terminal only reaches this process, which then kills the child
        )
        processes.add(process)
        with process:
            assert process.stdin is not None
            process.stdin.write(line + '\n')
            process.stdin.flush()
            code = process.wait()
        processes.discard(process)
    return code


def failure_of(code: int, log: Path) -> str:
    """Return why a child has failed: its exit code, the last line that it has printed, and where the others are."""
    lines = log.read_text(errors='replace').strip().splitlines()
    reason = lines[-1][:300] if lines and code > 0 else 'killed: out of memory?'
    return f'exit code {code}: {reason} (log: {log})'


def read_task() -> str:
    """Return the line that ``run_child`` has sent. From then on, this process exits when its parent ends."""
    line = sys.stdin.readline()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    return line


def _exit_with_parent() -> None:
    # The read returns when the parent process has ended. sys.stdin.read() would hold the lock of sys.stdin: forked
    # workers of data loaders would inherit the locked lock and wait for it for ever when they close sys.stdin.
    os.read(sys.stdin.fileno(), 1)
    os._exit(3)
