#!/usr/bin/env python3
"""make test: runs the tests in several parts at the same time, since most tests wait most of the time, and says in
one line what came of all of them. Its arguments are pytest's."""

import re
import subprocess
import sys
import tempfile
import time

from harness import ROOT

PARTS = 4
RUN = ROOT / "tests" / "run"


def closing(text):
    """pytest's last line, or nothing."""
    return (re.findall(r"^=*\s?(?:no tests|\d+ \w+).* in [\d.]+s.*$", text, re.M) or [""])[-1]


def count(what, lines):
    return sum(int(number) for line in lines for number in re.findall(r"(\d+) %s" % what, line))


def main():
    if subprocess.run([RUN, "--version"], stdout=subprocess.DEVNULL, check=False).returncode != 0:
        sys.exit(1)  # it installs pytest, before several want to, or says why it cannot
    start, parts = time.monotonic(), []
    for number in range(1, PARTS + 1):
        log = tempfile.TemporaryFile("w+", encoding="utf-8")
        command = [RUN, "-q", "tests", *sys.argv[1:], "--part", "%d/%d" % (number, PARTS)]
        parts.append((log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)))
    status, lines = 0, []
    for log, process in parts:
        process.wait()
        log.seek(0)
        text = log.read()
        lines.append(closing(text))
        if process.returncode not in (0, 5):  # 5: no test in this part
            status = 1
            print(text)
    failed, skipped = count("failed", lines) + count("error", lines), count("skipped", lines)
    print("%d parts in %.0f s:" % (PARTS, time.monotonic() - start))
    print("%d passed, %d failed%s" % (count("passed", lines), failed, ", %d skipped" % skipped if skipped else ""))
    sys.exit(status or not count("passed", lines))


if __name__ == "__main__":
    main()
