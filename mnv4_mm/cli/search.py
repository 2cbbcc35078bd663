"""The command that searches for a net: train a supernet, search in it, write the net that was found."""

import argparse
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mnv4_mm.cli import train as training
from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.options import WITHOUT_SPACE, TrainOptions
from mnv4_mm.config.rules import check_is_supernet, check_unit
from mnv4_mm.config.source import read_checkpoint_source
from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_checkpoint, check_not_empty, check_output_file, check_output_folder, make_output_folder
from mnv4_mm.processors import cores
from mnv4_mm.search.front import DIGITS, GMACS, MS, read_cost, read_front, write_front
from mnv4_mm.search.records import RANKED, SCORED, read_scores
from mnv4_mm.weights.work_dir import find_checkpoint, list_checkpoints

ENGINES = ('nsga2', 'tunas', 'random')
RUNTIMES = ('onnx', 'openvino', 'litert')


def add_search(parser: Parser) -> None:
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    train = commands.add_parser('train', help='train a supernet: all nets of a search space at once')
    training.add_train(train)
    train.set_defaults(call=train_supernet, parser=train, report=False)
    profile = commands.add_parser('profile', help='measure a latency table: what `run --latency` predicts nets from')
    profile.add_argument('checkpoint', help='checkpoint of a supernet')
    profile.add_argument('--runtime', choices=RUNTIMES, help='measure in this runtime on this device (default: onnx)')
    profile.add_argument('--threads', type=int, metavar='N', help='threads of the runtime (default: 1)')
    profile.add_argument('--nets', type=int, default=24, metavar='N', help='nets to fit to (default: 24)')
    profile.add_argument('--blocks', metavar='N', help='number of blocks to measure, or all (default: 120)')
    profile.add_argument('--check', type=int, default=0, metavar='N', help='print the error on N other nets')
    profile.add_argument('--browser', metavar='DIR', help='write the nets as web pages instead (docs/search.md)')
    profile.add_argument(
        '--measured', nargs='+', metavar='FILE.jsonl', help='lines that these pages have shown: make the table of them'
    )
    profile.add_argument(
        '--out', metavar='FILE', help='table to write (default: latency-<runtime>.json beside the checkpoint)'
    )
    profile.set_defaults(call=profile_device, parser=profile)
    run = commands.add_parser('run', help='search for the nets with the best scores at their costs')
    run.add_argument('checkpoint', help='checkpoint of a supernet')
    run.add_argument('--nets', type=int, default=1000, metavar='N', help='number of nets to ask for (default: 1000)')
    run.add_argument(
        '--engine',
        action='append',
        choices=ENGINES,
        help='nsga2 (default), the reward of TuNAS, or random nets; give it twice to run two in turn (docs/search.md)',
    )
    run.add_argument('--limit', metavar='COST', help='largest cost; tunas: the cost that it prefers')
    run.add_argument(
        '--latency', metavar='TABLE', help='costs are ms by this table of `mnv4 search profile` (default: GMACs)'
    )
    run.add_argument('--images', type=int, default=500, metavar='N', help='score on at most N images (default: 500)')
    run.add_argument('--workers', type=int, default=cores(), metavar='N', help='processes (default: all cores)')
    run.add_argument('--seed', type=int, default=0, metavar='N', help='default: 0')
    run.add_argument('--out', metavar='DIR', help='folder of the records (default: search/ beside the checkpoint)')
    run.set_defaults(call=run_search, parser=run)
    rank = commands.add_parser('rank', help='train some nets alone: how well do the scores of the supernet rank them?')
    rank.add_argument('checkpoint', help='checkpoint of a supernet')
    rank.add_argument('--nets', type=int, default=20, metavar='N', help='number of random nets (default: 20)')
    length = rank.add_mutually_exclusive_group(required=True)
    length.add_argument('--epochs', type=int, metavar='N', help='epochs of the training of each net')
    length.add_argument('--iters', type=int, metavar='N', help='iterations of the training of each net')
    rank.add_argument('--images', type=int, default=500, metavar='N', help='score on at most N images (default: 500)')
    rank.add_argument('--workers', type=int, default=1, metavar='N', help='trainings at the same time (default: 1)')
    rank.add_argument('--seed', type=int, default=0, metavar='N', help='of the trainings (default: 0)')
    rank.add_argument('--out', metavar='DIR', help='folder of the trainings (default: ranking/ beside the checkpoint)')
    rank.set_defaults(call=rank_nets, parser=rank)
    export = commands.add_parser('export', help='write a net that was found as an ordinary checkpoint')
    export.add_argument('front', help='front-<engine>.json, which `mnv4 search run` has written')
    export.add_argument(
        '--choose',
        required=True,
        metavar='COST',
        help='the best net that costs at most this: GMACs, or ms as in 12ms; or a baseline, as `run` names it',
    )
    export.add_argument('--out', metavar='FILE', help='file to write (default: net_<--choose>.pth beside the front)')
    tuning = export.add_mutually_exclusive_group()
    tuning.add_argument('--epochs', type=int, metavar='N', help='then train it further, for N epochs')
    tuning.add_argument('--iters', type=int, metavar='N', help='the same, for a config that counts in iterations')
    export.set_defaults(call=export_net, parser=export)


