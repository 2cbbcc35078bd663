"""Train a config. ``python tools/train.py configs/mnv4_ssdlite_coco-mini.py``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector or a segmenter.')
    parser.add_argument('config', help='path, or name of a shipped config such as mnv4_ssdlite_coco')
    parser.add_argument('--work-dir', help='where to write (default: work_dirs/<config>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='CHECKPOINT',
        help='continue the last checkpoint, or this one',
    )
    parser.add_argument('--epochs', type=int, metavar='N', help='train N epochs, with the schedule in proportion')
    parser.add_argument('--iters', type=int, metavar='N', help='the same for a config that counts in iterations')
    parser.add_argument('--amp', action='store_true', help='mixed precision (GPU: float16, CPU: bfloat16)')
    parser.add_argument('--amp-dtype', choices=('fp16', 'bf16'), help='mixed precision of this type')
    parser.add_argument(
        '--channels-last',
        action=argparse.BooleanOptionalAction,
        help="maps as (N, H, W, C) in memory: same result, faster (default: the config's, which is yes)",
    )
    parser.add_argument(
        '--fused',
        action=argparse.BooleanOptionalAction,
        help='update all parameters in one kernel (default: where the optimiser can)',
    )
    parser.add_argument(
        '--compile', dest='compiled', action='store_true', help='torch.compile for backbone, neck and head'
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the real batch size')
    _cli.add_launcher_arguments(parser)
    _cli.add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))
    args.pop('local_rank')

    def call() -> None:
        from mnv4_mm.apis.train import train

        train(args.pop('config'), **args)

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
