"""Day 5: a parent that looks after its workers, and how the newcomers are spread over them."""

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import time

import pytest

from harness import STOP_WITHIN, failure, free_port, program, receive, reset, status_of, wait_until

MODES = ["epoll", "exclusive", "reuseport"]
TOTALS = r"served (\d+) clients?: (\d+) bytes echoed, (\d+) undelivered$"
FORKS = ["fork", "vfork", "clone", "clone3"]  # whichever the libc takes


@pytest.fixture
def start(start_day):
    def start(mode="exclusive", workers=2, *arguments, **options):
        return start_day("day05", "-m", mode, "-w", str(workers), *arguments, "0", **options)

    return start


def workers_of(server):
    return [pid for pid in server.processes() if pid != server.pid]


def await_workers(server, count):
    wait_until(lambda: len(workers_of(server)) == count, "%d workers" % count)


def clients_of_each(server):
    """The lines of the workers, which -v adds to the totals."""
    server.let_clients_end()
    clients, *_ = server.stop()
    each = [int(m[1]) for line in server.out if (m := re.match(r"worker \d+ " + TOTALS, line))]
    assert sum(each) == clients
    return each


KILLED = r"^server: worker (\d+) \(pid (\d+)\) was killed by signal 9 \(Killed\)$"


# ---- Which worker gets a newcomer

@pytest.mark.parametrize("mode", ["exclusive", "reuseport"])
def test_clients_that_stay_are_spread_evenly(start, mode):
    """Two hundred come one after the other, and four workers have about fifty each: in mode exclusive
    because each goes to the end of the queue after a newcomer, in reuseport by chance."""
    server = start(mode, 4, "-v")
    assert all(server.echoes(server.connect()) for _ in range(200))
    least, most = {"exclusive": (30, 70), "reuseport": (20, 90)}[mode]
    each = clients_of_each(server)
    assert len(each) == 4 and all(least <= count <= most for count in each)


def test_a_newcomer_makes_nobody_deaf(start, strace):
    """Mode epoll: all workers are woken for it, and one gets it. The others must not wait in accept for the
    next, because they have clients. Each accept is delayed, so that all come while the newcomer is there."""
    server = start("epoll", 4, wrapper=strace("accept4:delay_enter=20000"))
    socks = []
    for _ in range(10):
        socks.append(server.connect())
        assert all(server.echoes(sock) for sock in socks)


def test_one_worker_out_of_descriptors_leaves_the_newcomers_to_the_others(start):
    """In mode exclusive the kernel would wake it, and no other worker: so it leaves the queue."""
    server = start("exclusive", 2)
    for _ in range(10):
        with server.connect() as sock:
            assert server.echoes(sock)
    server.settle()
    pid = workers_of(server)[0]
    used = len(os.listdir("/proc/%d/fd" % pid))
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, hard))  # room for one more client
    begin = server.clock()
    for _ in range(20):
        assert server.echoes(server.connect())
    assert server.clock() - begin < 0.9  # no newcomer had to wait for a look each second
    assert len(server.errors(1)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_out_of_descriptors_without_a_storm(start, mode):
    """No worker has descriptors for all; together they serve what they can, sleep, and take the rest
    as others leave."""
    server = start(mode, 2, limits={resource.RLIMIT_NOFILE: 20})
    socks = [server.connect() for _ in range(60)]
    for i, sock in enumerate(socks):
        sock.sendall(b"%02d" % i)
    server.wait_err("accept: newcomers have to wait" + failure("EMFILE"))
    server.settle()
    assert server.cpu_share() < 0.1
    left, poll = dict(enumerate(socks)), select.poll()
    while left:  # clients that have their answer make room for the others
        for i, sock in list(left.items()):
            poll.register(sock, select.POLLIN)
            if poll.poll(0):
                assert receive(sock, 2) == b"%02d" % i
                poll.unregister(sock)
                left.pop(i).close()
            else:
                poll.unregister(sock)
    server.settle()
    assert len(server.errors()) <= 2 * 2


def test_reuseport_loses_the_queue_of_a_worker_that_dies(start):
    """Each listener has a backlog of its own. What waits in it goes down with its worker."""
    server = start("reuseport", 2)
    server.settle()
    children = workers_of(server)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    socks = [server.connect() for _ in range(60)]
    os.kill(children[0], signal.SIGKILL)
    os.kill(children[1], signal.SIGCONT)
    lost = 0
    for sock in socks:
        try:
            server.echoes(sock)
        except (ConnectionError, AssertionError):
            lost += 1
    assert 0 < lost < 60
    server.errors(1)


def test_a_second_server_cannot_share_the_port(start, launch):
    """Mode reuseport: a port may be shared, but only by our own workers."""
    server = start("reuseport")
    for mode in MODES:
        second = launch([program("day05"), "-m", mode, str(server.port)])
        assert second.wait() == 1 and second.out == []
        lines = second.errors()
        assert len(lines) == 1
        assert re.match("server: bind 127.0.0.1:%d" % server.port + failure("EADDRINUSE"), lines[0])


# ---- The start

def test_listening_is_said_when_all_can_accept(start):
    """The parent waits for each worker. In mode reuseport only they can accept a client."""
    for _ in range(5):
        server = start("reuseport", 4)
        assert len(workers_of(server)) == 4
        for _ in range(8):
            server.connect()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", [1, 2])
def test_a_start_without_a_worker_fails(launch, strace, mode, which):
    """One cannot be forked: one line, no other worker stays, and the port is free."""
    port = free_port()
    faults = ["%s:error=EAGAIN:when=%d" % (call, which) for call in FORKS]
    command = [program("day05"), "-m", mode, "-w", "2", str(port)]
    server = launch([*strace(*faults), *command])
    assert server.wait() == 1 and server.out == []
    lines = server.errors()
    assert len(lines) == 1 and re.match("server: fork" + failure("EAGAIN"), lines[0])

    def port_is_free():
        server = launch(command)
        wait_until(lambda: server.out or server.err, "a line")
        return server.out or server.errors() == []

    wait_until(port_is_free, "the port to be free")


# ---- The parent

def test_a_worker_that_dies_is_reported_and_replaced(start):
    server = start("exclusive", 3, "-v")
    socks = [server.connect() for _ in range(30)]
    assert all(server.echoes(sock) for sock in socks)
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGKILL)
    number, pid = map(int, server.wait_err(KILLED).groups())
    assert pid == victim
    alive = 0
    for sock in socks:
        try:
            alive += server.echoes(sock)
        except (ConnectionError, AssertionError):
            pass
    lost = len([line for line in server.out if re.match(r"worker %d fd .* connected$" % number, line)])
    assert alive == 30 - lost  # the other workers' clients noticed nothing
    await_workers(server, 3)
    assert victim not in workers_of(server)
    server.settle()
    for _ in range(9):
        with server.connect() as sock:
            assert server.echoes(sock)
    assert len(server.errors()) == 1
    assert sum(clients_of_each(server)) == 39  # what the dead worker had counted is not lost


