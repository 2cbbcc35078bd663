"""Detect on a picture, a folder or a video. ``python tools/infer.py IMAGE|FOLDER|VIDEO CHECKPOINT``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Detect: pictures with boxes, and a JSON in COCO format.')
    parser.add_argument('source', help='picture, folder of pictures, or video')
    parser.add_argument('checkpoint', help='.pth file written by train.py; carries its config')
    parser.add_argument('--config', help='config to use instead of the one in the checkpoint')
    parser.add_argument('--out-dir', default='outputs', help='where to write (default: outputs)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw boxes from this score on (default: 0.3)')
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
