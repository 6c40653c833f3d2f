"""What every server promises, whatever its clients do. `make check` runs a server of yours against it, too."""

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import SERVERS
from harness import (HELPERS, MIB, NO_END, PATIENCE, SANITIZED, STOP_WITHIN, came_back, exchange, failure, free_port,
                     has_keepalive, name_of, program, receive, receive_all, receive_back, reset, row_of, send_what_fits,
                     status_of, strerror, wait_until)

since = pytest.mark.since  # from that day on
until = pytest.mark.until  # up to that day
ours = pytest.mark.ours

KIB = 1024


# ---- Every byte comes back, in order, to the client that sent it

def test_a_line_comes_back(server):
    assert came_back(b"hello\n", exchange(server.connect(), b"hello\n"))


@pytest.mark.parametrize("size", [1, 5, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1,
                                  64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 32 * MIB])
def test_bytes_come_back(server, size):
    data = b"\0" + os.urandom(size - 1)  # not five letters by chance: a failure would be told in other words
    assert came_back(data, exchange(server.connect(), data))


def test_bytes_come_back_to_a_slow_reader(server):
    """It begins to read when nothing moves any more: send has taken less than it was given."""
    sock = server.connect(receive_buffer=16 * KIB)
    data = os.urandom(8 * MIB)
    client = threading.Thread(target=send_until_it_breaks, args=(sock, data))
    client.start()
    sock.recv(1, socket.MSG_PEEK)
    server.settle()
    assert receive_back(sock, data)
    client.join(PATIENCE)


def send_until_it_breaks(sock, data, then=None):
    with contextlib.suppress(OSError):
        sock.sendall(data)
        if then is not None:
            sock.shutdown(then)


def test_the_next_client(server):
    """As soon as one has gone."""
    for _ in range(10):
        with server.connect() as sock:
            assert server.echoes(sock)


def test_one_byte_at_a_time(server):
    data = os.urandom(2000)
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert all(server.echoes(sock, data[i:i + 1]) for i in range(1000))
        for i in range(1000, 2000):  # and now without waiting for the answers
            sock.send(data[i:i + 1])
        assert receive_back(sock, data[1000:])


@since(2)
def test_many_clients_at_the_same_time(server):
    """Each gets its own bytes, though all of them send at once in pieces of all sizes."""
    def client(seed):
        rng = random.Random(seed)
        data = rng.randbytes(rng.randrange(2 * MIB))
        return came_back(data, exchange(server.connect(), data, piece=rng.choice([1000, 65536, MIB])))

    with ThreadPoolExecutor(20) as threads:
        assert all(threads.map(client, range(20)))


@pytest.mark.parametrize("size", [0, 5, 100 * KIB, MIB])
def test_half_close(server, size):
    data = os.urandom(size)
    assert came_back(data, exchange(server.connect(), data, half_close=True))


def test_half_close_with_much_to_come(server):
    """A client that has shut down its sending side still gets all of its bytes, then end of file."""
    sock = server.connect(receive_buffer=4 * KIB)
    data = server.fill(sock)
    assert len(data) > MIB // 4
    sock.shutdown(socket.SHUT_WR)
    server.settle()
    assert receive_back(sock, data)
    assert receive_all(sock) == b"", "more came back than was sent"


def test_half_close_and_a_pause(server):
    """So much that the server has seen the end of it, and not all of it fits into its kernel."""
    data = os.urandom(3_000_000)
    sock = server.connect()
    client = threading.Thread(target=send_until_it_breaks, args=(sock, data, socket.SHUT_WR))
    client.start()
    server.settle()
    if not server.ours:
        time.sleep(1)  # it may wait for its client, but not long enough
    assert receive_back(sock, data)
    assert receive_all(sock) == b"", "more came back than was sent"
    client.join(PATIENCE)


def test_half_close_while_something_is_held(server):
    """The same when the end of the client's bytes is in the server's kernel before they are back."""
    sock = server.connect(receive_buffer=4 * KIB, segment=500)
    data = server.hold(sock)
    half_close(sock)
    assert receive_back(sock, data)
    assert receive_all(sock) == b"", "more came back than was sent"


def half_close(sock):
    sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: row_of(sock, server_side=False)[0] == "05", "FIN_WAIT2: the end to arrive")


def test_a_client_that_waits_before_it_reads(server):
    """What did not fit is sent when there is room, and reading goes on from there."""
    sock = server.connect(receive_buffer=4 * KIB)
    first = server.fill(sock)
    assert receive_back(sock, first)
    assert server.echoes(sock, b"and on it goes")


def test_a_client_that_takes_small_pieces(server):
    """The server's send buffer is small, so that what is held goes out in many pieces."""
    sock = server.connect(receive_buffer=4 * KIB, segment=500)
    first = server.fill(sock)
    assert receive_back(sock, first)
    data = os.urandom(MIB)
    assert came_back(data, exchange(sock, data))


def test_much_waits_when_the_server_comes_to_look(server):
    """More than it reads in one turn, and nothing follows to remind it."""
    sock = server.connect()
    for _ in range(40):
        assert server.echoes(sock, bytes(MIB))  # in use, the buffers of a connection grow
    server.settle()
    server.pause()
    data = send_what_fits(sock, os.urandom(2 * MIB))
    server.resume()
    assert receive_back(sock, data)


def test_urgent_bytes_come_back(talking):
    """An urgent byte keeps its place (SO_OOBINLINE), and is counted."""
    with talking.connect() as sock:
        sock.sendall(b"12")
        sock.send(b"X", socket.MSG_OOB)
        sock.sendall(b"34")
        assert receive_back(sock, b"12X34")
    assert not talking.ours or talking.stop() in ((1, 5, 0), None)


def test_small_answers_do_not_wait(server):
    """For the acknowledgement of the one before: TCP_NODELAY, read from the server's own end of the connection."""
    with server.connect() as sock:
        assert server.echoes(sock)
        try:
            end = server.server_end(sock)
        except (AssertionError, OSError) as error:
            if server.ours:
                raise
            pytest.skip("We cannot look at its socket: %s" % error)
        with end:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), (
                "TCP_NODELAY is off at the server's end: the second of two small answers may come 40 ms late")