def test_workers_that_die_at_once_are_not_replaced_in_a_tight_loop(start):
    """Not twice within a second."""
    server = start("exclusive", 1)
    begin = time.monotonic()
    for _ in range(2):
        await_workers(server, 1)
        os.kill(workers_of(server)[0], signal.SIGKILL)
        wait_until(lambda: not workers_of(server), "its death")
    await_workers(server, 1)
    assert time.monotonic() - begin > 1.5
    with server.connect() as sock:
        assert server.echoes(sock)
    assert len(server.errors(2)) == 2


def test_started_with_sigchld_ignored(start):
    """As after trap '' CHLD in a shell, and in some launchers: exec hands that down, and the kernel would not
    report the death of a worker."""
    server = start(prepare=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGKILL)
    server.wait_err(KILLED)
    wait_until(lambda: len(workers_of(server)) == 2 and victim not in workers_of(server), "a new worker")
    server.errors()
    server.stop()


def test_a_fork_that_fails_is_reported_once_a_second(start, strace):
    """Two workers die, and no other can be started; the third serves."""
    server = start("exclusive", 3, wrapper=strace(*("%s:error=EAGAIN:when=4+" % call for call in FORKS)))
    begin = time.monotonic()
    for pid in workers_of(server)[:2]:
        os.kill(pid, signal.SIGKILL)
    server.wait_err(": fork: ")
    time.sleep(2.2)
    with server.connect() as sock:
        assert server.echoes(sock)
    lines, seconds = server.errors(), time.monotonic() - begin
    deaths = [line for line in lines if re.match(KILLED, line)]
    forks = [line for line in lines if re.match("server: fork" + failure("EAGAIN"), line)]
    assert len(deaths) == 2 and len(deaths) + len(forks) == len(lines)
    assert 2 <= len(forks) <= 1 + seconds


def test_ctrl_c_reaches_the_workers_too(start):
    """A terminal sends SIGINT to all processes of a foreground job. Which of them gets it first makes no
    difference: no worker is reported as dead."""
    for _ in range(10):
        server = start("exclusive", 4, start_new_session=True)
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert server.errors() == [] and server.totals() == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_the_parents_death_ends_the_workers(start, mode):
    server = start(mode, 2)
    children = workers_of(server)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    wait_until(lambda: not any(map(runs, children)), "the end of the workers")


def runs(pid):
    try:
        return "State:\tZ" not in status_of(pid)
    except OSError:
        return False


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_is_stopped_does_not_stop_the_end(start, mode):
    """After SIGSTOP it cannot react: it is killed, and that is reported. Meanwhile the parent's listener is
    closed: newcomers must not wait for a server that is about to end."""
    server = start(mode, 2)
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: "State:\tT" in status_of(victim), "it to stop")
    begin = server.clock()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not sockets_of(server.pid), "the parent to close its listener")
    took = server.clock() - begin
    assert took < 0.5
    assert took + server.time_to_end() < STOP_WITHIN
    assert server.wait() == 0
    lines = server.errors()
    assert len(lines) == 1 and int(re.match(KILLED, lines[0])[2]) == victim


