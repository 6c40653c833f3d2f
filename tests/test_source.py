"""What the sources promise to a reader: that the diff of two days is the lesson, and that each header
tells how to build its file."""

import difflib
import re
import shutil
import subprocess

import pytest

from harness import ROOT

DAYS = sorted(folder.name for folder in ROOT.glob("day0*-*"))

# What a day means to change. Whatever else has the same name on two days in a row has the same body.
CHANGED = {
    # Day 2: nothing blocks, so a signal, a newcomer and an answer are handled otherwise.
    "day02-select": {"on_signal", "catch_signals", "open_listener", "drop", "add_connection",
                     "accept_failed", "echo", "serve", "finish", "main"},
    # Day 3: the three verbs, the table of clients, the loop; and -e.
    "day03-epoll-basic": {"want_read", "want_write", "forget", "connection_of", "print_ready",
                          "wait_and_serve", "serve", "limit_descriptors", "usage", "parse_options"},
    # Day 4: those who used the verbs now tell the object.
    "day04-epoll-class": {"start_accepting", "stop_accepting", "drop", "add_connection", "hold",
                          "send_rest", "read_from", "reason", "print_ready", "handle",
                          "wait_and_serve", "serve", "finish"},
    # Day 5: the parent and its workers. Not one function of connection.c is among them.
    "day05-herd": {"usage", "parse_options", "catch_signals", "open_listener", "start_accepting",
                   "stop_accepting", "print_ready", "handle", "wait_and_serve", "finish", "main"},
}


def functions(day):
    """{name: text from the line of its name to the brace that closes it}"""
    files = ["server.c"] if day != "day05-herd" else ["server.c", "worker.c", "connection.c"]
    text = "".join((ROOT / day / name).read_text() for name in files)
    found = re.findall(r"^\w[\w ]*?\**(\w+)\(([^;{]*?\)\n\{\n.*?^\})", text, re.M | re.S)
    assert len(found) > 10
    return dict(found)


@pytest.mark.parametrize("before, day", list(zip(DAYS, DAYS[1:])))
def test_what_is_not_todays_idea_stays_as_it_was(before, day):
    old, new = functions(before), functions(day)
    changed = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    assert changed == CHANGED[day]


@pytest.mark.parametrize("name", ["epoll.c", "epoll.h"])
def test_the_object_of_day_4_serves_day_5(name):
    assert (ROOT / "day04-epoll-class" / name).read_text() == (ROOT / "day05-herd" / name).read_text()


@pytest.mark.parametrize("before, day", list(zip(DAYS, DAYS[1:-1])))
def test_functions_stand_in_the_same_order(before, day):
    old, new = list(functions(before)), list(functions(day))
    assert [name for name in old if name in new] == [name for name in new if name in old]


@pytest.mark.parametrize("day", DAYS)
def test_no_function_is_longer_than_a_screen(day):
    for path in sorted((ROOT / day).glob("*.c")):
        for body in re.findall(r"^\w[^;\n]*\)\n\{\n.*?^\}", path.read_text(), re.M | re.S):
            assert body.count("\n") < 45, body.split("(")[0]


@pytest.mark.parametrize("source", [str(path.relative_to(ROOT)) for path in ROOT.glob("day0*/*.c")
                                    if "\n * Build:  " in path.read_text()])
def test_the_line_in_the_header_builds_it(source, tmp_path):
    """Typed where the file is, as a reader would."""
    line = re.search(r"^ \* Build:  (cc .*)$", (ROOT / source).read_text(), re.M)[1]
    folder, name = source.split("/")
    shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copytree(ROOT / "common", tmp_path / "common")
    done = subprocess.run(line, shell=True, cwd=tmp_path / folder, capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / folder / name[:-2]).exists()


@pytest.mark.parametrize("day", DAYS[2:])
def test_a_system_without_epoll_is_told_so(day):
    done = subprocess.run(["cc", "-U__linux__", "-fsyntax-only", ROOT / day / "server.c"],
                          capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "This day needs epoll, which only Linux has." in done.stderr.splitlines()[0 + 1] + done.stderr


def test_the_diff_is_short():
    """About a hundred lines of code a day. (Day 2, where the sockets stop to block, needs more.)"""
    def code(day):
        files = sorted((ROOT / day).glob("*.[ch]"), key=lambda path: path.name != "server.c")
        text = "".join(path.read_text() for path in files
                       if path.name not in ("client.c", "bzero_pitfall.c"))
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        return [line.strip() for line in text.splitlines() if len(line.strip()) > 1]

    for before, day in zip(DAYS, DAYS[1:-1]):
        new = [line for line in difflib.ndiff(code(before), code(day)) if line.startswith("+ ")]
        print(day, len(new))
        assert len(new) <= (190 if day == "day02-select" else 120), day