def train_supernet(args: argparse.Namespace) -> None:
    """Run ``mnv4 search train``: ``mnv4 train`` with ``--space small`` unless another space is named."""
    if args.space is None:
        TrainOptions.from_namespace(args).check_excluded('`mnv4 search train`', WITHOUT_SPACE)
        args.space = 'small'
    training.train(args)


def profile_device(args: argparse.Namespace) -> None:
    """Run ``mnv4 search profile``: measure a latency table, and print how well it predicts."""
    from mnv4_mm.deploy.measured import read_measurements
    from mnv4_mm.deploy.targets import TARGETS
    from mnv4_mm.search.latency import check_files_folder

    if args.nets < 3:
        raise UserError(f'--nets must be at least 3, got {args.nets}')
    if args.check < 0:
        raise UserError(f'--check must not be negative, got {args.check}')
    if args.threads is not None and args.threads < 1:
        raise UserError(f'--threads must be at least 1, got {args.threads}')
    check_not_empty(
        checkpoint=args.checkpoint, browser=args.browser, measured=args.measured, out=args.out, blocks=args.blocks
    )
    blocks = None if args.blocks == 'all' else _count('--blocks', args.blocks or '120')
    _check_supernet(args.checkpoint)
    here = {'--runtime': args.runtime, '--threads': args.threads, '--blocks': args.blocks}
    if args.browser and any(here.values()):
        given = ', '.join(name for name, value in here.items() if value)
        raise UserError(f'--browser measures whole nets in a browser: leave out {given}')
    if args.measured and not args.browser:
        raise UserError('--measured needs --browser, the folder of the pages that were measured')
    runtime = 'web' if args.browser else args.runtime or 'onnx'
    if not args.measured and (absent := TARGETS[runtime].absent(convert=True)):
        raise UserError(f'--{"browser" if args.browser else "runtime"}: {absent}')
    out = Path(args.out or Path(args.checkpoint).parent / f'latency-{runtime}.json')
    if out.suffix != '.json':
        raise UserError(f'--out {out}: a latency table ends in .json')
    check_output_file('--out', out)
    if not args.browser:
        check_files_folder(out)
    if args.browser and not args.measured:
        folder = check_output_folder('--browser', args.browser)

        from mnv4_mm.search.browser import write_nets

        pages = write_nets(Path(args.checkpoint), args.nets, args.check, make_output_folder('--browser', folder))
        print(f'{len(pages)} pages: measure each in the browser, save the lines, and call this with --measured')
        return
    measurements = read_measurements(args.measured) if args.measured else []
    out.parent.mkdir(parents=True, exist_ok=True)
    if measurements:
        from mnv4_mm.search.browser import browser_table

        table = browser_table(Path(args.checkpoint), args.nets, args.check, Path(args.browser), measurements, out)
    else:
        from mnv4_mm.search.profile import Plan, profile

        plan = Plan(runtime, args.threads or 1, args.nets, blocks, args.check)
        table = profile(Path(args.checkpoint), plan, out)
    print(*table.lines(), out, sep='\n')


def _check_supernet(checkpoint: str) -> Mapping[str, Any] | None:
    """Check that a file is the checkpoint of a supernet, and return its config, as far as known without torch."""
    source = read_checkpoint_source(check_checkpoint(checkpoint))
    if source is not None:
        check_is_supernet(source)
    return source


def _count(flag: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'{flag} must be a number from 1 on, or all, got {text}')
    return int(text)


def run_search(args: argparse.Namespace) -> None:
    """Run ``mnv4 search run``: check the arguments, search, and print the front."""
    from mnv4_mm.search.latency import read_table

    _check_positive(nets=args.nets, images=args.images, workers=args.workers)
    _check_seed(args.seed)
    limit = None if args.limit is None else read_cost('--limit', args.limit, MS if args.latency else GMACS)
    engines = dict.fromkeys(args.engine or ['nsga2'])
    if 'tunas' in engines and args.limit is None:
        raise UserError('--engine tunas needs --limit, the cost that its reward prefers')
    check_not_empty(checkpoint=args.checkpoint, latency=args.latency, out=args.out)
    _check_supernet(args.checkpoint)
    latency = read_table(args.latency) if args.latency else None
    out = Path(args.out or Path(args.checkpoint).parent / 'search')
    check_output_folder('--out', out)
    read_scores(out / SCORED, supernet=file_digest(args.checkpoint).hexdigest())
    costs = f'-{Path(args.latency).stem.removeprefix("latency-")}' if args.latency else ''
    for engine in engines:
        if engine != 'random' and find_spec('optuna') is None:
            raise UserError(
                f'--engine {engine} needs Optuna: pip install "mnv4_mm[search]"; --engine random needs nothing'
            )
    paths = {engine: out / f'front-{engine}{costs}.json' for engine in ENGINES}
    baseline = read_front(paths['random']) if 'random' not in engines and paths['random'].is_file() else None

    from mnv4_mm.search.plot import write_plot
    from mnv4_mm.search.run import NothingFoundError, Plan, search

    if latency:
        print(*latency.lines(), sep='\n')
    # Random nets first: their front is drawn beside those of the other engines.
    *ordered, last = sorted(engines, key=lambda engine: engine != 'random')
    for engine in (*ordered, last):
        plan, path = Plan(engine, args.nets, args.seed, limit, args.images), paths[engine]
        try:
            front = search(Path(args.checkpoint), plan, out, latency=latency, workers=args.workers)
        except NothingFoundError as error:
            if engine == last:
                raise
            print(f'--engine {engine}: {error}')
            continue
        write_front(front, path)
        write_plot(front, baseline, path.with_suffix('.png'))
        print(*front.lines(), path, path.with_suffix('.png'), sep='\n')
        if engine == 'random':
            baseline = front