def test_a_client_whose_machine_has_vanished_is_found(server):
    """We cannot wait the two hours of tcp(7), so we ask whether keepalive is on."""
    with server.connect() as sock:
        assert server.echoes(sock)
        assert has_keepalive(sock), "SO_KEEPALIVE is off at the server's end: the kernel has no timer for this client"


# ---- One client does not delay another

@since(2)
def test_a_silent_client_delays_nobody(server):
    silent = [server.connect() for _ in range(10)]
    with server.connect() as sock:
        assert all(server.echoes(sock) for _ in range(10))
    assert all(server.echoes(sock) for sock in silent)


@since(2)
def test_a_client_that_never_reads_delays_nobody(server):
    deaf = server.connect()
    server.fill(deaf)
    with server.connect() as sock:
        data = os.urandom(MIB)
        assert came_back(data, exchange(sock, data))


@since(2)
def test_a_client_that_sends_without_end_starves_nobody(server):
    """The client reads its answers as fast as it can, so there is always more to read and to send."""
    with greedy_client(server):
        for _ in range(20):
            with server.connect() as sock:
                sock.settimeout(min(5, PATIENCE))
                assert server.echoes(sock)
    server.settle()
    server.errors()  # the reset


@ours
@since(2)
def test_nor_if_it_is_faster_than_the_server(start, strace):
    """Each recv takes 30 ms, and bytes for half a second of that are on the way: the next are there before the last are
    echoed."""
    server = start(wrapper=strace("recvfrom:delay_enter=30000"))
    with greedy_client(server) as greedy:
        wait_until(lambda: on_the_way(greedy) > MIB, "1 MiB to be on its way to the server")
        for _ in range(3):
            with server.connect() as sock:
                sock.settimeout(min(5, PATIENCE))
                assert server.echoes(sock)
    server.settle()
    server.errors(1)


@ours
@since(2)
def test_newcomers_without_end_starve_nobody(start, strace):
    """Each accept takes 2 ms, and three hundred wait. Between two of them the clients that are there get
    their turn, and so does the signal."""
    server = start(wrapper=strace("accept4:delay_enter=2000"))
    with server.connect() as sock:
        assert server.echoes(sock)
        assert slowest_echo(server, sock, [server.connect() for _ in range(300)]) < 0.2
        more = [server.connect() for _ in range(600)]
        server.let_clients_end()
        server.stop()
        for newcomer in more:
            newcomer.close()


