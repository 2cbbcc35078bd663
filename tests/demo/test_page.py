"""The page of the demo in Chromium without a window."""

import threading

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, Browser

from mnv4_mm.demo.server import DemoServer
from mnv4_mm.runtime.results import ClassMap, Detections

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='Chromium is not installed (Debian: apt install chromium)')
CLASSES = ('<img src=x onerror=alert(1)>', '$$ "quoted"')
ROWS = "[...document.querySelectorAll('#classes label')].map(row => row.lastChild.textContent)"


class Detector:
    task, classes = 'detection', CLASSES

    def __call__(self, image):
        boxes = np.array([[10, 10, 60, 60], [30, 30, 90, 90], [0, 0, 20, 20]], np.float32)
        return Detections(boxes, np.array([0.9, 0.5, 0.2], np.float32), np.array([0, 1, 1]), CLASSES)


class Segmenter:
    task, classes = 'segmentation', CLASSES

    def __call__(self, image):
        labels = np.zeros(image.shape[:2], np.uint8)
        labels[:, image.shape[1] // 4 :] = 1
        return ClassMap(labels, CLASSES, palette=[(255, 0, 0), (0, 0, 255)])


@pytest.fixture
def page(request, tmp_path):
    """A browser with the page of a model, at the width of a phone, and an image that has been chosen."""
    server = DemoServer(request.param, 'best.onnx', port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
        flags = ('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')
        with Browser(tmp_path / 'profile', width=390, height=800, flags=flags) as browser:
            browser.open(server.url)
            browser.wait_for(f'{ROWS}.length === 2')
            choose(browser, tmp_path / 'grey.png', np.full((100, 100, 3), 128, np.uint8))
            yield browser
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def choose(browser, path, pixels):
    cv2.imwrite(str(path), pixels)
    browser.choose_file('#file', path)
    browser.wait_for(f"get('status').textContent.startsWith('{path.name}: ')")


def slide(browser, value):
    browser.evaluate(f"slider.value = {value}, slider.dispatchEvent(new Event('input')), 0")


def pixel(browser, x, y):
    """Colour of the canvas at a share of its width and height."""
    script = f"canvas.getContext('2d').getImageData({x} * canvas.width, {y} * canvas.height, 1, 1).data"
    return browser.evaluate(f'[...{script}]')[:3]


@pytest.mark.parametrize('page', [Detector], indirect=True)
def test_detector(page, tmp_path):
    assert page.evaluate("get('status').textContent").startswith('grey.png: 100 \u00d7 100 pixels, ')
    assert page.evaluate(ROWS) == ['1', '1']
    assert page.evaluate("[...document.querySelectorAll('#classes span')].map(one => one.textContent)") == list(CLASSES)
    assert page.evaluate("document.querySelectorAll('#classes img').length") == 0
    slide(page, 0.1)
    assert page.evaluate(ROWS) == ['1', '2']
    slide(page, 0.6)
    assert page.evaluate(ROWS) == ['1', '0']
    edge = pixel(page, 0.6, 0.4)  # the right edge of the first box
    assert edge == page.evaluate('model.palette[0]')
    page.evaluate("document.querySelector('#classes input').click()")
    assert pixel(page, 0.6, 0.4) == [128, 128, 128]
    # Nothing is wider than the screen of a phone.
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    assert page.complaints == []
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff')
    page.choose_file('#file', tmp_path / 'broken.jpg')
    page.wait_for("get('status').classList.contains('bad')")
    assert page.evaluate("get('status').textContent").startswith('broken.jpg: the file is not a readable image')
    choose(page, tmp_path / 'again.png', np.zeros((50, 80, 3), np.uint8))
    assert not page.evaluate("get('status').classList.contains('bad')")
    assert page.evaluate('canvas.width / canvas.height') == pytest.approx(1.6)
    page.evaluate("get('camera').click()")  # Chromium's own, a clock
    page.wait_for("get('status').textContent.startsWith('camera: 1280 \u00d7 720 pixels') && times.length > 2")
    page.evaluate("get('stop').click()")
    assert page.evaluate('[result.detections.length, frame.width, frame.height]') == [3, 1280, 720]
    assert page.evaluate("get('measuring').hidden")  # `mnv4 compare` measures this computer


@pytest.mark.parametrize('page', [Segmenter], indirect=True)
def test_segmenter(page):
    assert page.evaluate(ROWS) == ['25.0 %', '75.0 %']
    slide(page, 1)
    assert [pixel(page, x, 0.5) for x in (0.1, 0.24, 0.26, 0.9)] == [[255, 0, 0]] * 2 + [[0, 0, 255]] * 2
    slide(page, 0)
    assert pixel(page, 0.1, 0.5) == [128, 128, 128]
    slide(page, 1)
    page.evaluate("get('none').click()")
    assert pixel(page, 0.9, 0.5) == [128, 128, 128]
    assert page.complaints == []
