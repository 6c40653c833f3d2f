"""make kernels, with an emulator and a mirror that are not the real ones; and the facts, on this machine's kernel."""

import os
import re
import signal
import stat
import subprocess
import sys

import pytest

import figures
import kernels
from harness import PATIENCE, ROOT, marked, still_running, wait_until

DATA = figures.load(ROOT / "tests" / "measured", "kernels")
SAID = """\r
---- kernel\r
#1 SMP Debian 5.10.1-2 (2021-01-01)\r
---- facts\r
[    1.0] a line of the kernel's\r
mask\tcloses\tIN RDHUP / readable writable / 0\r
wchan\taccept\t0\r
---- ways\r
poll                     5        6       1     50  10.0  #########################    84.4      68  5 x 1\r
---- nap\r
poll                     3       30      27     31  10.3  #########################    84.4      68  3 x 1\r
---- end\r
"""
FOUND = {"facts": {"mask": {"closes": "IN RDHUP / readable writable / 0"}, "wchan": {"accept": "0"}},
         "ways": {"woken": {"poll": 10}, "returned": {"poll": 1.2}},
         "nap": {"woken": {"poll": 31 / 3}, "returned": {"poll": 10}}}


def test_facts_are_what_the_kernels_agree_on():
    """Whatever is the same on all kernels that were measured is also true of this machine's kernel."""
    program = os.path.relpath(kernels.FOLDER / "facts", ROOT)
    subprocess.run(["make", "-s", "-C", ROOT, program], check=True)
    done = subprocess.run([ROOT / program], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    here = {(group, question): answer for group, question, answer in rows}
    same, differ = kernels.compare(list(DATA["kernels"].values()))
    assert here.keys() == same.keys() | differ.keys()
    if "not tried" in here["queue", "tcp_migrate_req 0"]:  # we may not have a network of our own
        same = {key: answer for key, answer in same.items() if key[0] != "queue"}
    assert {key: here[key] for key in same} == same


def test_what_a_kernel_says():
    assert kernels.parse(SAID.replace("\r", "")) == (FOUND, "#1 SMP Debian 5.10.1-2 (2021-01-01)\n")


@pytest.mark.parametrize("text, last", [
    (SAID.replace("---- end\r\n", "herd: poll: a worker died\r\n[ 2.0] Kernel panic\r\n"), "herd: poll: a worker died"),
    ("[ 2.0] Kernel panic\r\n", r"\[ 2.0\] Kernel panic"), ("", "nothing")])
def test_a_kernel_that_does_not_finish(text, last):
    with pytest.raises(kernels.Failed, match="the last line that it printed: %s$" % last):
        kernels.parse(text.replace("\r", ""))


def test_the_file_system(tmp_path, monkeypatch):
    """Read back as a kernel would (newc: a head of 110 bytes; names and files end at a multiple of 4)."""
    for name in kernels.PROGRAMS:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "busybox").write_bytes(b"12345")
    monkeypatch.setattr(kernels, "FOLDER", tmp_path)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: str(tmp_path / name))
    data, at, files = kernels.archive("/facts\n"), 0, {}
    while at < len(data):
        assert at % 4 == 0 and data[at:at + 6] == b"070701"
        mode, size, major, minor, length = (int(data[at + 6 + 8 * field:][:8], 16) for field in (1, 6, 9, 10, 11))
        name = data[at + 110:at + 110 + length - 1].decode()
        start = at + (110 + length + 3) // 4 * 4
        files[name] = mode, (major, minor), data[start:start + size]
        at = start + (size + 3) // 4 * 4
    assert list(files)[-1] == "TRAILER!!!"
    assert stat.S_ISCHR(files["dev/console"][0]) and files["dev/console"][1] == (5, 1)
    assert stat.S_ISDIR(files["proc"][0])
    assert {name: files[name][2] for name in ("busybox", "herd", "facts")} == {
        "busybox": b"12345", "herd": b"herd", "facts": b"facts"}
    assert all(files[name][0] == 0o100755 for name in ("busybox", "herd", "facts", "init"))
    assert files["init"][2].startswith(b"#!/busybox sh\nset -e\n") and b"\n/facts\n" in files["init"][2]


# ---- What is missing

