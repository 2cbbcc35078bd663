"""The command that shows predictions on a local web page."""

import argparse
import os
import sys
import webbrowser
from pathlib import Path

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.rules import check_device
from mnv4_mm.errors import UserError


def add_demo(parser: Parser) -> None:
    parser.epilog = 'The page is served on this computer only, unless --host says otherwise. Ctrl-C ends it.'
    parser.add_argument('model', help='.pth file written by `mnv4 train`, or file written by `mnv4 export`')
    parser.add_argument('--port', type=int, default=8550, help='port; 0 for any free one (default: 8550)')
    parser.add_argument(
        '--host', default='127.0.0.1', help='address to serve at; 0.0.0.0: all, by HTTPS (default: 127.0.0.1)'
    )
    parser.add_argument('--http', action='store_true', help='no HTTPS: no camera and no threads on other devices')
    parser.add_argument('--device', help='checkpoint: torch device (default: the GPU if there is one)')
    parser.add_argument('--no-browser', dest='browser', action='store_false', help='do not open the page')
    parser.set_defaults(call=demo)


def demo(args: argparse.Namespace) -> None:
    """Run ``mnv4 demo``: check the arguments, load the model, and serve the page until Ctrl-C."""
    if not 0 <= args.port <= 65535:
        raise UserError(f'--port must be in [0, 65535], got {args.port}')
    if args.device:
        check_device(args.device)

    from mnv4_mm.apis.load import load
    from mnv4_mm.demo.server import DemoServer, serve, web_files
    from mnv4_mm.runtime.sessions.web import WebRuntime

    path = Path(args.model)
    is_page = path.name.endswith(WebRuntime.suffix) and path.is_dir()
    if is_page and args.device:
        raise UserError(f'--device {args.device} is for checkpoints; {path} runs in the browser')
    server = DemoServer(
        lambda: web_files(path) if is_page else load(path, device=args.device),
        path.name,
        args.host,
        args.port,
        https=not args.http,
    )
    if args.browser and _has_screen():
        webbrowser.open(server.url)
    serve(server)


def _has_screen() -> bool:
    """Return False on a Linux machine without a screen, where a browser for terminals would open."""
    return sys.platform != 'linux' or any(os.environ.get(name) for name in ('DISPLAY', 'WAYLAND_DISPLAY'))
