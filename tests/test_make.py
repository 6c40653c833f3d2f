"""What a reader types at the Makefile."""

import os
import re
import select
import signal
import socket
import subprocess
import time

import pytest

from harness import PATIENCE, ROOT, free_port, receive_all

DAYS = ["day01", "day02", "day03", "day04", "day05"]


def make(*arguments, **options):
    return subprocess.run(["make", "--no-print-directory", "-C", ROOT, *arguments],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          timeout=120, **options)


def test_help_names_what_there_is():
    text = make("help").stdout
    for target in ("all", "dayNN", "run-dayNN", "client", "diff-dayNN", "steps", "herd", "switches", "bench", "scale",
                   "modes", "kernels", "balance", "figures", "test", "book", "test-dayNN", "check", "exercise-2.1",
                   "exercises", "pitfall-NAME", "pitfalls", "lint", "clean",
                   "help"):
        assert "  make " + target in text


@pytest.mark.parametrize("day", DAYS)
def test_building_a_day_says_how_to_run_it(day):
    done = make(day)
    assert done.returncode == 0 and done.stderr == ""
    assert "make run-" + day in done.stdout


@pytest.mark.parametrize("day", DAYS)
def test_run(day):
    """make run-dayNN serves within five seconds and prints each wake-up. What Ctrl-C does, SIGINT to all of its
    processes, ends it."""
    out = run_until_ctrl_c(day, within=5)
    assert any("woke up: " in line for line in out) and sum(" connected" in line for line in out) == 1
    assert day == "day01" or out[-1] == "served 1 client: 5 bytes echoed, 0 undelivered"


def test_run_quietly():
    assert run_until_ctrl_c("day03", "ARGS=") == ["served 1 client: 5 bytes echoed, 0 undelivered"]


def run_until_ctrl_c(day, *arguments, within=PATIENCE):
    """Lets one client talk to it. Returns what is printed after the first line."""
    start, port = time.monotonic(), free_port()
    run = subprocess.Popen(["make", "-s", "-C", ROOT, "run-" + day, "PORT=%d" % port, *arguments],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert select.select([run.stdout], [], [], PATIENCE)[0]
        assert run.stdout.readline() == "listening on 127.0.0.1:%d\n" % port
        assert time.monotonic() - start < within
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == b"hello"
    finally:
        os.killpg(run.pid, signal.SIGINT)
        out, _ = run.communicate(timeout=PATIENCE)
    return out.splitlines()


@pytest.mark.parametrize("day", DAYS)
def test_diff(day):
    done = make("diff-" + day)
    assert done.returncode == 0 and done.stderr == ""
    if day == "day01":
        assert "the first day" in done.stdout
    else:
        assert done.stdout.startswith("--- ") and day in done.stdout.splitlines()[1]
        assert "client.c" not in done.stdout


@pytest.mark.parametrize("day, files", [("day03", 1), ("day04", 6)])
def test_diff_shows_the_new_files_after_the_server(day, files):
    names = re.findall(r"^\+\+\+ \S+/(\S+)", make("diff-" + day).stdout, re.M)
    assert len(names) == files and names[0] == "server.c"


def test_an_edit_is_built_again():
    """Headers are prerequisites, too."""
    for edited in ("common/die.h", "day04-epoll-class/server.h", "day04-epoll-class/server.c"):
        done = make("-n", "-W", edited, "programs")
        assert "/day04/server" in done.stdout
        assert ("/day03/server" in done.stdout) == edited.startswith("common")


def test_check_wants_a_server():
    done = make("check")
    assert done.returncode == 2
    assert "check: which one? make check SERVER='./mine {port}'" in done.stdout


def test_a_pitfall_in_words():
    """What you would see, why, what to do, the patch, and what the test has seen; the copy is there to be tried."""
    done = make("pitfall-sizeof-buffer")
    assert done.returncode == 0, done.stdout
    for text in ("Symptom: ", "\nCause:   ", "\nCure:    ", "\n+    return send_all(c, buffer, sizeof(buffer));\n",
                 "\ntest_bytes_come_back[day01-5] fails: sent 5 bytes, got 65,536 bytes back\n"):
        assert text in done.stdout
    assert "AssertionError" not in done.stdout
    copy = re.search(r"make -C (\S+) run-day01", done.stdout)[1]
    assert (ROOT / copy / "Makefile").exists()
    # And with the trace, in the same copy.
    assert "E   AssertionError: sent 5 bytes" in make("pitfall-sizeof-buffer", "TRACE=1").stdout


def test_a_pitfall_that_does_not_exist():
    done = make("pitfall-nonsense")
    assert done.returncode == 2
    assert "pitfall: nonsense: no such pitfall; make pitfalls lists them" in done.stderr
