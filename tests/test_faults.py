"""Every error that the manual lists, from every call that a server sleeps in or that serves a client, at
its first occurrences: at most the client that is concerned is lost, and has a line that names it.

strace makes the calls fail. A run is one server and one error, with some clients; there are some 1,400.
Since most of them wait most of the time, the runs of all tests that were chosen go on in the background,
many at once, and each test looks at the results of its own."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import BUILD, SANITIZED, failure, musl

# The section ERRORS of each page, Linux man-pages 6.03, and what it refers to. Left out: EWOULDBLOCK,
# which is EAGAIN, and ERESTARTSYS and ERESTARTNOINTR, which only a tracer can see.
ERRORS = {
    # accept(2), and the network errors that are passed on according to its section RETURN VALUE
    "accept": "EAGAIN EBADF ECONNABORTED EFAULT EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM ENOTSOCK "
              "EOPNOTSUPP EPERM EPROTO ENOSR ESOCKTNOSUPPORT EPROTONOSUPPORT ETIMEDOUT "
              "ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH",
    # recv(2), "additional errors … from the underlying protocol modules": tcp(7), ip(7), and
    # ECONNRESET, which POSIX lists
    "recv": "EAGAIN EBADF ECONNREFUSED EFAULT EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK "
            "ECONNRESET EPIPE ETIMEDOUT EHOSTUNREACH ENOBUFS",
    # send(2), tcp(7), ip(7)
    "send": "EACCES EAGAIN EALREADY EBADF ECONNRESET EDESTADDRREQ EFAULT EINTR EINVAL EISCONN "
            "EMSGSIZE ENOBUFS ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE ETIMEDOUT EHOSTUNREACH EPERM",
    # epoll_ctl(2), epoll_wait(2), select(2), fork(2)
    "epoll_ctl": "EBADF EEXIST EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM",
    "epoll_wait": "EBADF EFAULT EINTR EINVAL",
    "select": "EBADF EINTR EINVAL ENOMEM",
    "fork": "EAGAIN ENOMEM ENOSYS",
}

# How libc makes the call: glibc, musl, and on machines that lack the older system calls. Day 1 calls
# accept, the others accept4, and musl takes EINVAL from it for a kernel that has only accept.
SYSTEM_CALLS = {
    "accept": "?accept,?accept4", "recv": "?recvfrom", "send": "?sendto", "epoll_ctl": "?epoll_ctl",
    "epoll_wait": "?epoll_wait,?epoll_pwait", "select": "?select,?pselect6",
    "fork": "?fork,?vfork,?clone,?clone3",
}

SERVERS = {
    "day01": ["day01"],
    "day02": ["day02"],
    "day03": ["day03"],
    "day03-edge": ["day03", "-e"],
    "day04": ["day04"],
    "day04-edge": ["day04", "-e"],
    "day05-epoll": ["day05", "-w", "2", "-m", "epoll"],
    "day05-exclusive": ["day05", "-w", "2", "-m", "exclusive"],
    "day05-reuseport": ["day05", "-w", "2", "-m", "reuseport"],
}

NAP = 0.02  # seconds
AT_ONCE = 0.9  # less than a server waits before it looks again
LOOKED_AGAIN = 2.5  # a newcomer in a shortage
GONE = 10 if SANITIZED else 1  # after SIGTERM


def calls_of(server):
    calls = ["accept"]
    calls += ["recv", "send"] * (server not in ("day05-epoll", "day05-reuseport"))  # after accept all modes are alike
    calls += ["select"] * (server == "day02") + ["epoll_ctl", "epoll_wait"] * (server >= "day03")
    return calls + ["fork"] * (server >= "day05")


def newcomers_wait(server, call, error):
    """Whether that makes newcomers wait until the server looks again: when accept fails for want of
    something, and in mode exclusive also when epoll_ctl fails, with which a worker goes to the end of the queue."""
    return (call == "accept" and error in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
            or call == "epoll_ctl" and server == "day05-exclusive")


def occurrences(server, call, error):
    """At which occurrences the call fails, for each run. All of the first four have their turn, two in a
    run, with a call that works in between. There is only one in a run

    - when the first is the end: two workers are started by two calls of fork, and a server adds its
      listener and its signals by two calls of epoll_ctl (so there are four more of them, for a client:
      add, modify to write, modify to read, …);
    - when it makes newcomers wait;
    - when the second would be the same lie again: with -e, EAGAIN from send although there is room. The
      kernel has already said that there is room, and will not say so again."""
    if (call == "fork" or newcomers_wait(server, call, error)
            or call == "send" and error == "EAGAIN" and server.endswith("-edge")):
        return [(n,) for n in range(1, 9 if call == "epoll_ctl" else 5)]
    return [(1,), (2,), (3, 6), (4, 7), (5, 8)] if call == "epoll_ctl" else [(1, 3), (2, 4)]


class Failed(Exception):
    """The server has broken a promise."""


class Starved(Exception):
    """strace or the server has a time limit of its own, and got no core in that time: this run says nothing."""


def check(condition, what):
    if not condition:
        raise Failed(what)


def naps(seconds):
    """What has to happen within so many seconds is waited for in naps, and these are counted: whatever keeps it
    waiting that is not the server (a core, a machine that stands still, Python's lock) makes naps longer, too."""
    return range(round(seconds / NAP))


# ---- Clients ---------------------------------------------------------------------------------------


class Client:
    """Sends something, and waits for it to come back."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.name = "%s:%d" % self.socket.getsockname()
        self.said, self.heard = b"", b""
        self.lost = self.kept_waiting = False

    def say(self):
        word = b"%d of %s\n" % (len(self.said), self.name.encode())
        self.said += word
        try:
            self.socket.sendall(word)
        except OSError:
            self.lost = True

    def receive(self, within):
        """What comes next, and nothing at the end of the connection; None if that takes longer."""
        self.socket.settimeout(NAP)
        for _ in naps(within):
            try:
                return self.socket.recv(1000)
            except TimeoutError:
                pass
            except OSError:
                self.lost = True
                return b""
        return None

    def listen(self, within):
        """Whether all that was said is back in time, or the connection has ended, which is noted."""
        while self.heard != self.said and not self.lost:
            data = self.receive(within)
            if data is None:
                return False
            self.heard += data
            self.lost = not data
            check(self.said.startswith(self.heard), "%s heard %r" % (self.name, self.heard))
        return True

    def hear(self, within, once_more=False):
        """once_more: it may hear nothing, but then another word brings it both."""
        if once_more and not self.listen(0.5):
            self.kept_waiting = True
            self.say()
        check(self.listen(within), "%s heard nothing for %.1f s" % (self.name, within))

    def leave(self, within=None):
        """within: after the end of file, which has to come within so many seconds."""
        if within and not self.lost:
            data = self.receive(within)
            check(data is not None, "%s got no end of file" % self.name)
            check(data == b"", "%s heard more than it said" % self.name)
        self.socket.close()


# ---- A server under strace -------------------------------------------------------------------------


class Run:
    """One server, one error of one call, at some occurrences."""

    def __init__(self, server, call, error, when):
        self.server, self.call, self.error, self.when = server, call, error, when
        self.day = SERVERS[server][0]
        self.clients, self.port = [], None
        self.log = self.process = self.out = self.err = None
        # In edge-triggered mode the kernel says only once that there is something to read. If recv then
        # says that there is nothing, which no kernel does, the server has to believe it, and this client
        # waits until it has said more.
        self.once_more = call == "recv" and error == "EAGAIN" and server.endswith("-edge")
        self.patience = LOOKED_AGAIN if newcomers_wait(server, call, error) else AT_ONCE
        self.slow = self.patience > AT_ONCE or self.once_more or call == "fork" and when[0] > 2

    def __str__(self):
        return "%s, %s, %s at occurrence %s" % (
            self.server, self.call, self.error, " and ".join(map(str, self.when)))

    def command(self):
        program, *options = SERVERS[self.server]
        first, last = self.when[0], self.when[-1]
        when = "%d..%d+%d" % (first, last, last - first) if first < last else "%d" % first
        faults = {self.call: "error=%s:when=%s" % (self.error, when)}
        if self.call == "epoll_ctl":  # no room for once, so that it waits to write, and then to read again
            faults["send"] = "error=EAGAIN:when=1"
        names = {**SYSTEM_CALLS, "accept": "?accept" if self.day == "day01" else "?accept4"}
        traced = ",".join(names[call] for call in faults)
        injected = [part for call, fault in faults.items()
                    for part in ("-e", "inject=%s:%s" % (names[call], fault))]
        return ["strace", "-D", "-qq", "-ff", "--seccomp-bpf", "-o", self.log, "-e", "trace=" + traced,
                "-e", "signal=none", *injected, str(BUILD / program / "server"), *options, "0"]

    def verdict(self):
        """None, or what went wrong."""
        wrong = None
        with tempfile.TemporaryDirectory() as folder:
            self.log = Path(folder, "log")  # strace writes what a process does to log.PID
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
            try:
                self.play()
                self.judge()
            except (Failed, Starved, OSError) as error:
                wrong = error
            finally:
                for client in self.clients:
                    client.socket.close()
                if self.out is None:  # it runs, or a worker, or strace: all are in its group
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self.process.pid, signal.SIGKILL)
                    self.wait(10)
        return wrong

    def wait(self, within):
        """Waits for its end, when its pipes have no writer any more: then the last worker is gone."""
        for _ in naps(within):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.out, err = self.process.communicate(timeout=NAP)
                self.err = err.decode().splitlines()
                return
        raise Failed("it does not end, or a worker does not")

    # ---- What happens to it

    def play(self):
        line = self.first_line()
        if not line:
            self.wait(GONE)
            if self.process.returncode == -signal.SIGALRM:
                raise Starved("strace -D had only 3 s to attach itself")
            return
        match = re.fullmatch(rb"listening on 127\.0\.0\.1:(\d+)\n", line)
        check(match, "the first line is %r" % line)
        self.port = int(match[1])
        if self.call == "fork":
            self.lose_workers()
        else:
            self.serve()
        self.serve_a_newcomer()
        self.stop()

    def first_line(self):
        line, pipe = b"", self.process.stdout.fileno()
        for _ in naps(10):
            if select.select([pipe], [], [], NAP)[0]:
                data = os.read(pipe, 100)
                line += data
                if not data or line.endswith(b"\n"):
                    return line
        raise Failed("it does not start")

    def connect(self):
        self.clients.append(Client(self.port))
        return self.clients[-1]

    def serve(self):
        """Eight clients, so that one of two workers has at least four. Most come three at a time. The
        first stays, and is not to notice that newcomers have to wait."""
        one_by_one = self.server == "day01"

        def hear(client):
            client.hear(self.patience, self.once_more)
            if one_by_one:
                client.leave()

        first = self.connect()
        first.say()
        hear(first)
        for _ in range(2):
            several = [self.connect() for _ in range(3)]
            for client in several:
                client.say()
            if not one_by_one and not first.lost:
                first.say()
                first.hear(AT_ONCE, self.once_more)
            for client in several:
                hear(client)
        if not one_by_one:
            several[0].leave()

    def serve_a_newcomer(self):
        """One is served, whatever was before. But some failures of the second worker may be to come."""
        for _ in range(3):
            client = self.connect()
            client.say()
            client.hear(self.patience, self.once_more)
            if not client.lost:
                return
        raise Failed("no newcomer is served afterwards")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.day != "day01":
            for client in self.clients:
                if client.socket.fileno() != -1:
                    client.leave(GONE)
        self.wait(GONE)

    # ---- fork: a worker is replaced by another, not twice within a second

    def workers(self):
        pid = self.process.pid
        return Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split()

    def lose_workers(self):
        """Kills one after the other until fork has failed, and waits until all are there again."""
        for kill in range(self.when[0] - 2):
            before = self.workers()
            check(len(before) == 2, "its workers are %s" % before)
            os.kill(int(before[kill]), signal.SIGKILL)
            self.wait_until(lambda pid=before[kill]: pid not in self.workers(), 1)
            self.serve_a_newcomer()
            self.clients.pop().leave()
            self.wait_until(lambda: len(self.workers()) == 2, LOOKED_AGAIN)

    def wait_until(self, condition, within):
        for _ in naps(within):
            if condition():
                return
            time.sleep(NAP)
        raise Failed("its workers are now %s" % self.workers())

    # ---- Whether that was right

    def injected(self):
        """What strace made fail, a line for each. All that was planned has to have happened in one of the
        processes; if there are two that accept, the other may have less to do."""
        found = []
        for path in self.log.parent.iterdir():
            lines = path.read_text(errors="replace").splitlines()
            found.append([line for line in lines if line.endswith("(INJECTED)") and self.error in line
                          and (self.call == "send" or not line.startswith("sendto"))])
        check(max(map(len, found), default=0) == len(self.when), "it was not injected: %r" % found)
        return [line for lines in found for line in lines]

    def judge(self):
        injected = self.injected()
        if self.call in ("fork", "epoll_ctl") and self.when[0] <= 2:
            self.judge_start()
            return
        check(self.port, "it did not start")
        errors = self.err
        if self.call == "fork":
            killed = [line for line in errors if re.match(r"server: worker \d \(pid \d+\) was killed", line)]
            errors = [line for line in errors if line not in killed]
            check(len(killed) == self.when[0] - 2, "not each worker that was killed has a line")
        else:
            if any("was killed by signal 9" in line for line in errors):
                raise Starved("a worker did not end in the second that its parent gives it")
        line, least, most = self.promised(injected)
        check(least <= len(errors) <= most and all(re.fullmatch(line, text) for text in errors),
              "%d to %d lines %r expected on stderr" % (least, most, line))
        self.judge_clients(errors, len(injected))

    def judge_start(self):
        """It could not start, has said why, and nothing else."""
        check(self.port is None and self.out == b"", "it started")
        line = "server: " + self.call + failure(self.error)
        check(len(self.err) == 1 and re.fullmatch(line, self.err[0]), "one line %r expected on stderr" % line)
        check(self.process.returncode == 1, "the exit status is not 1")

    def promised(self, injected):
        """A pattern for the lines on stderr, and how many there are at least and at most."""
        count, call, whose = len(injected), self.call, ""
        if call in ("accept", "recv", "send") and self.error == "EAGAIN" and self.day != "day01":
            count = 0  # that is how the kernel says "not now"
        if call in ("select", "epoll_wait") and self.error == "EINTR":
            count = 0
        if call == "accept" and self.error == "EINVAL" and self.day != "day01" and musl():  # see above
            count = 0
        if call == "epoll_ctl":  # a word on each that concerns a client: not on EPOLL_CTL_DEL, or the listener
            count = sum("EPOLLRDHUP" in line or "EPOLLOUT" in line for line in injected)
            call = "epoll_ctl for"
        if call in ("recv", "send", "epoll_ctl for"):
            whose = r" 127\.0\.0\.1:\d+"
        least = count
        if call == "accept" and newcomers_wait(self.server, call, self.error):
            whose, least = ": newcomers have to wait", count if self.day == "day01" else 1
        return "server: " + call + whose + failure(self.error), least, count

    def judge_clients(self, errors, failures):
        """Only those that have a line are lost, and each byte of the others is counted."""
        named = [match[0] for match in (re.search(r"127\.0\.0\.1:\d+", line) for line in errors) if match]
        check(len(set(named)) == len(named), "a client is named twice")
        check(set(named) <= {client.name for client in self.clients}, "that is no client of ours")
        for client in self.clients:
            check(not client.lost or client.name in named, "%s was lost, and has no line" % client.name)
        check(sum(client.kept_waiting for client in self.clients) <= failures, "too many heard nothing")

        status = self.process.returncode
        if self.day == "day01":
            check((status, self.out) == (-signal.SIGTERM, b""), "that is not how day 1 ends: %r" % self.out)
            return
        check(status == 0, "the exit status is not 0")
        totals = re.fullmatch(rb"served (\d+) clients?: (\d+) bytes echoed, \d+ undelivered\n", self.out)
        check(totals, "there are no totals on stdout: %r" % self.out)
        if self.call != "fork":  # a worker that is killed cannot count to the end
            heard = sum(len(client.heard) for client in self.clients)
            safe = sum(len(client.heard) for client in self.clients if client.name not in named)
            check(safe <= int(totals[2]) <= heard, "%d to %d bytes were heard: %r" % (safe, heard, self.out))
            check(int(totals[1]) == len(self.clients), "%d clients came: %r" % (len(self.clients), self.out))


# ---- All of them -----------------------------------------------------------------------------------


def result(server, call, error, when):
    """None, or what went wrong. A server that hangs does so each time; one that was starved does not."""
    for _ in range(3):
        run = Run(server, call, error, when)
        wrong = run.verdict()
        if not isinstance(wrong, Starved):
            break
    return wrong and "%s: %s\n    exit status %d; stderr: %s" % (
        run, wrong, run.process.returncode, " | ".join(run.err) or "nothing")


@pytest.fixture(scope="module")
def results(request, strace):
    """The runs of all tests of this file that were chosen, as futures. Those that wait for a second or more
    are many at a time, the others as many as keep the cores busy."""
    del strace  # it skips the test if there is no strace
    found = {}
    with ThreadPoolExecutor(12) as slow, ThreadPoolExecutor(4) as fast:
        for item in request.session.items:
            if item.path != request.path:
                continue
            server, call = item.callspec.params["server"], item.callspec.params["call"]
            planned = [(server, call, error, when) for error in ERRORS[call].split()
                       for when in occurrences(server, call, error)]
            found[server, call] = [(slow if Run(*what).slow else fast).submit(result, *what)
                                   for what in planned]
        yield found
        slow.shutdown(cancel_futures=True)
        fast.shutdown(cancel_futures=True)


@pytest.mark.together
@pytest.mark.parametrize("server, call", [
    pytest.param(server, call, id="%s-%s" % (server, call)) for server in SERVERS for call in calls_of(server)])
def test_an_error_costs_at_most_the_client_that_is_concerned(server, call, results):
    wrong = [text for text in (future.result() for future in results[server, call]) if text]
    assert not wrong, "%d of %d:\n%s" % (len(wrong), len(results[server, call]), "\n".join(wrong))
