"""Checks of arguments and files that commands make before they import torch or OpenMMLab."""

import importlib.util
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mnv4_mm.config.index import CONFIGS
from mnv4_mm.deploy.artifacts import Artifact, find_artifacts
from mnv4_mm.deploy.calibration import calibration_files
from mnv4_mm.deploy.npu import NPUS, Npu
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.paths import check_checkpoint, check_not_empty, check_output_file, check_output_folder
from mnv4_mm.runtime.meta import OUTPUTS, Kind, Precision, Task

INSTALL_MMDEPLOY = '`make mmdeploy`, or `pip install --no-deps -r requirements/mmdeploy.txt`'
MAX_DEVIATION = 6.0  # with more, channels of a 32-bit net are lost
SIZE_DIVISOR = 32  # largest output stride of the backbone; multiples of it are downsampled without remainder


def check_compare(
    checkpoint: str,
    files: Sequence[str] = (),
    *,
    on: str = 'val',
    tolerance: float = 1e-3,
    int8_tolerance: float = 1e-2,
    rounds: int = 20,
    npu: Sequence[str] = (),
    out: str | None = None,
) -> tuple[Path, list[Artifact]]:
    """Check the arguments of ``compare.compare``, which describes them, and read the metadata of every exported file.

    Returns:
        The path of the checkpoint, and the exported files with their metadata.

    Raises:
        UserError: An argument is invalid, a compiler is not installed, or a file is missing, damaged or was exported
            from another checkpoint.
    """
    check_not_empty(checkpoint=checkpoint, files=files, npu=npu, out=out)
    if on not in ('val', 'train'):
        raise UserError(f'--on must be val or train, got {on}')
    if not all(math.isfinite(value) and value >= 0 for value in (tolerance, int8_tolerance, rounds)):
        raise UserError(
            '--tolerance, --int8-tolerance and --rounds must not be negative, infinite or NaN, got '
            f'{tolerance:g}, {int8_tolerance:g} and {rounds}'
        )
    if out:
        if not Path(out).parent.is_dir():
            raise UserError(f'--out {out}: no folder {Path(out).parent}')
        check_output_file('--out', out)
    npus = check_npus(npu)
    path, artifacts = find_artifacts(checkpoint, files)
    for one in npus:
        if not any(one.takes(artifact.meta) for artifact in artifacts):
            raise UserError(
                f'--npu {one.name} compiles int8 files of {one.target}, and none is compared: '
                f'mnv4 export {path} --to {one.target} --precision int8'
            )
    return path, artifacts


def check_npus(names: Sequence[str]) -> list[Npu]:
    """Look up NPUs by name and check that their compilers are installed.

    Args:
        names: Keys of ``NPUS``.

    Returns:
        The NPUs in the order of ``names``, without duplicates.

    Raises:
        UserError: An NPU is unknown, or its compiler is not installed.
    """
    if unknown := [name for name in names if name not in NPUS]:
        raise UserError(f'--npu {unknown[0]}: there are {", ".join(NPUS)}')
    npus = [NPUS[name] for name in dict.fromkeys(names)]
    if missing := next((message for one in npus if (message := one.absent())), None):
        raise UserError(missing)
    return npus


def check_export(
    checkpoint: str,
    to: Sequence[str],
    *,
    out_dir: str | None = None,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
    precision: Precision = 'fp32',
    kind: Kind | None = None,
    calibration: str | None = None,
    plain_int8: bool = False,
) -> list[Target]:
    """Check those arguments of ``export.export`` that do not depend on the model.

    Returns:
        The targets in the order of ``to``, without duplicates.

    Raises:
        UserError: An argument is invalid, a file is missing, or a package is not installed.
    """
    check_not_empty(checkpoint=checkpoint, out_dir=out_dir, calibration=calibration)
    targets = _targets(to)
    if precision not in get_args(Precision):
        raise UserError(f'--precision must be one of {", ".join(get_args(Precision))}, got {precision}')
    for target in targets:
        check_options(target, kind=kind, precision=precision, size=size, dynamic=dynamic)
    _check_installed(targets)
    # Sensitive layers are measured with ONNX Runtime, whatever the target.
    if precision == 'int8' and (message := TARGETS['onnx'].absent(convert=True)):
        raise UserError(f'--precision int8 needs ONNX Runtime: {message}')
    if plain_int8 and precision != 'int8':
        raise UserError(f'--plain-int8 goes with --precision int8, not {precision}')
    if calibration:
        calibration_files(Path(calibration))
    check_output_folder('--out-dir', output_folder(checkpoint, out_dir))
    check_checkpoint(checkpoint)
    return targets


def check_spread(checkpoint: str, out: str, *, octaves: float, seed: int) -> None:
    """Check the arguments of ``mnv4 spread``, see ``channels.spread_channels``.

    Raises:
        UserError: ``octaves`` is not above 0 and at most ``MAX_DEVIATION``, ``seed`` is not from 0 to 2**63 - 1, the
            checkpoint is missing, or ``out`` exists or cannot be written.
    """
    check_not_empty(checkpoint=checkpoint, out=out)
    if not 0 < octaves <= MAX_DEVIATION:
        raise UserError(f'--octaves must be above 0 and at most {MAX_DEVIATION:g}, got {octaves:g}')
    if not 0 <= seed < 2**63:
        raise UserError(f'--seed must be from 0 to 2**63 - 1, got {seed}')
    path = check_checkpoint(checkpoint)
    if check_output_file('OUT', out).resolve() == path.resolve():
        raise UserError(f'{out} is the checkpoint itself: name another file to write')
    if Path(out).exists():
        raise UserError(f'{out} exists: name another file to write')
    if not Path(out).parent.is_dir():
        raise UserError(f'{out}: there is no folder {Path(out).parent}')


