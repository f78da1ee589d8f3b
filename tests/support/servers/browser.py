"""A headless Chromium, driven over its debugging pipe: no driver and no further package needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
    *("--autoplay-policy=no-user-gesture-required", "--hide-scrollbars"),
)

KEY_NUMBERS = {
    **{"Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36},
    **{"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40},
}


def find_browser() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """One page. `evaluate` runs JavaScript in it.

    problems: exceptions, errors and violated policies. failed_requests: what the network did not bring.
    """

    def __init__(
        self,
        program: str,
        profile: Path,
        width: int = 1200,
        height: int = 900,
        options: Sequence[str] = (),
    ) -> None:
        self.problems: list[str] = []
        self.failed_requests: list[str] = []
        self._number = 0
        size = f"--window-size={width},{height}"
        options = [*OPTIONS, *options, f"--user-data-dir={profile}", size, "about:blank"]
        their_in, our_out = _pipe()
        our_in, their_out = _pipe()
        nowhere = os.open(os.devnull, os.O_RDWR)
        # Chromium reads commands from descriptor 3 and answers on 4.
        places = {0: nowhere, 1: nowhere, 2: nowhere, 3: their_in, 4: their_out}
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, place) for place, descriptor in places.items()]
        self._pid = os.posix_spawn(
            program, [program, *options], os.environ, file_actions=actions, setsid=True
        )
        for descriptor in (their_in, their_out, nowhere):
            os.close(descriptor)
        self._out, self._in = os.fdopen(our_out, "wb"), os.fdopen(our_in, "rb")
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        self._session: str | None = None
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser with all its processes."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._out.close()
        self._in.close()

    def open(self, address: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression as soon as it is true; an element counts as true."""
        deadline = time.monotonic() + seconds
        # While the page is still loading, much is not there.
        guarded = (
            f"(() => {{ try {{ const value = {expression}; return value instanceof Element || value }}"
            " catch { return null } })()"
        )
        while not (value := self.evaluate(guarded)):
            assert time.monotonic() < deadline, f"{expression} did not become true; {self._report()}"
            time.sleep(0.05)
        return value

    def _report(self) -> str:
        """What is known of a page that does not do what it should."""
        seen = self.evaluate(
            "`${location.href}\\n${document.readyState}\\n${document.body?.innerText.slice(0, 500)}`"
        )
        return f"{seen}\n{self.failed_requests[-5:]}\n{self.problems}"

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        """Choose files in a file input, as a user would."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)

    def set_viewport(self, width: int, height: int, *, dark: bool = False, still: bool = False) -> None:
        """Set the size of the window, and the colours and the rest from motion that the person prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}
        self._call("Emulation.setEmulatedMedia", features=[scheme, motion])

    def press(self, key: str) -> None:
        """Press and let go of a key, by its name (`Enter`, `ArrowDown`, `Tab`) or its letter."""
        text = {"Enter": "\r", "Tab": ""}.get(key, key if len(key) == 1 else "")
        number = KEY_NUMBERS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": number, "text": text}
        self._call("Input.dispatchKeyEvent", type="keyDown", **pressed)
        self._call("Input.dispatchKeyEvent", type="keyUp", **{**pressed, "text": ""})

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", **self._middle(selector))

    def drop_files(self, selector: str, paths: list[Path]) -> None:
        """Drag files from outside over an element and let them go."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._call("Input.dispatchDragEvent", type=kind, data=data, **self._middle(selector))

    def go_offline(self, offline: bool = True) -> None:
        """Cut the network off, or give it back."""
        limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._call("Network.enable")
        self._call("Network.emulateNetworkConditions", offline=offline, **limits)

    def accessible_nodes(self) -> list[tuple[str, str]]:
        """(role, name) of all that a screen reader finds on the page."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node.get("role", {}).get("value", ""), node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored")
        ]

    def _middle(self, selector: str) -> dict[str, float]:
        box = self.evaluate(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return {x: box.x + box.width / 2, y: box.y + box.height / 2} })()"
        )
        assert isinstance(box, dict)
        return box

    def screenshot(self, path: Path) -> None:
        """Write what is to be seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser ended"
            data += byte
        message: dict[str, Any] = json.loads(data)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(event["params"]["exceptionDetails"])[:500])
        if event.get("method") == "Runtime.consoleAPICalled" and event["params"]["type"] == "error":
            self.problems.append(json.dumps(event["params"]["args"])[:500])
        entry = event["params"]["entry"] if event.get("method") == "Log.entryAdded" else None
        if entry and entry["level"] == "error":
            is_request = entry["source"] == "network"
            message = f"{entry['text']} {entry.get('url', '')}".strip()
            (self.failed_requests if is_request else self.problems).append(message)


def _pipe() -> tuple[int, int]:
    """Ends of a pipe with numbers above those that the browser expects its own at."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
