"""make check: the score card is right about servers that are not ours, and no process of theirs is left."""

import re
import subprocess
import sys

import pytest

import steps
import test_contract
from harness import BUILD, PATIENCE, ROOT, marked, still_running, wait_until
from promises import PROMISES

ALL_KEPT = r"22 kept, 0 broken, 0 not promised\n$"


def check(server, *arguments, patience="4"):
    """Returns what make check prints. On stderr there may only be make's own last line."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, "check", "SERVER=" + server, *arguments], capture_output=True,
        text=True, check=False, timeout=120, stdin=subprocess.DEVNULL, env={**marked("check"), "PATIENCE": patience})
    assert not still_running("check")
    assert re.sub(r"make(\[\d\])?: .*\n", "", done.stderr) == ""
    assert (done.returncode == 0) == (", 0 broken, " in done.stdout), done.stdout
    return done.stdout


# One after the other: {} is what becomes of a piece. It prints nothing, and ends at the first error.
BLOCKING = """
import os, signal, socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
{before}
while True:
    client = listener.accept()[0]
    {after}
    while data := client.recv(4096):
        client.sendall(data{change})
    client.close()
"""

# Becomes a daemon twice over, hears no signal, and floods its stdout.
BEAST = """
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(sig, signal.SIG_IGN)
if os.fork() == 0:
    while True: os.write(1, bytes(65536)); time.sleep(0.001)
"""

# Has a thread that burns a core for so many seconds after the last bytes came.
BURN = """
import threading
def work(): global end; end = time.monotonic() + {}
def burn():
    while True:
        while time.monotonic() < end: pass
        time.sleep(0.01)
