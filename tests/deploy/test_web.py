"""``mnv4 export --to web`` in Chromium without a window: the page, its outputs, its AP, the camera, HTTPS."""

import base64
import http.server
import json
import shutil
import threading
from functools import partial

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, Browser

from mnv4_mm.cli import main
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.classes import set_classes_of, set_label_order
from mnv4_mm.config.data import with_data, with_data_roots
from mnv4_mm.demo.server import DemoServer, web_files
from mnv4_mm.deploy.artifacts import Artifact
from mnv4_mm.deploy.evaluator import PredictorEvaluator
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.measured import measured_files, read_measurements
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import read_meta, sidecar
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.runtime.results import Detections
from mnv4_mm.tasks import task_of
from mnv4_mm.web import onnxruntime_web, page
from mnv4_mm.weights.checkpoint import read_checkpoint

STORED = onnxruntime_web.cached_archive()  # in the user's cache: that of the tests is empty
STATUS = "get('status').textContent"
LOADED = f"{STATUS}.startsWith('Loaded') || get('status').classList.contains('bad')"
FLAGS = ('--ignore-certificate-errors', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')
chromium = pytest.mark.skipif(CHROMIUM is None, reason='Chromium is not installed (Debian: apt install chromium)')


@pytest.fixture(scope='module')
def package():
    """onnxruntime-web in the cache of the tests: from the user's cache, or fetched into it by npm."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnxruntime_web, 'cached_archive', lambda: STORED)
            onnxruntime_web.archive()
    except UserError as error:
        pytest.skip(str(error))
    path = onnxruntime_web.cached_archive()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.symlink_to(STORED)
    return path


@pytest.fixture(scope='module')
def blood(once, repository, package):
    """The folder of examples/bccd.pth."""
    images = str(repository / 'data/mini/bccd/JPEGImages')
    options = dict(calibration=images, log=lambda line: None)
    return (
        once(
            'web bccd',
            lambda out: export(str(repository / 'examples/bccd.pth'), ['web'], out_dir=str(out), **options),
        )
        / 'bccd_nms_fp32.web'
    )


@pytest.fixture(scope='module')
def scene(once, lraspp, package):
    """The folder of a segmenter."""
    options = dict(size=(128, 160), log=lambda line: None)
    folder = once('web lraspp', lambda out: export(str(lraspp), ['web'], out_dir=str(out), **options))
    return next(folder.glob('*.web'))


@pytest.fixture(scope='module')
def serve(tmp_path_factory):
    """Return a function that serves a folder as ``mnv4 demo --host 0.0.0.0`` does, and opens it in a browser."""
    ends = []

    def open_page(folder, **options):
        server = DemoServer(lambda: web_files(folder), folder.name, '0.0.0.0', 0)
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        browser = Browser(tmp_path_factory.mktemp('profile'), flags=FLAGS, **options)

        def end():
            browser.__exit__(None, None, None)
            server.shutdown()
            thread.join()
            server.server_close()

        ends.append(end)
        browser.close_server = lambda: (server.shutdown(), server.server_close())
        browser.open(server.url)
        browser.wait_for(LOADED)
        assert browser.evaluate(STATUS).startswith('Loaded')
        # With one thread from here on: other tests may run on the other cores, and threads wait for the slowest.
        assert browser.evaluate("get('backend').options.length > 1 || navigator.hardwareConcurrency === 1")
        browser.evaluate("get('backend').value = JSON.stringify({provider: 'wasm', threads: 1}), choose()")
        assert browser.evaluate(STATUS).startswith('Loaded')
        return browser

    yield open_page
    for end in ends:
        end()


@pytest.fixture(scope='module')
def cells(blood, serve):
    return serve(blood)


def ask(browser, data, kind='image/jpeg'):
    """Return the result of the page for an image file."""
    encoded = base64.b64encode(data).decode()
    script = f"new Blob([Uint8Array.from(atob('{encoded}'), c => c.charCodeAt(0))], {{type: '{kind}'}})"
    return browser.evaluate(
        f'backend.predict({script}).then(one => ({{...one, class_map: one.class_map && '
        '{...one.class_map, labels: Array.from(one.class_map.labels)}}))'
    )


def lossless(path):
    """The pixels that this package reads from an image, as PNG: decoders of JPEG differ."""
    return cv2.imencode('.png', read_image(path))[1].tobytes()


def complaints(browser):
    return [text for text in browser.complaints if 'No available adapters' not in text]  # of WebGPU


@chromium
def test_outputs_are_those_of_the_sample(cells, blood, repository):
    sample = json.loads(blood.with_name(f'{blood.name}.sample.json').read_text())
    pixels = cv2.imread(str(blood.with_name(f'{blood.name}.sample.png')))
    meta = read_meta(blood)
    expected = pixels if meta.input.channel_order == 'BGR' else pixels[..., ::-1]
    photo = lossless(repository / 'data/mini/coco/val2017' / sample['image'])
    given = cells.evaluate(f"""(async () => {{
        const {{prepare}} = await import('./prepare.js');
        const meta = await (await fetch(`${{model.name}}.json`)).json();
        const bytes = Uint8Array.from(atob('{base64.b64encode(photo).decode()}'), c => c.charCodeAt(0));
        const bitmap = await createImageBitmap(new Blob([bytes]), {{colorSpaceConversion: 'none'}});
        hold(bitmap, bitmap.width, bitmap.height);
        const rgba = frame.getContext('2d').getImageData(0, 0, frame.width, frame.height).data;
        const {{data, dims}} = prepare(rgba, frame.height, frame.width, meta);
        const {{outputs}} = await backend.call('run', {{data, dims}});
        return {{input: btoa(String.fromCharCode.apply(null, data.subarray(0, 60000)))
                 + ' ' + btoa(data.subarray(60000).reduce((text, byte) => text + String.fromCharCode(byte), '')),
                 dims, outputs}};
    }})()""")
    data = b''.join(map(base64.b64decode, given['input'].split()))
    assert given['dims'] == sample['input']['shape']
    np.testing.assert_array_equal(np.frombuffer(data, np.uint8).reshape(expected.shape), expected)
    assert given['outputs'].keys() == sample['outputs'].keys()
    for name, described in sample['outputs'].items():
        value = np.array(given['outputs'][name]['data']).reshape(given['outputs'][name]['dims'])
        assert list(value.shape) == described['shape']
        middle = value[tuple(side // 2 for side in value.shape[:-1])][:5]
        np.testing.assert_allclose(middle, described['middle'], rtol=0, atol=1e-3)
        assert value.mean() == pytest.approx(described['mean'], abs=1e-3)


@chromium
def test_ap_is_that_of_onnx_runtime(cells, blood, repository, capsys):
    """Over the test part of ``data/mini/bccd``, from the files: Chromium decodes the JPEGs itself."""
    checkpoint = read_checkpoint(repository / 'examples/bccd.pth')
    cfg = checkpoint_config(checkpoint)
    cfg = with_data_roots(with_data(cfg, task_of(cfg).find(str(repository / 'data/mini/bccd'))))
    set_label_order(cfg)
    set_classes_of(cfg, checkpoint)
    evaluator = PredictorEvaluator(cfg)
    paths = iter(evaluator.images())

    def predict(image):
        answer = ask(cells, next(paths).read_bytes())
        assert (answer['height'], answer['width']) == image.shape[:2]
        found = answer['detections']
        boxes, scores, labels = (np.array([one[key] for one in found]) for key in ('box', 'score', 'label'))
        return Detections(boxes.reshape(-1, 4).astype(np.float32), scores.astype(np.float32), labels.astype(np.int64))

    there, here = evaluator.score(predict), evaluator.score(load(blood, threads=1))
    with capsys.disabled():
        print(f'\nAP in Chromium {there:.4f}, in ONNX Runtime {here:.4f}, {len(evaluator.images())} images')
    assert len(evaluator.images()) == 87
    assert here > 0.5
    assert there == pytest.approx(here, abs=1e-3)
    assert complaints(cells) == []


@chromium
def test_a_measurement_is_a_row_of_compare(cells, blood, repository, tmp_path, capsys):
    cells.choose_file('#file', min((repository / 'data/mini/bccd/JPEGImages').glob('*.jpg')))
    cells.wait_for('result !== null')
    cells.evaluate("get('measure').click()")
    cells.wait_for(f"{STATUS}.startsWith('Measured') || get('status').classList.contains('bad')")
    (tmp_path / 'lines.jsonl').write_text(cells.evaluate("get('lines').value"))
    (found,) = read_measurements([str(tmp_path / 'lines.jsonl')])
    assert measured_files([found], [Artifact(blood, read_meta(blood))])[0].path == blood
    assert found.images == 50
    assert found.browser.startswith('Chromium ')
    with capsys.disabled():
        print(f'\n{found}: median {found.p50:.1f} ms, p95 {found.p95:.1f} ms, pixels to result {found.whole:.1f} ms')


@chromium
def test_camera_and_clip(cells, tmp_path):
    """Chromium's own camera shows a clock; the clip is grey at first and white later."""
    assert cells.evaluate('[isSecureContext, crossOriginIsolated]') == [True, True]
    cells.evaluate("get('camera').click()")
    cells.wait_for("times.length > 2 && get('status').textContent.startsWith('camera: 1280 \u00d7 720 pixels')")
    cells.evaluate("get('stop').click()")
    assert cells.evaluate("[stream, get('stop').hidden, get('camera').hidden]") == [None, True, False]
    writer = cv2.VideoWriter(str(tmp_path / 'clip.webm'), cv2.VideoWriter_fourcc(*'VP80'), 10, (160, 96))
    for value in (100, 250):
        for _ in range(10):
            writer.write(np.full((96, 160, 3), value, np.uint8))
    writer.release()
    cells.choose_file('#file', tmp_path / 'clip.webm')
    for bright in ('< 150', '> 200'):
        value = "frame.getContext('2d').getImageData(80, 48, 1, 1).data[0]"
        cells.wait_for(f"{STATUS}.startsWith('clip.webm: 160 \u00d7 96') && {value} {bright}")
    cells.evaluate("get('stop').click()")
    (tmp_path / 'broken.webm').write_bytes(b'no clip')
    cells.choose_file('#file', tmp_path / 'broken.webm')
    cells.wait_for("get('status').classList.contains('bad')")
    assert cells.evaluate(STATUS) == 'broken.webm: the file is not a clip that this browser plays'


@chromium
def test_without_the_network(cells, blood, repository):
    """The page and its worker ask for nothing once they are loaded; this test is the last of ``cells``."""
    # Chromium's emulation of a lost network applies to the page, not to its worker.
    cells.close_server()
    assert cells.evaluate("fetch('model.json').then(() => false, () => true)")
    photo = lossless(min((repository / 'data/mini/bccd/JPEGImages').glob('*.jpg')))
    assert len(ask(cells, photo, 'image/png')['detections']) > 5
    origins = "performance.getEntriesByType('resource').every(one => new URL(one.name).origin === location.origin)"
    assert cells.evaluate(origins)


@chromium
def test_a_segmenter_has_the_class_map_of_onnx_runtime(scene, serve, photos):
    browser = serve(scene, width=390, height=800)
    predictor = load(scene, threads=1)
    for photo in photos[:2]:
        answer, expected = ask(browser, lossless(photo), 'image/png'), predictor(photo).class_map
        assert (answer['class_map']['height'], answer['class_map']['width']) == expected.shape
        found = np.array(answer['class_map']['labels']).reshape(expected.shape)
        # Where two classes have nearly the same logit, the arithmetic of another CPU may prefer the other.
        assert (found != expected).mean() < 1e-3
        share = np.bincount(found.ravel(), minlength=len(predictor.classes)) / found.size
        np.testing.assert_allclose(answer['class_map']['share'], share, atol=1e-9)
    browser.choose_file('#file', photos[0])
    browser.wait_for("!get('canvas').hidden")
    assert browser.evaluate('document.documentElement.scrollWidth') == 390  # nothing is wider than a phone
    assert complaints(browser) == []


class Static(http.server.SimpleHTTPRequestHandler):
    """Any server of files: it sends no headers of its own."""

    def log_message(self, *_):
        """Print nothing."""


@chromium
def test_a_static_folder_runs_with_one_thread_and_the_described_file_only(blood, tmp_path):
    folder = shutil.copytree(blood, tmp_path / blood.name)
    with Browser(tmp_path / 'profile') as browser:
        browser.open((folder / page.PAGE).as_uri())
        browser.wait_for("get('status').classList.contains('bad')")
        assert 'only from a server' in browser.evaluate(STATUS)
        with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Static, directory=folder)) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
            thread.start()
            browser.open(f'http://127.0.0.1:{server.server_port}/')
            browser.wait_for(LOADED)
            assert browser.evaluate(STATUS).startswith('Loaded')
            assert browser.evaluate("[...get('backend').options].map(one => one.textContent)") == [
                'WASM SIMD, 1 thread'
            ]
            assert 'COOP and COEP' in browser.evaluate("get('hint').textContent")
            (file,) = folder.glob('*.onnx')
            file.write_bytes(file.read_bytes() + b'\0')  # of another export
            browser.evaluate('choose()')
            assert f'{file.name} is not the file that {file.name}.json describes' in browser.evaluate(STATUS)
            server.shutdown()
            thread.join()


