"""Create the virtual environment with the tested versions: ``python3 tools/install.py``, or ``make``.

``--base upstream`` installs OpenMMLab's own releases instead of their maintained forks.

Standard library only, and old syntax: it must run on any Python 3 to report that a version is not supported.
"""

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 10), (3, 12))
# Measured: 5.5 GB for torch with its CUDA libraries, 1.5 GB for the rest and for what pip unpacks on the way.
DISK_GB = 9
BUILD_NOTE = 'compiling its operators: once, 10 to 15 minutes on 2 cores'
# On the GPU too if there is one: a wheel built without a GPU has no operators for it (open-mmlab/mmcv#2968).
OPS_TEST = (
    'import torch; from mmcv.ops import nms\n'
    "for device in ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']:\n"
    '    nms(torch.tensor([[0., 0., 1., 1.]], device=device), torch.ones(1, device=device), 0.5)'
)
# OpenMMLab under its two names: the requirements of all but mmcv, those of mmcv, and the prefix of the distributions.
BASES = {
    'onedl': ('requirements/onedl.txt', 'requirements/mmcv.txt', 'onedl-'),
    'upstream': ('requirements/upstream.txt', 'requirements/upstream-mmcv.txt', ''),
}
# System libraries that OpenCV's wheel needs; slim container images do not have them.
LIBRARIES = (('libGL.so.1', 'libgl1'), ('libgthread-2.0.so.0', 'libglib2.0-0'))


def problem(venv):
    """Return in one line what would make the installation fail, or None. Downloads nothing."""
    version = sys.version_info[:2]
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        found = [name for name in ('python3.11', 'python3.12', 'python3.10') if shutil.which(name)]
        hint = f'run `make PYTHON={found[0]}`' if found else 'install one and run `make PYTHON=python3.11`'
        return f'Python {version[0]}.{version[1]} is outside 3.10 to 3.12: {hint}'
    if sys.platform != 'linux':
        return (
            f'this installer is for Linux, not {sys.platform}; see "Next to an existing OpenMMLab" in docs/install.md'
        )
    compiler = os.environ.get('CXX') or 'c++'
    if not shutil.which(compiler):
        return f'no C++ compiler ({compiler}): `sudo apt install g++`, or name one with CXX='
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'test.cpp'
        source.write_text('#include <compare>\nint main() { return 0; }\n')
        command = [compiler, '-std=c++20', str(source), '-o', str(Path(folder) / 'test')]
        if quiet(command):
            return f'the C++ compiler {compiler} cannot compile C++20, which PyTorch needs: g++ 11 or newer'
    if not (Path(sysconfig.get_paths()['include']) / 'Python.h').is_file():
        return 'Python {}.{} has no headers: `sudo apt install python{}.{}-dev`'.format(*(version * 2))
    try:
        import ensurepip  # noqa: F401
        import venv as _  # noqa: F401
    except ImportError:
        return 'Python {}.{} cannot make environments: `sudo apt install python{}.{}-venv`'.format(*(version * 2))
    for library, package in LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            return f'{library} is missing, which OpenCV needs: `sudo apt install {package}`'
    if has_gpu() and not nvcc():
        return (
            'a GPU but no CUDA compiler (nvcc), which mmcv needs: install the CUDA toolkit, '
            'or hide the GPU by CUDA_VISIBLE_DEVICES='
        )
    free = shutil.disk_usage(str(venv.parent)).free / 1e9
    if not (venv / 'bin' / 'python').exists() and free < DISK_GB:
        return f'{free:.1f} GB free at {venv.parent}, {DISK_GB} GB are needed'
    return None


def has_gpu():
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES') == ''
    return not hidden and bool(shutil.which('nvidia-smi')) and not quiet(['nvidia-smi', '-L'])


