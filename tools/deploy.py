"""Export by mmdeploy. ``python tools/deploy.py DEPLOY_CONFIG MODEL_CONFIG CHECKPOINT PICTURE``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="ONNX for mmdeploy's pipelines and SDK, with the arguments of mmdeploy's own script."
    )
    parser.add_argument('deploy_cfg', help='deploy config, one of configs/deploy')
    parser.add_argument('model_cfg', help='path or name of the config the checkpoint was trained with')
    parser.add_argument('checkpoint', help='.pth file written by train.py')
    parser.add_argument('img', help='picture with which the model is traced')
    parser.add_argument('--test-img', nargs='+', metavar='PICTURE', help='pictures to draw (default: the same)')
    parser.add_argument('--work-dir', default='.', help='where to write (default: here)')
    parser.add_argument('--device', default='cpu', help='torch device (default: cpu)')
    parser.add_argument(
        '--log-level',
        default='INFO',
        choices=('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG'),
        help='of the log (default: INFO)',
    )
    parser.add_argument('--show', action='store_true', help='also show the pictures in windows')
    parser.add_argument('--dump-info', action='store_true', help='also write what the SDK needs')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_cli.CfgOptions,
        metavar='KEY=VALUE',
        help='of the deploy config, e.g. "onnx_config.input_shape=[512, 512]"',
    )
    others = parser.add_argument_group("of mmdeploy's script for other backends, refused here")
    others.add_argument('--calib-dataset-cfg', help=argparse.SUPPRESS)
    others.add_argument('--quant', action='store_true', help=argparse.SUPPRESS)
    others.add_argument('--quant-image-dir', help=argparse.SUPPRESS)
    others.add_argument('--uri', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))

    def call() -> None:
        from mnv4_mm.deploy.mmdeploy_script import deploy

        print(deploy(args.pop('deploy_cfg'), args.pop('model_cfg'), args.pop('checkpoint'), args.pop('img'), **args))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
