"""A headless Chromium, driven by its DevTools protocol over two pipes: no package and no port are needed."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LOCAL = ("file:", "data:", "about:", "blob:")
FLAGS = (
  "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
  "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
  "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads file 3 and writes file 4. Both are copied to numbers above first, for they may be 4 and 3.
LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, file in zip((3, 4), high):
  os.dup2(file, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find():
  """Path of an installed Chromium or Chrome; None if there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
  """A tab of a browser that this starts.

  Attributes:
    requests: addresses that the tab has requested, but for those of this machine.
    errors: messages of the console and uncaught exceptions.
    dialogs: texts of alerts and the like.
    loaded: number of pages that have been loaded.
  """

  def __init__(self, profile, width=1200, height=900):
    self.requests, self.errors, self.dialogs, self.loaded = [], [], [], 0
    theirs_in, self._to = os.pipe()
    self._from, theirs_out = os.pipe()
    command = [find(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    self._process = subprocess.Popen(
      [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), *command],
      pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    self._numbers, self._buffer, self._session = itertools.count(1), b"", None
    target = self.until(self._tab)
    self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.send(f"{domain}.enable")
    self.size(width, height)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    os.close(self._to)  # on which Chromium ends
    try:
      self._process.wait(20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._from)

  def send(self, method, **params):
    """Calls a method of the protocol, and returns its result."""
    number = next(self._numbers)
    message = {"id": number, "method": method, "params": params}
    message |= {"sessionId": self._session} if self._session else {}
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._receive()
      if answer.get("id") == number:
        assert "error" not in answer, (method, answer)
        return answer["result"]

  def run(self, script):
    """Value of a JavaScript expression, or of its promise."""
    result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in result, result["exceptionDetails"]
    return result["result"].get("value")

  def wait(self, script, seconds=60):
    """Waits until a JavaScript expression is true."""
    self.until(lambda: self.run(script), seconds)

  def open(self, path):
    """Loads a file."""
    before = self.loaded
    self.send("Page.navigate", url=pathlib.Path(path).absolute().as_uri())
    self.until(lambda: self.run("1") and self.loaded > before)

  def size(self, width, height, scale=1):
    """Sets the size of the window, in CSS pixels, and the pixels of the screen to each."""
    self.send(
      "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600
    )

  def scheme(self, name):
    """Prefers "light" or "dark" colours."""
    self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

  def wheel(self, x, y, delta, control=False):
    """Turns the wheel at a place of the window."""
    self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    self.send(
      "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta, modifiers=2 if control else 0
    )

  def press(self, key):
    """Presses a key, such as "ArrowLeft" or " "."""
    code = {"ArrowLeft": 37, "ArrowRight": 39, " ": 32}[key]
    text = {"text": key} if key == " " else {}
    self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
    self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

  def screenshot(self, path, whole=False):
    """Saves a PNG file of the window, or of the whole page."""
    picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
    pathlib.Path(path).write_bytes(base64.b64decode(picture["data"]))

  def _tab(self):
    targets = self.send("Target.getTargets")["targetInfos"]
    return next((target["targetId"] for target in targets if target["type"] == "page"), None)

  def until(self, condition, seconds=60):
    """Waits until a function returns what is true, and returns that."""
    until = time.monotonic() + seconds
    while not (value := condition()):
      assert time.monotonic() < until, "the browser took too long"
      time.sleep(0.05)
    return value

  def _receive(self):
    while b"\0" not in self._buffer:
      part = os.read(self._from, 2**20)
      assert part, "the browser has ended"
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b"\0")
    answer = json.loads(message)
    self._note(answer.get("method"), answer.get("params", {}))
    return answer

  def _note(self, event, params):
    if event == "Network.requestWillBeSent" and not params["request"]["url"].startswith(LOCAL):
      self.requests.append(params["request"]["url"])
    elif event == "Runtime.exceptionThrown":
      self.errors.append(json.dumps(params["exceptionDetails"])[:1000])
    elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
      self.errors.append(json.dumps(params["args"])[:1000])
    elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
      self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
    elif event == "Page.loadEventFired":
      self.loaded += 1
    elif event == "Page.javascriptDialogOpening":
      self.dialogs.append(params["message"])
      with contextlib.suppress(AssertionError):
        self.send("Page.handleJavaScriptDialog", accept=True)
