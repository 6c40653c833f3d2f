"""What every server promises, whatever its clients do. `make check` holds yours to it, too."""

import contextlib
import errno
import os
import random
import re
import resource
import signal
import socket
import subprocess
import threading
import time

import pytest

from conftest import program
from harness import (MIB, PATIENCE, SANITIZED, exchange, failure, name_of, receive, receive_all, reset,
                     row_of, send_what_fits, status_of, strerror, wait_until)

since = pytest.mark.since  # from that day on
until = pytest.mark.until  # up to that day: with several processes it is otherwise (test_day05.py)
ours = pytest.mark.ours

KIB = 1024


# ---- Every byte comes back, in order, to the client that sent it

@pytest.mark.parametrize("size", [0, 1, 5, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1,
                                  64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 32 * MIB])
def test_bytes_come_back(server, size):
    data = os.urandom(size)
    assert exchange(server.connect(), data) == data


def test_bytes_come_back_to_a_slow_reader(server):
    """It begins to read when nothing moves any more: send has taken less than it was given."""
    sock = server.connect(receive_buffer=16 * KIB)
    data = os.urandom(8 * MIB)
    client = threading.Thread(target=send_and_close, args=(sock, data))
    client.start()
    sock.recv(1, socket.MSG_PEEK)
    server.settle()
    back = receive_all(sock)
    client.join(PATIENCE)
    assert len(back) == len(data)
    assert back == data


def send_and_close(sock, data):
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_one_byte_at_a_time(server):
    data = os.urandom(2000)
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert all(server.echoes(sock, data[i:i + 1]) for i in range(1000))
        for i in range(1000, 2000):  # and now without waiting for the answers
            sock.send(data[i:i + 1])
        assert receive(sock, 1000) == data[1000:]


@since(2)
def test_many_clients_at_the_same_time(server):
    """Each gets its own bytes, though all of them send at once in pieces of all sizes."""
    results = {}

    def client(seed):
        rng = random.Random(seed)
        data = rng.randbytes(rng.randrange(2 * MIB))
        results[seed] = exchange(server.connect(), data, piece=rng.choice([1000, 65536, MIB])) == data

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {seed: True for seed in range(20)}


def test_half_close_with_much_to_come(server):
    """A client that says that it has sent all still gets all of it, then end of file."""
    sock = server.connect(receive_buffer=4 * KIB)
    data = server.fill(sock)
    assert len(data) > MIB // 4
    sock.shutdown(socket.SHUT_WR)
    server.settle()
    assert receive_all(sock) == data


def test_half_close_while_something_is_held(server):
    """The same when the end of the client's bytes is in the server's kernel before they are back."""
    sock = server.connect(receive_buffer=4 * KIB, segment=500)
    data = server.hold(sock)
    half_close(sock)
    assert receive_all(sock) == data


def half_close(sock):
    sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: row_of(sock, server_side=False)[0] == "05", "FIN_WAIT2: the end to arrive")


def test_a_client_that_waits_before_it_reads(server):
    """What did not fit is sent when there is room, and reading goes on from there."""
    sock = server.connect(receive_buffer=4 * KIB)
    first = server.fill(sock)
    back = receive(sock, len(first))
    assert back == first
    assert server.echoes(sock, b"and on it goes")


def test_a_client_that_takes_small_pieces(server):
    """The server's send buffer is small, so that what is held goes out in many pieces."""
    sock = server.connect(receive_buffer=4 * KIB, segment=500)
    first = server.fill(sock)
    assert receive(sock, len(first)) == first
    data = os.urandom(MIB)
    assert exchange(sock, data) == data


def test_much_waits_when_the_server_comes_to_look(server):
    """More than it reads in one go (edge-triggered: in many), and nothing follows to remind it."""
    sock = server.connect()
    for _ in range(40):
        assert server.echoes(sock, bytes(MIB))  # in use, the buffers of a connection grow
    server.settle()
    server.pause()
    data = send_what_fits(sock, os.urandom(2 * MIB))
    server.resume()
    assert receive(sock, len(data)) == data


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
        assert exchange(sock, data) == data


