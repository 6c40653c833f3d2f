"""The laboratory of day 5: how many workers the kernel wakes for one connection, in each of eleven ways."""

import os
import re
import resource
import signal
import subprocess
import sys

import pytest

import figures
import herd
from harness import (PATIENCE, ROOT, SANITIZED, failure, program, running_in_session, status_of,
                     wait_until)

WAYS = ["accept", "poll", "epoll", "epoll-et", "shared", "shared-et", "exclusive", "reuseport", "mutex",
        "pool-signal", "pool-broadcast"]
WHOLE_HERD = {"poll", "epoll", "epoll-et", "pool-broadcast"}


def run(*arguments, **options):
    return subprocess.run([program("day05", "herd"), *map(str, arguments)], capture_output=True, text=True,
                          check=False, timeout=PATIENCE, **options)


def measure(way, workers=10, connections=50, delay=0):
    done = run("-m", way, "-w", workers, "-c", connections, *(["-d", delay] if delay else []))
    assert (done.returncode, done.stderr) == (0, "")
    [row] = herd.parse(done.stdout)
    assert row["way"] == way and row["connections"] == connections
    return row


def got(row):
    """How many connections each busy worker got."""
    if row["got"].endswith(": all to one"):
        return [int(row["got"].split(":")[0])]
    if " x " in row["got"]:
        count, each = map(int, row["got"].split(" x "))
        return [each] * count
    return [count for count in map(int, row["got"].split()) if count > 0]


@pytest.fixture
def by_hand(launch):
    """by_hand("epoll", workers=3): the laboratory with -p, where the test connects."""
    def start(way, workers=3, port=0, **options):
        return launch([program("day05", "herd"), "-m", way, "-w", str(workers), "-p", str(port)], **options).listening()

    return start


def workers_of(server):
    return [pid for pid in server.processes() if pid != server.pid]


def end(server, sig=signal.SIGINT):
    """Ends it; returns its row."""
    server.process.send_signal(sig)
    assert server.wait() == 0
    [row] = herd.parse("\n".join(server.out))
    return row


# ---- Both counts, in each way

@pytest.mark.parametrize("way", WAYS)
def test_wake_ups_for_one_connection_after_the_other(way):
    row = measure(way, connections=50)
    if way in WHOLE_HERD:
        assert row["woken"] >= 9 * 50
        assert row["returned"] >= 50  # how many of them still find it is a race
    elif way == "shared":
        assert 1.8 * 50 <= row["woken"] < 5 * 50
    else:
        least, most = (0.8, 1.5) if way == "mutex" else (1, 1.2)
        assert least * 50 <= row["woken"] <= most * 50
        assert (row["returned"], row["nothing"]) == (50, 0)
    assert sum(got(row)) == 50
    assert row["each"] == pytest.approx(row["woken"] / 50, abs=0.051)
    assert abs(len(row["bar"]) - min(25, row["woken"] / 50 * 2.5)) <= 1


@pytest.mark.parametrize("way", WAYS)
def test_a_nap_before_accept_lets_the_program_see_the_herd(way):
    """With 100 ms between being woken and accepting, every worker that was woken finds the newcomer still there."""
    row = measure(way, connections=3, delay=100)
    herd_seen = way in WHOLE_HERD or way == "shared"
    assert (row["returned"], row["nothing"]) == ((30, 27) if herd_seen else (3, 0))
    assert row["woken"] >= 27 if herd_seen else 2 <= row["woken"] <= 5


@pytest.mark.parametrize("way", ["accept", "epoll", "mutex", "pool-signal"])
def test_a_nap_delays_the_newcomer(way):
    """In accept and in a pool there is no moment for one."""
    assert (measure(way, connections=3, delay=100)["delay"] >= 100_000) == (way in ("epoll", "mutex"))


@pytest.mark.parametrize("way", ["accept", "epoll", "shared", "exclusive", "reuseport"])
def test_it_agrees_with_what_proc_says_from_outside(by_hand, way):
    server = by_hand(way)

    def switches():
        server.settle()
        return sum(int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", status_of(pid))[1])
                   for pid in workers_of(server))

    assert len(workers_of(server)) == 3
    before = switches()
    for _ in range(20):
        with server.connect():
            server.settle()
    woken = switches() - before
    row = end(server)
    assert (row["connections"], row["woken"], row["delay"]) == (20, woken, "-")


