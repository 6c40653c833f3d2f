#!/usr/bin/env python3
"""Builds the server as it stands after any step of NOTES.md.

    steps.py                    list the days and their steps
    steps.py DAY STEP FOLDER    write the files of that step to FOLDER
    steps.py check              does the last step of each day equal what lies in its folder?

The rules, which are also those for typing along. A day is a heading `## Day N`, a step in it
`### Step N: …`. A day begins with the files of the day before. In a step, a line that names a file and
ends with a colon says where the block of code below it goes:

    `server.c`:                     ```c     this is the whole file
    `server.c`, after `NAME`:       ```c     new lines, after the function (or struct, …) of that name
    `server.c`, before `NAME`:      ```c     the same, before it
    `server.c`, instead of `NAME`:  ```c     the new function, whole
    `server.c`, in `NAME`:          ```diff  lines with - go, lines with + come, the others are there
    `server.c`:                     ```diff  the same, anywhere in the file

A sentence that begins a line does the rest, for one name or several:

    In `server.c`, `NAME` and `NAME` go away.
    In `server.c`, `NAME`, `NAME` and `NAME` go to `main.c`.
    In `server.c`, `NAME` is now called `OTHER`.                 wherever it stands in the code
    In `server.c`, `NAME` and `NAME` are no longer static.
    In `server.c`, `NAME` and `NAME` get a first parameter, `struct server *s`.     and so do their calls

A function goes with the comment above it, and a blank line stands between two of them. common/die.c is
named with its folder; all other files lie in the folder of the day.
"""

import difflib
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NOTES = ROOT / "NOTES.md"

PLACE = re.compile(r"`([\w/]+\.[ch])`(?:, (after|before|instead of|in) `([^`]+)`)?:$")
SENTENCES = {kind: re.compile(r"In `([\w/]+\.[ch])`, (`.*`) " + text) for kind, text in {
    "away": r"goe?s? away\.$",
    "to": r"goe?s? to `(.*)`\.$",
    "called": r"(?:is|are) now called `(.*)`\.$",
    "not static": r"(?:is|are) no longer static\.$",
    "parameter": r"gets? a first parameter, `(.*)`.*\.$",
}.items()}


ALONE = ["client.c", "bzero_pitfall.c", "two_servers.c"]  # programs besides the server, which the next day leaves out


class Wrong(Exception):
    """What is wrong, and in which line of the notes."""


# ---- The notes

class Change:
    """One thing that a step does to a file."""

    def __init__(self, line, kind, file, how, name, text=()):
        self.line, self.kind, self.file, self.how, self.name = line, kind, file, how, name
        self.text = list(text)  # the lines of the block


class Step:
    def __init__(self, day, number, title, line):
        self.day, self.number, self.title, self.line = day, number, title, line
        self.changes = []
        self.promises = []  # the tests that pass from here on, and did not before
        self.files = None  # as they are after it, once build has made them


def read(path=NOTES):
    """{day: [Step, …]}"""
    days, step, place, block = {}, None, None, None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if block is not None:
            if line == "```":
                block = None
            else:
                block.text.append(line)
            continue
        if heading := re.match(r"## Day (\d)\b", line):
            days["day%02d" % int(heading[1])], step = [], None
        elif re.match(r"#{1,3} ", line):
            step = None
            if heading := re.match(r"### Step (\d+): (.*)", line):
                day = list(days)[-1]
                step = Step(day, int(heading[1]), heading[2], number)
                if step.number != len(days[day]) + 1:
                    raise Wrong("%d: this is step %d of %s" % (number, len(days[day]) + 1, day))
                days[day].append(step)
        elif fence := re.match(r"```(c|diff|console|)$", line):
            block = Change(number, fence[1], "", None, None)
            if place and step:
                block.file, block.how, block.name = place.groups()
                step.changes.append(block)
        elif step and line.startswith("New: "):
            step.promises += re.findall("`(test_[^`]+)`", line)
        elif step:
            for kind, sentence_of in SENTENCES.items():
                if said := sentence_of.match(line):
                    file, names, *other = said.groups()
                    step.changes.append(Change(number, kind, file, "sentence", re.findall("`([^`]+)`", names), other))
        if line.strip():
            place = PLACE.search(line)
    return days


# ---- A file in pieces

STRING = re.compile(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'')


