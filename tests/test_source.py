"""What the sources promise to a reader: that the diff of two days is the lesson, that all of it can be
read, and that each header says how to build its file."""

import graphlib
import re
import shutil
import subprocess

import pytest

from harness import ROOT

DAYS = sorted(folder.name for folder in ROOT.glob("day0*-*"))
SOURCES = sorted(str(path.relative_to(ROOT)) for folder in [*DAYS, "common"]
                 for path in (ROOT / folder).glob("*.[ch]"))

# Which file grows out of which, and the functions that it means to change. Whatever else has the same
# name in both has the same text, to the byte.
CHANGED = {
    # Nothing blocks any more, so newcomers, answers and the end are handled differently.
    ("day01-block-socket/server.c", "day02-select/server.c"):
        {"open_listener", "drop", "fail", "accept_failed", "accept_client", "echo", "serve", "main"},
    # The three verbs, the loop, signals as events, a table that grows; and -e.
    ("day02-select/server.c", "day03-epoll-basic/server.c"):
        {"usage", "parse_options", "limit_descriptors", "catch_signals", "want_read", "want_write", "forget",
         "add_connection", "accept_failed", "print_ready", "handle", "wait_and_serve", "finish", "main"},
    # The connections are a list, and an event has a pointer.
    ("day03-epoll-basic/server.c", "day04-epoll-class/server.c"):
        {"want_read", "want_write", "start_accepting", "drop", "add_connection", "accept_failed", "reason",
         "print_ready", "handle", "wait_and_serve", "finish"},
    ("day03-epoll-basic/server.c", "day04-epoll-class/main.c"): {"parse_options", "main"},
    # The parent and its workers.
    ("day04-epoll-class/main.c", "day05-herd/main.c"): {"usage", "parse_options", "main"},
}
# And the files that a day takes over as they are.
SAME = ["server.c", "server.h", "epoll.c", "epoll.h"]


def read(source):
    return (ROOT / source).read_text()


def functions(text):
    """{name: text from its parameters to the brace that closes it}, in their order"""
    return dict(re.findall(r"^\w[\w ]*?\**(\w+)(\([^;{]*?\)\n\{\n.*?^\})", text, re.M | re.S))


def without_the_object(text):
    """Day 4's server.c as it would be if what stands in struct server still stood in the file."""
    text = text.replace("server_accept(", "accept_client(")
    text = text.replace("(struct server *s)", "(void)").replace("(s)", "()")
    return re.sub(r"(const )?struct server \*s, |\bs, |\bs->((epoll|totals)\.)?|\bserver_", "", text)


def pair(before, after):
    new = read(after)
    return functions(read(before)), functions(without_the_object(new) if "epoll-class/server.c" in after else new)


@pytest.mark.parametrize("before, after", CHANGED)
def test_what_is_not_todays_idea_stays_as_it_was(before, after):
    old, new = pair(before, after)
    common = old.keys() & new.keys()
    assert {name for name in common if old[name] != new[name]} == CHANGED[before, after]


@pytest.mark.parametrize("before, after", CHANGED)
def test_functions_stand_in_the_same_order(before, after):
    old, new = pair(before, after)
    assert [name for name in old if name in new] == [name for name in new if name in old]


@pytest.mark.parametrize("name", SAME)
def test_the_server_of_day_4_serves_day_5(name):
    assert read("day04-epoll-class/" + name) == read("day05-herd/" + name)


@pytest.mark.parametrize("name", ["server.c", "epoll.c"])
def test_day_4_has_no_variable_outside_its_objects(name, tmp_path):
    """In the object file there is neither data that can be written to (D), nor room for it (B, C)."""
    compiled = tmp_path / "compiled.o"
    subprocess.run(["cc", "-std=gnu11", "-c", "-o", compiled, ROOT / "day04-epoll-class" / name], check=True)
    symbols = subprocess.run(["nm", compiled], capture_output=True, text=True, check=True).stdout
    assert re.search(r" T (server|epoll)_", symbols)
    assert re.findall(r"^\w+ [BbCDdGgSs] (.*)$", symbols, re.M) == []


def test_no_file_needs_itself():
    """What a file includes does not lead back to it: there is an order to read them in."""
    needs = {source: {str((ROOT / source).parent.joinpath(name).resolve().relative_to(ROOT))
                      for name in re.findall(r'^#include "(.*)"', read(source), re.M)} for source in SOURCES}
    order = list(graphlib.TopologicalSorter(needs).static_order())
    assert set(order) == set(SOURCES)


@pytest.mark.parametrize("source", [source for source in SOURCES if source.endswith(".c")])
def test_no_function_is_longer_than_a_screen(source):
    found = functions(read(source))
    assert found
    assert {name: text.count("\n") + 1 for name, text in found.items() if text.count("\n") + 1 > 40} == {}


# ---- How to build

ALONE = {"day01-block-socket/client.c", "day04-epoll-class/two_servers.c", "day04-epoll-class/bzero_pitfall.c",
         "day05-herd/herd.c"}
PROGRAMS = sorted(source for source in SOURCES if re.search(r"^int main\(", read(source), re.M))


def test_each_day_has_one_server():
    servers = [source for source in PROGRAMS if source not in ALONE]
    assert [source.split("/")[0] for source in servers] == DAYS


@pytest.mark.parametrize("source", PROGRAMS)
def test_the_line_in_the_header_builds_it(source, tmp_path):
    """Typed where the file is, as a reader would."""
    line, program = re.search(r"^ \* Build:  (cc .* -o (\w+) .*)$", read(source), re.M).groups()
    folder, name = source.split("/")
    shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copytree(ROOT / "common", tmp_path / "common")
    done = subprocess.run(line, shell=True, cwd=tmp_path / folder, capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / folder / program).exists()
    assert name in line and program == (name[:-2] if source in ALONE else "server")


# ---- How much there is to read

def code(source):
    """How many lines there are, without comments and without those that have at most a brace."""
    text = re.sub(r"/\*.*?\*/", "", read(source), flags=re.S)
    return sum(len(line.strip()) > 1 for line in text.splitlines())


@pytest.mark.parametrize("source, before, most", [
    ("day01-block-socket/server.c", None, 170), ("day01-block-socket/client.c", None, 90),
    ("day02-select/server.c", "day01-block-socket/server.c", 200),
    ("day03-epoll-basic/server.c", "day02-select/server.c", 90),
    ("day05-herd/main.c", "day04-epoll-class/main.c", 300), ("day05-herd/herd.c", None, 400)])
def test_a_day_is_no_more_than_can_be_learned(source, before, most):
    """How much a file has more than the one that it grew out of."""
    assert code(source) - (code(before) if before else 0) < most


def test_all_of_it_can_be_read():
    assert sum(map(code, SOURCES)) < 2600
