"""Holds NOTES.md and README.md to the truth.

  - A block of C belongs to a step (tests/book/steps.py, test_steps.py), or it is a file that the reader is
    told to save, and then we save it.
  - A ```console block is typed into real shells, each on a terminal of its own, in a copy of the tree,
    and what they print is compared. The notes say on their opening page how to read one; that is all
    there is to know here, too.
  - A link leads somewhere. A table of measured figures names its command. A command that is named in
    the text exists.

Nothing sleeps here: what a block shows is awaited.
"""

import fcntl
import functools
import os
import platform
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import tty

import pytest

from harness import BUILD, PATIENCE, ROOT, SANITIZED, free_port

sys.path.insert(0, str(ROOT / "tests" / "book"))
import sessions  # noqa: E402
import steps  # noqa: E402
from sessions import actions, blocks  # noqa: E402

PAGES = ["README.md", "NOTES.md"]

# Typed, these would run the suite that we are in, or need a server that the reader has yet to write.
# They are held by their form alone: make knows what to do for each (make -n).
BY_FORM = {"make test", "make test-book", "make test-day03", "make check SERVER='./mine {port}'"}

# Not on every machine. A block that types one of these is skipped where it is missing.
TOOLS = ["nc", "ss", "strace", "gcc", "pidof"]

SERVER = re.compile(r"make run-|(strace .* )?build/(steps/day\d\d/\d+/build/)?day\d\d/server\b")  # runs until Ctrl-C

# What make may say when Ctrl-C ends its child and itself: it depends on which ends first.
MAKE = r"(?:make: \*\*\* [^\n]*\n)*"

# What a reader has in the environment: nothing of ours.
READER = {name: value for name, value in os.environ.items()
          if name not in ("BUILD", "SAN", "CC", "CFLAGS", "LDFLAGS", "MAKEFLAGS", "MAKELEVEL", "PORT", "ARGS",
                        "MEASURED")}
READER["CFLAGS"] = "-O0"  # built sooner; a hundred steps are

MUCH = 1 << 20  # characters: more than a program prints that prints no more than it should
PORT = "8888"  # in the notes; the copy of the tree has another one, which is free


def of_kind(kind):
    return [block for page in PAGES for block in blocks(page) if block.kind == kind]


def prose(page):
    """A page without its blocks, but with as many lines."""
    return re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"),
                  (ROOT / page).read_text(), flags=re.M | re.S)


# ---- Code

SAVE = r"Save this as `([\w.]+)`"


@functools.cache
def of_a_step():
    """The lines where the blocks of steps begin."""
    return {change.line for day in steps.read().values() for step in day for change in step.changes}


@pytest.mark.parametrize("block", of_kind("c") + of_kind("diff"), ids=str)
def test_a_block_of_code_belongs_somewhere(block):
    """Otherwise it would be shown and be part of nothing, or its caption has a mistake."""
    assert block.page == "NOTES.md" and block.line in of_a_step() or re.search(SAVE, block.before), (
        "%s: neither a caption of a step nor a name to save it by stands above this block" % block.where)


# ---- Console blocks