def check_qat(checkpoint: str) -> None:
    """Check that the checkpoint of ``mnv4 train --qat`` exists and that the packages for ONNX export are installed.

    Raises:
        UserError: There is no such checkpoint, or a package is not installed (ONNX, ONNX Script or ONNX Runtime).
    """
    check_checkpoint(checkpoint)
    if message := TARGETS['onnx'].absent(convert=True):
        raise UserError(f'--qat needs ONNX Runtime: {message}')


def check_mmdeploy(
    deploy_cfg: str, checkpoint: str, images: Sequence[str], work_dir: str, show: bool, unsupported: Mapping[str, Any]
) -> None:
    """Check the arguments of the export with mmdeploy.

    Args:
        deploy_cfg: Deploy config file.
        checkpoint: Checkpoint file.
        images: Image files.
        work_dir: Output folder.
        show: True if images are to be shown in windows.
        unsupported: Options of mmdeploy's ``tools/deploy.py`` for backends other than ONNX Runtime: values by name.
            Every value must be empty, None or False.

    Raises:
        UserError: An unsupported option is set, a path is empty, a file is missing or not readable, there is no display
            to show images on, the output folder cannot be written, or mmdeploy is not installed.
    """
    check_not_empty(deploy_cfg=deploy_cfg, checkpoint=checkpoint, work_dir=work_dir)
    for name, value in unsupported.items():
        if value:
            raise UserError(
                f'--{name.replace("_", "-")} is for backends other than onnxruntime, the only one exported here '
                '(docs/mmdeploy.md)'
            )
    if importlib.util.find_spec('mmdeploy') is None:
        raise UserError(f'mmdeploy is not installed: {INSTALL_MMDEPLOY}')
    if show and sys.platform == 'linux' and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UserError(f'--show needs a display; without --show the images are written to {work_dir} all the same')
    if not Path(deploy_cfg).is_file():
        shipped = sorted((CONFIGS / 'deploy').glob('*.py'))
        raise UserError(f'no deploy config {deploy_cfg}; there are {", ".join(map(str, shipped))}')
    check_checkpoint(checkpoint)
    for image in images:
        read_image(Path(image))
    check_output_folder('--work-dir', work_dir)


def check_targets(to: Sequence[str]) -> list[Target]:
    """Look up targets by name and check that their packages are installed.

    Args:
        to: Keys of ``TARGETS``. If empty, all targets except those whose files run in another runtime here than on
            their device (``Target.runs_elsewhere``), such as ``web``.

    Returns:
        The targets, without duplicates.

    Raises:
        UserError: A target is unknown, or a package that its conversion needs is not installed.
    """
    targets = _targets(to or [name for name, target in TARGETS.items() if not target.runs_elsewhere])
    _check_installed(targets)
    return targets


def _targets(to: Sequence[str]) -> list[Target]:
    if unknown := [name for name in to if name not in TARGETS]:
        raise UserError(f'--to {unknown[0]}: there are {", ".join(TARGETS)}')
    return [TARGETS[name] for name in dict.fromkeys(to)]


def _check_installed(targets: Sequence[Target]) -> None:
    if missing := [message for target in targets if (message := target.absent(convert=True))]:
        raise UserError('; '.join(missing))


def check_options(
    target: Target,
    *,
    kind: Kind | None = None,
    precision: Precision = 'fp32',
    size: Sequence[int] | None = None,
    dynamic: bool = False,
) -> None:
    """Check that a target supports the options of an export.

    Args:
        target: The target.
        kind: Kind of the outputs, see ``OUTPUTS``; None for the target's default.
        precision: Precision of the file.
        size: Height and width of the input in pixels, multiples of ``SIZE_DIVISOR``; None for the size of the config.
        dynamic: Let the file take inputs of any height and width that are multiples of ``SIZE_DIVISOR``. Excludes
            ``size``.

    Raises:
        UserError: An option is invalid or not supported by the target, or options exclude each other.
    """
    if kind and kind not in target.kinds:
        option = kind.replace('_', '-')
        if kind not in OUTPUTS:
            raise UserError(f'no output --{option}; there are {", ".join(OUTPUTS)}')
        raise UserError(f'--{option} does not fit {target.name}, which has {", ".join(target.kinds)}')
    if precision not in target.precisions:
        raise UserError(f'--precision {precision} does not fit {target.name}, which has {", ".join(target.precisions)}')
    if dynamic and not target.dynamic:
        raise UserError(f'--dynamic does not fit {target.name}, whose files have one size')
    if dynamic and size:
        raise UserError('--size and --dynamic exclude each other')
    if size and (len(size) != 2 or any(side < SIZE_DIVISOR or side % SIZE_DIVISOR for side in size)):
        raise UserError(f'--size must be height and width, multiples of {SIZE_DIVISOR}, got {" ".join(map(str, size))}')


def choose_kind(target: Target, task: Task, kind: Kind | None = None) -> Kind:
    """Return the kind of the outputs of an export.

    Args:
        target: The target.
        task: Task of the model.
        kind: The kind that was asked for; None for the first of the target that fits the task.

    Raises:
        UserError: The kind does not fit the task, or the target.
    """
    kinds = [name for name in target.kinds if (name in ('nms', 'raw')) == (task == 'detection')]
    kind = kind or kinds[0]
    if kind not in kinds:
        option = kind.replace('_', '-')
        raise UserError(f'--{option} does not fit {task} in {target.name}, which has {", ".join(kinds)}')
    return kind


def output_folder(checkpoint: str | Path, out_dir: str | Path | None) -> Path:
    """Return the folder that ``export`` writes to: ``exported`` beside the checkpoint unless ``out_dir`` is given."""
    return Path(out_dir) if out_dir else Path(checkpoint).parent / 'exported'
