#!/usr/bin/env python3
"""make herd: runs the laboratory of day 5, shows its table as it comes, and keeps it for make figures."""

import argparse
import os
import re
import subprocess
import sys

import measuring
from harness import BUILD, ROOT

PROGRAM = BUILD / "day05" / "herd"
ROW = re.compile(r"(?P<way>[a-z-]+) +(?P<connections>\d+) +(?P<returned>\d+) +(?P<nothing>\d+) +(?P<woken>\d+)"
                 r" +(?P<each>[\d.]+) +(?P<bar>#*)(?: +(?P<cpu>\d+\.\d) +(?P<delay>\d+|-))? +(?P<got>.*)")


def number(text):
    return int(text) if text.isdigit() else float(text) if re.fullmatch(r"\d+\.\d+", text) else text


def parse(text):
    """The rows of a table, each as a dict by the names of the columns."""
    rows = filter(None, map(ROW.fullmatch, text.splitlines()))
    return [{**{name: number(value) for name, value in row.groupdict().items() if value}, "got": row["got"]}
            for row in rows]


def load(path):
    """What make herd has kept. A dict: command, machine, workers, delay (ms), ways (the rows)."""
    text = path.read_text()
    found = re.match(r"(?P<command>.*), on (?P<machine>.*)\n\nworkers: (?P<workers>\d+), delay: (?P<delay>\d+) ms", text)
    return {**found.groupdict(), "workers": int(found["workers"]), "delay": int(found["delay"]), "ways": parse(text)}


def keep(name, text):
    """In build/measured; a run of one way does not replace one of all ways."""
    folder = measuring.MEASURED if len(parse(text)) > 1 else measuring.MEASURED / "quick"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name + ".txt")
    path.write_text(text)
    print("\nThis table is in %s, too." % os.path.relpath(path, ROOT))


def run():
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("way", "workers", "connections", "delay"):
        parser.add_argument("--" + option)
    options = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    letters = {"way": "-m", "workers": "-w", "connections": "-c", "delay": "-d"}
    arguments = [part for name, value in options.items() for part in (letters[name], value)]
    command = " ".join(["make herd"] + ["%s=%s" % (name.upper(), value) for name, value in options.items()])
    text = "%s, on %s\n\n" % (command, measuring.machine())
    with subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, text=True,
                          preexec_fn=measuring.die_with_parent) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            text += line
    if process.returncode != 0:
        sys.exit(process.returncode)  # it has said why
    if parse(text):
        keep("herd-delay" if options.get("delay", "0") != "0" else "herd", text)


if __name__ == "__main__":
    measuring.main(run)
