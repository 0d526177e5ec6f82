"""A headless Chromium, driven over its DevTools pipe: what a page logs, asks for and looks like."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""None where there is none."""

_WITH_PIPES = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts the pipes where the browser looks for them."""


class Browser:
    """One page; messages are JSON with a NUL behind, on the descriptors 3 and 4 of the browser."""

    def __init__(self, to: int, come: int) -> None:
        self._to, self._come, self._rest, self._number = to, come, b"", 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        """What the page has told unasked."""

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self._number:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def open(self, page: Path) -> None:
        """Load a file and wait until it is there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def width(self, pixels: int) -> None:
        """Be as wide as this; below 600 pixels a phone."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=pixels < 600
        )

    def value(self, script: str) -> Any:
        """What the script comes to in the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A screenshot, of the whole page or of what is seen first."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions of scripts included."""
        methods = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in methods]

    def requests(self) -> list[str]:
        """The addresses that the page has asked for."""
        asked = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in asked]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            got = os.read(self._come, 1 << 20)
            assert got, "the browser has ended"
            self._rest += got
        one, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        return message


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of one's own, which ends with the block; it cannot resolve any name."""
    assert PROGRAM is not None
    to_read, to_write = os.pipe()
    come_read, come_write = os.pipe()
    flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        words = [PROGRAM, *flags.split(), f"--user-data-dir={home}", "--host-resolver-rules=MAP * ~NOTFOUND"]
        argv = [sys.executable, "-I", "-S", "-c", _WITH_PIPES, str(to_read), str(come_write), *words]
        process = subprocess.Popen(argv, pass_fds=(to_read, come_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(come_write)
        try:
            yield Browser(to_write, come_read)
        finally:
            process.kill()
            process.wait()
            os.close(to_write)
            os.close(come_read)
