"""The blocks of a page of notes, and how to read a ```console block: what is typed into which terminal, and what
comes of it. NOTES.md explains that to the reader in "How to read"."""

import functools
import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Block:
    def __init__(self, page, kind, line, text, before):
        self.page, self.kind, self.line = page, kind, line
        self.text = text
        self.before = before  # the last line above it that is not empty
        self.where = "%s:%d" % (page, line)

    def __str__(self):
        return self.where


@functools.cache
def blocks(page):
    found, before, block = [], "", None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        fence = re.match(r"(?:<[^>]*>)?```(\w*)$", line)
        if fence and block is None:
            block = Block(page, fence[1], number, [], before)
        elif fence:
            found.append(block)
            before, block = "", None
        elif block is not None:
            block.text.append(line)
        elif line.strip():
            before = line.strip()
    assert block is None, "%s:%d: this block does not end" % (page, block.line)
    return found


LINE = re.compile(r"(?P<terminal>[1-3]?)(?:(?P<what>\$|>) (?P<text>.*)|\^(?P<key>[CD])(?P<rest>.*)|(?P<look>:))$")


class Action:
    """One thing to do, and the lines that follow from it."""

    def __init__(self, line, match):
        self.line, self.terminal = line, int(match["terminal"] or 1)
        self.what = match["what"] or match["key"] or ":"
        self.text = match["text"]
        self.expected = [match["rest"]] if match["rest"] else []
        self.saw = ""  # what really came, for those that type it


def actions(block):
    found = []
    for number, line in enumerate(block.text, block.line + 1):
        match = LINE.match(line)
        if match and not (match["look"] and not match["terminal"]):
            found.append(Action(number, match))
        else:
            assert found, "%s: output before anything was typed" % block.where
            found[-1].expected.append(line)
    return found


# ---- What was seen when a block was typed: a file for each, found by the block's own text

def transcript(folder, text):
    return Path(folder) / "transcripts" / (hashlib.sha256("\n".join(text).encode()).hexdigest()[:16] + ".json")


def keep(folder, block, saw, system):
    path = transcript(folder, block.text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"system": system, "saw": saw}))


def recall(folder, text):
    """The system on which it was typed, and what came after each action; or None twice."""
    path = transcript(folder, text)
    kept = json.loads(path.read_text()) if path.exists() else {"system": None, "saw": None}
    return kept["system"], kept["saw"]


def shorten(came, expected, more):
    """What came, or if that is much, its ends, the lines that the notes show of it, and their neighbours."""
    lines = came.strip("\n").split("\n")
    if len(lines) <= 24:
        return "\n".join(lines)
    wanted, at = {0, 1, 2, len(lines) - 1}, 0
    for line in filter(lambda line: line.strip(". "), expected):
        shape = re.compile(".*?".join(" +".join(map(re.escape, part.split(" "))) for part in line.split("...")))
        there = next((i for i in range(at, len(lines)) if shape.fullmatch(lines[i].rstrip())), None)
        if there is not None:
            at = there + 1
            wanted.update(range(max(there - 2, 0), min(there + 3, len(lines))))
    result, last = [], -1
    for i in sorted(wanted):
        result += ([more % (i - last - 1)] if i > last + 1 else []) + [lines[i]]
        last = i
    return "\n".join(result)