def pieces(text):
    """The definitions of a C file, each with the comment above it: what blank lines separate, except
    within braces and comments."""
    found, piece, depth, comment = [], [], 0, False
    for line in text.split("\n"):
        if not line and depth == 0 and not comment:
            if piece:
                found.append("\n".join(piece))
            piece = []
            continue
        piece.append(line)
        for token in re.findall(r"/\*|\*/|[{}]", STRING.sub("", line)):
            if token == "/*":
                comment = True
            elif token == "*/":
                comment = False
            elif not comment:
                depth += 1 if token == "{" else -1
    if piece:
        found.append("\n".join(piece))
    return found


DEFINITIONS = [
    r"^\w.*\b%s\([^;]*$",  # a function,
    r"^(?:static )?(?:const )?(?:(?:struct|enum) )?%s \{",
    r"^\w[^()=\n]*\b%s(?:\[[^]]*\])*(?: =.*|,.*)?[;{]",  # a variable,
    r"^enum \{.*\b%s\b",
    r"^\w.*\b%s\(.*;",  # the prototype of a function,
    r'^#\w+ [<"]?%s\b',
    r"^/\* -+ %s -+ \*/$",  # a heading
]


def find(parts, name, where):
    """The index of the piece that defines name."""
    code = {i: re.sub(r"(?<=\S) */\*.*?\*/", "", piece, flags=re.S) for i, piece in enumerate(parts) if name in piece}
    for definition in DEFINITIONS:
        found = [i for i, piece in code.items() if re.search(definition % re.escape(name), piece, re.M)]
        if len(found) == 1:
            return found[0]
        if found:
            raise Wrong("%s: there are several `%s`" % (where, name))
    raise Wrong("%s: there is no `%s`" % (where, name))


# ---- Doing what a step says

def patch(text, change, where):
    """Applies a ```diff block. Lines of ... stand for any lines between."""
    for first, hunk in hunks(change):
        old = [line[1:] for line in hunk if line[:1] in (" ", "-", "")]
        new = [line[1:] for line in hunk if line[:1] in (" ", "+", "")]
        lines = text.split("\n")
        at = [i for i in range(len(lines) - len(old) + 1) if lines[i:i + len(old)] == old]
        if len(at) != 1:
            raise Wrong(explain(lines, old, where, first, len(at)))
        lines[at[0]:at[0] + len(old)] = new
        text = "\n".join(lines)
    return text


def hunks(change):
    """The block in parts, at each line of ... : (the number of its first line, its lines)"""
    part, first = [], change.line + 1
    for number, line in enumerate([*change.text, "..."], change.line + 1):
        if line.strip() == "...":
            if part:
                yield first, part
            part, first = [], number + 1
        elif line[:1] not in (" ", "-", "+", ""):
            raise Wrong("%d: a line of a diff begins with a blank, - or +" % number)
        else:
            part.append(line)


def explain(lines, old, where, first, count):
    """Which line of the block is the first that the file does not have, and what stands there instead."""
    if count > 1:
        return "%d: %s has these lines %d times" % (first, where, count)
    best, there = 0, (difflib.get_close_matches(old[0], lines, 1, 0) or [""])[0]
    for i in range(len(lines)):
        fits = 0
        while fits < len(old) and i + fits < len(lines) and lines[i + fits] == old[fits]:
            fits += 1
        if fits > best:
            best, there = fits, lines[i + fits] if i + fits < len(lines) else "(its end)"
    return "%d: %s has no line\n%s\nbut\n%s" % (first + best, where, old[best], there)


def in_code(text, name, new):
    """Replaces a name wherever it stands in the code: not in comments and strings, nor after a . or ->."""
    tokens = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\])*"|(?<![\w.])(?<!->)%s\b' % re.escape(name), re.S)
    return tokens.sub(lambda token: new if token[0] == name else token[0], text)


