"""Commands that measure how well backbones transfer."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_output_file, check_output_folder
from mnv4_mm.transfer.estimate import plan_lines
from mnv4_mm.transfer.protocol import Head, Protocol, protocol_index, read_protocol, select
from mnv4_mm.transfer.records import read_records
from mnv4_mm.transfer.work import Digests, by_run, check_same, check_slurm, measure_latency, remaining, submit
from mnv4_mm.transfer.work import transfer as make_runs

# Options that --measure-latency ignores, and their defaults.
WITHOUT_EFFECT = dict(
    launcher='none',
    dry_run=False,
    plan=False,
    workers=1,
    retry=False,
    keep=False,
    weights_dir=None,
    starts=[],
    seeds=[],
)


def add_transfer(parser: Parser) -> None:
    parser.epilog = (
        f'Shipped protocols: {", ".join(protocol_index())} (docs/transfer.md). A run has a record when it is finished; '
        'the same command continues with those that have none. Several processes may share --out.'
    )
    parser.add_argument('protocol', help='name of a shipped protocol, or a .py file')
    parser.add_argument('--data', metavar='DIR', help='folder of the data set')
    parser.add_argument('--out', metavar='DIR', help='folder of the records (default: work_dirs/transfer/<protocol>)')
    parser.add_argument('--nets', nargs='+', default=[], metavar='NET', help='only these nets')
    parser.add_argument('--heads', nargs='+', default=[], metavar='HEAD', help='only these heads')
    parser.add_argument('--starts', nargs='+', default=[], metavar='START', help='only these starts: random, imagenet')
    parser.add_argument('--seeds', nargs='+', type=int, default=[], metavar='N', help='only these seeds')
    parser.add_argument(
        '--weights-dir',
        metavar='DIR',
        help='ImageNet weights in files, <net>.safetensors or <net>.pth, used instead of a download',
    )
    parser.add_argument('--workers', type=int, default=1, metavar='N', help='runs at the same time (default: 1)')
    parser.add_argument(
        '--launcher', choices=('none', 'slurm'), default='none', help='slurm: --workers counts jobs, by submitit'
    )
    parser.add_argument(
        '--slurm',
        nargs='+',
        type=_parameter,
        default=[],
        metavar='KEY=VALUE',
        help='parameters of sbatch, e.g. partition=gpu time=600 (minutes); default: one GPU and 8 CPUs for 24 hours',
    )
    parser.add_argument('--retry', action='store_true', help='repeat runs that have failed')
    parser.add_argument('--keep', action='store_true', help='keep the checkpoints and logs of all runs')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='make every step of the first seed with 4 images, one step or epoch of training, into dry.jsonl',
    )
    parser.add_argument(
        '--measure-latency',
        action='store_true',
        help='train nothing: measure the latency of all recorded nets on this machine, and write it into their records',
    )
    parser.add_argument('--plan', action='store_true', help='print the runs and the estimated hours, and stop')
    parser.set_defaults(call=transfer)


def transfer(args: argparse.Namespace) -> int:
    """Run ``mnv4 transfer``: make the training runs of a protocol that have no record yet.

    Instead of that, ``--plan`` prints the runs, ``--measure-latency`` measures the latency of the recorded nets, and
    ``--launcher slurm`` submits the runs as jobs.

    Returns:
        Exit code: 1 if one of the selected runs has failed or has no record afterwards, or if in a dry run a net could
        not be exported, else 0. With ``--plan``, ``--measure-latency`` or ``--launcher slurm`` always 0.
    """
    protocol = read_protocol(args.protocol)
    runs = select(protocol.runs(), nets=args.nets, heads=args.heads, starts=args.starts, seeds=args.seeds)
    out = args.out or f'work_dirs/transfer/{protocol.name}'
    check_output_folder('--out', out)
    _check_options(args, protocol)
    records = Path(out) / 'records.jsonl'
    existing = read_records(records) if records.is_file() else []
    used = {name: protocol.heads[name] for name in dict.fromkeys(run.head for run in runs)}
    if args.measure_latency and not any('error' not in record for record in existing):
        raise UserError(f'{records} has no records of runs that succeeded')
    if args.launcher == 'slurm' and not args.plan:
        check_slurm()
    recipes = _recipes(protocol, used) if existing and not args.dry_run else {}
    check_same(records, protocol, {name: Digests(recipe, None) for name, recipe in recipes.items()})
    if args.plan:
        for line in plan_lines(protocol, remaining(records, runs, args.retry), existing, args.workers):
            print(line)
        return 0

    from mnv4_mm.config.check import check_config, check_config_data
    from mnv4_mm.transfer.splits import join_splits

    data = args.data and str(join_splits(Path(args.data), protocol.train, protocol.test, Path(out) / 'data'))
    for head in used.values():
        checked = TrainOptions(
            data=data, epochs=head.epochs, iters=head.iters, size=head.input_size, cfg_options=head.cfg_options
        )
        check_config_data(check_config(head.config, checked), checked, ('train_dataloader', 'val_dataloader'))

    from mnv4_mm.deploy.describe import default_size
    from mnv4_mm.transfer.recipe import head_config, head_data_digest

    for head in used.values():
        if not head.size:
            default_size(head_config(head))  # raises if the test pipeline cannot be exported

    recipes = recipes or _recipes(protocol, used)
    digests = {name: Digests(recipes[name], head_data_digest(head, data)) for name, head in used.items()}
    options: dict[str, Any] = dict(data=data, weights_dir=args.weights_dir, retry=args.retry, keep=args.keep)
    if args.launcher == 'slurm':
        submit(protocol, runs, digests, out=out, workers=args.workers, parameters=dict(args.slurm), **options)
        return 0
    if args.measure_latency:
        print(f'records: {measure_latency(protocol, runs, digests, data=data, out=out)}')
        return 0
    if args.dry_run:
        runs = [run for run in runs if run.seed == runs[0].seed]
    records = make_runs(
        protocol,
        runs,
        digests,
        out=out,
        workers=args.workers,
        dry=args.dry_run,
        log=lambda line: print(line, flush=True),
        **options,
    )
    done = by_run(read_records(records)) if records.is_file() else {}
    missing = [run for run in runs if run not in done]
    failed = [run for run in runs if run in done and 'error' in done[run]]
    unexported = [run for run in runs if args.dry_run and 'export_error' in done.get(run, ())]
    print(f'records: {records}')
    if missing:
        print(f'{len(missing)} of {len(runs)} runs have no record yet: other processes make them')
    if failed:
        print(f'{len(failed)} of {len(runs)} runs have failed: --retry repeats them')
    if unexported:
        print(f'{len(unexported)} of {len(runs)} nets could not be exported: the reasons are above')
    return int(bool(missing or failed or unexported))


def _check_options(args: argparse.Namespace, protocol: Protocol) -> None:
    """Raise ``UserError`` if options do not fit each other or the protocol, or if a folder does not exist."""
    if args.workers < 1:
        raise UserError(f'--workers must be at least 1, got {args.workers}')
    for flag, folder in (('--data', args.data), ('--weights-dir', args.weights_dir)):
        if folder and not Path(folder).is_dir():
            raise UserError(f'no folder {folder}, named by {flag}')
    if protocol.needs_data and not args.data and not args.plan:
        raise UserError(f'{protocol.name} needs --data, the folder of {protocol.title}')
    if args.data and not protocol.needs_data:
        raise UserError(
            f'{protocol.name} uses the data that its configs name: leave out --data, or set needs_data = True in a '
            f'copy of {protocol.path}'
        )
    if args.launcher == 'slurm' and args.dry_run:
        raise UserError('--dry-run is for this machine: leave out --launcher slurm')
    if args.slurm and args.launcher != 'slurm':
        raise UserError('--slurm has no effect without --launcher slurm')
    if args.plan and args.dry_run:
        raise UserError('--dry-run has no effect with --plan: leave it out')
    if args.measure_latency:
        for name, default in WITHOUT_EFFECT.items():
            if getattr(args, name) != default:
                raise UserError(f'--{name.replace("_", "-")} has no effect with --measure-latency: leave it out')


def _recipes(protocol: Protocol, heads: Mapping[str, Head]) -> dict[str, str]:
    """Return the digest of the recipe of each head."""
    from mnv4_mm.transfer.recipe import recipe_digest

    return {name: recipe_digest(protocol, head) for name, head in heads.items()}


def _parameter(text: str) -> tuple[str, int | str]:
    key, equals, value = text.partition('=')
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f'expected KEY=VALUE, got {text!r}')
    return key, int(value) if value.isdigit() else value


def add_results(parser: Parser) -> None:
    parser.epilog = 'Records of a protocol of your own need its file beside them, e.g. mine.py beside records.jsonl.'
    parser.add_argument('records', nargs='+', type=Path, help='.jsonl files of `mnv4 transfer`')
    parser.add_argument(
        '--page',
        type=Path,
        default=Path('docs/transfer.md'),
        metavar='FILE.md',
        help='page whose tables are replaced; CSV and plots go to results/ beside it (default: docs/transfer.md)',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing: exit code 1 if page, CSV or plots are not those of the records',
    )
    parser.set_defaults(call=results)


def results(args: argparse.Namespace) -> int:
    """Run ``mnv4 results``: make tables and plots of records or, with ``--check``, compare those that exist.

    Returns:
        Exit code: 1 if ``--check`` finds that they are not those of the records, else 0.
    """
    for file in args.records:
        if not read_records(file):
            raise UserError(f'{file} is empty: it has no record of a run')
    if args.page.suffix != '.md':
        raise UserError(f'--page {args.page}: the tables are Markdown; name a .md file')
    if not args.check:
        check_output_file('--page', args.page)

    from mnv4_mm.transfer.results import are_current, read_results, write_results

    found = read_results(args.records)
    if args.check:
        is_current = are_current(found, args.page)
        print(f'{args.page} is {"up to date" if is_current else "not that of the records: run without --check"}')
        return int(not is_current)
    write_results(found, args.page)
    print(f'page: {args.page}')
    return 0
