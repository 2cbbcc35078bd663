"""Detect or segment in a picture, a folder or a video. ``python tools/infer.py IMAGE|FOLDER|VIDEO CHECKPOINT``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Boxes and a JSON in COCO format, or overlays and class maps as indexed PNG.'
    )
    parser.add_argument('source', help='picture, folder of pictures, or video')
    parser.add_argument('checkpoint', help='.pth file written by train.py; carries its config')
    parser.add_argument('--config', help='config to use instead of the one in the checkpoint')
    parser.add_argument('--out-dir', default='outputs', help='where to write (default: outputs)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw boxes from this score on (default: 0.3)')
    _cli.add_inference_argument(parser)
    parser.add_argument('--device', help='torch device (default: the GPU if there is one)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))

    def call() -> None:
        from mnv4_mm.apis.infer import infer

        print(infer(args.pop('source'), args.pop('checkpoint'), **args))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