class Terminal:
    """A shell on a terminal, with a prompt that we know when we see it."""

    prompt = "\x02ready\x03"

    def __init__(self, number, folder, terminals):
        self.number, self.terminals = number, terminals
        master, slave = pty.openpty()
        tty.setraw(slave, termios.TCSANOW)  # no echo, no line editing
        flags = termios.tcgetattr(slave)
        flags[3] |= termios.ISIG | termios.ICANON  # but Ctrl-C and Ctrl-D do what they do,
        flags[3] |= termios.NOFLSH  # and Ctrl-C does not swallow what is being printed
        termios.tcsetattr(slave, termios.TCSANOW, flags)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 64, 0, 0))
        environment = {**READER, "PS1": self.prompt, "PS2": "", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        self.shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "--noediting", "-i"], stdin=slave, stdout=slave, stderr=slave,
            cwd=folder, env=environment, start_new_session=True,
            preexec_fn=lambda: tty_of_ours(slave))
        os.close(slave)
        self.master = master
        self.seen = ""  # what it has printed and the notes have not shown yet
        self.running = None  # the command
        self.loose = False  # a line of ... is the last that the notes show of it
        self.last = None  # the action that what it prints follows from,
        self.told = 0  # and how much of seen has been added to what came of an action

    def serves(self):
        return bool(self.running and SERVER.match(self.running))

    def has_begun(self):
        """Whether what was typed last runs in the foreground, or has ended: the shell may not have looked yet."""
        return os.tcgetpgrp(self.master) != self.shell.pid or self.prompt in self.seen

    def type(self, text):
        os.write(self.master, text.encode())

    def read(self, seconds):
        """Whether there was something."""
        there = bool(select.select([self.master], [], [], seconds)[0])
        if there:
            text = os.read(self.master, 1 << 16).decode(errors="replace")
            text = re.sub("\x1b\\[[0-9;]*[mK]", "", self.seen + text)  # without colours,
            self.seen = re.sub("[^\n]*\r(?!\n)", "", text)  # or what was written over
        return there

    def wait(self, condition):
        """Until condition() is true; whether it came to that. As long as it prints it gets more time, but not for ever.
        Meanwhile the others print, too: what nobody reads would stop them in the end."""
        end, at_last = time.monotonic() + PATIENCE, time.monotonic() + 5 * PATIENCE
        while not condition():
            if time.monotonic() > min(end, at_last):
                return False
            listened = {each.master: each for each in self.terminals.values() if len(each.seen) < MUCH or each is self}
            for master in select.select(list(listened), [], [], 0.05)[0]:
                listened[master].read(0)
                if master == self.master:
                    end = time.monotonic() + PATIENCE
        return True

    def record(self):
        """What it has printed by now came of its last action."""
        for _ in range(100):  # some print without end
            if not self.read(0):
                break
        if self.last:
            self.last.saw += self.seen[self.told:].replace(self.prompt, "")
        self.told = len(self.seen)

    def await_prompt(self, where):
        """Until the command has ended; nothing may be left that the notes do not show."""
        assert self.wait(lambda: self.prompt in self.seen), (
            "%s: the command in terminal %d does not end\n%s" % (where, self.number, self.seen))
        rest = re.sub("(?m)^" + MAKE, "", self.seen.split(self.prompt)[0])
        assert self.loose or not rest.strip(), "%s: terminal %d also prints:\n%s" % (where, self.number, rest)
        self.record()
        self.seen, self.told = self.seen.split(self.prompt)[-1], 0
        self.running, self.loose = None, False

    def processes(self):
        """The shell and all that it started: they are in its session, which is ours alone."""
        for process in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                if os.getsid(process) == self.shell.pid:
                    yield process
            except ProcessLookupError:
                pass

    def close(self):
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        self.shell.wait()
        os.close(self.master)


