"""Downloads from a local server are resumed, checked and unpacked atomically."""

import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from mnv4_mm.data import download
from mnv4_mm.data.download import Archive, download_dataset
from mnv4_mm.errors import UserError


def zip_of(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as file:
        for name, content in files.items():
            file.writestr(name.replace('__', '/'), content)
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serve ``content``; close the connection after ``cut`` bytes, and ignore Range unless ``ranges``."""

    content = b''
    cut: int | None = None
    ranges = True


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        start = int(self.headers['Range'][6:-1]) if self.headers['Range'] and self.server.ranges else 0
        self.server.starts.append(start)
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', len(body))
        self.end_headers()
        self.wfile.write(body if self.server.cut is None else body[: self.server.cut])

    def log_message(self, *_):
        """Keeps the test's output clean."""


@pytest.fixture(params=['md5', 'sha1'])
def server(monkeypatch, request):
    algorithm = request.param
    server = Server(('127.0.0.1', 0), Handler)
    server.starts = []
    server.content = zip_of(annotations__a='1' * 100_000, val2017__b='2')
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    archive = Archive(
        f'http://127.0.0.1:{server.server_port}/x.zip',
        len(server.content),
        f'{algorithm}:{hashlib.new(algorithm, server.content).hexdigest()}',
        'val2017',
    )
    monkeypatch.setitem(download.DATASETS, 'test', (archive,))
    monkeypatch.setattr(download, 'BLOCK', 4096)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_is_downloaded_once(server, tmp_path):
    download_dataset('test', tmp_path / 'd')
    assert (tmp_path / 'd/annotations/a').read_text() == '1' * 100_000
    assert sorted(p.name for p in (tmp_path / 'd').iterdir()) == ['annotations', 'val2017']
    download_dataset('test', tmp_path / 'd')
    assert server.starts == [0]


@pytest.mark.parametrize('ranges', [True, False])
def test_an_interrupted_download_is_resumed(server, tmp_path, ranges):
    server.cut, server.ranges = 40_000, ranges
    with pytest.raises(UserError, match='connection was interrupted'):
        download_dataset('test', tmp_path)
    server.cut = None
    download_dataset('test', tmp_path)
    assert (tmp_path / 'val2017/b').read_text() == '2'
    assert server.starts == [0, 40_000 if ranges else 0]


def test_a_file_with_a_wrong_checksum_is_deleted(server, tmp_path):
    server.content = bytes(len(server.content))
    with pytest.raises(UserError, match='wrong checksum'):
        download_dataset('test', tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_a_user_error(server, tmp_path, monkeypatch):
    archive = download.DATASETS['test'][0]._replace(url='http://127.0.0.1:9/x.zip')
    monkeypatch.setitem(download.DATASETS, 'test', (archive,))
    with pytest.raises(UserError, match='refused'):
        download_dataset('test', tmp_path)


def test_bad_arguments(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='coco2017'):
        download_dataset('coco2016')
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='not a folder'):
        download_dataset('coco2017', tmp_path / 'file')
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda _: __import__('collections').namedtuple('U', 'free')(1e9))
    with pytest.raises(UserError, match='41 GB are needed'):
        download_dataset('coco2017', tmp_path / 'd')
    with (tmp_path / 'd/train2017.zip.part').open('wb') as part:
        part.truncate(19_000_000_000)  # downloaded already, so not counted
    with pytest.raises(UserError, match='22 GB are needed'):
        download_dataset('coco2017', tmp_path / 'd')


def test_a_complete_or_too_long_part(server, tmp_path):
    (tmp_path / 'x.zip.part').write_bytes(server.content)  # interrupted between the last byte and the check
    download_dataset('test', tmp_path)
    assert (tmp_path / 'val2017/b').read_text() == '2'
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd/x.zip.part').write_bytes(bytes(len(server.content) + 1))
    with pytest.raises(UserError, match='wrong checksum and was deleted'):
        download_dataset('test', tmp_path / 'd')
    download_dataset('test', tmp_path / 'd')


def test_every_archive_has_a_checksum():
    sizes = {'md5': 32, 'sha1': 40}
    for archives in download.DATASETS.values():
        for archive in archives:
            algorithm, digest = archive.checksum.split(':')
            assert len(bytes.fromhex(digest)) * 2 == sizes[algorithm]
    assert download.DATASETS.keys() == download.ROOTS.keys()