work()
threading.Thread(target=burn, daemon=True).start()
"""

LITTLE_ROOM = "client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)"

NOT_CHECKED = (r"not checked   The other 21: they are about a server that keeps this one.\n"
               r"0 kept, 1 broken, 0 not promised, 21 not checked\n$")


@pytest.mark.parametrize("change, before, after, arguments, says", [
    ("", "", "", ["TEST=test_a_line_comes_back or byte_at_a_time[5] or silent", "DAY=1"],
     r"kept          A client gets back.*\nkept          Every byte.*\nnot promised  .* \(from day 2 on\)\n"
     r"2 kept, 0 broken, 1 not promised\n$"),
    ("", "", "", ["TEST=line or silent or many_clients"],
     r"broken        A client that is silent .*\n +done: ten clients .*\n"
     r" +seen: sent 'hello\\n', got nothing for 4 s\n"
     r" +read: NOTES.md, day 2, step 1 .*\n +test: make check SERVER='.*' TEST=test_a_silent_client_delays_nobody TRACE=1\n"
     r"not checked   The last one: it is about a server that keeps this one.\n"
     r"1 kept, 1 broken, 0 not promised, 1 not checked\n$"),
    (".upper()", "", "", [], r"seen: sent 'hello\\n', got 'HELLO\\n' back\n(.*\n)*" + NOT_CHECKED),
    (" * 2", "", "", [], r"seen: sent 'hello\\n', got 'hello\\nhello\\n' back\n(.*\n)*" + NOT_CHECKED),
    ("", "", "client.close(); continue", [], r"seen: (the connection was reset|.*got nothing)\n(.*\n)*" + NOT_CHECKED),
    ("", "", "time.sleep(1000)", [], r"seen: sent 'hello\\n', got nothing for 4 s\n(.*\n)*" + NOT_CHECKED),
    ("", "", "listener.close()", ["TEST=line or next_client"],
     r"seen: a client was refused; the server has ended, with exit status 1; it said: .*\n(.*\n)*1 kept, 1 broken"),
    ("", "", "", ["TEST=test_resets or when_all_have_gone"],
     r"broken        One client's trouble .*\n.*\n +seen: .*; the server has ended, with exit status 1; it said:\s+"
     r"ConnectionResetError(.*\n)*not checked   While .*\n +The server ended again; see above.\n0 kept, 1 broken"),
    ("", "signal.signal(signal.SIGPIPE, signal.SIG_DFL)", "", ["TEST=true_broken_pipe"],
     r"; the server has ended, (killed by SIGPIPE|with exit status 1; it said:)\n"),
    ("", "", "print('Error: no more\\n  at line 1\\n\\nversion 2', flush=True); os._exit(3)", ["TEST=line"],
     r"; the server has ended, with exit\s+status 3; it\s+said:\s+Error: no\s+more\n"),
    (" * (work() or 1)", BURN.format(1000), LITTLE_ROOM, ["TEST=does_not_read and False"],
     r"broken        While .*\n.*\n +seen: there was nothing to do, and it took \d\d+ % of a core\n"),
    (" * (work() or 1)", BURN.format(2), LITTLE_ROOM, ["TEST=does_not_read and False"], r"\n1 kept, 0 broken"),
    ("", BEAST, "", ["TEST=ends_when_idle or line"], r"kept .*\nbroken .*\n +done: it had no client\n"
     r" +seen: SIGTERM was sent, and \d s later the server still ran\n"),
], ids=["right", "one-by-one", "capitals", "twice", "closes", "hangs", "once", "reset", "pipe", "error", "spins", "works",
        "beast"])
def test_verdict(tmp_path, change, before, after, arguments, says):
    program = tmp_path / "server.py"
    program.write_text(BLOCKING.format(change=change, before=before, after=after))
    text = check("%s %s {port}" % (sys.executable, program), *arguments)
    assert re.search(says, text), text


def test_a_slow_server_is_not_broken(tmp_path):
    """What has not come to its end in time is not checked."""
    program = tmp_path / "server.py"
    program.write_text(BLOCKING.format(change="* (time.sleep(0.1) or 1)", before="", after=""))
    text = check("%s %s {port}" % (sys.executable, program), "TEST=line or byte_at_a_time or next_client", patience="2")
    assert re.search(r"kept .*\nnot checked   Every byte .*\n +It was not done after 12 s.\nkept .*\n"
                     r"2 kept, 0 broken, 0 not promised, 1 not checked\n", text), text


def test_a_server_that_does_not_start_again(tmp_path):
    """It says nothing about what the next client would have seen: here the fourth start fails."""
    program = tmp_path / "server.py"
    count = "open('%s', 'a').write('x'); os.path.getsize('%s') == 4 and sys.exit(3)" % ((tmp_path / "count",) * 2)
    program.write_text("import os, sys\n" + count + BLOCKING.format(change="", before="", after=""))
    text = check("%s %s {port}" % (sys.executable, program), "TEST=line or byte_at_a_time or urgent or next_client")
    assert re.search(r"kept .*\nkept .*\nnot checked   When one .*\n +It did not start again: the server ended before it"
                     r"\s+listened on port \d+,\s+with\s+exit\s+status\s+3.\nbroken  +An urgent", text), text


@pytest.mark.parametrize("command, complaint", [
    ("./no-such-server {port}", "there is no command ./no-such-server"),
    ("sh -c 'sleep 1000' {port}", r"waited \d+ s in vain for a server that listens on port \d+"),
    ("sh -c 'echo no time; exit 3' {port}",
     r"the server ended before it listened on port \d+, with exit status 3; it said: no time"),
])
def test_no_server(command, complaint):
    command = command.replace("'", "'\\''") if "sh -c" in command else command
    assert re.fullmatch("check: " + complaint + "\n", check(command))


@pytest.mark.book
@pytest.mark.parametrize("day", ["day03", "day05"])
def test_ours_are_blamed_for_nothing(day):
    build = BUILD.relative_to(ROOT)
    assert re.search(ALL_KEPT, check("%s/%s/server {port}" % (build, day), patience="5"))


def test_its_own_end_leaves_nothing_behind(tmp_path):
    """When SIGTERM comes, as from a script that has waited long enough."""
    program = tmp_path / "server.py"
    program.write_text(BLOCKING.format(change="", before=BEAST, after="time.sleep(1000)"))
    run = subprocess.Popen(
        [ROOT / "tests" / "run", "-p", "no:terminal", "--card", "tests/test_contract.py", "-k", "line", "--server",
         "%s %s {port}" % (sys.executable, program)], cwd=ROOT, env=marked("end"), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: [name[:6] for name in still_running("end")] == ["python"] * 3, "pytest and two of the server")
    finally:
        run.terminate()
        run.wait(PATIENCE)
    assert not still_running("end")


def test_trace():
    """What the tests did, as pytest shows it."""
    text = check("cat {port}", "TRACE=1", "TEST=line")
    assert "FAILED tests/test_contract.py::test_a_line_comes_back[yours]" in text or "ERROR" in text


# ---- The table

def test_every_test_that_any_server_can_be_held_to_is_in_a_promise():
    mine = [name for promise in PROMISES for name in promise.tests]
    theirs = [name for name, test in vars(test_contract).items() if name.startswith("test_")
              and not any(mark.name == "ours" for mark in getattr(test, "pytestmark", []))]
    assert sorted(mine) == sorted(theirs)


def test_a_promise_has_its_place():
    """The days in order, all tests of a promise from the same day on, a step of the notes for each."""
    days, order = steps.read(), []
    for promise in PROMISES:
        day, number = promise.step
        assert days["day%02d" % day][number - 1].number == number
        since = {since_of(getattr(test_contract, name)) for name in promise.tests}
        assert len(since) == 1
        order += since
    assert order == sorted(order)


def since_of(test):
    return next((mark.args[0] for mark in getattr(test, "pytestmark", []) if mark.name == "since"), 1)
