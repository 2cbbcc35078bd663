"""The demo over HTTP: predictions, and requests that it refuses."""

import base64
import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request

import cv2
import numpy as np
import pytest

from mnv4_mm.cli import main
from mnv4_mm.demo import certificate
from mnv4_mm.demo import server as demo
from mnv4_mm.demo.certificate import fingerprint, make_certificate
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.results import ClassMap, Detections

CLASSES = ('<b>cell</b>', 'two')


class Detector:
    """Detects one box in any image; fails for images of one row."""

    task, classes = 'detection', CLASSES

    def __call__(self, image):
        if len(image) == 1:
            raise RuntimeError('no\nrows')
        self.image = image
        return Detections(np.array([[1, 2, 3, 4]], np.float32), np.array([0.5], np.float32), np.array([1]), CLASSES)


class Segmenter:
    """Segments an image into a left and a right half."""

    task, classes = 'segmentation', CLASSES

    def __call__(self, image):
        labels = np.zeros(image.shape[:2], np.uint8)
        labels[:, image.shape[1] // 2 :] = 1
        return ClassMap(labels, CLASSES)


@pytest.fixture
def start():
    """Start a server of a model in a thread."""
    servers = []

    def run(model, **arguments):
        server = demo.DemoServer(lambda: model, 'best.onnx', port=0, **arguments)
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        servers.append((server, thread))
        return server

    yield run
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=10)
    given = {name.replace('_', '-'): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = response.headers['Content-Type'] == 'application/json'
    return response, json.loads(content) if is_json else content


def predict(server, data, **headers):
    return ask(server, 'POST', '/predict', data, **{'Content_Type': demo.IMAGE_TYPE, **headers})


def png(pixels):
    return cv2.imencode('.png', pixels)[1].tobytes()


def shown(answer):
    """Decode the image of an answer."""
    data = base64.b64decode(answer['image'].removeprefix('data:image/jpeg;base64,'))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_page_and_model(start):
    server = start(Detector())
    response, page = ask(server, 'GET', '/')
    assert response.status == 200
    assert b'<canvas' in page
    assert "default-src 'none'" in response.headers['Content-Security-Policy']
    response, model = ask(server, 'GET', '/model.json')
    assert (model['name'], model['task'], model['classes']) == ('best.onnx', 'detection', list(CLASSES))
    assert len(model['palette']) == 2


def test_a_detector_gets_the_pixels_of_the_file(start):
    model = Detector()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    response, answer = predict(start(model), png(pixels))
    assert response.status == 200
    assert (answer['width'], answer['height']) == (40, 30)
    assert answer['detections'] == [dict(label=1, score=0.5, box=[1, 2, 3, 4])]
    assert answer['ms'] >= 0
    np.testing.assert_array_equal(model.image, pixels)
    assert shown(answer).shape == (30, 40, 3)


def test_class_maps_are_sent_in_the_size_of_the_shown_image(start, monkeypatch):
    monkeypatch.setattr(demo, 'MAX_SHOWN', 20)
    _, answer = predict(start(Segmenter()), png(np.zeros((30, 40, 3), np.uint8)))
    assert (answer['width'], answer['height']) == (40, 30)
    class_map = answer['class_map']
    assert (class_map['width'], class_map['height']) == (20, 15)
    labels = np.frombuffer(base64.b64decode(class_map['labels']), '<u2').reshape(15, 20)
    assert (labels[:, :10] == 0).all()
    assert (labels[:, 10:] == 1).all()
    assert class_map['share'] == [0.5, 0.5]
    assert shown(answer).shape == (15, 20, 3)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'the file is empty'),
        (b'no image', 'the file is not a readable image'),
        (png(np.zeros((50, 50, 3), np.uint8))[:60], 'the file is not a readable image'),
    ],
)
def test_an_unreadable_image_is_one_line(start, data, message):
    response, answer = predict(start(Detector()), data)
    assert response.status == 400
    assert answer['error'].startswith(message)
    assert '/tmp' not in answer['error']
    assert '\n' not in answer['error']


def test_a_failing_model_is_one_line(start):
    server = start(Detector())
    response, answer = predict(server, png(np.zeros((1, 5, 3), np.uint8)))
    assert response.status == 500
    assert answer['error'] == 'the model failed: RuntimeError: no rows'
    assert predict(server, png(np.zeros((5, 5, 3), np.uint8)))[0].status == 200  # and the demo goes on


def test_limits(start, monkeypatch):
    server = start(Detector())
    monkeypatch.setattr(demo, 'MAX_PIXELS', 100)
    response, answer = predict(server, png(np.zeros((20, 20, 3), np.uint8)))
    assert (response.status, answer['error']) == (400, 'the image has 20x20 pixels; the limit here is 100')
    # The body of a request that is too large is not read.
    response, answer = predict(server, None, Content_Length=str(demo.MAX_BYTES + 1))
    assert response.status == 413
    assert answer['error'] == 'the file is larger than 64 MiB, the limit here'
    for length in ('-1', 'x', '1e3', '²'):
        assert predict(server, None, Content_Length=length.encode())[0].status == 411


@pytest.mark.parametrize('path', ['/../../etc/passwd', '/index.html/', '/predict', '//etc/passwd', '/%2e%2e/server.py'])
def test_no_path_reaches_a_file(start, path):
    response, answer = ask(start(Detector()), 'GET', path)
    assert (response.status, answer['error']) == (404, 'there is no such page')