def sentence(files, change, where):
    """Does what a sentence says about some names."""
    parts, other = pieces(files[change.file].rstrip("\n")), "".join(change.text)
    for name in change.name:
        if change.kind == "called":
            old, parts = parts, [piece if re.search(r"^struct \w+ \{", piece, re.M) else in_code(piece, name, other)
                                 for piece in parts]
            if old == parts:
                raise Wrong("%s: there is no `%s`" % (where, name))
            continue
        here = find(parts, name, where)
        if change.kind == "away":
            del parts[here]
        elif change.kind == "to":
            moved = pieces(files.get(other, "").rstrip("\n")) + [parts.pop(here)]
            files[other] = "\n\n".join(moved) + "\n"
        elif change.kind == "not static":
            parts[here] = re.sub(r"^static ", "", parts[here], flags=re.M)
        else:
            parts = [give_parameter(piece, name, other) for piece in parts]
    files[change.file] = "\n\n".join(parts) + "\n"


def give_parameter(piece, name, parameter):
    """A first parameter to a function, where it is defined and where it is called."""
    lines = piece.split("\n")
    for i, line in enumerate(lines):
        if not line.startswith((" *", "/*")):
            new = parameter if re.match(r"\w", line) else re.search(r"\w+$", parameter)[0]
            line = re.sub(r"(?<!\w)%s\((?:void)?\)" % name, "%s(%s)" % (name, new), line)
            lines[i] = re.sub(r"(?<!\w)%s\((?!%s\))" % (name, re.escape(new)), "%s(%s, " % (name, new), line)
    return "\n".join(lines)


def apply(files, change):
    """Does one change to {name: text}."""
    where = "%d: %s" % (change.line, change.file)
    if change.how is None and change.kind == "c":
        files[change.file] = "\n".join(change.text) + "\n"
        return
    if change.file not in files:
        raise Wrong("%s: there is no such file yet" % where)
    if change.how == "sentence":
        sentence(files, change, where)
        return
    text = files[change.file].rstrip("\n")
    if change.how is None:
        files[change.file] = patch(text, change, change.file) + "\n"
        return
    parts = pieces(text)
    here = find(parts, change.name, where)
    new = "\n".join(change.text)
    if change.kind == "diff":
        parts[here] = patch(parts[here], change, "`%s` in %s" % (change.name, change.file))
    elif change.how == "after":
        parts.insert(here + 1, new)
    elif change.how == "before":
        parts.insert(here, new)
    else:
        parts[here] = new
    files[change.file] = "\n\n".join(parts) + "\n"


def build(days, day, number):
    """The files after a step: {path: text}. Step 0 is where the day begins."""
    if day not in days or not 0 <= number <= len(days[day]):
        raise Wrong("%s has no step %d; make steps lists them" % (day, number))
    if number == 0:
        before = max((each for each in days if each < day), default=None)
        files = build(days, before, len(days[before])) if before else {}
        return {name: text for name, text in files.items() if name not in ALONE}
    step = days[day][number - 1]
    if step.files is None:
        files = build(days, day, number - 1)
        for change in step.changes:
            apply(files, change)
        step.files = files
    return dict(step.files)


def folder(day):
    return next(path.name for path in ROOT.glob(day + "-*"))


def path_of(day, name):
    return name if name.startswith("common/") else "%s/%s" % (folder(day), name)


def write(files, day, target):
    for name, text in files.items():
        path = Path(target) / path_of(day, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:  # so that make builds what has changed
            path.write_text(text)
    shutil.copy(ROOT / "Makefile", target)


def check(days):
    """What is wrong with the last step of each day, as lines of text."""
    for day, steps in days.items():
        if not steps:
            continue
        for name, text in build(days, day, len(steps)).items():
            path = ROOT / path_of(day, name)
            have = path.read_text() if path.exists() else ""
            if have != text:
                one, two = text.split("\n"), have.split("\n")
                line = next((i for i, pair in enumerate(zip(one, two)) if pair[0] != pair[1]),
                            min(len(one), len(two)) - 1)
                yield "%s: after step %d, line %d of %s is\n    %s\nbut in the folder\n    %s" % (
                    day, len(steps), line + 1, name, one[line], two[line])


def main(arguments):
    days = read()
    if not arguments:
        for day, steps in days.items():
            for step in steps:
                print("%s STEP=%-3d %s" % (day, step.number, step.title))
    elif arguments == ["check"]:
        wrong = list(check(days))
        sys.exit("\n".join(wrong) or None)
    elif len(arguments) == 3 and arguments[1].isdigit():
        write(build(days, arguments[0], int(arguments[1])), arguments[0], arguments[2])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Wrong as wrong:
        sys.exit("NOTES.md:%s" % wrong)
