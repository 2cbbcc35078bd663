"""Chromium without a window, controlled over the pipe of its DevTools protocol: needs no driver package."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
TIMEOUT = 30.0  # seconds


class Browser:
    """One page in a browser of its own.

    Args:
        profile: Empty folder for its profile.
        width: Width of the page in pixels.
        height: Height of the page in pixels.
        flags: Further flags of Chromium.

    Attributes:
        complaints: Errors and warnings of the page: exceptions, failed requests, violations of its policy.
    """

    def __init__(self, profile: Path, width: int = 1200, height: int = 900, flags: Sequence[str] = ()) -> None:
        assert CHROMIUM is not None
        to_browser, self._requests = os.pipe()
        self._answers, from_browser = os.pipe()
        command = [
            CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--remote-debugging-pipe',
            f'--window-size={width},{height}', f'--user-data-dir={profile}', *flags, 'about:blank',
        ]  # fmt: skip
        # The protocol has its pipe at the files 3 and 4 of the browser, which may be other files here.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]

        def place() -> None:
            for number, end in zip((3, 4), ends, strict=True):
                os.dup2(end, number)

        self._process = subprocess.Popen(
            command, preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in ends:
            os.close(end)
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._count, self._session = b'', 0, ''
        self.complaints: list[str] = []
        targets = self.send('Target.getTargets')['targetInfos']
        page = next(target['targetId'] for target in targets if target['type'] == 'page')
        self._session = self.send('Target.attachToTarget', targetId=page, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'DOM'):
            self.send(f'{domain}.enable')
        self.send(
            'Emulation.setDeviceMetricsOverride',
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def __enter__(self) -> 'Browser':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT)
        os.close(self._requests)
        os.close(self._answers)

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        self._count += 1
        message = dict(id=self._count, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._requests, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self._count:
                assert 'error' not in answer, answer['error']
                return answer['result']
            self._note(answer)

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self.send('Page.navigate', url=url)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.send('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result['exceptionDetails']
        return result['result'].get('value')

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + TIMEOUT
        while not self.evaluate(condition):
            assert time.monotonic() < end, f'{condition} is not true after {TIMEOUT} s'
            time.sleep(0.05)

    def choose_file(self, selector: str, file: Path) -> None:
        """Choose a file in an input of the page."""
        root = self.send('DOM.getDocument')['root']['nodeId']
        node = self.send('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.send('DOM.setFileInputFiles', nodeId=node, files=[str(file)])

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        data = self.send('Page.captureScreenshot', captureBeyondViewport=True)['data']
        path.write_bytes(base64.b64decode(data))

    def _receive(self) -> dict[str, Any]:
        while b'\0' not in self._buffer:
            block = os.read(self._answers, 1 << 16)
            assert block, 'the browser has ended'
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get('method') == 'Runtime.exceptionThrown':
            self.complaints.append(str(event['params']['exceptionDetails']))
        elif event.get('method') == 'Log.entryAdded' and event['params']['entry']['level'] in ('error', 'warning'):
            text = event['params']['entry']['text']
            if 'willReadFrequently' not in text:  # of tests that read pixels
                self.complaints.append(text)