def test_the_folder_is_complete_and_also_runs_here(blood, repository):
    names = {path.relative_to(blood).as_posix() for path in blood.rglob('*') if path.is_file()}
    file = 'bccd_nms_fp32.onnx'
    package = {f'onnxruntime-web/{name}' for name in onnxruntime_web.FILES}
    assert names == {file, f'{file}.json', page.DESCRIPTION, page.PAGE, *page.SCRIPTS, *package}
    assert set(web_files(blood)) == names
    assert read_meta(blood).source['onnxruntime-web'] == onnxruntime_web.VERSION
    # The ONNX file is one of its own, too.
    image = min((repository / 'data/mini/bccd/JPEGImages').glob('*.jpg'))
    np.testing.assert_array_equal(load(blood)(image).boxes, load(blood / file)(image).boxes)
    # The page's policy is also in the page, for servers that send none.
    assert f'content="{page.POLICY}"' in (blood / page.PAGE).read_text()


def test_a_changed_folder_is_refused(blood, tmp_path, capsys):
    folder = shutil.copytree(blood, tmp_path / blood.name)
    shutil.copy(sidecar(blood), sidecar(folder))
    (folder / page.PAGE).write_text('<script>alert(1)</script>')
    assert main(['demo', str(folder), '--no-browser']) == 2
    assert 'index.html is damaged or was changed' in capsys.readouterr().err
    sidecar(folder).unlink()
    assert main(['demo', str(folder), '--no-browser']) == 2
    assert main(['demo', str(blood), '--device', 'cpu']) == 2
    assert '--device cpu is for checkpoints' in capsys.readouterr().err