def sockets_of(pid):
    found, folder = [], "/proc/%d/fd/" % pid
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # it is being closed just now
            if os.readlink(folder + fd).startswith("socket:"):
                found.append(fd)
    return found


def test_lines_of_several_processes_do_not_mix(start):
    """Six hundred clients speak while the server is stopped, so that a wake-up has as many events as it may
    have, and its line is as long as it can get."""
    server = start("exclusive", 3, "-v")
    socks = [server.connect() for _ in range(600)]
    for sock in socks:
        assert server.echoes(sock, b"x")
    for _ in range(3):
        server.pause()
        for sock in socks:
            sock.send(b"x")
        server.resume()
        assert all(receive(sock, 1) == b"x" for sock in socks)
    server.pause()
    for sock in socks:
        reset(sock)
    server.resume()
    server.settle()
    server.errors()
    server.stop()
    event = r"fd \d+( [A-Z]+)+ \([a-z ]+\)"
    line = re.compile(r"worker \d (woke up: \d+ ready(, %s)*|fd \d+: [\d.:]+ (connected|left: [^:]+)|%s)"
                      % (event, TOTALS))
    assert max(map(len, server.out)) > 2000
    assert [text for text in server.out[1:-1] if not line.fullmatch(text)] == []


def test_more_clients_than_a_process_may_have(start):
    """Six thousand, and two thousand descriptors for each of four workers. When one has its fill, the others
    get what comes."""
    count = 6000
    server = start("exclusive", 4, limits={resource.RLIMIT_NOFILE: count // 3})
    socks = [server.connect(source="127.0.0.%d" % (1 + i // 1000)) for i in range(count)]
    for i, sock in enumerate(socks):
        sock.sendall(b"%04d" % i)
    assert all(receive(sock, 4) == b"%04d" % i for i, sock in enumerate(socks))
    for sock in socks:
        reset(sock)  # the kernel keeps only so many in TIME_WAIT, and other tests need theirs
    server.settle()
    expected = r"server: (recv [\d.:]+%s|accept: newcomers have to wait%s)" % (failure("ECONNRESET"), failure("EMFILE"))
    assert [line for line in server.errors() if not re.match(expected, line)] == []
    assert server.stop() == (count, 4 * count, 0)


# ---- What the reader types

def test_a_worker_for_each_core(start_day):
    assert len(workers_of(start_day("day05", "0"))) == os.sysconf("SC_NPROCESSORS_ONLN")


def test_help_lists_the_modes():
    text = subprocess.run([program("day05"), "-m", "help"], capture_output=True, text=True,
                          check=True).stdout
    assert [line.split()[0] for line in text.splitlines()] == MODES
    assert all(len(line) < 100 for line in text.splitlines())


@pytest.mark.parametrize("arguments, complaint", [
    (["-m", "nonesuch"], "server: mode nonesuch: no such mode (-m help lists them)"),
    (["-w", "0"], "server: workers 0: not a number from 1 to 4096"),
    (["-w", "two"], "server: workers two: not a number from 1 to 4096"),
    (["-w", ""], "server: workers : not a number from 1 to 4096"),
    (["-w", "4097"], "server: workers 4097: not a number from 1 to 4096"),
])
def test_wrong_options(launch, arguments, complaint):
    server = launch([program("day05"), *arguments])
    assert server.wait() == 2
    what, usage = server.errors()
    assert what == complaint
    assert usage == "usage: server [-v] [-m MODE] [-w WORKERS] [PORT [HOST]]"


# ---- What the first steps of the day promise, when there is no option yet

def test_several_processes_serve(start_day):
    server = start_day("day05", "0")
    wait_until(lambda: len(workers_of(server)) >= 1, "a worker")
    with server.connect() as sock:
        assert server.echoes(sock)


def test_one_signal_ends_them_all(start_day):
    server = start_day("day05", "0")
    wait_until(lambda: len(workers_of(server)) >= 1, "a worker")
    children = workers_of(server)
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0
    assert not any(os.path.exists("/proc/%d" % pid) for pid in children)


def test_a_stopped_worker_does_not_stop_the_end(start_day):
    server = start_day("day05", "0")
    wait_until(lambda: len(workers_of(server)) >= 1, "a worker")
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: "State:\tT" in status_of(victim), "it to stop")
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0
    server.errors()


def test_a_dead_worker_is_replaced(start_day):
    server = start_day("day05", "0")
    wait_until(lambda: len(workers_of(server)) >= 1, "a worker")
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGKILL)
    server.wait_err(r"^server: worker \d+ \(pid %d\) was killed by signal 9 \(Killed\)$" % victim)
    wait_until(lambda: len(workers_of(server)) >= 1 and victim not in workers_of(server), "another one")
    server.errors()


def test_a_worker_that_cannot_start_is_told_at_once(launch, strace):
    server = launch([*strace("epoll_create1:error=EMFILE"), program("day05"), "0"])
    assert server.wait() == 1 and server.out == []
    assert len(server.errors()) >= 1