def tty_of_ours(slave):
    """In the child: makes this its controlling terminal, whose keys send signals to it."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def asleep(process):
    try:
        with open("/proc/%d/stat" % process, encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "RDt"  # D: it waits for a disk, t: for strace
    except OSError:
        return True  # it has ended


def pattern(lines):
    """What the lines stand for: ... within a line is any text, a line of ... any lines. How far apart
    the columns of a table are does not count."""
    text = ""
    for line in lines:
        if line == "...":
            text += r"(?:[^\n]*\n)*?"
        else:
            line = "[^\n]*?".join(re.escape(part) for part in line.rstrip().split("..."))
            text += MAKE + re.sub(r"(\\ ){2,}", " +", line) + " *\n"
    return re.compile(text)


class Typist:
    """Types a block, step by step, and compares."""

    def __init__(self, block, folder, port):
        self.block, self.folder, self.port = block, folder, port
        self.terminals = {}

    def ours(self, text):
        """A command of the notes with our port in place of theirs, in decimal and in hexadecimal."""
        return text.replace(PORT, str(self.port)).replace("%04X" % int(PORT), "%04X" % self.port)

    def theirs(self, text):
        return text.replace(str(self.port), PORT).replace("%04X" % self.port, "%04X" % int(PORT))

    def terminal(self, number):
        if number not in self.terminals:
            self.terminals[number] = Terminal(number, self.folder, self.terminals)
            self.terminals[number].await_prompt("a shell")
        return self.terminals[number]

    def settle(self):
        """A reader types when all is quiet. So we wait until whatever runs sleeps, in three looks."""
        calm, end = 0, time.monotonic() + PATIENCE
        while calm < 3:
            assert time.monotonic() < end, "%s: something runs and runs" % self.block.where
            quiet = all(asleep(process) for terminal in self.terminals.values()
                        for process in terminal.processes())
            calm = calm + 1 if quiet else 0
            for terminal in self.terminals.values():
                terminal.read(0.002)

    def step(self, step):
        where = "%s:%d" % (self.block.page, step.line)
        terminal = self.terminal(step.terminal)
        if step.what == "$":
            if terminal.running:
                self.end(terminal, where)
            if step.text in BY_FORM:
                self.check_form(step.text, where)
                return
            self.settle()
            terminal.type(self.ours(step.text) + "\n")
            terminal.running = step.text
            assert terminal.wait(terminal.has_begun), "%s: terminal %d does not begin with it" % (where, terminal.number)
        elif step.what == ">":
            self.settle()
            terminal.record()
            terminal.type(step.text + "\n")
        elif step.what in "CD":
            self.settle()
            terminal.record()
            terminal.type({"C": "\x03", "D": "\x04"}[step.what])
            if step.what == "C" and terminal.running:
                terminal.running = "^C"  # it will end now
        terminal.last = step
        self.compare(terminal, step, where)

    def check_form(self, command, where):
        done = subprocess.run(command.replace("make ", "make -n ", 1), shell=True, cwd=self.folder,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, "%s: %s" % (where, done.stderr)

    def end(self, terminal, where):
        """A server that the block has not ended gets its Ctrl-C; any other command ends by itself."""
        if terminal.serves():
            self.settle()  # perhaps it ends by itself
        if terminal.serves() and terminal.prompt not in terminal.seen:
            rest = re.sub("(?m)^" + MAKE, "", terminal.seen)
            assert terminal.loose or not rest.strip(), "%s: terminal %d also prints:\n%s" % (
                where, terminal.number, rest)
            terminal.record()
            terminal.type("\x03")
            assert terminal.wait(lambda: terminal.prompt in terminal.seen), (
                "%s: Ctrl-C does not end what runs in terminal %d, which prints:\n%s"
                % (where, terminal.number, terminal.seen[-2000:]))
            terminal.seen, terminal.told = terminal.prompt, 0
        terminal.await_prompt(where)

    def compare(self, terminal, step, where):
        lines = list(step.expected)
        while lines and not lines[-1].strip():
            lines.pop()
        if terminal.loose:
            lines.insert(0, "...")
        terminal.loose = lines[-1:] == ["..."]
        wanted, found = pattern(lines), None

        def there():
            nonlocal found
            found = wanted.match(self.theirs(terminal.seen))
            return found

        def too_late():
            """So many lines that the right ones cannot come any more. (Else we would wait in vain.)"""
            seen = re.sub("(?m)^" + MAKE, "", terminal.seen)
            return "..." not in lines and seen.count("\n") >= len(lines) or terminal.prompt in seen

        terminal.wait(lambda: there() or too_late())
        if not there() and terminal.prompt in terminal.seen:  # perhaps the last line has no end
            text, prompt, later = terminal.seen.partition(terminal.prompt)
            terminal.seen = text.rstrip("\n") + "\n" + prompt + later
        assert there(), self.difference(where, terminal, lines)
        step.saw += terminal.seen[terminal.told:found.end()]
        terminal.seen, terminal.told = terminal.seen[found.end():], max(terminal.told - found.end(), 0)

    def difference(self, where, terminal, lines):
        got = self.theirs(terminal.seen).replace(terminal.prompt, "(and it ended)\n").splitlines()
        here = 0
        while here < len(lines) and pattern(lines[:here + 1]).match("\n".join(got) + "\n"):
            here += 1
        where = "%s:%d" % (self.block.page, int(where.split(":")[1]) + here + 1)
        return "%s: terminal %d does not print\n    %s\nbut\n    %s" % (
            where, terminal.number, lines[here] if here < len(lines) else "", "\n    ".join(got))

    def run(self):
        """Returns what came of each action."""
        doing = actions(self.block)
        try:
            for step in doing:
                self.step(step)
            for terminal in sorted(self.terminals.values(), key=Terminal.serves):  # clients first
                if terminal.running:
                    self.end(terminal, self.block.where + " (its end)")
            return [self.theirs(step.saw).replace(str(self.folder), "/home/you/echo") for step in doing]
        finally:
            for terminal in self.terminals.values():
                terminal.close()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the tree whose default port is a free one: (folder, port)."""
    folder = tmp_path_factory.mktemp("notes") / "echo"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(
        ".git", "build", "build-*", "mine", "__pycache__", ".pytest_cache", ".venv"))
    port = free_port(range(5000, 8888))  # as many digits as their own
    for path in [folder / "Makefile", *folder.glob("day0*/*.c")]:
        text = path.read_text()
        path.write_text(text.replace('"%s"' % PORT, '"%d"' % port)
                        .replace("?= " + PORT, "?= %d" % port))
    for block in of_kind("c"):
        name = re.search(SAVE, block.before)
        if name:
            (folder / name[1]).write_text("\n".join(block.text) + "\n")
    subprocess.run(["make", "-s", "-j2", "-C", folder, "programs"], check=True, capture_output=True,
                   env=READER)
    return folder, port


