"""A headless Chromium that types and clicks, spoken to over two pipes (Chrome DevTools Protocol, --remote-debugging-pipe)."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")


class Browser:
    """One page in a browser of its own: `with Browser(folder, url) as page`.

    Args:
        folder: For the browser's profile.
        url: What it opens.
        patience: Seconds until a wait ends with an AssertionError.
    """

    def __init__(self, folder: Path, url: str, *, patience: float = 60) -> None:
        self._folder, self._url, self._patience = folder, url, patience
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self._unread = b""

    def __enter__(self) -> Browser:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={self._folder}",
            "--window-size=1200,1400",
        ]
        # Chromium reads from file 3 and writes into file 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", CHROMIUM, *options, "--remote-debugging-pipe"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self._ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = {"sessionId": self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
            self._ask("Page.navigate", url=self._url)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._from)
        os.close(self._to)

    def says(self, javascript: str) -> Any:
        """Evaluate an expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=javascript, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, javascript: str) -> Any:
        """Evaluate an expression again and again until it is true; return what it is then."""
        end = time.monotonic() + self._patience
        while not (value := self.says(javascript)):
            assert time.monotonic() < end, f"The page never came to: {javascript}"
            time.sleep(0.1)
        return value

    def click(self, element: str) -> None:
        """Press and release the left button in the middle of an element, given in JavaScript."""
        middle = (
            f"(element => {{ element.scrollIntoView({{block: 'center'}}); const box = element.getBoundingClientRect();"
            f"return [box.x + box.width / 2, box.y + box.height / 2]; }})({element})"
        )
        place, before = self.says(middle), None
        while place != before:  # plots and fonts that arrive late move what is below them
            time.sleep(0.2)
            place, before = self.says(middle), place
        x, y = place
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Put text where the cursor is, in place of what is selected."""
        self._ask("Input.insertText", text=text)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": parameters} | self._session
        os.write(self._to, json.dumps(request).encode() + b"\0")
        while (answer := json.loads(self._message())).get("id") != number:
            pass  # an event that nobody asked for
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self) -> bytes:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], self._patience)
            assert ready, "Chromium does not answer."
            part = os.read(self._from, 2**16)
            assert part, "Chromium is gone."
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return message
