"""The pitfalls. Each tests/pitfalls/NAME.patch breaks one server in one way, and says in its head what
you would see, why, what to do instead, and which test notices.

Use: python3 tests/pitfall.py [NAME]      without a name: lists them; with TRACE=1 it shows all that pytest says
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys

from harness import BUILD, ROOT

PATCHES = ROOT / "tests" / "pitfalls"
FIELDS = ["Day", "Symptom", "Cause", "Cure", "Test"]
NAMES = sorted(path.stem for path in PATCHES.glob("*.patch"))

# A broken server often does nothing at all: do not wait for it as long as for a good one.
IMPATIENT = {"PATIENCE": "1"}
TOO_LONG = 200  # seconds, for the tests themselves


def read(name):
    """({field: text}, the diff) of a patch."""
    text = (PATCHES / (name + ".patch")).read_text()
    head, start, diff = text.partition("--- a/")
    fields = re.findall(r"^(\w+): +(.*(?:\n +.*)*)", head, re.M)
    return {field: re.sub(r"\n +", "\n", value) for field, value in fields}, start + diff


def apply(diff, folder):
    """Does what patch -p1 does, since not every machine has that. The old lines must be there exactly, and once."""
    for part in re.split(r"^--- a/", diff, flags=re.M)[1:]:
        path = folder / part.split("\n")[0]
        text = path.read_text()
        for hunk in re.split(r"^@@ .*\n", part, flags=re.M)[1:]:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in which) for which in (" -", " +"))
            assert text.count(old) == 1, "%s: not there, or more than once:\n%s" % (path, old)
            text = text.replace(old, new)
        path.write_text(text)


def build_broken(name, where, build):
    """Copies the files of its day to BUILD/WHERE/NAME, puts the bug in, and builds the program that the test runs."""
    assert not os.path.isabs(os.environ.get("BUILD", "")), "BUILD must be a folder of the project"
    copy, (fields, diff) = BUILD / where / name, read(name)
    shutil.rmtree(copy, ignore_errors=True)
    for folder in ("common", next(ROOT.glob("day%02d-*" % int(fields["Day"]))).name):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "Makefile", copy)
    apply(diff, copy)
    program = "two_servers" if "two_servers" in fields["Test"] else "server"
    target = "%s/day%02d/%s" % (build, int(fields["Day"]), program)
    subprocess.run(["make", "-s", "-C", copy, "BUILD=%s" % build, target], check=True,
                   env={"CFLAGS": "-O0", **os.environ})


def run_tests(*tests, env=None):
    """Runs tests. Returns what pytest says. What they have started is killed then: a broken server may not end."""
    pytest = [sys.executable, "-m", "pytest"] if importlib.util.find_spec("pytest") else [ROOT / "tests/run"]
    with subprocess.Popen(
            [*pytest, "-q", "--color=no", "--tb=short", "-rpfs", "-p", "no:cacheprovider", *tests],
            cwd=ROOT, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True) as run:
        try:
            return run.communicate(timeout=TOO_LONG)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def run_broken(*names, where="pitfalls"):
    """Breaks a server, or several of different days. Returns what pytest says of the tests that should notice."""
    build = BUILD / where / names[0] / "build"
    for name in names:
        build_broken(name, where, build)
    return run_tests(*(read(name)[0]["Test"] for name in names), env={**IMPATIENT, "BUILD": str(build)})


def caught(name, report):
    return "\nFAILED %s" % read(name)[0]["Test"] in report


# ---- For the reader

def coloured(diff):
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return diff
    colours = {"-": 31, "+": 32, "@": 36}
    return re.sub(r"^[-+@].*", lambda m: "\033[%dm%s\033[m" % (colours[m[0][0]], m[0]), diff, flags=re.M)


def in_words(report):
    """What the test has seen: conftest.py adds that to its failure."""
    return re.search(r"^=+ FAILURES =+$.*?^-+ In words -+\n(.*?)$", report, re.M | re.S)[1]


def show(name):
    fields, diff = read(name)
    print("Pitfall %s, day %s\n" % (name, fields["Day"]))
    for field in ("Symptom", "Cause", "Cure"):
        print("%-9s%s" % (field + ":", fields[field].replace("\n", "\n" + 9 * " ")))
    print("\n" + coloured(diff), flush=True)
    report = run_broken(name)
    skipped = re.search(r"^SKIPPED .*?: (.*)$", report, re.M)
    if os.environ.get("TRACE") or not caught(name, report) and not skipped:
        print(report)
    if not caught(name, report):
        print("not tried here: " + skipped[1] if skipped else "not caught")
        return 0 if skipped else 1
    print("%s fails: %s\n" % (fields["Test"].split("::")[1], in_words(report)))
    print("TRACE=1 shows the trace. To try it: make -C %s run-day%02d" % (
        (BUILD / "pitfalls" / name).relative_to(ROOT), int(fields["Day"])))
    return 0


def main(names):
    for name in names:
        if name not in NAMES:
            sys.exit("pitfall: %s: no such pitfall; make pitfalls lists them" % name)
        return show(name)
    for name in sorted(NAMES, key=lambda name: read(name)[0]["Day"]):
        fields, _ = read(name)
        print("day %s  make pitfall-%-20s %s" % (fields["Day"], name, fields["Symptom"]))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # make pitfalls | head
    sys.exit(main(sys.argv[1:]))