@pytest.mark.parametrize('path', ['../bccd_nms_fp32.web.json', '..%2fbccd_nms_fp32.web.json', '/etc/passwd', 'runner'])
def test_only_files_of_the_folder_are_served(blood, path):
    import urllib.error
    import urllib.request

    server = DemoServer(lambda: web_files(blood), blood.name, port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
        with pytest.raises(urllib.error.HTTPError, match='404'):
            urllib.request.urlopen(f'{server.url}{path}', timeout=10)
        with urllib.request.urlopen(f'{server.url}runner.js', timeout=10) as response:
            assert response.headers['Content-Type'].startswith('text/javascript')
            assert response.headers['Cross-Origin-Embedder-Policy'] == 'require-corp'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_prepare_is_that_of_the_runtime(blood, repository, tmp_path):
    """In Node, which is beside npm: sizes of images and settings of inputs that the browser tests do not have."""
    node = shutil.which('node')
    if node is None:
        pytest.skip('Node is not installed')
    import dataclasses
    import subprocess

    rng = np.random.default_rng(0)
    meta = read_meta(blood)
    cases, images, expected = [], [], []
    settings = [
        dict(mode='stretch', layout='NHWC', dtype='uint8', normalise=False, order='RGB'),
        dict(mode='letterbox', layout='NHWC', dtype='uint8', normalise=False, order='BGR'),
        dict(mode='letterbox', layout='NCHW', dtype='float32', normalise=True, order='RGB'),
        dict(mode='stretch', layout='NCHW', dtype='float32', normalise=True, order='BGR'),
    ]
    for i in range(60):
        setting = settings[i % len(settings)]
        height, width = (128, 192) if i < 4 else rng.integers(1, 150, 2).tolist()  # 128x192: half is exactly the input
        to = dataclasses.replace(
            meta.input, size=(64, 96), layout=setting['layout'], dtype=setting['dtype'],
            normalise=setting['normalise'], channel_order=setting['order'],
        )  # fmt: skip
        resize = dataclasses.replace(meta.resize, mode=setting['mode'], pad=(1, 20, 200))
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        batch, placement = prepare(image, to, resize)
        expected.append((batch, placement))
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGBA).tobytes())
        cases.append(
            dict(height=height, width=width, meta=dict(input=dataclasses.asdict(to), resize=dataclasses.asdict(resize)))
        )
    (tmp_path / 'prepare.mjs').write_bytes(page.source('prepare.js'))
    (tmp_path / 'cases.json').write_text(json.dumps(cases))
    (tmp_path / 'images').write_bytes(b''.join(images))
    (tmp_path / 'run.mjs').write_text("""
        import fs from 'node:fs';
        import {nearest, prepare} from './prepare.mjs';
        const images = fs.readFileSync('images'), out = [];
        let at = 0;
        const answers = JSON.parse(fs.readFileSync('cases.json')).map(({height, width, meta}) => {
            const {data, dims, place} = prepare(images.subarray(at, at += 4 * height * width), height, width, meta);
            out.push(Buffer.from(data.buffer));
            return {dims, place, nearest: [...nearest(height, 100)]};
        });
        fs.writeFileSync('out', Buffer.concat(out));
        console.log(JSON.stringify(answers));
    """)
    done = subprocess.run([node, 'run.mjs'], cwd=tmp_path, capture_output=True, text=True, check=True)
    data, at = (tmp_path / 'out').read_bytes(), 0
    for case, answer, (batch, placement) in zip(cases, json.loads(done.stdout), expected, strict=True):
        assert tuple(answer['dims']) == batch.shape
        assert tuple(answer['place']['placed']) == placement.placed
        found = np.frombuffer(data, batch.dtype, batch.size, at).reshape(batch.shape)
        at += batch.nbytes
        np.testing.assert_allclose(found, batch, rtol=1e-6)
        column = np.arange(case['height'], dtype=np.uint8)[:, None]
        rows = cv2.resize(column, (1, 100), interpolation=cv2.INTER_NEAREST_EXACT)[:, 0]
        assert answer['nearest'] == rows.tolist()
