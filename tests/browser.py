"""A page in headless Chromium, by its DevTools protocol over a pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome',
         'google-chrome-stable', 'chrome')
#: What it is started with: nothing of it is to call home.
FLAGS = ('--headless', '--disable-gpu', '--disable-dev-shm-usage',
         '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync',
         '--disable-extensions', '--hide-scrollbars',
         '--remote-debugging-pipe')


def needs_chromium():
    """Skip, by name, where there is none."""
    if sys.platform == 'win32' or not any(map(shutil.which, NAMES)):
        pytest.skip('no chromium is installed: apt-get install chromium')


class Browser:
    """One tab of a browser."""

    def __init__(self, process, into, out):
        self._process, self._into, self._out = process, into, out
        self._rest, self._count, self.events = b'', 0, []
        target = self('Target.createTarget', url='about:blank')['targetId']
        self._session = self('Target.attachToTarget', targetId=target,
                             flatten=True)['sessionId']
        for domain in ('Page', 'Network', 'Log', 'Runtime', 'Accessibility'):
            self(f'{domain}.enable')

    _session = None

    def __call__(self, method, **params):
        """Call a method of the protocol."""
        self._count += 1
        message = dict(id=self._count, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._into, json.dumps(message).encode() + b'\0')
        while True:
            found = self._read()
            if found.get('id') == self._count:
                assert 'error' not in found, found
                return found['result']
            self.events.append(found)

    def _read(self, seconds=60):
        end = time.monotonic() + seconds
        while b'\0' not in self._rest:
            ready, _, _ = select.select([self._out], [], [],
                                        end - time.monotonic())
            assert ready, 'the browser says nothing'
            self._rest += os.read(self._out, 1 << 20)
        text, _, self._rest = self._rest.partition(b'\0')
        return json.loads(text)

    def open(self, path, width, fragment='', height=800):
        """Open a file at a width."""
        self('Emulation.setDeviceMetricsOverride', width=width,
             height=height, deviceScaleFactor=1, mobile=width < 600)
        self('Page.navigate', url='about:blank')
        self.events.clear()
        url = path.as_uri() + fragment
        self('Page.navigate', url=url)
        end = time.monotonic() + 60
        while self.js('[location.href, document.readyState]') != [
                url, 'complete']:
            assert time.monotonic() < end, 'the page does not load'
            time.sleep(.05)

    def js(self, code):
        """What an expression gives."""
        found = self('Runtime.evaluate', expression=code, returnByValue=True,
                     awaitPromise=True)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def requests(self):
        """Addresses that were asked for, those in the page left out."""
        urls = [e['params']['request']['url'] for e in self.events
                if e.get('method') == 'Network.requestWillBeSent']
        return [url for url in urls if not url.startswith('data:')]

    def complaints(self):
        """What the browser logged, such as what its policy refused."""
        return [e['params'] for e in self.events if e.get('method') in (
            'Log.entryAdded', 'Runtime.exceptionThrown',
            'Runtime.consoleAPICalled', 'Page.javascriptDialogOpening')]

    def picture(self, path, whole=True):
        """A screenshot."""
        found = self('Page.captureScreenshot', captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found['data']))


@contextmanager
def browser(folder):
    """A browser with a profile of its own."""
    needs_chromium()
    (name, *_) = filter(None, map(shutil.which, NAMES))
    read, into = os.pipe()
    out, write = os.pipe()
    flags = [*FLAGS, f'--user-data-dir={folder}']
    if hasattr(os, 'geteuid') and os.geteuid() == 0:
        flags.append('--no-sandbox')
    process = subprocess.Popen(
        ['bash', '-c', f'exec "$0" "$@" 3<&{read} 4>&{write}', name, *flags],
        pass_fds=(read, write), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    os.close(read)
    os.close(write)
    try:
        yield Browser(process, into, out)
    finally:
        os.close(into)
        os.close(out)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
