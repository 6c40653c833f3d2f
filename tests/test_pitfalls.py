"""Each pitfall is caught: the test that its head names fails with the bug, and passes without."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import pytest

import pitfall
from harness import ROOT, SANITIZED, musl

pitfalls = pytest.mark.parametrize("name", pitfall.NAMES)


@pytest.fixture(scope="module")
def reports(request):
    """What pytest says of the tests that this run needs, with nothing broken, and for each bug a future of what it
    says with the bug. One of each day has its turn in the same run of pytest, since a test is about one day's server;
    and there are several runs at a time, since a broken server mostly does nothing."""
    if SANITIZED or musl():
        pytest.skip("this is about the tests, which are the same for all builds: make test does it")
    names = [item.callspec.params["name"] for item in request.session.items
             if item.function is test_is_caught]
    of_each_day = [[name for name in names if pitfall.read(name)[0]["Day"] == str(day)] for day in range(1, 6)]
    with ThreadPoolExecutor(8) as pool:
        good = pool.submit(pitfall.run_tests, *sorted({pitfall.read(name)[0]["Test"] for name in names}))
        broken = {}
        for together in zip_longest(*of_each_day):
            together = list(filter(None, together))
            # Not where make pitfall-NAME has its copies, which test-book may be using at the same time.
            report = pool.submit(pitfall.run_broken, *together, where="pitfalls-tested")
            broken.update(dict.fromkeys(together, report))
        yield good, broken


@pytest.mark.together
@pitfalls
def test_is_caught(name, reports):
    good, broken = reports[0].result(), reports[1]
    test = pitfall.read(name)[0]["Test"]
    if re.search("^SKIPPED", good, re.M) and "PASSED " + test not in good:
        pytest.skip("%s does not run here, with the bug or without" % test)
    assert "PASSED " + test in good
    report = broken[name].result()
    assert pitfall.caught(name, report), report


@pitfalls
def test_head(name):
    """Five fields; nothing is longer than a screen is wide, and the whole is short."""
    fields, diff = pitfall.read(name)
    assert list(fields) == pitfall.FIELDS
    assert diff.startswith("--- a/day%02d-" % int(fields["Day"]))
    assert "\n" not in fields["Symptom"] and len(fields["Symptom"]) < 80
    assert all(1 <= len(fields[field].split("\n")) <= 4 for field in ("Cause", "Cure"))
    assert len(re.findall(r"^[-+](?![-+])", diff, re.M)) <= 20


@pitfalls
@pytest.mark.parametrize("tool", ["git apply --check", "patch -p1 --fuzz=0 --dry-run -i"])
def test_the_usual_tools_apply_it(name, tool):
    """A reader may have a way of their own."""
    command = tool.split()
    if not shutil.which(command[0]):
        pytest.skip(command[0] + " is not installed")
    done = subprocess.run([*command, pitfall.PATCHES / (name + ".patch")], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_name_lists_them(capsys):
    pitfall.main([])
    assert len(capsys.readouterr().out.splitlines()) == len(pitfall.NAMES) >= 20


def test_a_wrong_name():
    with pytest.raises(SystemExit, match="no such pitfall"):
        pitfall.main(["nonsense"])
