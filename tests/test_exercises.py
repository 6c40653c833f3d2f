"""The exercises: what one begins with does not pass, an answer does, and a common mistake is called by its name.

tests/answers/2.1.patch is an answer, and 2.1.wrong.patch makes a mistake in it. Its line Says has the words that
make exercise-2.1 must find for that."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from harness import ROOT, SANITIZED
from pitfall import apply

ANSWERS = ROOT / "tests" / "answers"
NUMBERS = re.findall(r"^#### (\d\.\d) ", (ROOT / "NOTES.md").read_text(), re.M)
FLAGS = re.search(r"^WARNING := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()

pytestmark = [pytest.mark.book, pytest.mark.skipif(SANITIZED, reason="exercises are built as the reader builds them")]
each = pytest.mark.parametrize("number", NUMBERS)


@pytest.fixture
def exercise(number, tmp_path):
    """exercise(): types make exercise-N, and returns (its exit status, what it says)."""
    def run(**environment):
        done = subprocess.run(
            ["make", "-s", "--no-print-directory", "-C", ROOT, "exercise-" + number], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=100,
            env={**os.environ, "MINE": str(tmp_path), "CFLAGS": "-O2 -g -Werror", **environment})
        return done.returncode, done.stdout

    return run


def begin(number, folder):
    """Makes the folder, as make exercise-N does, and returns it."""
    subprocess.run([sys.executable, "-c", "import exercises; exercises.EXERCISES['%s'].begin()" % number],
                   cwd=ROOT / "tests", env={**os.environ, "MINE": str(folder)}, check=True)
    return folder / number


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".c", ".h", ".txt")}


def test_there_are_three_a_day():
    assert NUMBERS == ["%d.%d" % (day, number) for day in range(1, 6) for number in (1, 2, 3)]
    listed = subprocess.run(["make", "-s", "-C", ROOT, "exercises"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make exercise-(\d\.\d)  \S", listed, re.M) == NUMBERS


@each
def test_what_one_begins_with_does_not_pass(exercise, number, tmp_path):
    """And the files that are there stay as they are."""
    status, said = exercise()
    assert status != 0 and re.search(r"^not yet: \S.{10,}", said, re.M), said
    assert "is new: " in said and "\nDone: " in said and "<details>" not in said
    assert "Traceback" not in said and "warning" not in said, said
    assert contents(tmp_path / number) == contents(begin(number, tmp_path / "anew"))


@each
def test_an_answer_passes(exercise, number, tmp_path):
    folder = begin(number, tmp_path)
    apply((ANSWERS / (number + ".patch")).read_text(), folder)
    before = contents(folder)
    status, said = exercise()
    assert status == 0 and said.endswith("\ndone: %s\n" % number), said
    assert "is new: " not in said and contents(folder) == before
    if shutil.which("clang") and list(folder.glob("*.c")):
        subprocess.run(["clang", "-std=gnu11", "-fsyntax-only", "-Werror", *FLAGS, *folder.glob("*.c")], check=True)


@each
def test_a_mistake_is_called_by_its_name(exercise, number, tmp_path):
    folder = begin(number, tmp_path)
    mistake = (ANSWERS / (number + ".wrong.patch")).read_text()
    apply((ANSWERS / (number + ".patch")).read_text(), folder)
    apply(mistake, folder)
    status, said = exercise()
    assert status != 0 and re.search(r"^not yet: ", said, re.M), said
    assert re.search(r"^Says: (.*)$", mistake, re.M)[1] in said, said


@pytest.mark.parametrize("number", ["2.1"])
def test_what_the_compiler_says_is_seen(exercise, number, tmp_path):
    with open(begin(number, tmp_path) / "server.c", "a", encoding="utf-8") as source:
        source.write("int forgotten = 1\n")
    status, said = exercise()
    assert status != 0 and re.search(r"server\.c:\d+:.* error: expected ", said), said
    assert re.search(r"^not yet: it does not compile$", said, re.M)


@pytest.mark.parametrize("number", ["4.2"])
def test_what_cannot_be_checked_is_said(exercise, number, tmp_path):
    """strace is there, but may not trace: the starting point must not pass because of that."""
    strace = tmp_path / "strace"
    strace.write_text("#!/bin/sh\nexit 1\n")
    strace.chmod(0o755)
    status, said = exercise(PATH="%s:%s" % (tmp_path, os.environ["PATH"]))
    assert status != 0
    assert re.search(r"^not checked: whether poll is called, and no function of epoll", said, re.M), said
    assert "done: " not in said


def test_bad_input_gets_one_line(tmp_path):
    def said(number, mine):
        done = subprocess.run([ROOT / "tests/exercises.py", number], env={**os.environ, "MINE": str(mine)},
                              capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stdout == ""
        return done.stderr

    assert said("9.9", tmp_path) == "exercise: 9.9: no such exercise; make exercises lists them\n"
    (tmp_path / "file").write_text("mine")
    assert re.match(r"exercise: \S+file is a file, and .* move it away\n$", said("1.1", tmp_path / "file"))
