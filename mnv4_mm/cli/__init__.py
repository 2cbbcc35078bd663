"""The command line: ``mnv4 COMMAND``, ``python -m mnv4_mm COMMAND`` or ``python tools/<script>.py``.

A command parses and checks its arguments, and only then imports the modules that do the work, because torch and
OpenMMLab take seconds to import.
"""

from collections.abc import Callable, Sequence

from mnv4_mm.cli import configs, data, demo, deploy, env, label, report, roofline, search, train, transfer
from mnv4_mm.cli.arguments import Parser
from mnv4_mm.cli.exit_codes import run
from mnv4_mm.version import __version__

# Name -> summary, and the function that adds arguments to a parser and sets its default `call`, which runs the command.
COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    'train': ('Train a detector or a segmenter.', train.add_train),
    'test': ('Evaluate a checkpoint: COCO AP or mIoU, and a table per class.', train.add_test),
    'infer': ('Detect or segment in images and videos.', train.add_infer),
    'label': ('Run an exported file over many images, into Parquet files.', label.add_label),
    'demo': ('Show predictions on a local web page.', demo.add_demo),
    'export': ('Convert a checkpoint for other runtimes.', deploy.add_export),
    'spread': ('Make a net hard to quantise by rescaling channels; float outputs stay the same.', deploy.add_spread),
    'compare': ('Compare exported files with PyTorch: accuracy, outputs, latency, memory.', deploy.add_compare),
    'deploy': ("Export ONNX for mmdeploy's pipelines and SDK.", deploy.add_deploy),
    'parity': ('Compare every headline model in every runtime: hours on a CPU.', deploy.add_parity),
    'report': ('Report on a training run: a page, a model card, all numbers.', report.add_report),
    'configs': ('List the shipped configs, or copy one to edit it.', configs.add_configs),
    'weights': ('List the published ImageNet weights.', report.add_weights),
    'download': ('Download COCO or ADE20K, check and unpack it.', data.add_download),
    'check': ('Check a data set: what it holds, what is wrong with it, what is left out.', data.add_check),
    'draw': ('Draw a data set of coloured shapes, for quick end-to-end checks.', data.add_draw),
    'complexity': ('Count parameters and multiply-accumulates, as Markdown tables.', report.add_complexity),
    'transfer': ('Train many backbones under one recipe, and record their scores.', transfer.add_transfer),
    'results': ('Make tables and plots of the records of `mnv4 transfer`.', transfer.add_results),
    'bench': ('Measure speed as ratios to other implementations.', report.add_bench),
    'roofline': ('Predict latency from MACs and bytes, and compare it with measured latency.', roofline.add_roofline),
    'blocks': ('Measure attention and UIB blocks in each runtime.', roofline.add_blocks),
    'search': ('Search for a net: train a supernet, search in it, write the net that was found.', search.add_search),
    'env': ('Check the environment: versions, what works, and how to repair what does not.', env.add_env),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments, beginning with the command; ``sys.argv[1:]`` if None.

    Returns:
        Exit code:

        - 0: success.
        - 1: ``compare`` or ``parity`` has a file that does not pass, ``infer`` left out images that cannot be read,
          ``label`` has failed parts or could read no image, ``env`` found a problem, ``--check`` found an outdated
          page, ``transfer`` has a run that failed or has no record, ``roofline`` could not measure a net, or the output
          was piped to a process that has ended.
        - 2: a user's mistake, an unusable file or a broken environment.
        - 130: Ctrl-C.
    """
    return run(lambda: _call(argv))


def _call(argv: Sequence[str] | None) -> int | None:
    parser = Parser(prog='mnv4', description='MobileNetV4 detectors and segmenters: train, evaluate, export, run.')
    parser.add_argument('--version', action='version', version=f'mnv4_mm {__version__}')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for name, (summary, add) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        add(command)
        command.set_defaults(parser=command)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.parser.refuse(unknown)
    return args.call(args)
