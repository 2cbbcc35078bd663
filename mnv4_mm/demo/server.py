"""The web server of the demo, based on Python's ``http.server``: one page, and requests that return JSON.

``GET /`` returns the page and ``GET /model.json`` a description of the model. ``POST /predict`` takes the bytes of an
image file and returns the predictions. Alternatively, the server serves the files of a folder that
``mnv4 export --to web`` has written; the model then runs in the browser. Requests cannot read other files. There are no
dependencies in addition to those of the model.
"""

import base64
import contextlib
import errno
import ipaddress
import json
import socket
import socketserver
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import cv2
import numpy as np

from mnv4_mm.demo.certificate import fingerprint, make_certificate
from mnv4_mm.errors import UserError
from mnv4_mm.images import image_size, read_image
from mnv4_mm.runtime.meta import read_meta
from mnv4_mm.runtime.results import ClassMap, Detections
from mnv4_mm.web import page

MAX_BYTES = 64 * 2**20  # of an uploaded file
MAX_PIXELS = 100_000_000  # of an image: 300 MB decoded
MAX_SHOWN = 1600  # largest side in pixels of the image that the page shows
TIMEOUT = 30  # seconds after which an upload that stops is dropped
IMAGE_TYPE = 'application/octet-stream'  # other sites cannot post it: browsers ask this server first, which refuses
TLS_HANDSHAKE = b'\x16'  # the first byte of a connection with HTTPS
TYPES = {
    '.html': 'text/html; charset=utf-8',
    '.js': 'text/javascript; charset=utf-8',
    '.mjs': 'text/javascript; charset=utf-8',
    '.json': 'application/json',
    '.wasm': 'application/wasm',
}
HEADERS = {
    # The page may not load anything from elsewhere, nor be embedded in another page.
    'Content-Security-Policy': f"{page.POLICY}; frame-ancestors 'none'",
    # Without these, browsers refuse to share memory between threads.
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}


class Model(Protocol):
    """A model as ``apis.load.load`` returns it."""

    @property
    def task(self) -> str:
        """``detection`` or ``segmentation``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of labels."""

    def __call__(self, image: np.ndarray) -> Detections | ClassMap:
        """Return the predictions for an image, (H, W, 3) uint8 BGR, in pixels of the image."""


