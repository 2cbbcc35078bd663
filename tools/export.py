"""Convert a checkpoint for a runtime. ``python tools/export.py CHECKPOINT --to onnx openvino``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Convert a checkpoint for other runtimes; each file has a JSON beside it that says how to use it.'
    )
    parser.add_argument('checkpoint', help='.pth file written by train.py; carries its config')
    parser.add_argument(
        '--to',
        nargs='+',
        default=['onnx'],
        metavar='RUNTIME',
        help='onnx, openvino, ncnn, coreml, litert, executorch (default: onnx)',
    )
    parser.add_argument('--config', help='config to use instead of the one in the checkpoint')
    parser.add_argument('--out-dir', help='where to write (default: exported/ beside the checkpoint)')
    parser.add_argument(
        '--size', nargs='+', type=int, metavar='N', help='height and width of the input (default: as in testing)'
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='any height and width that are multiples of 32; with --raw or --logits any number of pictures, too',
    )
    parser.add_argument('--precision', choices=('fp32', 'fp16', 'int8'), default='fp32')
    parser.add_argument(
        '--calibration', metavar='DIR', help='for int8: folder of pictures (default: the training pictures)'
    )
    kinds = parser.add_mutually_exclusive_group()
    for kind, text in (
        ('nms', 'detection: the best boxes'),
        ('raw', 'detection: all boxes and their scores'),
        ('class-map', 'segmentation: the class of each pixel'),
        ('logits', 'segmentation: scores of the classes as the head gives them'),
    ):
        kinds.add_argument(
            f'--{kind}', dest='kind', action='store_const', const=kind.replace('-', '_'), help=f'what comes out: {text}'
        )
    parser.add_argument(
        '--normalised', dest='normalise', action='store_true', help='takes normalised numbers instead of pixels'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))

    def call() -> None:
        from mnv4_mm.deploy.export import export

        export(args.pop('checkpoint'), args.pop('to'), **args)

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
