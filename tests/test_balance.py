"""make balance: what it finds, and that nothing is left of its machines, however it ends."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

import balance
from harness import PATIENCE, ROOT, SANITIZED, marked, still_running, wait_until

needs_machines = pytest.mark.skipif(balance.missing() is not None, reason=str(balance.missing()))


@pytest.fixture
def begin(launch, tmp_path):
    """begin(): make balance QUICK=1 as it runs, and the namespaces that it has made, once it has made them."""
    for folder in ("measured", "temporary"):
        (tmp_path / folder).mkdir()

    def start():
        process = launch([sys.executable, str(ROOT / "tests" / "balance.py"), "--quick"], start_new_session=True,
                         env={**marked("balance"), "MEASURED": str(tmp_path / "measured"),
                              "TMPDIR": str(tmp_path / "temporary")})
        process.ours = False  # it is no server, and need not end as one does
        process.wait_err("clients come")
        return process, namespaces([process.pid]) - namespaces(["self"])

    yield start


def namespaces(processes):
    """The network namespaces that these processes are in, or have open."""
    found = set()
    for process in processes:
        folder = Path("/proc/%s" % process)
        for path in (folder / "ns" / "net", *every(folder / "fd")):
            try:
                found.add(os.readlink(path))
            except OSError:
                pass  # it has ended, or closed it
    return {name for name in found if name.startswith("net:[")}


def every(folder):
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def check_that_nothing_is_left(made, links, folder):
    """Neither a process nor a namespace: nothing is in it, has it open, or has mounted it. Nor a link or a file."""
    wait_until(lambda: not still_running("balance"), "all that it started to end")
    # A process that has just ended may hold them for a moment.
    wait_until(lambda: not made & namespaces(path.name for path in Path("/proc").glob("[0-9]*")), "their end")
    assert not made & set(Path("/proc/self/mountinfo").read_text().split())
    assert os.listdir("/sys/class/net") == links
    assert os.listdir(folder / "temporary") == []


@needs_machines
@pytest.mark.skipif(SANITIZED, reason="it counts what happens within half a second, and sanitizers are slower than that")
def test_what_is_lost_and_what_is_left(begin, tmp_path):
    """How many clients each machine got; and no client loses anything while its machine lives."""
    links = os.listdir("/sys/class/net")
    process, made = begin()
    assert len(made) == 4
    assert process.process.wait(4 * PATIENCE) == 0, process.err  # 25 s, if there is nothing else to do
    process.errors()
    check_that_nothing_is_left(made, links, tmp_path)

    data = json.loads((tmp_path / "measured" / "quick" / "balance.json").read_text())
    assert data["command"] == "make balance QUICK=1" and list(data["figures"]) == balance.ALGORITHMS
    for found, in data["figures"].values():
        assert found["came"] == [20, 20, 20]
        killed, drained, silent = found["killed"], found["drained"], found["silent"]
        for death in (killed, silent):
            assert 0 < death["lost"] <= death["clients"], found
            assert death["newcomers"] >= death["sent on"] + death["turned away"]
        assert killed["learn"] < killed["noticed"] and killed["sent on"] > 0
        assert silent["learn"] > killed["noticed"] and silent["bytes"] > 0
        assert drained["clients"] > 0
        assert drained["lost"] == drained["newcomers"] == drained["undelivered"] == found["others"] == 0
    even, idle = (found["back"] for found, in data["figures"].values())
    assert sum(even) == sum(idle) == 20 and max(even) - min(even) <= 3 and idle[0] > 10

    said = "\n".join(process.out)
    assert re.search(r"^clients come: to each machine +20 20 20 +20 20 20$", said, re.M)
    assert re.search(r"^all the time: lost, although their machine lived +0 +0$", said, re.M)


def ctrl_c(process):
    os.killpg(process.pid, signal.SIGINT)


def sigterm(process):
    process.process.terminate()


def sigkill(process):
    process.process.kill()


def haproxy_dies(process):
    pids = [pid for pid in process.processes() if Path("/proc/%d/comm" % pid).read_text() == "haproxy\n"]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert pids


@needs_machines
@pytest.mark.parametrize("end, status, says", [
    (ctrl_c, 1, "\ninterrupted"), (sigterm, 1, "\ninterrupted"), (sigkill, -signal.SIGKILL, ""),
    (haproxy_dies, 1, "balance: HAProxy is gone: .*")], ids=lambda value: getattr(value, "__name__", ""))
def test_nothing_is_left_when_it_ends_early(begin, tmp_path, end, status, says):
    links = os.listdir("/sys/class/net")
    process, made = begin()
    assert {"haproxy", "server"} <= set(still_running("balance"))
    end(process)
    assert process.wait() == status
    check_that_nothing_is_left(made, links, tmp_path)
    said = "\n".join(line for line in process.errors() if not line.startswith("round "))
    assert re.fullmatch(says, said), said
    assert os.listdir(tmp_path / "measured") == []


def refusal(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["balance.py"])
    with pytest.raises(SystemExit) as end:
        balance.run()
    return end.value.code


@pytest.mark.parametrize("tool, package", [("haproxy", "haproxy"), ("ip", "iproute2")])
def test_a_tool_is_missing(monkeypatch, tool, package):
    monkeypatch.setattr(balance.shutil, "which", lambda name: None if name == tool else "/bin/" + name)
    assert refusal(monkeypatch) == "balance: %s is missing (Debian: %s)" % (tool, package)


def test_without_root(monkeypatch, capsys):
    """A quick run, which .ci/run makes everywhere, has not failed then."""
    monkeypatch.setattr(balance.shutil, "which", lambda name: "/bin/" + name)
    monkeypatch.setattr(balance.os, "geteuid", lambda: 1000)
    assert refusal(monkeypatch) == "balance: only root may make network namespaces: sudo make balance"
    monkeypatch.setattr(sys, "argv", ["balance.py", "--quick"])
    balance.run()
    assert capsys.readouterr().out == "balance is left out: only root may make network namespaces: sudo make balance\n"


def test_with_a_root_that_may_not(monkeypatch, tmp_path):
    """unshare fails, as it does in most containers."""
    for tool in ("haproxy", "ip", "unshare"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(balance.os, "geteuid", lambda: 0)
    assert refusal(monkeypatch) == "balance: no network namespaces here: unshare: Operation not permitted"