@since(2)
def test_a_client_that_sends_without_end_starves_nobody(server):
    """It reads its answers as fast as it can, so there is always more."""
    with greedy_client(server):
        for _ in range(20):
            with server.connect() as sock:
                sock.settimeout(5)
                assert server.echoes(sock)
    if server.ours:
        server.wait_out(r"left", 21)
        server.errors(1)


@ours
@since(2)
def test_nor_if_it_is_faster_than_the_server(start, strace):
    """Each recv takes 2 ms, so that the next bytes are there before the last are echoed."""
    server = start(wrapper=strace("recvfrom:delay_enter=2000"))
    with greedy_client(server):
        for _ in range(3):
            with server.connect() as sock:
                sock.settimeout(5)
                assert server.echoes(sock)
    server.wait_out(r"left", 4)
    server.errors(1)


@contextlib.contextmanager
def greedy_client(server):
    sock = server.connect()
    sock.setblocking(True)
    sender = subprocess.Popen(["cat", "/dev/zero"], stdout=sock)
    reader = subprocess.Popen(["cat"], stdin=sock, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        for process in (sender, reader):
            process.kill()
            process.wait()
        reset(sock)


# ---- Nothing spins

@pytest.mark.parametrize("closing", [False, True])
def test_sleeps_while_a_client_does_not_read(server, closing):
    """What is held cannot be sent: there is nothing to do until the client makes room."""
    deaf = server.connect(receive_buffer=4 * KIB, segment=500)
    server.hold(deaf)
    if closing:
        half_close(deaf)
    assert server.cpu_share() < 0.1


def test_sleeps_when_all_have_gone(server):
    for _ in range(3):
        sock = server.connect()
        sock.sendall(b"x")
        reset(sock)
        server.connect().close()
    server.settle()
    assert server.cpu_share() < 0.1
    server.errors()  # a reset that comes before the server looks is an error, each time


@until(4)
def test_wakes_up_for_nothing_but_work(server):
    """No time-out while nobody waits for one."""
    with server.connect() as sock:
        assert server.echoes(sock)
        server.settle()
        before = server.switches()
        time.sleep(1.1)
        assert server.switches() == before


@ours
@since(2)
def test_three_system_calls_for_an_echo(start, strace, tmp_path, server_name):
    """The wait, one read, one write (and edge-triggered one more read, which finds nothing)."""
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
    assert found.keys() <= {"pselect6", "epoll_pwait"} and sum(found.values()) <= 11


# ---- Memory

def test_memory_of_a_client_that_never_reads(server):
    """At most one buffer is held for it; the rest stays with the client."""
    with server.connect() as sock:
        server.echoes(sock, bytes(64 * KIB))
    server.settle()
    before = server.memory()
    deaf = server.connect()
    server.fill(deaf)
    # AddressSanitizer's own notes on the memory are not the server's.
    assert server.memory() - before < (2 * MIB if SANITIZED else 256 * KIB)


@since(2)
def test_an_idle_client_costs_next_to_nothing(server):
    """Nobody keeps a buffer for a client to whom nothing is owed."""
    count = 900
    with server.connect() as sock:
        server.echoes(sock, bytes(16 * KIB))
    server.settle()
    before = server.memory()
    idle = [server.connect() for _ in range(count)]
    assert all(server.echoes(sock, bytes(16 * KIB)) for sock in idle)
    server.settle()
    slack = MIB if SANITIZED else 32 * KIB  # whole pages, and AddressSanitizer's notes
    assert server.memory() - before <= 64 * count + slack


def test_memory_does_not_grow_with_the_limit(start):
    """Some systems allow a billion descriptors; a table of that size would not fit anywhere."""
    def size_with(limit):
        server = start(limits={resource.RLIMIT_NOFILE: limit})
        with server.connect() as sock:
            assert server.echoes(sock)
        return int(re.search(r"VmData:\s+(\d+)", status_of(server.pid))[1]) * KIB

    # A million if we may, else as many as we may.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = MIB
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, max(hard, many)))
    except (ValueError, PermissionError):
        many = hard
    assert abs(size_with(many) - size_with(256)) < 64 * KIB