@ours
@since(2)
def test_four_thousand_newcomers_at_once_delay_nobody(start, server_name):
    """They are in the backlog, and have spoken, before the server looks. While it takes and answers them, a client that
    was there before gets one answer after the other. (If it took them all in one turn, that would be four at most.)"""
    count = 900 if server_name == "day02" else 4000
    server = start(one_process=True)
    with server.connect() as sock:
        assert server.echoes(sock)
        server.pause()
        crowd = [server.connect(source="127.0.0.%d" % (1 + i // 1000)) for i in range(count)]
        for newcomer in crowd:
            newcomer.sendall(b"x")
        sock.sendall(b"hello\n")
        server.resume()
        answers, last = 0, select.poll()
        last.register(crowd[-1], select.POLLIN)
        while not last.poll(0):
            assert receive_back(sock, b"hello\n")
            answers += 1
            sock.sendall(b"hello\n")
        assert answers >= 10
        assert all(receive(newcomer, 1) == b"x" for newcomer in crowd)
    for newcomer in crowd:
        reset(newcomer)  # a kernel keeps only so many in TIME_WAIT
    server.settle()
    server.errors()


def slowest_echo(server, sock, newcomers):
    """Seconds for the slowest echo while the newcomers are accepted; they speak at once, and all are answered."""
    for newcomer in newcomers:
        newcomer.sendall(b"x")
    slowest, waiting = 0, select.poll()
    waiting.register(newcomers[-1], select.POLLIN)
    while not waiting.poll(0):
        begin = server.clock()
        assert server.echoes(sock)
        slowest = max(slowest, server.clock() - begin)
    assert all(receive(newcomer, 1) == b"x" for newcomer in newcomers)
    return slowest


@contextlib.contextmanager
def greedy_client(server):
    sock = server.connect()
    sock.setblocking(True)
    sender = subprocess.Popen(["cat", "/dev/zero"], stdout=sock)
    reader = subprocess.Popen(["cat"], stdin=sock, stdout=subprocess.DEVNULL)
    HELPERS.update((sender.pid, reader.pid))
    try:
        yield sock
    finally:
        for process in (sender, reader):
            process.kill()
            process.wait()
            HELPERS.remove(process.pid)
        reset(sock)


def on_the_way(sock):
    """Bytes that the client has sent, and that the server has not read."""
    return row_of(sock, server_side=False)[1] + row_of(sock, server_side=True)[2]


# ---- Nothing spins

@pytest.mark.parametrize("closing", [False, True])
def test_sleeps_while_a_client_does_not_read(server, closing):
    """What is held cannot be sent: there is nothing to do until the client makes room."""
    deaf = server.connect(receive_buffer=4 * KIB, segment=500)
    server.hold(deaf)
    if closing:
        half_close(deaf)
    sleeps(server)


def sleeps(server, why="there was nothing to do"):
    end = time.monotonic() + (0 if server.ours else PATIENCE)  # we do not know when another has done all there is to do
    while (share := server.cpu_share()) >= 0.1 and time.monotonic() < end:
        pass
    assert share < 0.1, why + ", and it took %.0f %% of a core" % (share * 100)


def test_sleeps_when_all_have_gone(server):
    for _ in range(3):
        sock = server.connect()
        sock.sendall(b"x")
        reset(sock)
        server.connect().close()
    with server.connect() as sock:
        assert server.echoes(sock)  # so it has seen what was before
    server.settle()
    sleeps(server)
    server.errors()  # each reset that comes before the server looks is an error


@ours
def test_wakes_up_for_nothing_but_work(server):
    """One client is there, and silent: the server sleeps, and no time-out wakes it."""
    with server.connect() as sock:
        assert server.echoes(sock)
        stays_asleep(server, 0.4)


def stays_asleep(server, seconds):
    server.settle()
    before = server.switches()
    time.sleep(seconds)
    count, asleep = server.switches()
    assert asleep and count == before[0], "nothing happened for %g s, and the server woke up" % seconds


# select and epoll_wait, as glibc and musl make them
WAITS = {"select", "pselect6", "epoll_wait", "epoll_pwait"}


@ours
@since(2)
def test_three_system_calls_for_an_echo(start, strace, tmp_path, server_name):
    """The wait, one read, one write (and in edge-triggered mode one more read, which finds nothing)."""
    reads = 2 if "edge" in server_name else 1
    trace = tmp_path / "trace"
    server = start(wrapper=["strace", "-D", "-q", "-o", str(trace)])
    with server.connect() as sock:
        assert server.echoes(sock, b"from here")
        for _ in range(10):
            server.settle()
            assert server.echoes(sock)
        assert server.echoes(sock, b"to there!")
        server.settle()
    text = trace.read_text()
    calls = re.findall(r"^(\w+)\(", text[text.index("sendto"):text.rindex('"to there!"')], re.M)
    found = {name: calls.count(name) for name in set(calls)}
    assert found.pop("sendto") == 12  # the two that we cut at, and ten between
    assert 11 <= found.pop("recvfrom") <= 11 * reads
    assert all(int(size) <= 64 * KIB for size in re.findall(r"^recvfrom\(.*, (\d+), 0,", text, re.M))
    assert found.keys() <= WAITS and sum(found.values()) <= 11


# ---- Memory

def test_memory_of_a_client_that_never_reads(server):
    """At most one buffer is held for it; the rest stays with the client."""
    with server.connect() as sock:
        server.echoes(sock, bytes(64 * KIB))
    server.settle()
    before = server.memory()
    deaf = server.connect()
    sent = len(server.fill(deaf))
    assert sent < NO_END, "a client sent {:,} bytes and read none, and the server took them all".format(sent)
    if server.ours:
        # AddressSanitizer's own notes on the memory are not the server's.
        assert server.memory() - before < (2 * MIB if SANITIZED else 256 * KIB)


@ours
@since(2)
def test_an_idle_client_costs_next_to_nothing(start, server_name):
    """No buffer is kept for a client to which nothing is owed."""
    count = 900 if server_name == "day02" else 2000
    server = start(one_process=True)
    with server.connect() as sock:
        server.echoes(sock, bytes(64 * KIB))
    server.settle()
    before = server.memory()
    for i in range(count):
        idle = server.connect(source="127.0.0.%d" % (1 + i // 1000))
        assert server.echoes(idle, bytes(16 * KIB))
    server.settle()
    slack = 4 * MIB if SANITIZED else 32 * KIB  # whole pages, and AddressSanitizer's notes
    assert server.memory() - before <= 64 * count + slack


@ours
def test_memory_does_not_grow_with_the_limit(start):
    """Some systems allow a billion descriptors; a table of that size would not fit anywhere."""
    def size_with(limit):
        server = start(limits={resource.RLIMIT_NOFILE: limit})
        with server.connect() as sock:
            assert server.echoes(sock)
        return sum(int(re.search(r"VmData:\s+(\d+)", status_of(pid))[1]) * KIB
                   for pid in server.processes())

    # A million if that is allowed, otherwise as many as are.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = MIB
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, max(hard, many)))
    except (ValueError, PermissionError):
        many = hard
    assert abs(size_with(many) - size_with(256)) < 64 * KIB


@ours
@since(2)
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer gives up when the memory does")
def test_no_memory_for_one_buffer(talking):
    """That client is dropped and named; the others are served."""
    with talking.connect() as good:
        assert talking.echoes(good, bytes(64 * KIB))
        talking.limit_memory()
        deaf = []
        while not talking.err and len(deaf) < 50:
            deaf.append(talking.connect())
            try:
                talking.fill(deaf[-1])
            except ConnectionError:
                break
            assert talking.echoes(good)
        assert talking.echoes(good)
        talking.wait_err("^server: malloc for " + name_of(deaf[-1]) + failure("ENOMEM"))
        talking.wait_out(name_of(deaf[-1]) + " left: " + strerror("ENOMEM") + "$")
        assert len(talking.errors(1)) == 1


# ---- No client ends the server

def test_resets(talking):
    """Fifty clients that go with a reset: some at once, some with bytes on the way."""
    names = []
    for i in range(50):
        sock = talking.connect()
        names.append(name_of(sock))
        if i % 2:
            sock.sendall(b"x" * i)
        reset(sock)
    with talking.connect() as sock:
        assert talking.echoes(sock)
    if talking.ours:
        for name in names:
            talking.wait_out(name + " left: ")
        lines = talking.errors(50)
        assert len(lines) == 50
        assert all(name in line for name, line in zip(sorted(names), sorted(lines, key=lambda line: (
            re.search(r"127\.0\.0\.1:\d+", line)[0]))))


def test_writing_to_a_client_that_is_gone(talking):
    """It closes with all its answers unread: the server's send is met with a reset."""
    for _ in range(5):
        sock = talking.connect(receive_buffer=4 * KIB)
        name = name_of(sock)
        talking.fill(sock)
        sock.close()
        if talking.ours:
            talking.wait_out(name + " left: ")
    with talking.connect() as sock:
        assert talking.echoes(sock)
    if talking.ours:
        assert len(talking.errors(5)) == 5


def test_a_true_broken_pipe(talking):
    """Bytes that arrived before the reset can still be read, so the server sends twice to a client
    that is gone. The second time the kernel has no other error left to report: EPIPE, and SIGPIPE."""
    sock = talking.connect()
    name = name_of(sock)
    for _ in range(20):
        assert talking.echoes(sock, bytes(MIB))  # in use, the buffers of a connection grow
    talking.settle()
    talking.pause()
    assert len(send_what_fits(sock, bytes(300 * KIB))) > 64 * KIB  # takes more than one recv
    sock.close()
    talking.resume()
    with talking.connect() as other:
        assert talking.echoes(other)
    if talking.ours:
        talking.wait_out(name + r" left: " + strerror("EPIPE") + "$")
        talking.errors(1)


def test_answers_to_a_client_that_only_sends(server):
    """It sends a byte and closes: its kernel answers the echo with a reset."""
    for _ in range(20):
        sock = server.connect()
        sock.sendall(b"a")
        sock.close()
    with server.connect() as sock:
        assert server.echoes(sock)
    server.settle()
    server.errors()  # a reset may or may not be quicker than the close


def test_stopped_and_continued(server):
    """SIGSTOP and SIGCONT make some system calls fail with EINTR, without any handler."""
    with server.connect() as sock:
        for _ in range(3):
            assert server.echoes(sock)
            server.settle()
            server.pause()
            server.resume()
            server.settle()  # otherwise the bytes might come first, and the call would not fail
            assert server.echoes(sock)


def test_stopped_and_continued_while_busy(server):
    """The same with bytes on the way, and a client that does not read fast enough."""
    data = os.urandom(8 * MIB)
    sock = server.connect(receive_buffer=16 * KIB)
    with ThreadPoolExecutor(1) as thread:
        client = thread.submit(exchange, sock, data)
        while not client.done():
            for sig in (signal.SIGSTOP, signal.SIGCONT):
                for pid in server.processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, sig)
            time.sleep(0.005)
    assert came_back(data, client.result())


# ---- Many at once

@ours  # another server's backlog may have no room for twenty
@since(2)
def test_all_who_wait_are_accepted(server):
    """Twenty connect while the server is stopped, and that is one event: none of them is forgotten."""
    server.settle()
    server.pause()
    socks = [server.connect() for _ in range(20)]
    server.resume()
    assert all(server.echoes(sock) for sock in socks)


@since(2)
def test_five_hundred_connect_at_once(server):
    """They speak as soon as they are connected; meanwhile a client that is there already is served."""
    old, served, poll = server.connect(), 0, select.poll()
    assert server.echoes(old)
    socks = {}
    for _ in range(500):
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex((server.address, server.port)) in (0, errno.EINPROGRESS)
        poll.register(sock, select.POLLOUT)
        socks[sock.fileno()] = sock
    end = time.monotonic() + PATIENCE
    while socks and time.monotonic() < end:
        for fd, event in poll.poll(1):
            if event == select.POLLOUT:
                socks[fd].send(b"%4d" % fd)
                poll.modify(fd, select.POLLIN)
            else:
                assert came_back(b"%4d" % fd, socks[fd].recv(5))
                poll.unregister(fd)
                socks.pop(fd).close()
                served += 1
        begin = time.monotonic()
        assert server.echoes(old)
        took = time.monotonic() - begin
        assert took < 1, "a client that was there already waited %.1f s for its answer" % took
    for sock in socks.values():
        sock.close()
    assert not socks, "after %g s, %d of them had no answer" % (PATIENCE, len(socks))


@since(2)
def test_a_thousand_come_and_go(start):
    """There are descriptors for half of them: each has to be given back."""
    server = start(limits={resource.RLIMIT_NOFILE: 500})
    for _ in range(1000):
        with server.connect() as sock:
            assert server.echoes(sock, b"x")
    if server.ours:
        assert server.stop() == (1000, 1000, 0)


@since(3)
def test_thousands_of_clients_at_the_same_time(start, monkeypatch):
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # LeakSanitizer, too, wants a part of the second for goodbyes
    server = start()
    count = 3000 if server.ours else 1100  # more than 1024; another server may have a process for each
    socks = []
    for i in range(count):
        try:
            socks.append(server.connect(source="127.0.0.%d" % (1 + i // 1000)))
            assert server.echoes(socks[-1], b"%04d" % i)
        except ConnectionError:
            raise AssertionError("client number {:,} was turned away".format(i + 1)) from None
    for i, sock in enumerate(socks):
        sock.sendall(b"%04d" % i)
    for i, sock in enumerate(socks):
        assert receive_back(sock, b"%04d" % i)
    assert not server.ours or server.stop() == (count, 8 * count, 0)
    for sock in socks:
        reset(sock)  # else each leaves a TIME_WAIT, and past tcp_max_tw_buckets no other test gets one


# ---- Out of descriptors

@ours
@since(2)
def test_out_of_descriptors(start):
    """Forty clients and descriptors for fewer: the first are served, the rest wait in the backlog
    and are served as others leave. Meanwhile the server sleeps and is quiet."""
    server = start(limits={resource.RLIMIT_NOFILE: 20}, one_process=True)
    socks = [server.connect() for _ in range(40)]
    for i, sock in enumerate(socks):
        sock.sendall(b"%02d" % i)
    assert [receive(sock, 2) for sock in socks[:10]] == [b"%02d" % i for i in range(10)]
    server.settle()
    assert server.cpu_share() < 0.1
    assert all(server.echoes(sock) for sock in socks[:10])
    begin = time.monotonic()
    for i, sock in enumerate(socks):
        if i >= 10:
            assert receive(sock, 2) == b"%02d" % i
        sock.close()
    assert time.monotonic() - begin < 5  # with nothing but a look each second it would take 24
    server.settle()
    lines = server.errors(1)
    assert len(lines) == 1
    assert re.match("server: accept: newcomers have to wait" + failure("EMFILE"), lines[0])


@ours
@since(2)
def test_a_shortage_is_told_once(start):
    """However many clients come and go meanwhile, even if they leave two at a time."""
    server = start(limits={resource.RLIMIT_NOFILE: 20}, one_process=True)
    socks = [server.connect() for _ in range(60)]
    for sock in socks:
        sock.sendall(b"x")
    while len(socks) > 15:
        assert receive(socks[0], 1) + receive(socks[1], 1) == b"xx"
        server.pause()
        socks.pop(0).close()
        socks.pop(0).close()
        server.resume()
        server.settle()
    assert all(receive(sock, 1) == b"x" for sock in socks)
    assert len(server.errors()) == 1


def test_looks_again_each_second(start, server_name):
    """The shortage may be system-wide: no client leaves, but there is a free descriptor again."""
    server = start(one_process=True)
    with server.connect() as sock:
        assert server.echoes(sock)
    server.settle()
    spins = not server.ours and server.cpu_share() > 0.05  # even without a shortage
    lift = server.limit_descriptors_to_those_in_use()
    with first_that_waits(server) as sock:
        if server.ours:
            server.wait_err("accept: newcomers have to wait" + failure("EMFILE"))
        if not spins:
            sleeps(server, "no newcomer could be accepted")
        lift()
        assert receive_back(sock, b"hello")
    if server.ours:
        assert 1 <= len(server.errors()) <= (2 if server_name == "day01" else 1)  # day 1 says it each second


def first_that_waits(server):
    """A newcomer that is not served. Some are: a process that sleeps in accept has reserved a descriptor."""
    for _ in range(10):
        sock = server.connect()
        sock.sendall(b"hello")
        if not select.select([sock], [], [], 0.3)[0]:
            return sock
        with contextlib.suppress(ConnectionResetError):
            if receive(sock, 5) == b"hello":
                sock.close()
                continue
        raise AssertionError("a newcomer for which there was no descriptor was closed, instead of being left to wait")
    pytest.skip("it cannot be made to run out of descriptors")


@ours
@since(2)
def test_a_shortage_that_is_over(start):
    """It accepts again as soon as a client leaves, and no longer looks each second when there is a descriptor
    to spare, even if no newcomer comes for it. The next shortage is reported as the first one was."""
    server = start(one_process=True)
    with server.connect() as sock:
        assert server.echoes(sock)
        for again in (False, True):
            other = server.connect()
            assert server.echoes(other)
            server.settle()
            lift = server.limit_descriptors_to_those_in_use()
            newcomer = server.connect()
            newcomer.sendall(b"x")
            server.wait_err("newcomers have to wait")
            other.close()
            assert receive(newcomer, 1) == b"x"
            newcomer.close()
            server.settle()
            lift()
            assert len(server.errors()) == 1
            if not again:
                stays_asleep(server, 1.1)


@ours
@since(2)
def test_looks_again_though_it_is_busy(start):
    """The same while another client keeps the server from ever sleeping for a second."""
    server = start(one_process=True)
    with server.connect() as busy:
        assert server.echoes(busy)
        lift = server.limit_descriptors_to_those_in_use()
        with server.connect() as sock:
            sock.sendall(b"hello")
            server.wait_err("accept: newcomers have to wait")
            lift()
            sock.setblocking(False)

            def answered():
                assert server.echoes(busy)
                try:
                    return sock.recv(5) == b"hello"
                except BlockingIOError:
                    return False

            wait_until(answered, "the newcomer's answer")
    server.errors()


# ---- How it ends

@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ends_when_idle(server, sig):
    with server.connect() as sock:
        assert server.echoes(sock, b"12345")
    assert server.stop(sig) in ((1, 5, 0), None)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ends_with_a_client_connected(talking, sig):
    """The client gets its end of file, though it never gives one."""
    with talking.connect() as sock:
        assert talking.echoes(sock)
        assert talking.stop(sig) in ((1, 6, 0), None)
        assert receive_all(sock) == b"", "more came back than was sent"
        if talking.totals():
            talking.wait_out(name_of(sock) + " left: server stopped$")


def test_ends_with_a_client_that_never_reads(server):
    """Echoed is what the client's kernel has taken, to the byte; all else that it sent is undelivered.
    (The server's kernel goes on sending that after the server's end, until the client reads, or it gives up.)"""
    deaf = server.connect(receive_buffer=4 * KIB)
    sent = server.fill(deaf)
    totals = server.stop()
    if totals:
        taken = unread(deaf)
        assert totals == (1, taken, len(sent) - taken)
        got = receive_until_it_breaks(deaf)
        assert len(got) >= taken and got == sent[:len(got)]


@ours
@since(2)
def test_a_client_that_goes_without_its_answers(server):
    """The same for one that resets: what the server's kernel still had for it does not count as echoed."""
    deaf = server.connect(receive_buffer=4 * KIB, segment=500)
    sent = server.hold(deaf)
    taken = unread(deaf)
    left_unread = row_of(deaf, server_side=True)[2]
    reset(deaf)
    server.settle()
    server.errors(1)
    assert server.stop() == (1, taken, len(sent) - left_unread - taken)


def receive_until_it_breaks(sock):
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(MIB):
            got += piece
    return bytes(got)


def unread(sock):
    """How many bytes wait in our kernel: FIONREAD."""
    return int.from_bytes(fcntl.ioctl(sock, 0x541B, bytes(4)), "little")


@since(2)
def test_nothing_is_lost_at_the_end(server):
    """Four clients send without a pause and read 30 MB/s each, so that megabytes are on their way when the
    signal comes. Each gets all that was echoed, then end of file, and all that it sent is accounted for."""
    ending = threading.Event()
    streams = [Stream(server.connect(), 30e6, ending) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        ends = [threads.submit(stream.run) for stream in streams]
        try:
            wait_until(lambda: all(stream.got > 4 * MIB for stream in streams), "the answers of all four clients")
            server.send_signal(signal.SIGTERM)
        finally:
            ending.set()
        totals = server.stop()
        lost = sum(end.result(PATIENCE) != "end of file" for end in ends)
    assert not lost, "%d of 4 got a reset, which destroys what is on its way, instead of end of file" % lost
    if totals:
        clients, echoed, undelivered = totals
        assert clients == 4
        assert echoed == sum(stream.got for stream in streams)
        assert echoed + undelivered == sum(stream.sent for stream in streams)


class Stream:
    """A client that sends without end, and reads `pace` bytes per second, or everything once it is ending."""

    def __init__(self, sock, pace, ending):
        self.sock, self.pace, self.ending = sock, pace, ending
        self.sent = self.got = 0

    def run(self):
        piece, begin, poll = os.urandom(64 * KIB), time.monotonic(), select.poll()
        self.sock.setblocking(False)
        last = None  # when to give up: a server that says nothing may be broken
        try:
            while last is None or time.monotonic() < last:
                if last is None and self.ending.is_set():
                    last = time.monotonic() + PATIENCE
                ahead = self.got / self.pace - (time.monotonic() - begin)
                reads = self.ending.is_set() or ahead <= 0
                poll.register(self.sock, select.POLLOUT | (select.POLLIN if reads else 0))
                poll.poll(5)
                with contextlib.suppress(BlockingIOError):
                    self.sent += self.sock.send(piece)
                if reads:
                    with contextlib.suppress(BlockingIOError):
                        data = self.sock.recv(64 * KIB)
                        self.got += len(data)
                        if not data:
                            self.sock.shutdown(socket.SHUT_WR)
                            return "end of file"
        except ConnectionError as error:
            return str(error)
        return "no end"


def test_ends_while_busy(server):
    sock = server.connect()
    assert server.echoes(sock)
    before = server.cpu()
    client = threading.Thread(target=until_the_end, args=(sock, os.urandom(64 * KIB)))
    client.start()
    wait_until(lambda: server.cpu() > before, "the server to be busy")
    server.stop()
    client.join(PATIENCE)
    assert not client.is_alive()


def until_the_end(sock, data):
    try:
        while sock.send(data) and sock.recv(MIB):
            pass
    except ConnectionError:
        pass


@since(2)
def test_ends_though_somebody_is_always_ready(server):
    """Three clients that never pause: the server has no time to sleep, and still hears the signal."""
    with greedy_client(server), greedy_client(server), greedy_client(server), server.connect() as sock:
        assert server.echoes(sock)  # so the three are connected, too
        server.stop()


@ours
@since(2)
def test_ends_though_it_is_busy_and_slow(start, strace, server_name):
    """Twenty of them, where each recv takes 2 ms, as on a machine with other things to do. One wake-up
    means twenty reads, and in edge-triggered mode twice as many for as many clients: so they are fewer."""
    server = start(wrapper=strace("recvfrom:delay_enter=2000"))
    with greedy_clients(server, 5 if "edge" in server_name else 20):
        server.stop()


@contextlib.contextmanager
def greedy_clients(server, count):
    """Clients that send and read without a pause, in one thread; all are in full flow when the test goes on."""
    done, poll, got = threading.Event(), select.poll(), {}
    socks = {sock.fileno(): sock for sock in (server.connect() for _ in range(count))}
    for fd, sock in socks.items():
        sock.setblocking(False)
        poll.register(fd, select.POLLIN | select.POLLOUT)
        got[fd] = 0

    def run():
        piece = bytes(256 * KIB)
        while not done.is_set():
            for fd, _ in poll.poll(10):
                try:
                    with contextlib.suppress(BlockingIOError):
                        socks[fd].send(piece)
                    with contextlib.suppress(BlockingIOError):
                        got[fd] += len(socks[fd].recv(MIB))
                except ConnectionError:
                    poll.unregister(fd)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: min(got.values()) > 64 * KIB, "all to be in full flow")
        yield
    finally:
        done.set()
        thread.join(PATIENCE)


@ours
@since(2)
@until(4)  # a worker hears of the signal from its parent, and may read on until then
def test_gives_what_is_held_one_more_chance(server):
    """The client makes room at the very moment that the signal comes: the server has not seen it yet, but
    tries once more before it goes."""
    sock = server.connect(receive_buffer=4 * KIB, segment=500)
    sent = server.hold(sock)
    server.pause()
    left_unread = row_of(sock, server_side=True)[2]
    got = receive_what_is_on_the_way(sock)
    os.kill(server.pid, signal.SIGTERM)
    server.resume()
    sock.settimeout(PATIENCE)
    got += receive_all(sock)
    sock.close()
    assert got == sent[:len(sent) - left_unread]
    assert server.stop() == (1, len(got), left_unread)


def receive_what_is_on_the_way(sock):
    got = bytearray()
    sock.setblocking(False)

    def nothing_left():
        try:
            got.extend(sock.recv(MIB))
            return False
        except BlockingIOError:
            return row_of(sock, server_side=True)[1] == 0

    wait_until(nothing_left, "the server's kernel to be rid of its bytes")
    return bytes(got)


@ours
@since(2)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_no_signal_is_lost(server):
    """A signal arrives after the server has looked at its flag, but before it sleeps. We lead it there one
    instruction at a time, until the next one is the system call in which it waits."""
    with server.connect() as sock:
        assert server.echoes(sock)
        server.settle()
        waits = {23, 270, 232, 281, 128}  # asm/unistd_64.h: WAITS, and for day 5's parent rt_sigtimedwait
        step_to_system_call(server.pid, waits, signal.SIGTERM, wake_up=lambda: sock.send(b"x"))
        assert server.wait() == 0  # and the client says nothing that would wake it up


def step_to_system_call(pid, numbers, sig, wake_up):
    """Wakes up a process, stops it (ptrace(2)) when its next instruction is one of these system calls, sends
    it the signal, and lets it go on."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    peek_text, single_step, get_registers, attach, detach = 1, 9, 12, 16, 17
    registers = (ctypes.c_ulonglong * 27)()  # struct user_regs_struct: rax is the 10th, rip the 16th

    def ptrace(request, address=None, data=None):
        ctypes.set_errno(0)
        result = libc.ptrace(request, pid, ctypes.c_void_p(address), ctypes.cast(data, ctypes.c_void_p))
        assert ctypes.get_errno() == 0, os.strerror(ctypes.get_errno())
        return result

    def await_stop():
        end = time.monotonic() + PATIENCE
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            assert time.monotonic() < end, "it sleeps"

    ptrace(attach)
    await_stop()
    wake_up()
    for _ in range(100_000):
        ptrace(single_step)
        await_stop()
        ptrace(get_registers, data=registers)
        if registers[10] in numbers and ptrace(peek_text, registers[16]) & 0xffff == 0x050f:  # syscall
            break
    else:
        raise AssertionError("no such system call")
    os.kill(pid, sig)
    ptrace(detach)


@ours
@since(2)
@pytest.mark.parametrize("how", [signal.SIG_BLOCK, signal.SIG_IGN])
def test_inherited_signal_settings_change_nothing(start, how):
    """Blocked signals stay so through exec, and so do ignored ones: nohup, a shell's background jobs."""
    def prepare():
        if how == signal.SIG_BLOCK:
            signal.pthread_sigmask(how, [signal.SIGTERM, signal.SIGINT, signal.SIGCHLD])
        else:
            for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(sig, how)

    for sig in (signal.SIGTERM, signal.SIGINT):
        server = start(prepare=prepare)
        with server.connect() as sock:
            assert server.echoes(sock)
        server.stop(sig)


def test_the_port_is_free_at_once(start):
    """The server closes first, so its side of the connection stays in TIME_WAIT."""
    server = start()
    port = server.port
    with server.connect() as sock:
        assert server.echoes(sock)
        server.send_signal(signal.SIGTERM if server.ours else signal.SIGKILL)
        with contextlib.suppress(ConnectionResetError):
            receive_all(sock)
    server.stop()
    again = start(port=port)
    with again.connect() as sock:
        assert again.echoes(sock)


# ---- Its output

@ours
def test_a_stdout_that_nobody_reads(start_with_pipe):
    """A pipe that holds a page (pipe(7)) and is never read: three hundred clients are served all the same."""
    server, reader = start_with_pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    for _ in range(300):
        with server.connect() as sock:
            assert server.echoes(sock)
    sock = server.connect()
    assert server.echoes(sock)
    server.let_clients_end()
    ends_in_time(server)


@ours
def test_a_stdout_that_nobody_has(start_with_pipe):
    """The other end of the pipe is closed: SIGPIPE would end the server, if it were not ignored."""
    server, reader = start_with_pipe()
    reader.close()
    with server.connect() as sock:
        assert server.echoes(sock)
    ends_in_time(server)


@pytest.fixture
def start_with_pipe(launch, server_name):
    """start_with_pipe(): a server whose stdout is a pipe, and the end to read from."""
    readers = []

    def start_with_pipe():
        reader, writer = map(os.fdopen, os.pipe(), "rw")
        readers.append(reader)
        day, options = SERVERS[server_name]
        with writer:
            server = launch([program(day), *options, "0"], stdout=writer)
        assert select.select([reader], [], [], PATIENCE)[0]
        server.port = int(reader.readline().rsplit(":", 1)[1])
        return server, reader

    yield start_with_pipe
    for reader in readers:
        reader.close()


def ends_in_time(server):
    """Like stop(), for a server whose totals cannot be read."""
    server.process.send_signal(signal.SIGTERM)
    took = server.time_to_end()
    assert server.wait() == (0 if server.handles_signals else -signal.SIGTERM)
    assert took < STOP_WITHIN


@ours
def test_standard_descriptors_closed(launch, server_name):
    """Started with 0, 1 and 2 closed, the first three sockets would get these numbers, and a client would
    read the server's messages. It must read only its echo."""
    def prepare():
        for fd in range(3):
            os.close(fd)

    day, options = SERVERS[server_name]
    port = free_port()
    server = launch([program(day), *options, "-v", str(port)], port=port, prepare=prepare).listening()
    socks = []
    for _ in range(3):
        rude = server.connect()
        rude.sendall(b"x")
        reset(rude)  # worth a message
        if day != "day01":
            socks.append(server.connect())
            assert server.echoes(socks[-1])
    with server.connect() as sock:
        assert server.echoes(sock, b"nothing but this")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""
    for sock in socks:
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""


# ---- How it starts

@ours
def test_says_where_it_listens(server):
    assert server.out == ["listening on 127.0.0.1:%d" % server.port]


@ours
def test_loopback_unless_told_otherwise(server):
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.2", server.port)) == errno.ECONNREFUSED


@ours
@pytest.mark.together  # they want the same port
def test_default_port_and_address(launch, day):
    """Where 8888 is taken, the complaint names it, which shows just as much."""
    server = launch([program(day)])
    wait_until(lambda: server.out or server.err, "the first line")
    if server.out:
        assert server.out[0] == "listening on 127.0.0.1:8888"
    else:
        assert server.wait() == 1
        assert re.match("server: bind 127.0.0.1:8888" + failure("EADDRINUSE"), server.errors()[0])


@ours
def test_another_address(launch, day):
    server = launch([program(day), "0", "127.0.0.2"]).listening()
    assert server.address == "127.0.0.2"
    with server.connect() as sock:
        assert server.echoes(sock)


@ours
@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_ipv6_and_names(start, host):
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except OSError as error:
        pytest.skip("this system has no %s: %s" % (host, error))
    server = start("-v", host=host)
    wanted = "[::1]" if family == socket.AF_INET6 else "127.0.0.1"
    assert server.out[0] == "listening on %s:%d" % (wanted, server.port)
    data = os.urandom(MIB)
    sock = server.connect()
    assert exchange(sock, data) == data
    server.wait_out(re.escape(name_of(sock)) + " connected$")
    assert server.stop() in ((1, MIB, 0), None)


def fails_to_start(server, status):
    assert server.wait() == status
    assert server.out == []
    return server.errors()


@ours
def test_port_in_use(server, launch, day):
    lines = fails_to_start(launch([program(day), str(server.port)]), 1)
    assert len(lines) == 1
    assert re.match("server: bind 127.0.0.1:%d" % server.port + failure("EADDRINUSE"), lines[0])


@ours
def test_address_of_another_machine(launch, day):
    lines = fails_to_start(launch([program(day), "0", "192.0.2.1"]), 1)
    assert len(lines) == 1
    assert re.match("server: bind 192.0.2.1:0" + failure("EADDRNOTAVAIL"), lines[0])


@ours
def test_port_80_as_an_ordinary_user(launch, day):
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
        if int(file.read()) <= 80:
            pytest.skip("this system lets everybody have port 80 (ip_unprivileged_port_start)")
    # By descriptor, since an ordinary user may not be able to reach our folder.
    fd = os.open(program(day), os.O_RDONLY)
    nobody = (lambda: os.setuid(65534)) if os.getuid() == 0 else None
    server = launch(["server", "80"], prepare=nobody, executable="/proc/self/fd/%d" % fd, pass_fds=[fd])
    lines = fails_to_start(server, 1)
    os.close(fd)
    assert len(lines) == 1
    assert re.match("server: bind 127.0.0.1:80" + failure("EACCES"), lines[0])


@ours
@pytest.mark.parametrize("arguments, complaint", [
    (["65536"], "server: port 65536: not a number from 0 to 65535"),
    (["-1"], "invalid option -- '1'|unrecognized option: 1"),
    (["abc"], "server: port abc: not a number from 0 to 65535"),
    ([""], "server: port : not a number from 0 to 65535"),
    (["80x"], "server: port 80x: not a number from 0 to 65535"),
    (["99999999999999999999"], "server: port 99999999999999999999: not a number from 0 to 65535"),
    (["0", "no such host"], "server: host no such host: ."),
    (["0", ""], "server: host : ."),
    (["0", "::1::"], "server: host ::1::: ."),
    (["-x"], "invalid option -- 'x'|unrecognized option: x"),
    (["0", "127.0.0.1", "more"], "usage: "),
])
def test_wrong_arguments(launch, day, arguments, complaint):
    lines = fails_to_start(launch([program(day), *arguments]), 2)
    assert re.search(complaint, lines[0])
    assert re.match(r"usage: server \[-\w+\].* \[PORT \[HOST\]\]$", lines[-1])
    assert len(lines) <= 2


# ---- What it says

@ours
def test_only_two_lines_unless_asked_for_more(server):
    with server.connect() as sock:
        assert server.echoes(sock)
    totals = server.stop()
    assert server.out[0].startswith("listening on ") and len(server.out) == (2 if totals else 1)


@ours
def test_a_line_when_a_client_comes_and_one_when_it_goes(talking):
    with talking.connect() as sock:
        name = name_of(sock)
        assert talking.echoes(sock, b"12345")
    talking.wait_out(" left")
    coming, going = [line for line in talking.out[1:] if name in line]
    assert re.search(r"\bfd \d+: " + name + " connected$", coming)
    assert re.search(r"\bfd \d+: " + name + " left: closed by the client$", going)


@ours
def test_why_a_client_went(talking):
    with talking.connect() as sock:
        name = name_of(sock)
        assert talking.echoes(sock, b"123")
        reset(sock)
    talking.wait_out(name + " left: " + strerror("ECONNRESET") + "$")
    lines = talking.errors(1)
    assert len(lines) == 1
    assert re.match("server: recv " + name + failure("ECONNRESET"), lines[0])


@ours
@since(2)
def test_one_client(server):
    """Not "1 clients"."""
    server.connect().close()
    server.settle()
    server.stop()
    assert server.out[-1] == "served 1 client: 0 bytes echoed, 0 undelivered"


@ours
@since(2)
def test_totals(server):
    for size in (1, 10, 100 * KIB):
        data = os.urandom(size)
        assert exchange(server.connect(), data) == data
    assert server.stop() == (3, 100 * KIB + 11, 0)


@ours
def test_a_line_for_every_wake_up(talking):
    with talking.connect() as sock:
        talking.settle()
        before = sum("woke up" in line for line in talking.out)
        for _ in range(10):
            assert talking.echoes(sock)
            talking.settle()
        wait_until(lambda: sum("woke up" in line for line in talking.out) >= before + 10, "ten lines")


# ---- System calls that fail

def accept_call(day):
    return "accept" if day == "day01" else "accept4"


@ours
@pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO", "EPERM", "EHOSTUNREACH"])
def test_accept_passes_on_an_error(start, strace, day, error):
    """An error of one connection (accept(2)) costs one line, and the next connection is taken at once."""
    server = start(wrapper=strace("%s:error=%s:when=1" % (accept_call(day), error)))
    begin = server.clock()
    with server.connect() as sock:
        assert server.echoes(sock)
    assert server.clock() - begin < 0.5
    lines = server.errors(1)
    assert len(lines) == 1 and re.match("server: accept" + failure(error), lines[0])


@ours
@since(2)
def test_the_wait_fails(start, strace):
    """select(2) names ENOMEM, and EINTR may come at any time: neither is the server's end. An interrupted
    wait is not worth a message."""
    for error, said in (("ENOMEM", 1), ("EINTR", 0)):
        server = start(wrapper=strace(*("%s:error=%s:when=1" % (call, error) for call in WAITS)))
        with server.connect() as sock:
            assert server.echoes(sock)
        lines = server.errors(said)
        assert len(lines) == said
        assert all(re.match("server: (select|epoll_wait)" + failure(error), line) for line in lines)


@ours
@pytest.mark.parametrize("call, error", [("recvfrom", "ENOMEM"), ("recvfrom", "ETIMEDOUT"),
                                         ("sendto", "ENOBUFS"), ("sendto", "ENOMEM"),
                                         ("sendto", "EPIPE")])
def test_one_clients_call_fails(start, strace, call, error):
    """That client is named and dropped; the next is served."""
    server = start(wrapper=strace("%s:error=%s:when=1" % (call, error)))
    with server.connect() as unlucky:
        name = name_of(unlucky)
        unlucky.sendall(b"hello")
        try:
            assert receive_all(unlucky) == b""
        except ConnectionResetError:
            pass
    with server.connect() as sock:
        assert server.echoes(sock)
    lines = server.errors(1)
    assert len(lines) == 1
    assert re.match("server: %s %s" % (call[:4], name) + failure(error), lines[0])


@ours
@since(3)
@pytest.mark.parametrize("error", ["ENOMEM", "ENOSPC"])
def test_no_room_in_the_interest_set(start, strace, error):
    """The kernel has no memory to watch one more client (the first two calls were for the
    listener and the signals)."""
    server = start(wrapper=strace("epoll_ctl:error=%s:when=3" % error))
    with server.connect() as unlucky:
        assert receive_all(unlucky) == b""
    with server.connect() as sock:
        assert server.echoes(sock)
    assert len(server.errors(1)) == 1


@ours
@since(3)
@pytest.mark.parametrize("nth", [4, 5])
def test_no_memory_to_change_the_interest_set(start, strace, nth):
    """The fourth call starts waiting for room, the fifth waits for bytes again: that client is lost."""
    server = start("-v", wrapper=strace("epoll_ctl:error=ENOMEM:when=%d" % nth))
    unlucky = server.connect(receive_buffer=4 * KIB, segment=500)
    name = name_of(unlucky)
    try:
        server.fill(unlucky)
        receive_all(unlucky)
    except ConnectionError:
        pass
    server.wait_out(name + " left: " + strerror("ENOMEM") + "$")
    with server.connect() as sock:
        assert server.echoes(sock)
    assert len(server.errors(1)) == 1


# What can fail at the start: from which day on, the call, its error, the message.
STARTS = [
    (1, "socket", "EMFILE", "socket"),
    (1, "setsockopt", "ENOMEM", "setsockopt SO_REUSEADDR"),
    (1, "listen", "EADDRINUSE", r"listen 127.0.0.1:\d+"),
    (2, "pipe2,signalfd4", "EMFILE", "(pipe2|signalfd)"),
    (3, "epoll_create1", "EMFILE", "epoll_(create1|open)"),
    (3, "epoll_ctl", "ENOMEM", "epoll_ctl"),
]


@ours
@until(5)
def test_a_start_that_fails(launch, strace, day):
    """It says what failed and why in one line, and has not said before that it listens."""
    for since_day, calls, error, message in STARTS:
        if since_day <= int(day[3:]):
            faults = [call + ":error=" + error for call in calls.split(",")]
            lines = fails_to_start(launch([*strace(*faults), program(day), "0"]), 1)
            assert len(lines) == 1
            assert re.match("server: " + message + failure(error), lines[0])