def nvcc():
    """Return the path of the CUDA compiler, searched as torch does, or None."""
    named = [os.environ.get(name) for name in ('CUDA_HOME', 'CUDA_PATH')]
    places = [str(Path(home) / 'bin' / 'nvcc') for home in [*named, '/usr/local/cuda'] if home]
    return next((path for path in [*places, shutil.which('nvcc')] if path and Path(path).is_file()), None)


def quiet(command):
    """Run a command without its output and return its exit code."""
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def log(text):
    print('==> ' + text, flush=True)


def run_pip(venv, *arguments):
    """Run pip install and return its exit code."""
    command = [str(venv / 'bin' / 'python'), '-m', 'pip', '--disable-pip-version-check', 'install', *arguments]
    return subprocess.run(command, cwd=str(ROOT)).returncode


def pip(venv, *arguments):
    if run_pip(venv, *arguments):
        sys.exit('error: pip failed; its reason is above')


def build_environment(venv):
    """Return an environment in which -std=c++17 reaches the compilers as -std=c++20, and -g not at all.

    torch 2.14's headers need C++20; mmcv's setup.py (2.3.6, and upstream's) puts -std=c++17 behind every other flag.
    Most builds of Python pass -g, which makes g++ take two and a half times as long for these headers.
    """
    environment = dict(os.environ)
    compilers = {'CXX': os.environ.get('CXX') or 'c++'}
    if nvcc():
        compilers['PYTORCH_NVCC'] = nvcc()
    for variable, compiler in compilers.items():
        wrapper = venv / 'bin' / (variable.lower() + '-c++20')
        wrapper.write_text(
            '#!/bin/sh\nfor a in "$@"; do\n  shift\n  case $a in -g) continue;; -std=c++1?) a=-std=c++20;; esac\n'
            '  set -- "$@" "$a"\ndone\n'
            f'exec {compiler} "$@"\n'
        )
        wrapper.chmod(0o755)
        environment[variable] = str(wrapper)
    environment.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    return environment


def install_mmcv(venv, base, *options):
    """Build the base's mmcv, or install pip's wheel of an earlier build; print ninja's progress.

    Returns:
        True if it was compiled.
    """
    packages, mmcv, prefix = BASES[base]
    build_log = venv / 'mmcv-build.log'
    command = [str(venv / 'bin' / 'python'), '-m', 'pip', '--disable-pip-version-check', 'install', '-v']
    command += ['--no-build-isolation', '-c', 'requirements/runtime.txt', '-c', packages, '-r', mmcv, *options]
    shown = -10
    with build_log.open('w') as out:
        process = subprocess.Popen(
            command,
            cwd=str(ROOT),
            env=build_environment(venv),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        for line in process.stdout or ():
            out.write(line)
            counter = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if counter and (sys.stdout.isatty() or int(counter.group(1)) >= shown + 10):
                shown = int(counter.group(1))
                end = '\r' if sys.stdout.isatty() else '\n'
                print('    [{}/{}] {}'.format(*counter.groups(), BUILD_NOTE), end=end, flush=True)
        failed = process.wait()
    if shown > 0 and sys.stdout.isatty():
        print()
    if failed:
        sys.stderr.write(''.join(build_log.open().readlines()[-30:]))
        sys.exit(f'error: {prefix}mmcv did not build; the whole log is {build_log}')
    return shown > 0


def install_runtimes(venv):
    """Install the runtimes of exported files; if one has no wheel for this machine, the others."""
    file = 'requirements/deploy.txt'
    if not run_pip(venv, '-q', '-r', file):
        return
    requirements = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith('#')]
    for line in requirements:
        if run_pip(venv, '-q', line, '-c', file, '-c', 'requirements/runtime.txt'):
            log(f'{line} has not been installed; its runtime will be missing, and training goes without it')