@since(2)
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer gives up when the memory does")
def test_no_memory_for_one_buffer(server):
    """That client is dropped and named; the others are served."""
    with server.connect() as good:
        assert server.echoes(good, bytes(64 * KIB))
        server.limit_memory()
        deaf = []
        while not server.err and len(deaf) < 50:
            deaf.append(server.connect())
            try:
                server.fill(deaf[-1])
            except ConnectionError:
                break
            assert server.echoes(good)
        assert server.echoes(good)
        if server.ours:
            server.wait_err("^server: malloc for " + name_of(deaf[-1]) + failure("ENOMEM"))
            server.wait_out(name_of(deaf[-1]) + r" left after \d+ bytes: " + strerror("ENOMEM") + "$")
            assert len(server.errors(1)) == 1


# ---- No client ends the server

def test_resets(server):
    """Fifty clients that go with a reset: some at once, some with bytes on the way."""
    names = []
    for i in range(50):
        sock = server.connect()
        names.append(name_of(sock))
        if i % 2:
            sock.sendall(b"x" * i)
        reset(sock)
    with server.connect() as sock:
        assert server.echoes(sock)
    if server.ours:
        for name in names:
            server.wait_out(name + " left after ")
        lines = server.errors(50)
        assert len(lines) == 50
        assert all(name in line for name, line in zip(sorted(names), sorted(lines, key=lambda line: (
            re.search(r"127\.0\.0\.1:\d+", line)[0]))))


def test_writing_to_a_client_that_is_gone(server):
    """It closes with all its answers unread: the server's send is met with a reset."""
    for _ in range(5):
        sock = server.connect(receive_buffer=4 * KIB)
        name = name_of(sock)
        server.fill(sock)
        sock.close()
        if server.ours:
            server.wait_out(name + " left after ")
    with server.connect() as sock:
        assert server.echoes(sock)
    if server.ours:
        assert len(server.errors(5)) == 5


def test_a_true_broken_pipe(server):
    """Bytes that arrived before the reset can still be read, so the server sends twice to a client
    that is gone. The second time the kernel has no error to tell any more: EPIPE, and SIGPIPE."""
    sock = server.connect()
    name = name_of(sock)
    for _ in range(20):
        assert server.echoes(sock, bytes(MIB))  # in use, the buffers of a connection grow
    server.settle()
    server.pause()
    assert len(send_what_fits(sock, bytes(300 * KIB))) > 64 * KIB  # takes more than one recv
    sock.close()
    server.resume()
    with server.connect() as other:
        assert server.echoes(other)
    if server.ours:
        server.wait_out(name + r" left after \d+ bytes: " + strerror("EPIPE") + "$")
        server.errors(1)


def test_answers_to_a_client_that_only_sends(server):
    """It has closed its receiving side before it sends: its kernel answers the echo with a reset."""
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
            server.settle()  # or the bytes might come first, and the call would not fail
            assert server.echoes(sock)


def test_stopped_and_continued_while_busy(server):
    """The same with bytes on the way, and a client that does not read fast enough."""
    data = os.urandom(8 * MIB)
    result = []
    sock = server.connect(receive_buffer=16 * KIB)
    client = threading.Thread(target=lambda: result.append(exchange(sock, data) == data))
    client.start()
    while client.is_alive():
        os.kill(server.pid, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGCONT)
        client.join(0.005)
    assert result == [True]


# ---- Many at once

@since(2)
def test_all_who_wait_are_accepted(server):
    """Twenty connect before the server gets to look: that is one event, edge-triggered."""
    server.settle()
    server.pause()
    socks = [server.connect() for _ in range(20)]
    server.resume()
    assert all(server.echoes(sock) for sock in socks)


@since(2)
def test_five_hundred_connect_at_once(server):
    socks = [socket.socket() for _ in range(500)]
    for sock in socks:
        sock.setblocking(False)
        assert sock.connect_ex((server.address, server.port)) in (0, errno.EINPROGRESS)
    for sock in socks:
        sock.settimeout(PATIENCE)
        wait_until(lambda sock=sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                   and connected(sock), "the connection")
        sock.sendall(b"%d" % sock.fileno())
    for sock in socks:
        text = b"%d" % sock.fileno()
        assert receive(sock, len(text)) == text
        sock.close()


def connected(sock):
    try:
        return bool(sock.getpeername())
    except OSError:
        return False


