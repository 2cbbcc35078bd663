"""The command that searches for a net: train a supernet, search in it, write the net that was found."""

import argparse
from pathlib import Path

from mnv4_mm.cli import train as training
from mnv4_mm.cli.arguments import Parser
from mnv4_mm.data.decode_once import cores
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_checkpoint, check_not_empty, check_output_file, check_output_folder, make_output_folder
from mnv4_mm.search.front import DIGITS, read_front, write_front

ENGINES = ('nsga2', 'tunas', 'random')


def add_search(parser: Parser) -> None:
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    train = commands.add_parser('train', help='train a supernet: all nets of a search space at once')
    training.add_train(train)
    train.set_defaults(call=train_supernet, parser=train, report=False)
    run = commands.add_parser('run', help='search for the nets with the best scores at their costs')
    run.add_argument('checkpoint', help='checkpoint of a supernet')
    run.add_argument('--nets', type=int, default=1000, metavar='N', help='number of nets to ask for (default: 1000)')
    run.add_argument(
        '--engine',
        choices=ENGINES,
        default='nsga2',
        help='nsga2 (default), the reward of TuNAS, or random nets (docs/search.md)',
    )
    run.add_argument(
        '--limit', type=float, metavar='GMACS', help='largest cost of the backbone; tunas: the cost that it prefers'
    )
    run.add_argument('--images', type=int, default=500, metavar='N', help='score on at most N images (default: 500)')
    run.add_argument('--workers', type=int, default=cores(), metavar='N', help='processes (default: all cores)')
    run.add_argument('--seed', type=int, default=0, metavar='N', help='default: 0')
    run.add_argument('--out', metavar='DIR', help='folder of the records (default: search/ beside the checkpoint)')
    run.set_defaults(call=run_search, parser=run)
    export = commands.add_parser('export', help='write a net that was found as an ordinary checkpoint')
    export.add_argument('front', help='front-<engine>.json, which `mnv4 search run` has written')
    export.add_argument(
        '--choose', type=float, required=True, metavar='GMACS', help='the best net that costs at most this'
    )
    export.add_argument('--out', metavar='FILE', help='file to write (default: net_<GMACS>.pth beside the front)')
    export.set_defaults(call=export_net, parser=export)


def train_supernet(args: argparse.Namespace) -> None:
    """Run ``mnv4 search train``: ``mnv4 train`` with ``--space small`` unless another space is named."""
    args.space = args.space or 'small'
    training.train(args)


def run_search(args: argparse.Namespace) -> None:
    """Run ``mnv4 search run``: check the arguments, search, and print the front."""
    for flag, value in (('--nets', args.nets), ('--images', args.images), ('--workers', args.workers)):
        if value < 1:
            raise UserError(f'{flag} must be at least 1, got {value}')
    if args.seed < 0:
        raise UserError(f'--seed must not be negative, got {args.seed}')
    if args.limit is not None and not 0 < args.limit < float('inf'):
        raise UserError(f'--limit must be positive and finite, got {args.limit}')
    if args.engine == 'tunas' and args.limit is None:
        raise UserError('--engine tunas needs --limit, the cost that its reward prefers')
    check_not_empty(checkpoint=args.checkpoint, out=args.out)
    check_checkpoint(args.checkpoint)
    out = Path(args.out or Path(args.checkpoint).parent / 'search')
    check_output_folder('--out', out)

    from mnv4_mm.search.run import Plan, search

    make_output_folder('--out', out)
    plan = Plan(args.engine, args.nets, args.seed, args.limit, args.images)
    front = search(Path(args.checkpoint), plan, out, workers=args.workers)
    path = out / f'front-{args.engine}.json'
    write_front(front, path)
    print(*front.lines(), path, sep='\n')


def export_net(args: argparse.Namespace) -> None:
    """Run ``mnv4 search export``: choose a net of a front, write it, and print the path of the file."""
    if not 0 < args.choose < float('inf'):
        raise UserError(f'--choose must be positive and finite, got {args.choose}')
    check_not_empty(front=args.front, out=args.out)
    front = read_front(args.front)
    chosen = front.choose(args.choose)
    path = Path(args.out or Path(args.front).parent / f'net_{chosen.gmacs:.{DIGITS}f}.pth')
    if path.suffix != '.pth':
        raise UserError(f'--out {path}: a checkpoint ends in .pth')
    check_output_file('--out', path)
    supernet = front.check_supernet()

    from mnv4_mm.search.export import export_net

    print(f'{chosen.gmacs:.{DIGITS}f} GMACs, {front.metric} {chosen.score:.4f} on {front.images} held-out images')
    print(export_net(supernet, chosen.genes, path))