def test_other_pages_cannot_use_it(start):
    server = start(Detector())
    # A form of another page can send neither this type nor JSON; a name that was made to point here has another host.
    for kind in ('text/plain', 'multipart/form-data', 'application/x-www-form-urlencoded'):
        assert predict(server, b'x', Content_Type=kind)[0].status == 415
    for host in ('evil.example', 'evil.example:80', 'localhost.evil.example', ''):
        response, answer = ask(server, 'GET', '/model.json', Host=host)
        assert (response.status, answer['error']) == (403, f'this page is at {server.url}')
    assert ask(server, 'GET', '/model.json', Host=f'localhost:{server.server_port}')[0].status == 200
    # Nothing allows other origins to read an answer.
    assert 'Access-Control-Allow-Origin' not in ask(server, 'OPTIONS', '/predict')[0].headers


def test_only_this_computer_unless_asked(start):
    assert start(Detector()).is_local
    server = start(Detector(), host='0.0.0.0', https=False)
    assert not server.is_local
    assert server.url == f'http://{demo.public_host("0.0.0.0")}:{server.server_port}/'
    assert ask(server, 'GET', '/model.json', Host='my-computer')[0].status == 200


def test_frames_are_answered_without_the_image(start):
    response, answer = ask(
        start(Detector()),
        'POST',
        '/predict?frame',
        png(np.zeros((9, 9, 3), np.uint8)),
        **{'Content-Type': demo.IMAGE_TYPE},
    )
    assert response.status == 200
    assert 'image' not in answer
    assert answer['detections']


@pytest.mark.skipif(shutil.which('openssl') is None, reason='the command openssl is not installed')
def test_other_devices_use_https(start, tmp_path, monkeypatch):
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path))
    server = start(Detector(), host='0.0.0.0')
    assert server.url.startswith('https://')
    # The certificate is for the printed address, and only its user can read the key.
    trusting = ssl.create_default_context(cafile=str(server.certificate))
    with urllib.request.urlopen(f'{server.url}model.json', timeout=10, context=trusting) as response:
        assert json.load(response)['name'] == 'best.onnx'
    assert server.certificate.stat().st_mode & 0o077 == 0
    assert re.fullmatch('(?:[0-9A-F]{2}:){31}[0-9A-F]{2}', fingerprint(server.certificate))
    # Typed without https:// and, meanwhile, a connection whose client says nothing.
    with socket.create_connection(('127.0.0.1', server.server_port)):
        response = ask(server, 'GET', '/')[0]
    assert (response.status, response.headers['Location']) == (308, server.url)
    # The next start uses the same certificate; another address, or one about to end, has a new one.
    content = server.certificate.read_bytes()
    names = [demo.public_host('0.0.0.0'), socket.gethostname(), 'localhost', '127.0.0.1']
    assert make_certificate(names).read_bytes() == content
    assert make_certificate([*names, '2001:db8::1']) != server.certificate
    monkeypatch.setattr(certificate, 'LEFT', 366 * 24 * 3600)
    assert make_certificate(names).read_bytes() != content


def test_no_openssl_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match='HTTPS needs the command openssl'):
        demo.DemoServer(Detector, '', '0.0.0.0', 0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason='this computer has no IPv6')
def test_an_ipv6_address_has_brackets(start):
    server = start(Detector(), host='::1')
    assert server.is_local
    assert server.url == f'http://[::1]:{server.server_port}/'
    server = start(Detector(), host='::', https=False)
    assert '[::]' not in server.url
    with urllib.request.urlopen(f'{server.url}model.json', timeout=10) as response:
        assert json.load(response)['name'] == 'best.onnx'


def test_hosts_and_ports_that_cannot_be_used(start):
    taken = start(Detector()).server_port
    for host, port, message in (
        ('127.0.0.1', taken, f'--port {taken} of 127.0.0.1 is taken: name another one, or 0 for any that is free'),
        ('no.such.host.invalid', 0, '--host no.such.host.invalid: there is no such address'),
        ('203.0.113.1', 0, '--host 203.0.113.1 is not an address of this computer'),
    ):
        with pytest.raises(UserError) as error:
            demo.DemoServer(Detector, '', host, port)
        assert str(error.value) == message


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.onnx'], 'no file gone.onnx'),
        (['gone.pth'], 'no checkpoint file at gone.pth'),
        (['gone.pth', '--port', '70000'], '--port must be in [0, 65535], got 70000'),
        (['gone.pth', '--port', 'x'], 'invalid int value'),
        (['gone.onnx', '--device', 'cpu'], "device='cpu' is for checkpoints"),
        ([], 'required: model'),
    ],
)
def test_mistakes(capsys, arguments, message):
    assert main(['demo', *arguments]) == 2
    assert message in capsys.readouterr().err


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from test_server import Detector
from mnv4_mm.demo.server import DemoServer, serve
serve(DemoServer(Detector, 'best.onnx', port=0), lambda line: print(line, flush=True))
"""


def test_ctrl_c_ends_it(tmp_path):
    folder = __file__.rpartition('/')[0]
    command = [sys.executable, '-W', 'ignore', '-c', SCRIPT, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[1]
        with urllib.request.urlopen(f'{url}model.json', timeout=10) as response:
            assert json.load(response)['name'] == 'best.onnx'
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, '')
