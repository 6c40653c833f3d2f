"""--processes: what pytest says is complete, though several processes run the tests."""

import os
import subprocess

from harness import ROOT

SLOW = """
import time, pytest
@pytest.mark.parametrize("number", range(300))
def test_number(number):
    time.sleep(0.05)
    assert number != 2
"""


def run(folder, *arguments, **files):
    for name, text in files.items():
        (folder / (name + ".py")).write_text(text)
    path = os.pathsep.join([str(ROOT / "tests"), str(folder)])
    done = subprocess.run(
        [ROOT / "tests" / "run", "-q", "-p", "conftest", "-p", "no:cacheprovider", "--processes", "3",
         str(folder / "test_it.py"), *arguments], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, check=False, timeout=60)
    assert done.returncode != 0
    return done.stdout


def test_the_first_failure_is_the_last_test_of_all(tmp_path):
    """-x: what the others have begun, and the test that they took with it, they still do."""
    text = run(tmp_path, "-x", test_it=SLOW)
    assert "stopping after 1 failures" in text and "1 failed" in text
    assert int(text.split(" passed")[0].split()[-1]) < 150


def test_an_error_outside_of_all_tests_is_told(tmp_path):
    text = run(tmp_path, "-p", "breaks", test_it=SLOW,
               breaks="def pytest_runtest_logstart(): raise RuntimeError('not in a test')\n")
    assert "Traceback" in text and "RuntimeError: not in a test" in text
    assert "a process ended before its tests: 0 of 300 are done" in text


def test_an_error_at_the_import_is_told(tmp_path):
    assert "No module named 'no_such_module'" in run(tmp_path, test_it="import no_such_module\n")
