"""The score card of make check: a line for each promise, in place of what pytest prints."""

import re
import shlex
import signal
import subprocess
import textwrap
import time

import pytest
from _pytest.runner import runtestprotocol

import steps
from harness import PATIENCE, Server, Yours, free_port, split_command
from promises import ALL, PROMISES

TIME, EACH = 110, 6 * PATIENCE  # seconds: for all tests together, and for one


def day_of(item):
    """The first day that promises what a test is about."""
    since = item.get_closest_marker("since")
    return since.args[0] if since else 1


def in_words(error, servers):
    """What a test has seen when it failed."""
    text = {
        ConnectionRefusedError: "a client was refused",
        ConnectionResetError: "the connection was reset",
        BrokenPipeError: "the connection was reset while the client was sending",
        TimeoutError: "nothing came for %g s" % PATIENCE,
        subprocess.TimeoutExpired: "it had not ended after %g s" % PATIENCE,
    }.get(type(error)) or " ".join(re.split(r"\n *assert |\n *\+ ", str(error))[0].split()) or type(error).__name__
    if isinstance(error, ConnectionError):  # it may be about to end
        give_up = time.monotonic() + 0.5
        while not any(server.ended() for server in servers) and time.monotonic() < give_up:
            time.sleep(0.01)
    end = next((server.state() for server in servers if server.state()), "")
    if not end or isinstance(error, subprocess.TimeoutExpired) or text.startswith("the server ended before"):
        return text
    return end if text.startswith("the server ended") else text + "; " + end


class Card:
    """Runs the tests promise by promise, those of each until one fails, and prints a line for each promise."""

    def __init__(self, config):
        self.config = config
        self.counts = {"kept": 0, "broken": 0, "not promised": 0, "not checked": 0}
        self.begin = time.monotonic()
        self.ends = False  # a promise is broken because the server ended
        self.pointless = set()  # tests that need a promise which is broken
        for sig in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C, so that nothing is left behind
            signal.signal(sig, signal.default_int_handler)

    def print(self, *lines):
        with self.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(*lines, sep="\n", flush=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        left = [(promise, [item for name in promise.tests for item in session.items if item.originalname == name])
                for promise in PROMISES]
        left = [(promise, items) for promise, items in left if items]
        complaint = trial(self.config.option.server) if left else "TEST: no test of a promise has that in its name"
        if complaint:
            self.print("check: " + complaint)
            session.testsfailed = 1
            return True
        while left:
            promise, items = left.pop(0)
            verdict, *more = self.judge(promise, items)
            since = " (from day %d on)" % day_of(items[0]) if verdict == "not promised" else ""
            self.tell(verdict, promise.sentence + since, more)
            missing = promise.needed_for is ALL and verdict == "broken"
            if left and (missing or time.monotonic() - self.begin > TIME):
                self.counts["not checked"] += len(left) - 1
                rest, verb = ("The other %d" % len(left), "they are") if len(left) > 1 else ("The last one", "it is")
                self.tell("not checked", "%s: %s." % (
                    rest, verb + " about a server that keeps this one" if missing else "two minutes are over"))
                break
        self.print(", ".join("%d %s" % (count, verdict) for verdict, count in self.counts.items()
                             if count or verdict != "not checked"))
        session.testsfailed = self.counts["broken"]
        return True

    def tell(self, verdict, sentence, more=()):
        self.counts[verdict] += 1
        indent = " " * 14
        self.print("%-13s %s" % (verdict, sentence), *(
            textwrap.fill(line, 110, initial_indent=indent, subsequent_indent=indent + " " * 6)
            if "make check" not in line else indent + line for line in more))  # a command to copy

    def judge(self, promise, items):
        """The verdict, and lines that explain it."""
        if day_of(items[0]) > self.config.option.day:
            return ["not promised"]
        for item in items:
            if item.originalname in self.pointless:
                return ["not checked", "Its clients send much, and that is broken; see above."]
            for report in runtestprotocol(item, nextitem=None, log=False):
                if report.skipped:
                    return ["not checked", report.longrepr[2].removeprefix("Skipped: ") + "."]
                if report.failed and report.when == "setup":  # no client has come yet
                    return ["not checked", "It did not start again: " + dict(report.sections)["In words"] + "."]
                if report.failed:
                    self.pointless |= set() if promise.needed_for is ALL else set(promise.needed_for)
                    return self.broken(promise, item, dict(report.sections)["In words"])
        return ["kept"]

    def broken(self, promise, item, seen):
        if "the server has ended" in seen:
            if self.ends:
                return ["not checked", "The server ended again; see above."]
            self.ends = True
        day, number = promise.step
        step = steps.read()["day%02d" % day][number - 1]
        return ["broken",
                "done: " + promise.tests[item.originalname].format(**item.callspec.params),
                "seen: " + seen,
                "read: NOTES.md, day %d, step %d (%s)" % (day, number, step.title),
                "test: make check SERVER=%s TEST=%s TRACE=1" % (
                    shlex.quote(self.config.option.server), item.originalname)]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self):
        yield from self.with_a_limit()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self):
        yield from self.with_a_limit()

    def with_a_limit(self):
        """No test waits for ever, whatever the server does. Nor is a server broken that is only slow."""
        left = self.begin + TIME - time.monotonic()

        def too_long(*_):
            for server in Server.started:
                server.kill()  # whatever waits for it, in threads too
            pytest.skip("Two minutes are over" if left < EACH else "It was not done after %d s" % EACH)

        signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, min(EACH, left)))
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)


def trial(text):
    """Starts the server once. Returns what is wrong with that, in a line."""
    port = free_port()
    if "{port}" not in text:
        return "SERVER has no {port}, so it cannot be told where to listen"
    try:
        server = Yours(split_command(text, port), port=port)
    except FileNotFoundError as error:
        return "there is no command %s" % error.filename
    except (OSError, ValueError) as error:
        return "cannot run %s: %s" % (text, getattr(error, "strerror", None) or error)
    try:
        server.listening()
        if not server.has_the_listener():
            return "what listens on port %d is not a process of this command; have it run the server itself" % port
        server.connect()
    except ConnectionRefusedError:
        return "it listens on port %d, but not on 127.0.0.1" % port
    except AssertionError as error:
        return str(error)
    finally:
        server.kill()
    return ""