class DemoServer(ThreadingHTTPServer):
    """Web server of the demo of one model. It processes one image at a time.

    Other devices reach the server by HTTPS with a self-signed certificate. The reason is that browsers allow the camera
    and ``SharedArrayBuffer``, which threads need, only on pages from HTTPS or from the same computer.

    Args:
        load: Function that returns either the model, or the files of a page that runs the model in the browser, by
            their paths in the page's folder (see ``web_files``). The function is called after the port has been bound,
            since loading takes seconds.
        name: Name of the model, for the title of the page.
        host: IP address or host name to listen on. An address with a colon is an IPv6 address.
        port: Port; 0 for any free one.
        https: Use HTTPS if other devices can reach the server.

    Raises:
        UserError: The host or port cannot be used, the certificate cannot be made, or the model cannot be loaded.
    """

    daemon_threads = True

    def __init__(
        self,
        load: Callable[[], Model | Mapping[str, Path]],
        name: str,
        host: str = '127.0.0.1',
        port: int = 8550,
        https: bool = True,
    ) -> None:
        self.name, self.host = name, host
        self.lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        self.files: Mapping[str, Path] = {}
        self.certificate: Path | None = None
        self.tls: ssl.SSLContext | None = None
        try:
            super().__init__((host, port), DemoHandler)
        except OSError as error:
            raise UserError(_reason(error, host, port)) from None
        try:
            if https and not self.is_local:
                self.certificate = make_certificate([public_host(host), socket.gethostname(), 'localhost', '127.0.0.1'])
                self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self.tls.load_cert_chain(self.certificate)
            loaded = load()
        except UserError:
            self.server_close()
            raise
        if isinstance(loaded, Mapping):
            self.files = loaded
        else:
            self.model = loaded

    @property
    def url(self) -> str:
        """URL of the page. If the server listens on all addresses, the URL has one that other devices can reach."""
        host = public_host(self.host)
        return f'http{"s" if self.tls else ""}://{f"[{host}]" if ":" in host else host}:{self.server_port}/'

    @property
    def is_local(self) -> bool:
        """True if only this computer can reach the server."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def server_bind(self) -> None:
        # Skips HTTPServer.server_bind, which looks up the host name and takes seconds if no name server answers.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the thread of the connection: a client that is slow in its handshake keeps no other one waiting.
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(TIMEOUT)
        if request.recv(1, socket.MSG_PEEK) not in (TLS_HANDSHAKE, b''):  # typed without https://
            answer = f'HTTP/1.1 308 Permanent Redirect\r\nLocation: {self.url}\r\nContent-Length: 0\r\n\r\n'
            request.sendall(answer.encode())
            return
        with self.tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser has closed or that have timed out; print other errors in one line.

        A browser ends the handshake, too, as long as its user has not accepted the certificate.
        """
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
            print(f'error: a request failed: {type(error).__name__}: {error}', file=sys.stderr)

    def predict(self, data: bytes, with_image: bool = True) -> dict[str, Any]:
        """Predict for an image file.

        Args:
            data: Content of the file.
            with_image: Also return the image.

        Returns:
            A dict that can be stored as JSON:

            - ``width``, ``height``: size of the image in pixels.
            - ``image``: the image, reduced to at most ``MAX_SHOWN`` pixels along each side, as the data URI of a JPEG;
              unless ``with_image`` is False.
            - ``ms``: milliseconds from the decoded image to the result.
            - For a detector, ``detections``: a list, best first, of dicts with ``label``, ``score``, and ``box`` (x1,
              y1, x2, y2) in pixels of the image.
            - For a segmenter, ``class_map`` of the size of the reduced image: a dict with ``width``, ``height``,
              ``labels`` (row by row, two bytes each, little-endian, in base64), ``palette`` (RGB of each class, 0 to
              255) and ``share`` (share of the pixels of each class, in [0, 1]).

        Raises:
            UserError: The file is not a readable image, or the image is too large.
        """
        pixels = _decode(data)
        with self.lock:
            start = time.perf_counter()
            result = self.model(pixels)
            milliseconds = (time.perf_counter() - start) * 1000
        height, width = pixels.shape[:2]
        factor = min(1.0, MAX_SHOWN / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        content: dict[str, Any] = dict(width=width, height=height, ms=milliseconds)
        if with_image:
            shown = pixels if factor == 1 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            content['image'] = _data_uri(shown)
        if isinstance(result, Detections):
            content['detections'] = [
                dict(label=label, score=score, box=box)
                for box, score, label in zip(
                    np.nan_to_num(result.boxes).tolist(), result.scores.tolist(), result.labels.tolist(), strict=True
                )
            ]
        else:
            labels = result.class_map
            if factor < 1:
                labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
            content['class_map'] = dict(
                width=size[0],
                height=size[1],
                # Little-endian, two bytes per pixel: there may be more than 256 classes.
                labels=base64.b64encode(labels.astype('<u2').tobytes()).decode(),
                palette=[list(map(int, colour)) for colour in result.colours],
                share=(np.bincount(labels.ravel(), minlength=len(result.classes)) / labels.size).tolist(),
            )
        return content

    def describe(self) -> dict[str, Any]:
        """Return the content of ``model.json`` for the page, see ``web.page.description``."""
        return page.description('server', self.name, self.model.task, self.model.classes, max_bytes=MAX_BYTES)


class DemoHandler(BaseHTTPRequestHandler):
    """Handler of the requests of the page."""

    server: DemoServer
    timeout = TIMEOUT
    server_version, sys_version = 'mnv4', ''

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        path = unquote(self.path.partition('?')[0]).removeprefix('/') or page.PAGE
        if file := self.server.files.get(path):
            self._send(HTTPStatus.OK, file.read_bytes(), TYPES.get(file.suffix, IMAGE_TYPE))
        elif path == page.PAGE and not self.server.files:
            self._send(HTTPStatus.OK, page.source(path), TYPES['.html'])
        elif path == page.DESCRIPTION and not self.server.files:
            self._send_json(HTTPStatus.OK, self.server.describe())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, 'there is no such page')

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        length = self.headers.get('Content-Length', '')
        path, _, query = self.path.partition('?')
        if path != '/predict' or self.server.files:
            self._refuse(HTTPStatus.NOT_FOUND, 'there is no such page')
        elif self.headers.get('Content-Type') != IMAGE_TYPE:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f'an image is sent as {IMAGE_TYPE}')
        elif not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, 'the request does not state its length')
        elif int(length) > MAX_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f'the file is larger than {MAX_BYTES // 2**20} MiB, the limit here'
            )
        else:
            try:
                # The page has the frames of a clip or the camera already.
                with_image = 'frame' not in parse_qs(query, keep_blank_values=True)
                self._send_json(HTTPStatus.OK, self.server.predict(self.rfile.read(int(length)), with_image))
            except UserError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            # The exceptions of the runtimes have no common base class, and the page shows errors.
            except Exception as error:
                text = ' '.join(str(error).split())[:200]
                self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f'the model failed: {type(error).__name__}: {text}')

    def _is_allowed(self) -> bool:
        """Return False, after refusing it, for a request to a local server under a foreign host name.

        This protects from DNS rebinding by other sites.
        """
        host = urlsplit(f'//{self.headers.get("Host", "")}').hostname
        if not self.server.is_local or host in ('localhost', '127.0.0.1', '::1', self.server.host):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f'this page is at {self.server.url}')
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # the rest of the request has not been read
        self._send_json(status, dict(error=reason))

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), 'application/json')

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, 'Content-Type': kind, 'Content-Length': str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Print nothing: the page shows errors."""


def serve(server: DemoServer, log: Callable[[str], None] = print) -> None:
    """Serve until Ctrl-C, and close the server."""
    log(f'{server.name}: {server.url} (Ctrl-C ends)')
    if not server.is_local:
        log('warning: everyone who can reach this computer can use the demo; --host 127.0.0.1 keeps others out')
    if server.certificate:
        log(
            'The browser will warn of the certificate, which this computer has made itself. SHA-256: '
            + fingerprint(server.certificate)
        )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        log('')  # ends the line with the terminal's ^C
    finally:
        server.server_close()


def web_files(path: Path) -> dict[str, Path]:
    """Return the files of a folder that ``mnv4 export --to web`` has written.

    Args:
        path: The folder.

    Returns:
        Path of each file by its path relative to the folder.

    Raises:
        UserError: The folder or its metadata is missing, damaged or was changed, or holds no page.
    """
    names = [Path(name) for name in read_meta(path).files]
    found = {
        name.relative_to(path.name).as_posix(): path.parent / name for name in names if name.is_relative_to(path.name)
    }
    if page.PAGE not in found:
        raise UserError(f'{path} holds no {page.PAGE}: it was not written by `mnv4 export --to web`')
    return found


def public_host(host: str) -> str:
    """Return an address at which other devices reach a server that listens on ``host``.

    If ``host`` stands for all addresses of this computer (empty, ``0.0.0.0`` or ``::``), this computer's address in the
    network of the default route is returned, or the loopback address if there is no route. Any other host is returned
    as it is.
    """
    if host not in ('', '0.0.0.0', '::'):  # noqa: S104 (compared, not bound)
        return host
    families = [(socket.AF_INET, '192.0.2.1')]  # addresses of no computer: nothing is sent
    if host == '::':  # reached by IPv4, too
        families.append((socket.AF_INET6, '2001:db8::1'))
    for family, elsewhere in families:
        with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    return '::1' if host == '::' else '127.0.0.1'


def _decode(data: bytes) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'image'
        path.write_bytes(data)
        try:
            width, height = image_size(path)
            if width * height > MAX_PIXELS:
                raise UserError(f'the image has {width}x{height} pixels; the limit here is {MAX_PIXELS}')
            return read_image(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), 'the file')) from None


def _data_uri(pixels: np.ndarray) -> str:
    data = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return f'data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}'


def _reason(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f'--host {host}: there is no such address'
    if error.errno == errno.EADDRINUSE:
        return f'--port {port} of {host} is taken: name another one, or 0 for any that is free'
    if error.errno == errno.EACCES:
        return f'--port {port} needs a permission that you lack; ports from 1024 on usually need none'
    if error.errno == errno.EADDRNOTAVAIL:
        return f'--host {host} is not an address of this computer'
    return f'--host {host} --port {port} cannot be used: {error.strerror}'
