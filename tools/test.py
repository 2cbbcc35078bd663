"""Evaluate a checkpoint. ``python tools/test.py CONFIG CHECKPOINT``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Evaluate: COCO AP or mIoU, and a table per class.',
        usage='%(prog)s [CONFIG] CHECKPOINT [options]',
    )
    parser.add_argument('config', help='path or name of a config; left out: the one the checkpoint carries')
    parser.add_argument('checkpoint', nargs='?', help='.pth file written by train.py')
    parser.add_argument('--work-dir', help='where logs go (default: a folder beside the checkpoint)')
    parser.add_argument(
        '--out', metavar='FILE.json|DIR', help='write detections in COCO result format, or class maps as PNG'
    )
    parser.add_argument('--show-dir', metavar='DIR', help='write pictures: ground truth left, predictions right')
    parser.add_argument(
        '--on', choices=('val', 'train'), default='val', help='evaluate on the test set or on the training pictures'
    )
    _cli.add_launcher_arguments(parser)
    _cli.add_inference_argument(parser)
    _cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.checkpoint is None:
        args.config, args.checkpoint = None, args.config
    return args


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))
    args.pop('local_rank')

    def call() -> None:
        from mnv4_mm.apis.evaluate import evaluate_files

        evaluate_files(args.pop('config'), args.pop('checkpoint'), **args)

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
