"""Day 1: what it can do, what it cannot do yet, and the client of all days."""

import os
import re
import select
import signal
import subprocess

import pytest

from conftest import program
from harness import (MIB, PATIENCE, failure, free_port, name_of, receive, receive_all, wait_until)


@pytest.fixture
def server(start_day):
    return start_day("day01", "-v", "0")


def system_call(server):
    """The name of the system call that it sleeps in (numbers: asm/unistd_64.h)."""
    server.settle()
    with open("/proc/%d/syscall" % server.pid, encoding="ascii") as file:
        number = int(file.read().split()[0])
    return {43: "accept", 45: "recv", 44: "send"}.get(number, number)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_where_it_sleeps(server):
    assert system_call(server) == "accept"
    with server.connect(receive_buffer=4096) as sock:
        assert server.echoes(sock)
        assert system_call(server) == "recv"
        sent = server.fill(sock)
        assert system_call(server) == "send"
        assert receive(sock, len(sent)) == sent
    server.wait_out("left")
    assert system_call(server) == "accept"


def test_verbose_names_each_wake_up(server):
    with server.connect() as sock:
        assert server.echoes(sock, b"12345")
        name = name_of(sock)
    server.wait_out("left")
    assert server.out[1:] == [
        "woke up: accept gave fd 4",
        name + " connected",
        "woke up: recv gave 5 bytes",
        "woke up: send took 5 of 5 bytes",
        "woke up: recv gave 0 bytes",
        name + " left after 5 bytes: closed by the client",
    ]


# ---- The limit: one client at a time

def test_the_second_client_waits_until_the_first_has_left(server):
    first = server.connect()
    assert server.echoes(first)
    second = server.connect()  # succeeds: the kernel connects, the backlog keeps
    second.sendall(b"and me?")
    server.settle()
    second.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.recv(1)
    first.close()
    second.settimeout(PATIENCE)
    assert receive(second, 7) == b"and me?"


def test_a_client_that_does_not_read_holds_up_the_next(server):
    deaf = server.connect(receive_buffer=4096)
    sent = server.fill(deaf)
    second = server.connect()
    second.sendall(b"and me?")
    server.settle()
    second.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.recv(1)
    assert receive(deaf, len(sent)) == sent
    deaf.close()
    second.settimeout(PATIENCE)
    assert receive(second, 7) == b"and me?"


# ---- The client

@pytest.fixture
def run_client():
    def run(*arguments, text=b"", **options):
        return subprocess.run([program("day01", "client"), *map(str, arguments)], input=text,
                              capture_output=True, timeout=PATIENCE, check=False, **options)

    return run


@pytest.mark.parametrize("size", [0, 3, 32 * MIB])
def test_client_prints_what_comes_back_and_ends(server, run_client, size):
    data = os.urandom(size)
    done = run_client(server.port, text=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_client_takes_an_address(start_day, run_client):
    server = start_day("day01", "0", "127.0.0.2")
    assert run_client(server.port, "127.0.0.2", text=b"hi\n").stdout == b"hi\n"


def test_client_without_server(run_client):
    port = free_port()
    done = run_client(port)
    assert done.returncode == 1
    assert re.match("client: connect 127.0.0.1:%d" % port + failure("ECONNREFUSED"),
                    done.stderr.decode())


def test_client_says_when_bytes_are_lost(server):
    """The server stops while the client still waits for its user."""
    client = subprocess.Popen([program("day01", "client"), str(server.port)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        client.stdin.write(b"hello")
        client.stdin.flush()
        assert select.select([client.stdout], [], [], PATIENCE)[0]
        assert client.stdout.read(5) == b"hello"
        server.stop()
        assert client.wait(PATIENCE) == 1
        assert client.stderr.read() == b"client: the server closed after 5 of 5 bytes\n"
    finally:
        client.kill()
        client.wait()
        for stream in (client.stdin, client.stdout, client.stderr):
            stream.close()


def test_client_as_a_filter(server):
    """client | head: the client ends by SIGPIPE, as every filter does, and says nothing."""
    client = subprocess.Popen([program("day01", "client"), str(server.port)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=True)
    client.stdout.close()
    client.stdin.write(b"hello")
    client.stdin.close()
    assert client.wait(PATIENCE) == -signal.SIGPIPE
    assert client.stderr.read() == b""
    client.stderr.close()
    server.wait_out("left")
    server.errors()  # it went with a reset if the bytes were on the way


@pytest.mark.parametrize("arguments, complaint", [
    (["65536"], "client: port 65536: not a number from 0 to 65535"),
    (["80x"], "client: port 80x: not a number from 0 to 65535"),
    (["abc"], "client: port abc: not a number from 0 to 65535"),
    (["8888", "nowhere"], "client: address nowhere: not an IPv4 address"),
])
def test_client_with_wrong_arguments(run_client, arguments, complaint):
    done = run_client(*arguments)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [complaint, "usage: client [PORT [ADDRESS]]"]


def test_client_with_too_many_arguments(run_client):
    assert run_client(1, "127.0.0.1", 3).returncode == 2


# ---- Its handler shuts the sockets down, so that no signal is lost wherever it comes

def test_a_signal_leaves_nothing_to_sleep_in(start_day, strace, tmp_path):
    """A call that has begun is interrupted; the one that has not finds its socket shut."""
    trace = tmp_path / "trace"
    server = start_day("day01", "0", wrapper=["strace", "-D", "-q", "-o", str(trace),
                                              "-e", "trace=shutdown"])
    sock = server.connect()
    assert server.echoes(sock)
    server.stop()
    wait_until(lambda: "exited" in trace.read_text(), "strace to write the last line")
    assert len(re.findall(r"^shutdown\(\d+, SHUT_RDWR\) += 0$", trace.read_text(), re.M)) == 2


def test_bytes_that_come_after_the_signal(start_day, strace):
    """The handler is kept in shutdown until they are there: recv then says ECONNRESET, which is our own
    doing, and no trouble of that client."""
    server = start_day("day01", "0", wrapper=strace("shutdown:delay_exit=200000"))
    sock = server.connect()
    assert server.echoes(sock)
    server.settle()
    server.process.send_signal(signal.SIGTERM)
    assert sock.recv(1) == b""  # our end of file: the handler is at work
    sock.sendall(b"too late")
    assert server.wait() == 0  # not stop(): a second signal would be kept as long as the first


def test_signals_at_any_moment(start_day):
    """The handler shuts the sockets down, so it does not matter where the signal comes."""
    for i in range(40):
        server = start_day("day01", "0")
        sock = server.connect()
        sock.sendall(bytes(1 + 5000 * (i % 20)))
        assert server.stop(signal.SIGTERM if i % 2 else signal.SIGINT)[0] <= 1
        try:
            receive_all(sock)
        except ConnectionResetError:
            pass