def test_accept_is_a_queue_and_exclusive_is_not():
    """In accept the first in the queue is woken, and rejoins at its end. With EPOLLEXCLUSIVE the first stays first."""
    assert got(measure("accept", 5, 20)) == [4] * 5
    assert got(measure("exclusive", 5, 20)) == [20]


def test_the_herd_costs_more():
    assert measure("epoll")["cpu"] > 1.5 * measure("exclusive")["cpu"] > 0


# ---- What the reader sees

def test_all_ways_in_turn():
    done = run("-w", 3, "-c", 4)
    assert (done.returncode, done.stderr) == (0, "")
    title, empty, head, *rows = done.stdout.splitlines()
    assert (title, empty) == ("workers: 3, delay: 0 ms, one connection after the other", "")
    assert head.split()[:5] == ["way", "connections", "returned", "nothing", "woken"]
    assert [row["way"] for row in herd.parse("\n".join(rows[:11]))] == WAYS
    assert [line.split()[0] for line in rows[12:] if line[0] != " "] == [
        "returned", "nothing", "woken", "cpu", "delay", "got"]
    assert max(map(len, rows)) < 130


@pytest.mark.parametrize("arguments, connections", [([], 100), (["-d", "100"], 20), (["-d", "1000"], 2),
                                                    (["-d", "1000", "-c", "3"], 3)])
def test_fewer_connections_with_a_nap(arguments, connections):
    """It takes seconds, not minutes. (In accept there is no moment for a nap, so the test needs no seconds.)"""
    [row] = herd.parse(run("-m", "accept", *arguments).stdout)
    assert row["connections"] == connections


def test_a_row_stays_short():
    assert measure("exclusive", 30, 3)["got"] == "3: all to one"
    assert measure("accept", 3, 6)["got"] == "3 x 2"


def test_a_crowd():
    row = measure("epoll", 100, 3)
    assert row["woken"] >= 270 and len(row["bar"]) == 25


def test_help_lists_the_ways():
    text = run("-m", "help").stdout
    assert [line.split()[0] for line in text.splitlines()] == WAYS
    assert all(len(line) < 100 for line in text.splitlines())