@pytest.mark.parametrize("options, status", [([], 1), (["--quick"], 0)])
def test_the_packages_that_are_missing(tmp_path, options, status):
    """They are named in one line. For the quick form, which is part of .ci/run, that is not a failure."""
    done = subprocess.run([sys.executable, ROOT / "tests" / "kernels.py", *options], capture_output=True, text=True,
                          check=False, timeout=PATIENCE, env={**os.environ, "PATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == ("kernels: left out: missing: qemu-system-x86 busybox-static apt dpkg (Debian's packages)\n")


def test_a_busybox_that_needs_libraries(tmp_path, monkeypatch):
    (tmp_path / "program").write_bytes(b"\x7fELF ... /lib64/ld-linux-x86-64.so.2")
    monkeypatch.setattr(kernels.shutil, "which", lambda name: str(tmp_path / "program"))
    assert kernels.missing() == "missing: busybox-static (Debian's packages)"


@pytest.mark.parametrize("known, reason", [
    ({}, r"apt knows no Debian mirror \(has apt-get update been run\?\)"),
    ({"Debian": "file:///nowhere/"}, "apt-get update: .*file:/nowhere"),
])
def test_a_mirror_that_there_is_not(tmp_path, monkeypatch, known, reason):
    if not kernels.shutil.which("apt-get"):
        pytest.skip("apt-get is missing")
    monkeypatch.setattr(kernels, "FOLDER", tmp_path)
    monkeypatch.setattr(kernels, "mirrors", lambda: known)
    with pytest.raises(kernels.LeftOut, match=reason):
        kernels.fetch("bullseye")
    assert list(tmp_path.iterdir()) == []


def test_the_mirrors_of_this_machine(tmp_path, monkeypatch):
    """A release has its security updates, sid has none; other archives do not count."""
    program(tmp_path / "apt-get", "printf 'Debian http://a/debian/\\nDebian-Security http://a/security/\\n'; "
                                  "echo 'Debian Backports http://a/b/'; echo 'Other http://b/'")
    monkeypatch.setenv("PATH", "%s:%s" % (tmp_path, os.environ["PATH"]))
    found = [re.sub(r"\[.*?\] ", "", kernels.sources(codename)) for codename in ("bullseye", "sid")]
    assert found == ["deb http://a/debian/ bullseye main\ndeb http://a/security/ bullseye-security main\n",
                     "deb http://a/debian/ sid main\n"]


# ---- An emulator

def program(path, text):
    path.write_text("#!/bin/sh\n%s\n" % text)
    path.chmod(0o755)


@pytest.fixture
def emulator(tmp_path, monkeypatch):
    """emulator("echo hello"): a qemu that does this. Returns the kernel to boot."""
    def make(text):
        program(tmp_path / "qemu-system-x86_64", text)
        (tmp_path / "said").write_text(SAID)
        return tmp_path / "bullseye"

    monkeypatch.setenv("PATH", "%s:%s" % (tmp_path, os.environ["PATH"]))
    monkeypatch.setattr(kernels, "FOLDER", tmp_path)
    monkeypatch.setattr(kernels, "archive", lambda commands: b"")
    return make


def test_a_kernel_is_measured(emulator, tmp_path):
    kernel = emulator("cat %s/said" % tmp_path)
    kernel.touch()  # it need not be fetched
    assert kernels.measure("Debian 11", "bullseye", "") == {"version": "5.10.1", "emulated": True, **FOUND}
    assert not (tmp_path / "initrd").exists()


def test_a_kernel_that_hangs(emulator, monkeypatch):
    kernel = emulator("exec sleep 1000")
    monkeypatch.setattr(kernels, "LIMIT", 0.2)
    for name, value in marked("hang").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kernels.Failed, match="not finished after"):
        kernels.boot(kernel, "")
    assert not still_running("hang")


def test_one_that_cannot_be_had_and_one_that_fails(tmp_path, monkeypatch, capsys):
    """The others are measured all the same, and the exit status is that of the one that fails."""
    def measure(name, codename, commands):
        if codename == "bullseye":
            raise kernels.LeftOut("no mirror")
        if codename == "sid":
            raise kernels.Failed("panic")
        return {"version": "6.1", "emulated": True, **FOUND}

    monkeypatch.setattr(kernels, "missing", lambda: None)
    monkeypatch.setattr(kernels, "measure", measure)
    monkeypatch.setattr(kernels, "measure_here", lambda commands: {"version": "6.18", "emulated": False, **FOUND})
    monkeypatch.setattr(kernels.measuring, "MEASURED", tmp_path)
    monkeypatch.setattr(sys, "argv", ["kernels.py"])
    with pytest.raises(SystemExit) as end:
        kernels.run()
    out, err = capsys.readouterr()
    assert end.value.code == 1
    assert "kernels: Debian 11 is left out: no mirror\n" in err and "kernels: Debian sid: panic\n" in err
    assert list(figures.load(tmp_path, "kernels")["kernels"]) == ["Debian 12", "Debian 13", kernels.HERE]
    assert re.search(r"^poll +10\.0 +10\.0 +10\.0$", out, re.M) and "2 facts are the same on all\n" in out


def test_interrupted(emulator):
    """After Ctrl-C it says so, and the emulator ends."""
    kernel = emulator("exec sleep 1000")
    process = subprocess.Popen([sys.executable, "-c", "import kernels, sys; from pathlib import Path\n"
                                "kernels.FOLDER, kernels.archive = Path(sys.argv[1]).parent, lambda _: b''\n"
                                "kernels.measuring.main(lambda: kernels.boot(Path(sys.argv[1]), ''))", kernel],
                               stderr=subprocess.PIPE, text=True, start_new_session=True, env=marked("kernels"),
                               cwd=ROOT / "tests")
    wait_until(lambda: "sleep" in still_running("kernels"), "it to start the emulator")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "interrupted" in said.splitlines()
    wait_until(lambda: not still_running("kernels"), "the emulator to end")
