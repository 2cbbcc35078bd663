"""Description of the machine, the versions and the commit that a measurement was made with."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.version import __version__


def describe_machine(packages: tuple[str, ...]) -> dict[str, Any]:
    """Describe the machine and the software for a record.

    Args:
        packages: Distributions whose versions are listed if they are installed.

    Returns:
        A dict with these keys:

        - ``cpu``: name of the CPU;
        - ``instructions``: its vector extensions;
        - ``cores``: number of logical cores;
        - ``load``: load average of the last minute; None if the operating system has none;
        - ``python``: version of Python;
        - ``versions``: versions of this package and of the installed ones of ``packages``, by name;
        - ``commit``: the commit, with ``-dirty`` if files other than those in ``docs`` have changed; None without git
          or outside a clone of the repository.
    """
    installed = {name: _version(name) for name in packages}
    return dict(
        cpu=_cpu(),
        instructions=_instructions(),
        cores=os.cpu_count(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None,
        python=platform.python_version(),
        versions=dict(mnv4_mm=__version__, **{name: version for name, version in installed.items() if version}),
        commit=_commit(),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_info(key: str) -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(':')[2].strip() for line in lines if line.startswith(key)), '')


def _cpu() -> str:
    return _cpu_info('model name') or platform.processor() or platform.machine()


def _instructions() -> list[str]:
    """Return the vector extensions of the CPU that runtimes select their kernels by."""
    flags = _cpu_info('flags').split() or _cpu_info('Features').split()
    return [name for name in ('avx2', 'avx512f', 'avx512_vnni', 'amx_tile', 'asimd', 'sve') if name in flags]


def _commit() -> str | None:
    if not shutil.which('git'):
        return None
    commit = _git('describe', '--always', '--abbrev=10')
    # A measurement that writes its records after each part must not call the next part's code changed.
    changed = _git('status', '--porcelain', '--untracked-files=no', '--', '.', ':!docs')
    return commit and commit + ('-dirty' if changed else '')


def _git(*arguments: str) -> str | None:
    """Return the output of git, or None if it fails, as outside a clone."""
    done = subprocess.run(['git', *arguments], cwd=REPOSITORY, capture_output=True, text=True)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else None