def complains(arguments, complaint):
    done = run(*arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("usage: herd [-m WAY] ")
    assert complaint is None or lines == [complaint, lines[-1]]


@pytest.mark.parametrize("arguments, complaint", [
    ("-m nonesuch", "herd: way nonesuch: no such way (-m help lists them)"),
    ("-w 0", "herd: workers 0: not a number from 1 to 1000"),
    ("-w two", "herd: workers two: not a number from 1 to 1000"),
    ("-c 1x", "herd: connections 1x: not a number from 1 to 10000"),
    ("-x", None),
    ("8888", None),
])
def test_wrong_numbers(arguments, complaint):
    complains(arguments, complaint)


def test_wrong_delay():
    complains("-d -1", "herd: delay -1: not a number from 0 to 60000")


@pytest.mark.parametrize("arguments, complaint", [
    ("-m poll -p 65536", "herd: port 65536: not a number from 0 to 65535"),
    ("-p 0", "herd: -p needs -m: by hand you can try one way at a time"),
])
def test_wrong_port(arguments, complaint):
    complains(arguments, complaint)


# ---- By hand

@pytest.mark.parametrize("way", WAYS)
def test_by_hand(by_hand, way):
    """A crowd at once: none is left in the backlog."""
    server = by_hand(way)
    assert len(workers_of(server)) == (1 if way.startswith("pool") else 3)
    for sock in [server.connect() for _ in range(30)]:
        assert sock.recv(1) == b""  # accepted, and closed
    row = end(server, signal.SIGTERM if way == "poll" else signal.SIGINT)
    assert row["connections"] == sum(got(row)) == 30


def test_by_hand_without_a_client(by_hand):
    row = end(by_hand("poll"))
    assert (row["connections"], row["woken"], row["each"], row["got"]) == (0, 0, 0, "")


def test_the_port_can_be_had_again_at_once(by_hand):
    server = by_hand("reuseport")
    with server.connect() as sock:
        assert sock.recv(1) == b""
    end(server)
    again = run("-m", "reuseport", "-c", "3")
    assert again.returncode == 0
    second = by_hand("accept", port=server.port)
    taken = run("-m", "accept", "-p", second.port)
    assert taken.returncode == 1 and taken.stdout == ""
    assert re.fullmatch("herd: listen on 127.0.0.1:%d%s\n" % (second.port, failure("EADDRINUSE")), taken.stderr)
    end(second)


@pytest.mark.parametrize("way", WAYS)
def test_stopped_and_continued(by_hand, way):
    server = by_hand(way)
    server.pause()
    sock = server.connect()
    server.resume()
    assert sock.recv(1) == b""
    assert end(server)["connections"] == 1


# ---- Its end

@pytest.fixture
def endless():
    """endless("mutex"): one that has connections to make for a minute, and has begun. (process, its workers)"""
    started = []

    def start(way="epoll", **options):
        process = subprocess.Popen([program("day05", "herd"), "-m", way, "-c", "10000"], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, **options)
        started.append(process)
        count = 1 if way.startswith("pool") else 10
        children = "/proc/%d/task/%d/children" % (process.pid, process.pid)

        def all_started():
            with open(children, encoding="ascii") as file:
                return len(file.read().split()) == count

        wait_until(all_started, "its workers")
        with open(children, encoding="ascii") as file:
            return process, list(map(int, file.read().split()))

    yield start
    for process in started:
        process.kill()  # and the kernel its workers
        process.communicate()


def ended_with(process, children, message):
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert said == message
    await_end(children)


def await_end(children):
    def gone(pid):
        try:
            return re.search(r"State:\s+[ZX]", status_of(pid))
        except OSError:
            return True

    wait_until(lambda: all(map(gone, children)), "the workers' end")


def odd_signals():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


@pytest.mark.parametrize("inherited", [None, odd_signals], ids=["", "inherited"])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(endless, sig, inherited):
    process, children = endless(preexec_fn=inherited)
    process.send_signal(sig)
    ended_with(process, children, "herd: epoll: interrupted\n")


def test_inherited_signals_change_nothing(by_hand):
    done = run("-w", 2, "-c", 2, preexec_fn=odd_signals)
    assert (done.returncode, len(herd.parse(done.stdout))) == (0, len(WAYS))
    for sig in (signal.SIGINT, signal.SIGTERM):
        assert end(by_hand("accept", prepare=odd_signals), sig)["connections"] == 0


@pytest.mark.parametrize("way", ["epoll", "accept", "mutex", "pool-signal"])
def test_a_worker_that_dies_is_the_end(endless, way):
    process, children = endless(way)
    os.kill(children[0], signal.SIGKILL)
    ended_with(process, children, "herd: %s: a worker died\n" % way)


def test_a_worker_that_dies_by_hand(by_hand):
    server = by_hand("exclusive")
    os.kill(workers_of(server)[1], signal.SIGKILL)
    assert server.wait() == 1
    assert server.errors() == ["herd: exclusive: a worker died"]


def test_the_parents_death_ends_the_workers(endless):
    process, children = endless("shared")
    process.kill()
    await_end(children)


# ---- What can fail at the start

def failing(strace, fault, way="epoll"):
    wrapper = strace(fault)
    done = subprocess.run([*wrapper[:1], "-f", *wrapper[1:], program("day05", "herd"), "-m", way, "-c", "2"],
                          capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1 and herd.parse(done.stdout) == []
    return done.stderr


@pytest.mark.parametrize("way, call, error, what", [
    ("epoll", "socket", "EMFILE", "socket"),
    ("epoll", "epoll_create1", "EMFILE", "epoll_create1"),
    ("shared", "epoll_create1", "EMFILE", "epoll_create1"),
    ("mutex", "epoll_ctl", "ENOSPC", "epoll_ctl"),
    ("poll", "listen", "EADDRINUSE", "listen on 127.0.0.1:0"),
])
def test_a_start_that_fails_says_why_in_one_line(strace, way, call, error, what):
    said = failing(strace, "%s:error=%s" % (call, error), way)
    assert re.fullmatch("herd: %s%s\n" % (what, failure(error)), said)


def test_no_more_processes(strace):
    """The third one cannot be had."""
    said = failing(strace, "/^(fork|clone)$:error=EAGAIN:when=3")
    assert re.fullmatch("herd: fork%s\n" % failure("EAGAIN"), said)


@pytest.mark.skipif(SANITIZED, reason="a sanitizer maps memory of its own")
def test_no_memory_to_share(strace, tmp_path):
    log = tmp_path / "log"
    subprocess.run([strace("mmap:error=ENOMEM:when=1000")[0], "-o", log, "-e", "trace=mmap",
                    program("day05", "herd"), "-m", "help"], stdout=subprocess.DEVNULL, check=True)
    before = len(re.findall(r"^mmap\(", log.read_text(), re.M))  # in the loader and libc
    said = failing(strace, "mmap:error=ENOMEM:when=%d" % (before + 1))
    assert re.fullmatch("herd: mmap%s\n" % failure("ENOMEM"), said)


def test_few_descriptors(monkeypatch):
    """As many as it needs, and fewer."""
    def limit(number):
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))

    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # which would need some, too
    assert run("-m", "epoll", "-w", 4, "-c", 3, preexec_fn=limit(6)).returncode == 0
    done = run("-m", "epoll", "-w", 4, "-c", 3, preexec_fn=limit(4))
    assert done.returncode == 1 and re.fullmatch("herd: epoll_create1%s\n" % failure("EMFILE"), done.stderr)


