#!/usr/bin/env python3
"""make exercise-2.1: says what the task is, puts its starting point into mine/2.1/ if that is not there, builds
what is in it, tries it out, and says what is still wrong.

The tasks and hints stand in NOTES.md. A starting point is a file of a day, as it stands after a step, changed by
tests/starts/2.1.patch if there is one, and what lies in tests/starts/2.1/. How it is tried out stands below.

Use: tests/exercises.py [2.1]        without a number: lists them
Environment: COMPILE and LDFLAGS, the compiler with its flags; MINE, the folder, if it is not to be mine
"""

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

os.environ.setdefault("PATIENCE", "5")  # seconds, not 30: what is missing never comes
sys.path.insert(0, str(Path(__file__).resolve().parent / "book"))

import steps
from harness import (MIB, PATIENCE, ROOT, Server, free_port, is_listening, receive, reset, use_all_descriptors,
                     wait_until)
from pitfall import apply

MINE = Path(os.environ.get("MINE", ROOT / "mine"))
STARTS = ROOT / "tests" / "starts"
TOO_LONG = 60  # seconds, for all of it


class NotYet(Exception):
    """What is not as it should be, in words for the reader."""


def need(good, words):
    if not good:
        raise NotYet(words)


@contextlib.contextmanager
def otherwise(words):
    """If anything goes wrong inside, this is what to say."""
    try:
        yield
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        raise NotYet(words) from error


# ---- An exercise

EXERCISES = {}


def exercise(number, day, files="server.c", step=None, program="server"):
    """Stands above the function that tries it out. files: what the reader begins with, as it stands after that step
    of the day (without one, after the last)."""
    def enter(check):
        EXERCISES[number] = Exercise(number, day, files.split(), step, program, check)
        return check
    return enter


