"""Looks at a page in Chromium, which CI and developers may have installed: its width, and what its console says."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = "chromium", "chromium-browser", "google-chrome"
# The frame has the width of a phone; a window of Chromium cannot be that narrow.
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const frame = document.createElement("iframe");
frame.style = "border: 0; width: WIDTHpx; height: 4000px";
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const drawn = [...page.querySelectorAll("svg")].filter(each => each.getBoundingClientRect().height > 50);
  const result = {
    width: root.clientWidth,
    needed: root.scrollWidth,
    pictures: drawn.length,
    paper: getComputedStyle(page.body).backgroundColor,
  };
  const shown = {id: "result", textContent: JSON.stringify(result)};
  document.body.append(Object.assign(document.createElement("pre"), shown));
};
frame.srcdoc = PAGE;
document.body.append(frame);
</script>"""


@dataclass(frozen=True)
class Look:
    """A page as a browser shows it: pixels across, pixels that it needs, pictures, background, console messages."""

    width: int
    needed: int
    pictures: int
    paper: str
    messages: list[str]


def browser() -> str | None:
    """Return the path of Chromium, None if it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def look(page: str, width: int, folder: Path, dark: bool = False) -> Look:
    """Return how Chromium shows a page `width` pixels wide. Files are made in `folder`."""
    harness = folder / "harness.html"
    shown = json.dumps(page).replace("</", "<\\/")
    harness.write_text(HARNESS.replace("WIDTH", str(width)).replace("PAGE", shown))
    command = [
        *(browser() or "", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
        *(
            "--enable-logging=stderr",
            "--window-size=1600,1200",
            "--virtual-time-budget=3000",
            "--dump-dom",
            harness.as_uri(),
        ),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    result = finished.stdout.partition('<pre id="result">')[2].partition("</pre>")[0]
    messages = [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    return Look(**json.loads(result), messages=messages)
