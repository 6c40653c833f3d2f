"""The steps of NOTES.md: each compiles without a warning and is a server, and the last of a day is the day."""

import os
import re
import socket
import subprocess
import sys

import pytest

from harness import BUILD, PATIENCE, ROOT, SANITIZED, free_port, musl, wait_until

sys.path.insert(0, str(ROOT / "tests" / "book"))
import steps  # noqa: E402

DAYS = steps.read()
ALL = [step for day in DAYS.values() for step in day]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]


def identity(step):
    return "%s-step%d" % (step.day, step.number)


@pytest.fixture
def tree(request):
    """A folder with the files of a step."""
    step = request.param
    folder = BUILD / "tests" / "steps" / identity(step)
    steps.write(steps.build(DAYS, step.day, step.number), step.day, folder)
    return step, folder


def compile_step(step, folder, name, sources):
    sources += [path for path in [folder / "common" / "die.c"] if path.exists()]
    target = folder / name
    done = subprocess.run([os.environ.get("CC", "cc"), "-O0", "-std=gnu11", "-pthread", *WARNINGS, "-o", target, *sources],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, "step %d of %s (NOTES.md:%d):\n%s" % (step.number, step.day, step.line, done.stderr)
    return target


@pytest.mark.book
@pytest.mark.parametrize("tree", ALL, ids=identity, indirect=True)
def test_a_step_is_a_server(tree):
    """No warning, and a client gets its bytes back. The other programs of its day compile, too."""
    step, folder = tree
    sources = sorted((folder / steps.folder(step.day)).glob("*.c"))
    alone = [path for path in sources if path.name in (*steps.ALONE, "herd.c")]
    server = compile_step(step, folder, "server", [path for path in sources if path not in alone])
    for path in alone:
        others = [folder / steps.folder(step.day) / name for name in ("server.c", "epoll.c")]
        compile_step(step, folder, path.stem, [path] + (others if path.name == "two_servers.c" else []))
    port = free_port()
    process = subprocess.Popen([server, str(port)], stdout=subprocess.DEVNULL)
    try:
        sock = socket.socket()
        sock.settimeout(PATIENCE)
        wait_until(lambda: sock.connect_ex(("127.0.0.1", port)) == 0, "a server on port %d" % port)
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        sock.close()
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize("day", DAYS)
def test_after_the_last_step_it_is_what_lies_in_the_folder(day):
    assert list(steps.check({day: DAYS[day]} | {d: s for d, s in DAYS.items() if d < day})) == []


@pytest.mark.parametrize("day", DAYS)
def test_every_file_of_a_day_is_in_the_notes(day):
    built = {steps.path_of(day, name) for name in steps.build(DAYS, day, len(DAYS[day]))}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / steps.folder(day)).glob("*.[ch]")}
    assert there <= built


# ---- What is wrong with the notes is reported by line

BOOK = """## Day 1: one
### Step 1: begin

`server.c`:

```c
int one;

static int f(int x)
{
    return x;
}
```

### Step 2: go on

`server.c`, in `f`:

```diff
-    return %s;
+    return x + 1;
```
"""


def wrong(tmp_path, text):
    path = tmp_path / "NOTES.md"
    path.write_text(text)
    with pytest.raises(steps.Wrong) as found:
        days = steps.read(path)
        steps.build(days, "day01", len(days["day01"]))
    return str(found.value)


def test_a_book_that_is_right(tmp_path):
    path = tmp_path / "NOTES.md"
    path.write_text(BOOK % "x")
    days = steps.read(path)
    assert steps.build(days, "day01", 1)["server.c"].endswith("{\n    return x;\n}\n")
    assert steps.build(days, "day01", 2)["server.c"].endswith("{\n    return x + 1;\n}\n")


def test_a_line_that_is_not_there(tmp_path):
    """Which block, which line, and what stands there instead."""
    assert wrong(tmp_path, BOOK % "y") == (
        "20: `f` in server.c has no line\n    return y;\nbut\n    return x;")


@pytest.mark.parametrize("old, new, message", [
    ("in `f`", "in `g`", "19: server.c: there is no `g`"),
    ("`server.c`, in", "`client.c`, in", "19: client.c: there is no such file yet"),
    ("### Step 2", "### Step 3", "15: this is step 2 of day01"),
    ("+    return", "=    return", "21: a line of a diff begins with a blank, - or +"),
])
def test_other_mistakes(tmp_path, old, new, message):
    assert old in BOOK
    assert wrong(tmp_path, (BOOK % "x").replace(old, new)) == message


# ---- What a step promises: its tests pass from there on, and do not on the step before

def run_promised(step, number):
    """{test: whether it passed}, with the server as it stands after the step of that number."""
    tree = BUILD / "tests" / "promises" / ("%s-%d-%d" % (step.day, step.number, number))
    steps.write(steps.build(DAYS, step.day, number), step.day, tree)
    subprocess.run(["make", "-s", "-C", tree, "BUILD=build", "CFLAGS=-O0", "programs"], check=True,
                   env={name: value for name, value in os.environ.items() if name not in ("BUILD", "SAN", "MAKEFLAGS")})
    names = [name.split("[")[0] for name in step.promises]
    files = ["tests/test_contract.py", "tests/test_%s.py" % step.day, *(["tests/test_herd.py"] if step.number > 9 else [])]
    done = subprocess.run(
        [ROOT / "tests" / "run", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider", *files, "--step",
         "%s/%d" % (step.day, step.number), "--promised-by", str(step.number), "-k", " or ".join(names)], cwd=ROOT,
        capture_output=True, text=True, check=False,
        env={**os.environ, "BUILD": str(tree / "build"), "PATIENCE": "30" if number == step.number else "1"})
    found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*?(?:::(\S+))?", done.stdout, re.M)
    return found, done.stdout


@pytest.mark.book
@pytest.mark.parametrize("step", [step for step in ALL if step.promises], ids=identity)
def test_what_a_step_promises(step):
    """The tests that the notes name under New pass; none of them does on the step before."""
    if SANITIZED or musl():
        pytest.skip("this is about the notes, which are the same for all builds: make test does it")
    found, text = run_promised(step, step.number)
    results = [result for result, _ in found]
    assert results and set(results) <= {"PASSED", "SKIPPED"} and len(results) >= len(step.promises), text
    if (step.day, step.number) != ("day01", 1) and "SKIPPED" not in results:
        found, text = run_promised(step, step.number - 1)
        assert found and "PASSED" not in [result for result, _ in found], text