@pytest.mark.book
@pytest.mark.skipif(SANITIZED or "CC" in os.environ,
                    reason="the notes show what make builds by default, whatever else is tested")
@pytest.mark.parametrize("block", of_kind("console"), ids=str)
def test_a_console_block_shows_what_happens(block, copy):
    typed = [step.text for step in actions(block) if step.what == "$"]
    for tool in TOOLS:
        if re.search(r"\b%s\b" % tool, "\n".join(typed)) and shutil.which(tool) is None:
            pytest.skip("%s is missing" % tool)
    saw = Typist(block, *copy).run()
    release = ".".join(platform.release().split(".")[:2])
    sessions.keep(BUILD, block, saw, "%s %s" % (platform.system(), release))


# ---- Links, figures, and commands in the text

def anchors(page):
    """What a forge makes of the headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for number, line in enumerate(prose(page).splitlines(), 1):
        for target in re.findall(r"\]\(([^)]+)\)", line):
            if re.match(r"https?://", target):
                continue
            name, _, anchor = target.partition("#")
            assert not name or (ROOT / name).exists(), "%s:%d: no file %s" % (page, number, name)
            if anchor:
                assert anchor in anchors(name or page), "%s:%d: no heading #%s" % (page, number, anchor)


@pytest.mark.parametrize("page", PAGES)
def test_measured_figures_name_their_command(page):
    """The line above a table of them begins with Measured, and has the command in it."""
    above = ""
    for number, line in enumerate(prose(page).splitlines(), 1):
        if line.startswith("|") and above.startswith("Measured"):
            assert re.search(r"`[^`]+`", above), "%s:%d: measured how?" % (page, number)
        if line.strip():
            above = line


def commands(page):
    """(line, command): each make … of the text, and of its blocks."""
    text = prose(page)
    for found in re.finditer(r"`(make\s[^`]+)`", text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[1].split())
    for block in blocks(page):
        if block.kind == "console":
            for step in actions(block):
                if step.text and step.text.startswith("make "):
                    yield step.line, step.text


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page):
    rules = (ROOT / "Makefile").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"^def (test_\w+)", tests, re.M)
    for number, command in commands(page):
        where = "%s:%d: %s" % (page, number, command)
        target = next((word for word in command.split()[1:] if "=" not in word), "all")
        if target.startswith("pitfall-"):
            assert (ROOT / "tests/pitfalls" / (target[8:] + ".patch")).exists() or "NAME" in target, where
            continue
        general = re.sub(r"(day)(\d\d|NN)", r"\1NN", re.sub(r"exercise-\d\.\d", "exercise-2.1", target))
        assert "## " + general in rules, where
        wanted = re.search(r"TEST='?([\w ]+)'?", command)
        if wanted:
            for word in set(wanted[1].split()) - {"and", "or", "not"}:
                assert any(word in name for name in names), "%s: no test has %s in its name" % (where, word)


def test_every_pitfall_has_its_place():
    text = (ROOT / "NOTES.md").read_text()
    for patch in sorted((ROOT / "tests/pitfalls").glob("*.patch")):
        assert "`make pitfall-%s`" % patch.stem in text, "NOTES.md: nothing about " + patch.stem


def test_every_day_has_its_chapter_and_all_have_the_same_shape():
    text = prose("NOTES.md")
    chapters = re.split(r"^## ", text, flags=re.M)
    days = [chapter for chapter in chapters if chapter.startswith("Day ")]
    assert len(days) == 5
    for chapter in days:
        shape = [heading for heading in re.findall(r"^### (.*)$", chapter, re.M) if not heading.startswith("Step ")]
        if chapter.startswith("Day 5"):
            assert shape.pop(1) == "Which one should I use?"
        assert shape == ["What you should know", "What else breaks", "Exercises", "The whole difference",
                         "Notes and sources"]