# ---- The pools have no data race

@pytest.mark.parametrize("way", ["pool-signal", "pool-broadcast"])
def test_thread_sanitizer_finds_nothing(thread_sanitized, way):
    done = subprocess.run([thread_sanitized, "-m", way, "-w", "4", "-c", "30"], capture_output=True, text=True,
                          check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def thread_sanitized(tmp_path_factory):
    path = tmp_path_factory.mktemp("tsan") / "herd"
    built = subprocess.run(["gcc", "-std=gnu11", "-g", "-O1", "-fsanitize=thread", "-pthread", "-o", path,
                            ROOT / "day05-herd" / "herd.c", ROOT / "common" / "die.c"],
                           capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip("gcc cannot build with ThreadSanitizer here: " + built.stderr[-200:])
    return path


# ---- make herd, make switches

def make(*arguments, **options):
    return subprocess.run(["make", "-s", "-C", ROOT, *arguments], capture_output=True, text=True, check=True,
                          timeout=60, **options)


def test_make_herd(tmp_path):
    """It shows the table, and saves it."""
    done = make("herd", "WORKERS=3", "CONNECTIONS=4", env={**os.environ, "MEASURED": str(tmp_path)})
    rows = herd.parse(done.stdout)
    assert [row["way"] for row in rows] == WAYS and {row["connections"] for row in rows} == {4}
    kept = figures.load(tmp_path, "herd")
    assert kept["command"] == "make herd WORKERS=3 CONNECTIONS=4"
    assert (kept["workers"], kept["delay"], kept["ways"]) == (3, 0, rows)


def test_make_herd_of_one_way(tmp_path):
    done = make("herd", "WAY=shared-et", "CONNECTIONS=3", "DELAY=10", env={**os.environ, "MEASURED": str(tmp_path)})
    assert [row["way"] for row in herd.parse(done.stdout)] == ["shared-et"]
    kept = figures.load(tmp_path / "quick", "herd-delay")
    assert (kept["workers"], kept["delay"]) == (10, 10)
    assert not (tmp_path / "herd-delay.txt").exists()


def test_make_herd_of_a_way_that_there_is_not():
    done = subprocess.run([sys.executable, ROOT / "tests" / "herd.py", "--way", "nonesuch"], capture_output=True,
                          text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2 and done.stderr.startswith("herd: way nonesuch: no such way")


def test_make_herd_leaves_nothing_behind():
    """After Ctrl-C in the middle it says so, and all that it started ends."""
    process = subprocess.Popen(["make", "-s", "-C", ROOT, "herd"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: running_in_session(process.pid).count("herd") > 5, "its workers")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert "interrupted" in said
    wait_until(lambda: not running_in_session(process.pid), "all that it started to end")


def test_make_switches(tmp_path):
    """With a hundred requests in flight, a process per client goes to sleep after each request, one loop seldom."""
    done = make("switches", env={**os.environ, "MEASURED": str(tmp_path)})
    row = re.search(r"^ *100 +([\d.]+) +([\d.]+) ", done.stdout, re.M)
    assert float(row[1]) >= 0.9
    assert float(row[2]) <= 0.2