class Exercise:
    def __init__(self, number, day, files, step, program, check):
        self.number, self.day, self.files, self.step, self.check = number, day, files, step, check
        self.folder = MINE / number
        self.program = self.folder / program
        self.unchecked = []  # what cannot be seen on this machine
        self.fate = ""  # of a server that has ended

    def task(self):
        """(its title, its text) in the notes, without the hint."""
        text = re.search(r"^#### %s (.*)\n((?s:.*?))^##" % re.escape(self.number), steps.NOTES.read_text(), re.M)
        return text[1], re.sub(r"<details>.*?</details>", "", text[2], flags=re.S).strip()

    def begin(self):
        """Makes the folder, if it is not there. Returns whether it did."""
        if self.folder.exists():
            return False
        days = steps.read()
        files = steps.build(days, self.day, self.step or len(days[self.day]))
        new = MINE / (self.number + ".new")  # so that there is never half of it
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name in self.files:
            (new / name).write_text(files[name])
        if (STARTS / self.number).exists():
            shutil.copytree(STARTS / self.number, new, dirs_exist_ok=True)
        if (STARTS / (self.number + ".patch")).exists():
            apply((STARTS / (self.number + ".patch")).read_text(), new)
        new.rename(self.folder)
        return True

    def build(self):
        """Compiles it. What the compiler prints, the reader sees."""
        if not (MINE / "common").exists():  # for #include "../common/die.h"
            (MINE / "common").symlink_to(os.path.relpath(ROOT / "common", MINE))
        compiler = shlex.split(os.environ.get("COMPILE", "cc -std=gnu11 -pthread -Wall -Wextra"))
        sources = [nice(path) for path in sorted(self.folder.glob("*.c"))]
        need(sources, "there is no .c file in %s. To start again, remove it" % nice(self.folder))
        done = subprocess.run([*compiler, "-o", nice(self.program), *sources, "common/die.c",
                               *shlex.split(os.environ.get("LDFLAGS", ""))], cwd=ROOT, check=False)
        need(done.returncode == 0, "it does not compile")

    @contextlib.contextmanager
    def running(self, *arguments, trace=None, ports=1, env=None):
        """A server of the reader's, ready for clients. trace: system calls, which calls() then returns. All that it
        starts is killed with it."""
        wrapper, log = [], tempfile.NamedTemporaryFile("r", suffix=".strace")
        if trace:
            wrapper = ["strace", "-D", "-f", "-q", "-o", log.name, "-e", "signal=none", "-e",
                       "trace=" + ",".join("?" + call for call in trace)]
        ports = [free_port() for _ in range(ports)]
        server = Server([*wrapper, self.program, *arguments, *map(str, ports)], port=ports[0], env=env,
                        start_new_session=True)
        server.ports, server.calls = ports, Path(log.name).read_text
        try:
            with otherwise("%s %s does not listen" % (nice(self.program), " ".join([*arguments, "PORT"]))):
                server.listening()
            yield server
        except (NotYet, OSError, AssertionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(0.2)  # one that has crashed needs a moment to end
            self.fate = fate(server)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.kill()

    def traces(self, what):
        """Whether strace works. If it does not, what it was to show remains unchecked, and we say so."""
        works = shutil.which("strace") and subprocess.run(
            ["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
        if not works:
            self.unchecked.append(what + ", for which strace is needed (Debian: apt-get install strace)")
        return works

    def contract(self, tests, day):
        """Some of the tests of make check, until one fails."""
        command = "%s {port}" % shlex.quote(nice(self.program))
        with tempfile.NamedTemporaryFile(suffix=".xml") as report:
            arguments = ["-q", "-x", "-p", "no:cacheprovider", "tests/test_contract.py", "--server", command,
                         "--day", str(day), "-k", tests, "--junitxml", report.name]
            with subprocess.Popen([ROOT / "tests/run", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, start_new_session=True) as run:
                try:
                    status = run.wait(TOO_LONG)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(run.pid, signal.SIGKILL)
            if status not in (0, 1) or not report.read(1):
                self.unchecked.append("what every server promises, for which pytest is needed")
                return
            report.seek(0)
            for case in ElementTree.parse(report).iter("testcase"):
                name = re.match(r"test_(\w+)", case.get("name"))[1]
                need(case.find("failure") is None and case.find("error") is None,
                     "a promise of every server is broken: %s.\nSee make check SERVER='%s' DAY=%d TEST=%s" % (
                         name.replace("_", " "), command, day, name))


def nice(path):
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


def fate(server):
    """How the server has ended, and what it said last, if it has; else nothing."""
    status = server.process.poll()
    if status is None:
        return ""
    return "The server has ended, %s.%s" % (
        "with status %d" % status if status >= 0 else "killed by " + signal.Signals(-status).name,
        "".join("\n    " + line for line in server.err[-3:]))


# ---- What several of them need

def hello(server, words="not even five bytes come back", sock=None, **options):
    """A client that has sent five bytes and has got them back."""
    with otherwise(words):
        sock = sock or server.connect(**options)
        assert server.echoes(sock, b"hello")
    return sock


def read_what_comes(sock, most):
    """Until there is no more, or nothing has come for some seconds."""
    data = bytearray()
    with contextlib.suppress(OSError):
        while len(data) < most and (piece := sock.recv(min(most - len(data), 1 << 18))):
            data += piece
    return bytes(data)


def same(sent, came, why=""):
    """The same bytes have come back."""
    wrong = next((i for i, (one, other) in enumerate(zip(sent, came)) if one != other), min(len(sent), len(came)))
    need(len(came) >= len(sent), "of %d bytes only %d come back, and then nothing: from byte %d on some are missing%s"
         % (len(sent), len(came), wrong, why))
    need(len(came) == len(sent), "%d bytes come back for %d: from byte %d on there are some that were not sent" % (
        len(came), len(sent), wrong))
    need(came == sent, "what comes back is not what was sent: byte %d is the first of them" % wrong)


def sleeps(server, words="nothing happens"):
    need(server.cpu_share() < 0.2, "%s, and the server burns a core" % words)


def quiet(sock):
    """Whether nothing has come."""
    return not select.select([sock], [], [], 0)[0]


def read_to_the_end(sock):
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass


def compare(it, measure, reasons):
    """measure(): {the name of a row: its numbers}, to be those of prediction.txt. reasons: why, by row or by column."""
    path = it.folder / "prediction.txt"
    text, rows = path.read_text(), {}
    head = re.search(r"^# .*:((?: +\w+)+)$", text, re.M)
    need(head, "%s has no heading any more. To start again, remove it" % nice(path))
    columns = head[1].split()
    for line in re.findall(r"^[^#\n].*", text, re.M):
        words = line.split()
        rows[" ".join(words[:-len(columns)])] = words[-len(columns):]
    unknown = sum(not number.isdigit() for numbers in rows.values() for number in numbers)
    need(not unknown, "%d predictions are missing: put a number in place of each ? in %s" % (unknown, nice(path)))
    for what, numbers in measure().items():
        need(what in rows, "%s has no line \"%s\" any more. To start again, remove it" % (nice(path), what))
        for column, predicted, number in zip(columns, rows[what], numbers):
            need(predicted == number, "\"%s\", %s: it is not %s. %s" % (
                what, column, predicted, reasons.get(what) or reasons[column]))


# ---- Day 1

@exercise("1.1", "day01", step=5)
def find_the_bug(it):
    with it.running() as server:
        sock = hello(server, receive_buffer=4096)
        sent, came = server.fill(sock), b""
        for _ in range(10):  # it sleeps in send, which a stop and a continue interrupt
            server.pause()
            server.resume()
            came += read_what_comes(sock, 100_000)
            server.settle()
        came += read_what_comes(sock, len(sent) - len(came))
        sock.shutdown(socket.SHUT_WR)
        same(sent, came + read_what_comes(sock, MIB))


@exercise("1.2", "day01", step=7)
def lines_backwards(it):
    with it.running() as server:
        sock = server.connect()
        answers(server, sock, "a line", b"hello\n")
        answers(server, sock, "a line in two pieces", b"hel", b"lo\n")
        answers(server, sock, "two lines in one piece", b"one\ntwo\n")
        answers(server, sock, "lines that begin in the middle of a piece", b"on", b"e\nan", b"d\ntwo\n")
        answers(server, sock, "an empty line", b"\n")
        answers(server, sock, "a line of 10,000 bytes", b"long" * 1250, b"er.." * 1250 + b"\n")
        sock.sendall(b"rest")
        server.settle()
        sock.close()
        sock = server.connect()
        answers(server, sock, "the first line of a client, after another one has left without a newline", b"new\n")
        with contextlib.suppress(OSError):
            sock.sendall(bytes(300_000))
        sock.close()
        sock = server.connect()
        answers(server, sock, "a client that comes after one with a line of 300,000 bytes", b"still here\n")
        sock.shutdown(socket.SHUT_WR)
        with otherwise("a client that has said all does not get the end of the connection"):
            assert sock.recv(1) == b""


def answers(server, sock, what, *pieces):
    """Each line comes back backwards, as soon as it is complete."""
    wanted, came, text = b"", b"", b""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with otherwise("%s is not answered" % what):
        for piece in pieces:
            sock.sendall(piece)
            *lines, text = (text + piece).split(b"\n")
            wanted += b"".join(line[::-1] + b"\n" for line in lines)
            came += read_what_comes(sock, len(wanted) - len(came))
            server.settle()
            if not quiet(sock):
                came += sock.recv(1 << 16)
            need(wanted == came, "%s: after %s comes %s, not %s" % (
                what, " and ".join(map(short, pieces)), short(came), short(wanted)))


def short(text):
    text = text.decode(errors="replace").replace("\n", "\\n")
    return '"%s"' % (text if len(text) < 60 else text[:50] + "...") if text else "nothing"


@exercise("1.3", "day01")
def a_process_for_each(it):
    with it.running() as server:
        silent = [server.connect() for _ in range(5)]
        sock = hello(server, "five clients are there and say nothing, and a sixth gets no answer")
        threads = sum(len(os.listdir("/proc/%d/task" % pid)) for pid in server.processes())
        need(threads >= 6, "six clients are there, and you have only %d processes and threads" % threads)
        for one in silent:
            hello(server, "six clients are there, and one of them gets no answer", one)
        sock.shutdown(socket.SHUT_WR)
        with otherwise("a client that has said all does not get the end of the connection, which comes when "
                       "every process that has it has closed it"):
            assert sock.recv(1) == b""
        for one in silent:
            one.close()
        with otherwise("all clients have left, and their processes are still there (perhaps as zombies: waitpid(2))"):
            children = Path("/proc/%d/task/%d/children" % (server.pid, server.pid))  # zombies, too
            wait_until(lambda: not children.read_text().strip(), "their end")
    it.contract("test_resets or writing_to_a_client or (half_close and not held) or many_clients", 2)


# ---- Day 2

@exercise("2.1", "day02")
def what_was_held(it):
    with it.running() as server:
        sock = hello(server, receive_buffer=4096, segment=500)
        with otherwise("bytes are held, and the server burns a core instead of sending them"):
            sent = server.fill(sock)
        same(sent, read_what_comes(sock, len(sent)))
        hello(server, "what was held has come back, but the server does not read on", sock)
        sleeps(server, "nothing is held any more, but it still waits for room, of which there is plenty")
        before = server.memory()
        for _ in range(5):
            sent = server.hold(sock)
            same(sent, read_what_comes(sock, len(sent)))
        need(server.memory() - before < MIB // 8, "each time that something was held, memory is lost")
    it.contract("half_close or small_pieces or ends_with_a_client_that_never_reads", 2)


@exercise("2.2", "day02")
def poll_instead_of_select(it):
    if it.traces("whether poll is called, and select is not"):
        with it.running(trace=["poll", "ppoll", "select", "pselect6"]) as server:
            hello(server)
            need("poll(" in server.calls(), "poll is never called")
            need("select" not in server.calls(), "select is still called")
    with it.running() as server:
        for i in range(1100):
            hello(server, "of 1100 clients number %d gets no answer. Is the limit of 1024 still there?" % (i + 1))
        sleeps(server)
    it.contract("half_close or never_reads or small_pieces or five_hundred or shortage", 2)


@exercise("2.3", "day02")
def a_limit_for_idle_clients(it):
    limit = 500
    with it.running("-t", str(limit)) as server:
        begin = time.monotonic()
        idle = hello(server)
        server.settle()
        before = server.switches()[0]
        with otherwise("an idle client is still there after %.0f s" % PATIENCE):
            read_to_the_end(idle)
        took, woke = 1000 * (time.monotonic() - begin), server.switches()[0] - before
        need(limit <= took < limit + 1000, "with -t %d an idle client goes after %d ms" % (limit, took))
        need(woke <= 5, "to drop one idle client the server wakes up %d times" % woke)

        busy, idle, begin = hello(server), server.connect(), time.monotonic()
        while quiet(idle):
            took = 1000 * (time.monotonic() - begin)
            need(took < limit + 1000, "while another client talks, an idle one is still there after %d ms" % took)
            hello(server, "a client that is not idle is dropped", busy)
            time.sleep(0.05)
        hello(server, "a client that is not idle is dropped", busy)
        busy.close()
        server.settle()
        before = server.switches()[0]
        time.sleep(2 * limit / 1000)
        need(server.switches()[0] - before <= 1, "no client is there, and the server wakes up all the same")
    it.contract("(half_close and not held) or silent_client or ends_with or shortage", 2)


# ---- Day 3

@exercise("3.1", "day03", files="", program="levels")
def level_or_edge(it):
    def measure():
        with otherwise("%s does not end" % nice(it.program)):
            printed = subprocess.run([it.program], capture_output=True, text=True, timeout=PATIENCE, check=False).stdout
        return {what: numbers for what, *numbers in re.findall(r"^(\S.*?)  +(\d+) +(\d+)$", printed, re.M)}

    compare(it, measure, {
        "level": "Level-triggered means: is there something to read now?",
        "edge": "Edge-triggered means: is there something to read, and has something come since the last report?"})


EDGE = ". An edge that came while bytes were held is not reported again"


@exercise("3.2", "day03")
def never_epoll_ctl_again(it):
    if it.traces("whether epoll_ctl is called once for each client"):
        with it.running(trace=["epoll_ctl"]) as server:
            sock = [hello(server) for _ in range(2)][1]
            server.settle()
            masks = re.findall(r"EPOLL_CTL_ADD, \d+, \{(?:events=)?([\w|]+)", server.calls())
            need(masks, "epoll_ctl is never called")
            need({"EPOLLIN", "EPOLLOUT", "EPOLLET"} <= set(masks[-1].split("|")),
                 "a client is registered for %s alone" % masks[-1])
            sent = server.fill(sock)
            same(sent, read_what_comes(sock, len(sent)), EDGE)
            need("EPOLL_CTL_MOD" not in server.calls(), "epoll_ctl is still called with EPOLL_CTL_MOD")
    with it.running() as server:
        sock = hello(server, receive_buffer=4096, segment=500)
        sent = server.fill(sock)
        same(sent, read_what_comes(sock, len(sent)), EDGE)
        hello(server, "after all that was held, a client sends again, and gets no answer" + EDGE, sock)
        sleeps(server)
    it.contract("half_close or never_reads or small_pieces or starves or much_waits or sleeps", 3)


@exercise("3.3", "day03")
def a_timer_is_a_descriptor(it):
    traced = it.traces("whether there is a timer, and no time-out")
    with it.running(trace=["timerfd_create", "epoll_wait", "epoll_pwait"] if traced else None) as server:
        server.settle()
        for _ in range(3):
            hello(server)  # no number below theirs is free
        lift = server.limit_descriptors_to_those_in_use()
        newcomer = server.connect()
        newcomer.sendall(b"let me in")
        server.settle()
        before = server.switches()[0]
        time.sleep(2.3)
        calls, woke = server.calls(), server.switches()[0] - before
        need(not traced or "timerfd_create(" in calls, "timerfd_create is never called")
        need(woke < 20 and server.cpu_share() < 0.2, "out of descriptors, the server wakes up again and again. "
             "A timer that has expired can be read until it is read")
        timeouts = set(re.findall(r"epoll_p?wait\(.*, (-?\d+)(?:, NULL, \d+)?\)\s+= ", calls)) - {"-1"}
        need(quiet(newcomer), "a newcomer is let in although there is no descriptor")
        need(not timeouts, "epoll_wait is still called with a time-out of %s ms" % ", ".join(timeouts))
        lift()
        with otherwise("there are descriptors again, and a newcomer is not let in"):
            assert receive(newcomer, 9) == b"let me in"
        server.settle()
        before = server.switches()[0]
        time.sleep(1.3)
        need(server.switches()[0] == before, "the shortage is over, and the timer goes on")
    it.contract("out_of_descriptors or shortage_that_is_over or ends_with_a_client", 3)


# ---- Day 4

OBJECTS = "main.c server.c server.h epoll.c epoll.h"


@exercise("4.1", "day04", files=OBJECTS)
def freed_too_early(it):
    with it.running(env={"MALLOC_PERTURB_": "165"}) as server:  # which glibc writes over what is freed
        for leave in (lambda sock: sock.sendall(b"x"), reset):
            socks = [hello(server) for _ in range(3)]
            server.settle()
            server.pause()
            socks.append(server.connect())  # this event comes first,
            leave(socks[0])  # and this one in the same batch
            server.resume()
            for sock in socks[1:]:
                hello(server, "a newcomer takes the place of a client that has an event in the same batch, and the "
                      "server does not survive it", sock)
        with otherwise("there is room for three, and a fourth client does not take the place of the oldest"):
            socks.append(server.connect())
            read_to_the_end(socks[1])
        before = server.memory()
        for _ in range(3000):
            socks.append(server.connect())
            socks.pop(0).close()
        server.settle()
        lost = server.memory() - before
        need(lost < MIB // 8, "each client that goes leaves %d bytes behind" % (lost / 3000))
    it.contract("test_resets or (half_close and not held) or come_and_go", 1)


@exercise("4.2", "day04", files=OBJECTS)
def a_back_end_of_poll(it):
    for name in ("main.c", "server.c", "server.h"):
        need((it.folder / name).read_text() == (ROOT / "day04-epoll-class" / name).read_text(),
             "%s is not as it was, and only epoll.c and epoll.h should change" % name)
    if it.traces("whether poll is called, and no function of epoll"):
        with it.running(trace=["epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "poll", "ppoll"]) as server:
            hello(server)
            called = re.findall(r"epoll_\w+", server.calls())
            need(not called, "%s is still called" % "".join(called[:1]))
            need("poll(" in server.calls(), "poll is never called")
    with it.running() as server:
        socks = [server.connect() for _ in range(5)]
        for leaving in (0, 1, 2):
            for sock in socks:
                hello(server, "when some have left, another client gets no answer", sock)
            socks.pop(leaving).close()
            server.settle()
        socks += [server.connect() for _ in range(200)]
        server.settle()
        server.pause()
        for sock in socks:
            sock.sendall(b"all at once")
        server.resume()
        with otherwise("when 200 clients speak at once, not all get an answer. There is room for `capacity` events"):
            assert all(receive(sock, 11) == b"all at once" for sock in socks)
        for sock in socks:
            sock.close()
        server.settle()
        sleeps(server, "no client is there any more")
    it.contract("half_close or never_reads or sleeps or come_and_go or shortage", 4)


@exercise("4.3", "day04", files="two_servers.c server.c server.h epoll.c epoll.h")
def three_in_one_thread(it):
    with it.running(ports=3) as server:
        for i, port in enumerate(server.ports, 1):
            with otherwise("no server listens at port number %d of 3" % i):
                wait_until(lambda port=port: is_listening(port), "a listener")
        threads = len(os.listdir("/proc/%d/task" % server.pid))
        need(threads == 1, "there are %d threads, and one should serve all" % threads)
        for number in (2, 0, 1, 2, 1):  # in an order that it cannot foresee
            server.port = server.ports[number]
            hello(server, "at port number %d of 3 there is no answer while no client speaks at the others" % (
                number + 1))
        server.settle()
        sleeps(server)
        server.let_clients_end()
        server.settle()
        server.process.terminate()
        with otherwise("SIGTERM does not end all three with status 0, within two seconds"):
            assert server.process.wait(2) == 0


# ---- Day 5

@exercise("5.1", "day05", files="herd.c", program="herd")
def who_is_woken(it):
    reasons = {
        "accept": "accept takes the newcomer, so the kernel wakes the first in the queue alone",
        "poll": "poll asks for news, and the kernel cannot know which of them will accept",
        "exclusive": "EPOLLEXCLUSIVE says that one will accept",
        "shared": "One is woken, and it wakes the next as long as the newcomer is there",
        "shared-et": "One is woken, and it wakes no other: there was one edge"}

    def measure():
        rows = {way: herd(it, way, 1, delay=300) for way in reasons}
        return {way: (woken, returned, nothing) for way, (_, returned, nothing, woken) in rows.items()}

    compare(it, measure, reasons)


def herd(it, way, connections, delay=50):
    """(connections, returned, nothing, woken) of a way, with four workers: what most of three runs say, because now
    and then a worker has to sleep on the way to its accept."""
    command, rows = [it.program, "-m", way, "-w", "4", "-c", str(connections), "-d", str(delay)], []
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            try:
                printed, error = run.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                run.kill()  # its workers end with it
                raise NotYet("herd -m %s -c %d does not end: not all newcomers are accepted" % (
                    way, connections)) from None
        need(row := re.search(r"^%s +(\d+) +(\d+) +(\d+) +(\d+) " % way, printed, re.M), error.strip().split("\n")[0])
        rows.append(row.groups())
    return statistics.mode(rows)


@exercise("5.2", "day05", files="herd.c", program="herd")
def another_way_to_wait(it):
    herd(it, "shared-oneshot", 1)
    *_, nothing, woken = herd(it, "shared-oneshot", 10)
    need(woken == "10", "for 10 newcomers a worker is woken %s times" % woken)
    need(nothing == "0", "a worker is woken and finds nothing, %s times for 10 newcomers" % nothing)
    if it.traces("whether there is one instance for all, with EPOLLONESHOT"):
        with tempfile.NamedTemporaryFile("r", suffix=".strace") as log, otherwise("herd does not end"):
            subprocess.run(["strace", "-f", "-q", "-o", log.name, "-e", "signal=none", "-e",
                            "trace=epoll_create1,epoll_ctl", it.program, "-m", "shared-oneshot", "-w", "4", "-c", "3"],
                           stdout=subprocess.DEVNULL, timeout=TOO_LONG / 2, check=False)
            calls = log.read()
        need("EPOLLONESHOT" in calls, "the listener is watched without EPOLLONESHOT")
        made = calls.count("epoll_create1(")
        need(made == 1, "there are %d instances, and there should be one for all" % made)
    for way in ("shared-et", "exclusive"):
        need(herd(it, way, 5)[3] == "5", "the way %s is not as it was" % way)


@exercise("5.3", "day05", files=OBJECTS)
def reload(it):
    with it.running("-w", "2") as server:
        sock = hello(server)
        parent, *old = server.processes()
        server.process.send_signal(signal.SIGHUP)
        with otherwise("at SIGHUP there are no two new workers"):
            wait_until(lambda: len(set(server.processes()) - {parent, *old}) == 2, "two new workers")
        with otherwise("an old worker that has no clients does not end"):
            wait_until(lambda: len(server.processes()) <= 4, "its end")
        server.settle()  # the other one has heard of it, too
        hello(server, "a client that is there at SIGHUP is no longer served", sock)
        sock.close()
        with otherwise("an old worker whose last client has left does not end"):
            wait_until(lambda: not set(server.processes()) & set(old), "its end")
        sock = hello(server)
        server.process.send_signal(signal.SIGHUP)
        for _ in range(200):
            hello(server, "while workers are replaced, a newcomer is not served").close()
        with otherwise("at a second SIGHUP the workers are not replaced"):
            wait_until(lambda: len(server.processes()) == 4, "the worker that has a client, and two new ones")
        hello(server, "a client that is there at a second SIGHUP is no longer served", sock)
        everyone = server.processes()
        server.process.terminate()
        with otherwise("SIGTERM does not end all of them within two seconds, those included that were about to end"):
            assert server.process.wait(2) == 0
            wait_until(lambda: not any(Path("/proc/%d" % pid).exists() for pid in everyone), "their end")
    it.contract("half_close or test_resets or come_and_go or ends_with", 5)


# ---- For the reader

def tell(it):
    title, text = it.task()
    print("%s %s\n\n%s\n" % (it.number, title, text), flush=True)
    new = it.begin()
    files = sorted(path.name for path in it.folder.iterdir() if path != it.program)
    print("%s %s: %s. To start again, remove it. A hint is in NOTES.md, below the task.\n" % (
        nice(it.folder), "is new" if new else "has", ", ".join(files)), flush=True)


def give_up(*_):
    raise NotYet("it takes more than %d s to try it out" % TOO_LONG)


def main(arguments):
    if not arguments:
        for number, it in EXERCISES.items():
            print("make exercise-%s  %s" % (number, it.task()[0]))
        return
    it = EXERCISES.get(arguments[0])
    if it is None:
        sys.exit("exercise: %s: no such exercise; make exercises lists them" % arguments[0])
    if MINE.exists() and not MINE.is_dir():
        sys.exit("exercise: %s is a file, and exercises need a folder of that name: move it away" % nice(MINE))
    use_all_descriptors()
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(TOO_LONG)
    try:
        tell(it)
        it.build()
        it.check(it)
    except (NotYet, OSError, AssertionError) as error:
        sys.exit("\n".join(["not yet: %s" % error, it.fate]).rstrip())
    if it.unchecked:
        sys.exit("not checked: %s.\nAll the rest is as it should be" % "; ".join(it.unchecked))
    print("done: %s" % it.number)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
