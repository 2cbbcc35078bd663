"""What ``mnv4 roofline`` and ``mnv4 blocks`` can measure, and checks of their arguments. Imports nothing heavy."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.config.index import CHECKOUT, near_names
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.paths import check_output_file

# Height and width of the images of the MobileNetV4 nets in pixels, from table 6 of the paper. Nets that are not in it
# have their size in timm, or that of the net that they are a variant of.
MNV4_SIZES = {
    'conv_s': 224, 'conv_m': 256, 'conv_l': 384, 'hybrid_m': 256, 'hybrid_l': 384, 'conv_s_035': 224, 'conv_s_050': 224,
    'hybrid_m_075': 224, 'hybrid_l_075': 256, 'conv_aa_m': 256, 'conv_aa_l': 384, 'conv_blur_m': 224, 'conv_m_seg': 256,
    'hybrid_m_mhsa': 256, 'hybrid_m_kv1': 256,
}  # fmt: skip
# timm net -> size of the images that its weights were trained with, in pixels.
PEERS: dict[str, int] = {
    'mobilenetv1_100': 224,
    'mobilenetv2_100': 224,
    'mobilenetv3_large_100': 224,
    'fastvit_sa12': 256,
    'efficientvit_b1': 224,
    'mobilevit_s': 256,
    'mobilevitv2_100': 256,
    'nextvit_small': 224,
    'efficientformerv2_s1': 224,
    'convnext_tiny': 224,
    'pvt_v2_b0': 224,
    'repvit_m1_1': 224,
    'mobileone_s1': 224,
    'cpubone_b0_bfrobust': 224,
    'resnet18': 224,
}
# Detectors and segmenters, which are measured without box selection (NMS) and class map.
MODELS = (
    'mnv4_ssdlite_coco',
    'mnv4_retinanet_coco',
    'mnv4_rtmdet_coco',
    'mnv4_lraspp_ade20k',
    'mnv4_fpn_ade20k',
    'mnv4_deeplabv3plus_ade20k',
    'mnv4_segformer_ade20k',
)
NETS: tuple[str, ...] = (*(f'mnv4_{arch}' for arch in ARCHS), *(f'timm:{name}' for name in PEERS), *MODELS)
ROOFLINE_RECORDS = Path('docs/results/roofline.jsonl')
ROOFLINE_PAGE = Path('docs/roofline.md')
BLOCK_RECORDS = Path('docs/results/blocks.jsonl')
BLOCK_PAGE = Path('docs/blocks.md')
BLOCK_PARTS = ('nets', 'attention', 'uib')
# Part -> runtimes in which it is measured.
BLOCK_RUNTIMES: dict[str, tuple[str, ...]] = {
    'nets': ('onnx', 'openvino', 'ncnn', 'litert', 'executorch'),
    'attention': ('onnx', 'openvino', 'ncnn', 'litert', 'executorch'),
    'uib': ('onnx', 'openvino', 'litert'),
}
_MEASURING = ('torch', 'timm', 'mmengine', 'onnx', 'onnxscript', 'onnxruntime')


class Files(NamedTuple):
    """Files of ``mnv4 roofline`` or ``mnv4 blocks``.

    Attributes:
        records: Measured records in JSON Lines.
        page: Markdown page that is generated from the records.
    """

    records: Path
    page: Path


def check_files(records: Path | None, page: Path | None, default: Files, *, measure: bool, check: bool) -> Files:
    """Check the file arguments of ``mnv4 roofline`` or ``mnv4 blocks``, and fill in the defaults.

    Args:
        records: Value of ``--records``; None for the default.
        page: Value of ``--page``; None for the default.
        default: Default files, relative to the root of the repository.
        measure: Value of ``--measure``: records are written.
        check: Value of ``--check``: the page is compared with the records, and nothing is written.

    Returns:
        The files to use.

    Raises:
        UserError: ``measure`` and ``check`` are both True, a file to be read does not exist, a file to be written
            cannot be written, the page is not a ``.md`` file, or ``records`` or ``page`` is None outside a clone of the
            repository, where there is no default.
    """
    if measure and check:
        raise UserError('--check compares a page with its records: leave out --measure')
    missing = [option for option, path in (('--records', records), ('--page', page)) if path is None]
    if missing and CHECKOUT is None:
        raise UserError(f'name a file by {missing[0]}: the default is in a clone of the repository')
    root = CHECKOUT or Path()
    files = Files(records or root / default.records, page or root / default.page)
    check_output_file('--page', files.page)
    if files.page.suffix != '.md':
        raise UserError(f'--page {files.page}: expected a file that ends in .md')
    if measure:
        check_output_file('--records', files.records)
    elif not files.records.is_file():
        raise UserError(f'--records {files.records}: no such file; --measure writes it')
    if check and not files.page.is_file():
        raise UserError(f'--page {files.page}: no such file; without --check it is written')
    return files


def check_selection(option: str, names: Sequence[str], available: Sequence[str], *, measure: bool) -> list[str]:
    """Check the names of the nets or parts to be measured.

    Args:
        option: The option that the names were given by, for error messages.
        names: Selected names; empty to select all.
        available: All valid names.
        measure: Value of ``--measure``.

    Returns:
        The selected names without duplicates; all of ``available`` if ``names`` is empty.

    Raises:
        UserError: A name is not among ``available``, names are given although ``measure`` is False, or ``measure`` is
            True and a module that measuring needs is not installed.
    """
    if unknown := [name for name in names if name not in available]:
        raise UserError(f'{option} {unknown[0]}: unknown{near_names(unknown[0], available)}')
    if names and not measure:
        raise UserError(f'{option} selects what --measure measures; it has no effect without --measure')
    if measure and (missing := [name for name in _MEASURING if importlib.util.find_spec(name) is None]):
        raise UserError(f'measuring needs {", ".join(missing)}, not installed here: pip install "mnv4_mm[export,timm]"')
    return list(dict.fromkeys(names or available))