def keep_one_opencv(venv):
    """Remove opencv-python-headless, which writes into the same folder as opencv-python.

    mmdet depends on imaug, whose requirements name both; only mmdet's Corrupt transform uses it.
    """
    if not has_package(venv, 'opencv-python-headless'):
        return
    command = [str(venv / 'bin' / 'python'), '-m', 'pip', '--disable-pip-version-check', 'uninstall', '-q', '-y']
    subprocess.run([*command, 'opencv-python-headless'], check=True)
    # Removing one has removed files of the other.
    pip(venv, '-q', '--force-reinstall', '--no-deps', '-c', 'requirements/runtime.txt', 'opencv-python')


def lacks_ops(venv):
    """Return True if mmcv can be imported but its operators do not work."""
    python = str(venv / 'bin' / 'python')
    return not quiet([python, '-c', 'import mmcv']) and bool(quiet([python, '-c', OPS_TEST]))


def has_package(venv, name):
    python = venv / 'bin' / 'python'
    return python.exists() and not quiet([str(python), '-m', 'pip', '--disable-pip-version-check', 'show', name])


def installed_base(venv):
    """Return the base that an environment has, or None if it has none, or both (which check_env.py reports)."""
    found = [base for base, (_, _, prefix) in BASES.items() if has_package(venv, prefix + 'mmengine')]
    return found[0] if len(found) == 1 else None


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message):
        self.exit(2, f'error: {message}\n')


def main(arguments=None):
    parser = Parser(description='Make the virtual environment with the tested versions.')
    parser.add_argument('--venv', help='where (default: .venv, or .venv-upstream with --base upstream)')
    parser.add_argument('--here', action='store_true', help='into the environment that runs this, instead')
    parser.add_argument(
        '--base',
        choices=list(BASES),
        help="OpenMMLab's maintained forks (onedl) or its own releases (upstream); "
        'default: that of the environment, onedl for a new one',
    )
    args = parser.parse_args(arguments)
    name = args.venv or ('.venv-upstream' if args.base == 'upstream' else '.venv')
    venv = Path(sys.prefix) if args.here else (ROOT / name).absolute()
    present = installed_base(venv)
    base = args.base or present or 'onedl'
    trouble = problem(venv)
    if not trouble and present not in (None, base):
        trouble = (
            f'{venv} has the base {present}, whose modules have the same names: name another environment by --venv'
        )
    if trouble:
        print('error: ' + trouble, file=sys.stderr)
        return 2
    if not (venv / 'bin' / 'python').exists():
        log(f'making {venv}')
        subprocess.run([sys.executable, '-m', 'venv', str(venv)], check=True)
    log('PyTorch (about 3 GB to download)')
    pip(venv, '-q', '-r', 'requirements/torch.txt')
    log('OpenMMLab and the rest')
    packages, _, prefix = BASES[base]
    pip(venv, '-q', '-r', packages, '-r', 'requirements/runtime.txt', '-r', 'requirements/dev.txt')
    keep_one_opencv(venv)
    log(f"{prefix}mmcv: pip's wheel of an earlier build if it has one, else {BUILD_NOTE}")
    built = install_mmcv(venv, base)
    if not built and lacks_ops(venv):
        log('that wheel has no operators or is of another torch (pip keeps wheels without asking): building it anew')
        install_mmcv(venv, base, '--no-cache-dir', '--force-reinstall', '--no-deps')
    log('mnv4_mm')
    pip(venv, '-q', '--no-deps', '--no-build-isolation', '-e', '.')
    # After everything that training needs: on some machines not every runtime has a wheel.
    log('runtimes of exported files')
    install_runtimes(venv)
    log('mmdeploy, without the old protobuf that it asks for')
    if run_pip(venv, '-q', '--no-deps', '-r', 'requirements/mmdeploy.txt'):
        log('mmdeploy has not been installed; tools/deploy.py will not work, all else does')
    return subprocess.run([str(venv / 'bin' / 'python'), 'tools/check_env.py'], cwd=str(ROOT)).returncode


if __name__ == '__main__':
    sys.exit(main())
