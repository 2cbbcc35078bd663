"""Lines of measurements in browsers, read as what they are: text from anywhere."""

import json
from pathlib import Path

import pytest

from mnv4_mm.deploy import measured
from mnv4_mm.deploy.artifacts import Artifact
from mnv4_mm.deploy.measured import measured_files, read_measurements
from mnv4_mm.deploy.table import markdown
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Meta, Resize, Selection

SHA = 'a' * 64
LINE = dict(
    format=1, file='net.onnx', sha256=SHA, device='Pixel 9 Android 16, 8 cores', browser='Chrome 150.0.1',
    backend='wasm', threads=4, images=50, p50=20.25, p95=31, whole=24.5,
)  # fmt: skip


@pytest.fixture
def artifacts():
    def artifact(path, target, files):
        to = Input((64, 64), 'NHWC', 'uint8', 'RGB', False, (0.0,) * 3, (1.0,) * 3)
        selection = Selection(0.1, 0.5, 10, 0.0, 100)
        return Artifact(
            Path(path),
            Meta(
                'detection', 'nms', target, 'fp32', ('cat',), to, Resize('stretch', (0, 0, 0)), selection, files=files
            ),
        )

    return [
        artifact('net.onnx', 'onnx', {'net.onnx': SHA}),
        artifact('net.web', 'web', {'net.web/net.onnx': SHA, 'net.web/index.html': 'b' * 64}),
    ]


@pytest.fixture
def read(artifacts, tmp_path):
    def read(content):
        path = tmp_path / 'lines.jsonl'
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = read_measurements([str(path)])
        return list(zip(measured_files(found, artifacts), found, strict=True))

    return read


def test_a_line_is_of_the_file_with_its_checksum(read):
    webgpu = LINE | dict(backend='webgpu', threads=1)
    (artifact, first), (_, second) = read(f'{json.dumps(LINE)}\r\n\n{json.dumps(webgpu)}\n')
    assert artifact.path.name == 'net.web'
    assert (first.p50, first.p95, first.whole, first.images) == (20.25, 31, 24.5, 50)
    assert str(first) == 'Chrome 150.0.1, WASM, 4 threads, on Pixel 9 Android 16, 8 cores'
    assert str(second) == 'Chrome 150.0.1, WebGPU, on Pixel 9 Android 16, 8 cores'


def test_rows_are_in_the_column_of_their_threads(read):
    from mnv4_mm.deploy.compare import _measured_row

    single = LINE | dict(threads=1, device='a | b')
    rows = [_measured_row(*one) for one in read(f'{json.dumps(LINE)}\n{json.dumps(single)}')]
    cells = [line.replace('\\|', '').split('|') for line in list(markdown(rows, 'AP'))[2:]]
    assert [[cell.strip() for cell in row[6:9]] for row in cells] == [
        ['', '20.2, 31.0', '24.5'],
        ['20.2, 31.0', '', '24.5'],
    ]
    assert all(row.passes for row in rows)


def without(name):
    return {key: value for key, value in LINE.items() if key != name}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'empty; it takes the lines'),
        (b'\xff\xfe{', 'not text in UTF-8'),
        ('{', 'line 1: not JSON'),
        ('[' * 100_000, 'line 1: not JSON'),
        ('[1]', 'line 1: not a line that the page has shown'),
        ('{}', 'line 1: not a line that the page has shown'),
        (LINE | dict(format=2), 'line 1: written by a page of another version'),
        (LINE | dict(format=True), 'not a line that the page has shown'),
        (without('p95'), 'line 1: p95 is missing'),
        (LINE | {'x\ny': 1}, 'line 1: x y is unknown'),
        ('{"format": 1, "format": 1}', 'line 1: not JSON: a key occurs twice'),
        (LINE | dict(p50=float('nan')), 'line 1: not JSON: NaN is not a JSON number'),
        (LINE | dict(p50=-1), 'line 1: p50 is -1, not a number'),
        (json.dumps(LINE).replace('20.25', '1e999'), 'line 1: p50 is inf'),
        (json.dumps(LINE).replace('20.25', '1' * 5000), 'line 1: not JSON'),
        (json.dumps(LINE).replace('20.25', '1' * 400), 'line 1: p50 is 1111'),
        (LINE | dict(p50=True), 'line 1: p50 is True'),
        (LINE | dict(p50='20'), "line 1: p50 is '20'"),
        (LINE | dict(p50=40), 'line 1: p50 is above p95 or whole'),
        (LINE | dict(threads=1.5), 'line 1: threads is 1.5'),
        (LINE | dict(threads=0), 'line 1: threads is 0'),
        (LINE | dict(images=10**9), 'line 1: images is 1000000000'),
        (LINE | dict(device='a\n| b |'), r'line 1: device is .*, not 1 to 200 printable characters'),
        (LINE | dict(device='\x1b[2J'), 'line 1: device is '),
        (LINE | dict(device='\u202egnp'), 'line 1: device is '),
        (LINE | dict(device=' '), 'line 1: device is '),
        (LINE | dict(browser='x' * 201), 'line 1: browser is '),
        (LINE | dict(browser=['x']), 'line 1: browser is '),
        (LINE | dict(backend='gpu'), "line 1: backend is 'gpu'; there are wasm, webgpu"),
        (LINE | dict(backend=['wasm']), 'line 1: backend is'),
        (LINE | dict(sha256='c' * 64), 'line 1: no compared file is the measured net.onnx'),
        (LINE | dict(sha256='b' * 64), 'line 1: no compared file is the measured net.onnx'),
        (LINE | dict(sha256=['a']), 'line 1: sha256 is '),
        (LINE | dict(file='other.onnx'), 'line 1: no compared file is the measured other.onnx'),
        (f'{json.dumps(LINE)}\n\nx', 'line 3: not JSON'),
    ],
)  # fmt: skip
def test_other_lines_are_refused_in_one_line(read, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(json.dumps(content) if isinstance(content, dict) else content)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_limits_of_files(read, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, 'MAX_LINES', 1)
    with pytest.raises(UserError, match='2 lines; at most 1 are read'):
        read(f'{json.dumps(LINE)}\n' * 2)
    monkeypatch.setattr(measured, 'MAX_BYTES', 100)
    with pytest.raises(UserError, match='larger than'):
        read(json.dumps(LINE))
    for gone in (tmp_path, tmp_path / 'gone.jsonl'):
        with pytest.raises(UserError, match='no such file'):
            read_measurements([str(gone)])
