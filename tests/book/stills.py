#!/usr/bin/env python3
"""Draws the still pictures of the explorables, explore/NAME.svg, which a reader without JavaScript sees: one frame
of each. Their code runs in node, or else in Chromium."""

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "explore"
NAMES = ["buffers", "select", "ready", "queue"]
SCRIPTS = [FOLDER / (name + ".js") for name in ["explore", *NAMES]]
PAGE = """<!DOCTYPE html><meta charset="utf-8"><link rel="stylesheet" href="%s"><style>%s</style>
<script>const errors = []; addEventListener("error", ({ message }) => errors.push(message));</script>
%s
<pre id="said"></pre>%s<script>
addEventListener("load", async () => { document.querySelector("#said").textContent = JSON.stringify(await %s); });
</script>"""
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]


def run(command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def page(expression="null", style=""):
    """A page with the four, which writes down the value of the expression, or what it promises."""
    figures = "\n".join('<figure class="explore" data-explore="%s"></figure>' % name for name in NAMES)
    scripts = "".join('<script src="%s"></script>' % path.as_uri() for path in SCRIPTS)
    return PAGE % ((FOLDER / "explore.css").as_uri(), style, figures, scripts, expression)


def in_chromium(expression):
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(page(expression))
        file.flush()
        document = run([*CHROMIUM, "--virtual-time-budget=100000", "--dump-dom", Path(file.name).as_uri()])
    return json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', document, re.S)[1]))


def evaluate(expression):
    """The value of a JavaScript expression, in which explore is defined. None if there is nothing to run it."""
    if shutil.which("node"):
        required = "".join("require(%s);" % json.dumps(str(path)) for path in SCRIPTS)
        return json.loads(run(["node", "-e", "%sconsole.log(JSON.stringify(%s))" % (required, expression)]))
    return in_chromium(expression) if shutil.which("chromium") else None


def draw():
    """{name: SVG}"""
    return evaluate("""Object.fromEntries(Object.values(explore.widgets).map((widget) => {
        const [chosen, n] = widget.still;
        return [widget.name, explore.svg(widget, widget.run(chosen)[n], chosen) + "\\n"];
    }))""")


def main():
    stills = draw()
    if stills is None:
        sys.exit("stills: node and chromium are missing (Debian: nodejs, or chromium)")
    for name, svg in stills.items():
        (FOLDER / (name + ".svg")).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