def rank_nets(args: argparse.Namespace) -> None:
    """Run ``mnv4 search rank``: train nets alone, and print both scores of each and Kendall's tau."""
    if args.nets < 3:
        raise UserError(f'--nets must be at least 3, got {args.nets}')
    _check_positive(epochs=args.epochs, iters=args.iters, images=args.images, workers=args.workers)
    _check_seed(args.seed)
    check_not_empty(checkpoint=args.checkpoint, out=args.out)
    source = _check_supernet(args.checkpoint)
    if source is not None:
        check_unit(source, 'epochs' if args.epochs else 'iters')
    out = check_output_folder('--out', args.out or Path(args.checkpoint).parent / 'ranking')
    sha256 = file_digest(args.checkpoint).hexdigest()
    read_scores(Path(out) / RANKED, supernet=sha256, epochs=args.epochs, iters=args.iters, seed=args.seed)

    from mnv4_mm.search.rank import Plan, rank

    plan = Plan(args.nets, args.epochs, args.iters, args.seed, args.images)
    print(*rank(Path(args.checkpoint), plan, Path(out), workers=args.workers).lines(), sep='\n')


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:  # as NumPy requires
        raise UserError(f'--seed must be from 0 to 2**32 - 1, got {seed}')


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f'--{name} must be at least 1, got {value}')


def export_net(args: argparse.Namespace) -> None:
    """Run ``mnv4 search export``: choose a net of a front, write it, and print its input size and path."""
    check_not_empty(front=args.front, out=args.out)
    front = read_front(args.front)
    baselines = dict(front.baselines)
    if chosen := baselines.get(args.choose):
        name = args.choose.replace(',', '').replace(' ', '_')
    elif args.choose.startswith('mnv4_'):
        raise UserError(f'--choose: the front has no baseline {args.choose}, only {"; ".join(baselines) or "none"}')
    else:
        chosen = front.choose(read_cost('--choose', args.choose, front.unit))
        name = f'{chosen.cost:.{DIGITS}f}{"" if front.unit == GMACS else front.unit}'
    path = Path(args.out or Path(args.front).parent / f'net_{name}.pth')
    if path.suffix != '.pth':
        raise UserError(f'--out {path}: a checkpoint ends in .pth')
    check_output_file('--out', path)
    _check_positive(epochs=args.epochs, iters=args.iters)
    supernet = front.find_supernet(Path(args.front))
    source = _check_supernet(str(supernet))
    config, work_dir = path.with_suffix('.py'), path.with_suffix('')
    if path.is_file() and not config.is_file():
        raise UserError(f'--out {path} is a checkpoint that this command has not written: name another file')
    length = ['--epochs', str(args.epochs)] if args.epochs else ['--iters', str(args.iters)]
    train_config = ['mnv4', 'train', str(config)]
    continued = f'`{shlex.join([*train_config, *length, "--work-dir", str(work_dir), "--resume"])}`'
    if args.epochs or args.iters:
        if source is not None:
            check_unit(source, 'epochs' if args.epochs else 'iters')
        if list_checkpoints(work_dir):
            raise UserError(
                f'{work_dir} has checkpoints already: {continued} continues a training of this length that was '
                'stopped; name another file by --out for a new one'
            )

    from mnv4_mm.search.export import export_net

    print(f'{chosen.cost:.{DIGITS}f} {front.unit}, {front.metric} {chosen.score:.4f} on {front.images} held-out images')
    width, height = export_net(supernet, chosen.genes, path)
    print(f'input size {width}x{height}', path, f'{config}: `{shlex.join(train_config)}` trains it further', sep='\n')
    if args.epochs or args.iters:
        from mnv4_mm.apis.train import train

        print(f'if this training is stopped, {continued} continues it')
        train(str(config), work_dir=str(work_dir), epochs=args.epochs, iters=args.iters)
        print(find_checkpoint(work_dir))