@since(2)
def test_a_thousand_come_and_go(server):
    for _ in range(1000):
        with server.connect() as sock:
            assert server.echoes(sock, b"x")
    if server.ours:
        assert server.stop() == (1000, 1000, 0)


@since(3)
def test_thousands_of_clients_at_the_same_time(server):
    """19,000, or as many as we may open, all connected and all answered."""
    count = min(19_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
    if count < 3000:
        pytest.skip("this process may open %d descriptors, too few for 3000 clients" % (count + 200))
    socks = [server.connect(source="127.0.0.%d" % (1 + i // 1000)) for i in range(count)]
    for i, sock in enumerate(socks):
        sock.sendall(b"%05d" % i)
    for i, sock in enumerate(socks):
        assert receive(sock, 5) == b"%05d" % i
    if server.ours:
        server.stop(within=10)  # so many have to be closed
        for sock in socks:
            reset(sock)  # else each leaves a TIME_WAIT, and past tcp_max_tw_buckets no other test gets one


# ---- Out of descriptors

@since(2)
@until(4)
def test_out_of_descriptors(start):
    """Forty clients and descriptors for fewer: the first are served, the rest wait in the backlog
    and are served as others leave. Meanwhile the server sleeps and is quiet."""
    server = start(limits={resource.RLIMIT_NOFILE: 20})
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
    if server.ours:
        server.wait_out(" left ", 40)
        lines = server.errors(1)
        assert len(lines) == 1
        assert re.match("server: accept: newcomers have to wait" + failure("EMFILE"), lines[0])


@until(4)
def test_looks_again_each_second(server, server_name):
    """The shortage may be the system's: nobody leaves, but a descriptor is there again. The next
    shortage is told as the first one was."""
    for _ in range(2):
        with server.connect() as sock:
            assert server.echoes(sock)
        server.settle()
        lift = server.limit_descriptors_to_those_in_use()
        if server_name == "day01":  # it sleeps in accept, which took its descriptor before it slept
            with server.connect() as sock:
                assert server.echoes(sock)
        with server.connect() as sock:
            sock.sendall(b"hello")
            if server.ours:
                server.wait_err("accept: newcomers have to wait" + failure("EMFILE"))
            assert server.cpu_share() < 0.1
            lift()
            assert receive(sock, 5) == b"hello"
        if server.ours:
            assert len(server.errors(1)) == 1


@since(2)
@until(4)
def test_looks_again_though_it_is_busy(server):
    """The same while another client keeps the server from ever sleeping for a second."""
    with server.connect() as busy:
        assert server.echoes(busy)
        lift = server.limit_descriptors_to_those_in_use()
        with server.connect() as sock:
            sock.sendall(b"hello")
            if server.ours:
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
    if server.ours:
        server.wait_out("left")
    assert server.stop(sig) in ((1, 5, 0), None)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ends_with_a_client_connected(server, sig):
    with server.connect() as sock:
        assert server.echoes(sock)
        assert server.stop(sig) in ((1, 6, 0), None)
        assert receive_all(sock) == b""
        if server.ours:
            assert name_of(sock) + " left after 6 bytes: server stopped" in server.out


def test_ends_with_a_client_that_never_reads(server):
    """The totals tell how many of its bytes the server had to give up: one buffer at most."""
    deaf = server.connect(receive_buffer=4 * KIB)
    sent = server.fill(deaf)
    totals = server.stop()
    if totals:
        clients, echoed, undelivered = totals
        assert clients == 1 and undelivered <= 64 * KIB
        assert 0 < echoed <= echoed + undelivered <= len(sent)
        got = bytearray()
        try:
            while piece := deaf.recv(MIB):
                got += piece
        except ConnectionResetError:
            pass
        assert bytes(got) == sent[:len(got)] and len(got) <= echoed


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


@since(2)
def test_ends_though_somebody_is_always_ready(server):
    """Three clients that never pause: the server has no time to sleep, and still hears the signal."""
    with greedy_client(server), greedy_client(server), greedy_client(server), server.connect() as sock:
        assert server.echoes(sock)  # so the three are connected, too
        server.stop()


@ours
@since(2)
def test_ends_though_it_is_busy_and_slow(start, strace):
    """The same, where each recv takes 2 ms, as on a machine with other things to do. Edge-triggered, a
    wake-up stands for sixteen of them for each client."""
    server = start(wrapper=strace("recvfrom:delay_enter=2000"))
    with greedy_client(server), greedy_client(server), greedy_client(server):
        server.wait_out("connected", 3)
        server.stop()


def until_the_end(sock, data):
    try:
        while sock.send(data) and sock.recv(MIB):
            pass
    except ConnectionError:
        pass


@ours
@since(2)
@until(4)
def test_gives_what_is_held_one_more_chance(server):
    """The client makes room at the very moment that the signal comes: the server has not seen it
    yet, but tries once more before it goes."""
    sock = server.connect(receive_buffer=4 * KIB)
    sent = server.fill(sock)
    server.pause()
    got = receive_what_is_on_the_way(sock)
    os.kill(server.pid, signal.SIGTERM)
    _, _, undelivered = server.stop()  # lets it go on, once: LeakSanitizer hangs when SIGCONT meets it
    assert undelivered == 0
    assert got == sent[:len(got)]


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
@until(4)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_signals_are_let_in_only_while_asleep(server, day):
    """A signal between the look at the flag and the sleep would be lost. So they are blocked, and
    the wait itself unblocks them. We stop the server until we find it at work, and look."""
    mask = (1 << (signal.SIGTERM - 1)) | (1 << (signal.SIGINT - 1))
    server.settle()
    assert blocked(server) & mask == 0, "asleep, and deaf to signals"
    sock = server.connect()
    client = threading.Thread(target=until_the_end, args=(sock, bytes(64 * KIB)))
    client.start()
    work = (44, 45)  # sendto, recvfrom: see asm/unistd_64.h
    seen = 0

    def at_work():
        nonlocal seen
        server.pause()
        with open("/proc/%d/syscall" % server.pid, encoding="ascii") as file:
            number = file.read().split()[0]
        if number.isdigit() and int(number) in work:
            seen += 1
            assert blocked(server) & mask == mask, "a signal could be lost in system call " + number
        server.resume()
        return seen >= 5

    try:
        wait_until(at_work, "the server at work")
    finally:
        server.resume()
        sock.shutdown(socket.SHUT_RDWR)
        client.join(PATIENCE)
    server.settle()
    server.errors()


def blocked(server):
    return int(re.search(r"SigBlk:\s+([0-9a-f]+)", status_of(server.pid))[1], 16)


def test_the_port_is_free_at_once(start):
    """The server closes first, so its side of the connection stays in TIME_WAIT."""
    server = start()
    port = server.port
    with server.connect() as sock:
        assert server.echoes(sock)
        server.stop()
        receive_all(sock)
    again = start(port=port)
    with again.connect() as sock:
        assert again.echoes(sock)


# ---- How it starts

@ours
def test_says_where_it_listens(server):
    assert server.out == ["listening on 127.0.0.1:%d" % server.port]


@ours
def test_loopback_unless_told_otherwise(server):
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.2", server.port)) == errno.ECONNREFUSED


@ours
def test_default_port_and_address(launch, day):
    """Where 8888 is taken, the complaint names it just as well."""
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
    (["0", "localhost.example"], "server: address localhost.example: not an IPv4 address"),
    (["0", "127.0.0.256"], "server: address 127.0.0.256: not an IPv4 address"),
    (["0", "::1"], "server: address ::1: not an IPv4 address"),
    (["-x"], "invalid option -- 'x'|unrecognized option: x"),
    (["0", "127.0.0.1", "more"], "usage: "),
])
def test_wrong_arguments(launch, day, arguments, complaint):
    lines = fails_to_start(launch([program(day), *arguments]), 2)
    assert re.search(complaint, lines[0])
    assert re.match(r"usage: server \[-\w+\].* \[PORT \[ADDRESS\]\]$", lines[-1])
    assert len(lines) <= 2


# ---- What it says

@ours
def test_a_line_when_a_client_comes_and_one_when_it_goes(server):
    with server.connect() as sock:
        name = name_of(sock)
        assert server.echoes(sock, b"12345")
    server.wait_out("left")
    assert server.out[1:] == [name + " connected", name + " left after 5 bytes: closed by the client"]


@ours
def test_why_a_client_went(server):
    with server.connect() as sock:
        name = name_of(sock)
        assert server.echoes(sock, b"123")
        reset(sock)
    server.wait_out("^" + name + " left after 3 bytes: " + strerror("ECONNRESET") + "$")
    lines = server.errors(1)
    assert len(lines) == 1
    assert re.match("server: recv " + name + failure("ECONNRESET"), lines[0])


@ours
def test_totals(server):
    for size in (1, 10, 100 * KIB):
        data = os.urandom(size)
        assert exchange(server.connect(), data) == data
    server.wait_out("left", 3)
    assert server.stop() == (3, 100 * KIB + 11, 0)


@ours
def test_a_line_for_every_wake_up(start):
    server = start("-v")
    with server.connect() as sock:
        server.settle()
        before = sum("woke up" in line for line in server.out)
        for _ in range(10):
            assert server.echoes(sock)
            server.settle()
        wait_until(lambda: sum("woke up" in line for line in server.out) >= before + 10, "ten lines")


# ---- System calls that fail

def accept_call(day):
    return "accept" if day == "day01" else "accept4"


def wait_call(day):
    return {"day01": "accept", "day02": "pselect6"}.get(day, "epoll_pwait")


@ours
def test_accept_econnaborted(start, strace, day):
    """A client that gave up while it was in the backlog costs one line."""
    server = start(wrapper=strace(accept_call(day) + ":error=ECONNABORTED:when=1"))
    with server.connect() as sock:
        assert server.echoes(sock)
    lines = server.errors(1)
    assert len(lines) == 1 and re.match("server: accept" + failure("ECONNABORTED"), lines[0])


@ours
@pytest.mark.parametrize("error, times", [("ENFILE", 2), ("ENOBUFS", 1)])
def test_accept_fails_for_want_of_something(start, strace, day, error, times):
    """One line, however often it fails, and a second later it goes on."""
    server = start(wrapper=strace("%s:error=%s:when=1..%d" % (accept_call(day), error, times)))
    with server.connect() as sock:
        assert server.echoes(sock)
    lines = server.errors(1)
    assert len(lines) == 1
    assert re.match("server: accept: newcomers have to wait" + failure(error), lines[0])


@ours
def test_interrupted_calls(start, strace, day):
    """EINTR, wherever it may come, means to try again."""
    faults = [call + ":error=EINTR:when=1+3"
              for call in {accept_call(day), wait_call(day), "recvfrom", "sendto"}]
    server = start(wrapper=strace(*faults))
    data = os.urandom(MIB)
    assert exchange(server.connect(), data) == data
    assert exchange(server.connect(), data) == data


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
    """The kernel has no memory to watch one more client (the first call was for the listener)."""
    server = start(wrapper=strace("epoll_ctl:error=%s:when=2" % error))
    with server.connect() as unlucky:
        assert receive_all(unlucky) == b""
    with server.connect() as sock:
        assert server.echoes(sock)
    assert len(server.errors(1)) == 1


@ours
@since(3)
@pytest.mark.parametrize("nth", [3, 4])
def test_no_memory_to_change_the_interest_set(start, strace, nth):
    """The third call is to wait for room, the fourth to wait for bytes again: that client is lost."""
    server = start(wrapper=strace("epoll_ctl:error=ENOMEM:when=%d" % nth))
    unlucky = server.connect(receive_buffer=4 * KIB, segment=500)
    name = name_of(unlucky)
    try:
        server.fill(unlucky)
        receive_all(unlucky)
    except ConnectionError:
        pass
    server.wait_out(name + r" left after \d+ bytes: " + strerror("ENOMEM") + "$")
    with server.connect() as sock:
        assert server.echoes(sock)
    assert len(server.errors(1)) == 1


@ours
@pytest.mark.parametrize("call, error, message", [
    ("socket", "EMFILE", "socket"),
    ("listen", "EADDRINUSE", "listen 127.0.0.1:0"),
    ("setsockopt", "ENOMEM", "setsockopt SO_REUSEADDR"),
])
def test_a_start_that_fails(launch, strace, day, call, error, message):
    server = launch([*strace("%s:error=%s" % (call, error)), program(day), "0"])
    lines = fails_to_start(server, 1)
    assert len(lines) == 1
    assert re.match("server: " + message + failure(error), lines[0])
