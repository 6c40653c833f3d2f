#!/usr/bin/env python3
"""make kernels: is what the notes say about the kernel true of others, too?

The laboratory of day 5 and tests/kernels/facts.c are linked statically, and packed, with busybox, into an
initramfs, the first file system that a kernel has. qemu boots Debian's kernels with it, one after the other, in an
emulated machine without disk or network, where both programs run, print to the serial line, and switch the machine
off. This machine's own kernel runs the same two, without an emulator.

The kernels are those of the mirror that apt has been configured with; apt gets a list of sources and folders of
its own, and nothing is installed. A kernel that has been fetched stays in build/kernels until make clean.
"""

import argparse
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import herd
import measuring
from harness import BUILD, ROOT

FOLDER = BUILD / "kernels"
RELEASES = {"Debian 11": "bullseye", "Debian 12": "bookworm", "Debian 13": "trixie", "Debian sid": "sid"}
NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "apt-get": "apt", "dpkg-deb": "dpkg"}
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROGRAMS = ("herd", "facts")
CONNECTIONS, NAPPING, NAP = 20, 3, 100  # without and with a nap of so many ms
LIMIT = 300  # seconds for one kernel, which needs 30 or so

INIT = """#!/busybox sh
set -e
/busybox mount -t proc proc /proc
/busybox ip link set lo up
echo; echo ---- kernel; /busybox uname -v
%s
echo ---- end
/busybox poweroff -f
"""  # what a kernel runs first
COMMANDS = """echo ---- facts; /facts
echo ---- ways; /herd -c %d
echo ---- nap; /herd -c %d -d %d
""" % (CONNECTIONS, NAPPING, NAP)
QUICK = "echo ---- facts; /facts; echo ---- ways; for way in accept epoll exclusive; do /herd -m $way -c 5; done\n"
HERE = "this machine"


class LeftOut(Exception):
    """Why a kernel cannot be had."""


class Failed(Exception):
    """What a kernel did instead of finishing."""


def said(command, why, trouble=LeftOut, **options):
    """What the command prints. If it fails, the last line on stderr is the reason."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"},
                          stdin=subprocess.DEVNULL, **options)
    if done.returncode != 0:
        raise trouble("%s: %s" % (why, (done.stderr.strip().splitlines() or ["no reason given"])[-1]))
    return done.stdout


# ---- A Debian kernel

def mirrors():
    """{"Debian": address, "Debian-Security": address}, as this machine has them."""
    lines = said(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"], "apt-get")
    return dict(line.split() for line in lines.splitlines() if re.match(r"Debian(-Security)? \S+$", line))


def sources(codename):
    known = mirrors()
    if "Debian" not in known:
        raise LeftOut("apt knows no Debian mirror (has apt-get update been run?)")
    option = "[arch=amd64 signed-by=%s] " % KEYS if KEYS.exists() else "[arch=amd64] "
    lines = ["deb %s%s %s main\n" % (option, known["Debian"], codename)]
    if "Debian-Security" in known and codename != "sid":
        lines.append("deb %s%s %s-security main\n" % (option, known["Debian-Security"], codename))
    return "".join(lines)


def fetch(codename):
    """The newest kernel of that release (the small one, for virtual machines), as build/kernels/CODENAME."""
    kernel, work = FOLDER / codename, FOLDER / "apt"
    if not kernel.exists():
        try:
            download(codename, work).rename(kernel)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return kernel


def download(codename, work):
    """The same, somewhere in the folder work."""
    (work / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (work / "sources").write_text(sources(codename))
    options = ["-qq", *("-o%s=%s" % pair for pair in {
        "Dir::Etc::SourceList": work / "sources", "Dir::Etc::SourceParts": "/dev/null", "Dir::State": work,
        "Dir::State::Status": "/dev/null", "Dir::Cache": work, "APT::Architecture": "amd64",
        "APT::Architectures": "amd64", "APT::Sandbox::User": "root", "Acquire::Retries": 0,
        "Acquire::http::Timeout": 15, "Acquire::https::Timeout": 15}.items())]
    said(["apt-get", *options, "update"], "apt-get update")
    needs = said(["apt-cache", *options, "depends", "--recurse", "--important", "linux-image-cloud-amd64"], "apt-cache")
    names = set(re.findall(r"^linux-(?:image|binary)-\d\S*-cloud-amd64$", needs, re.M))
    said(["apt-get", *options, "download", *names], "apt-get download", cwd=work)
    found = list(filter(None, map(unpack, work.glob("*.deb"))))
    if not found:
        raise LeftOut("there is no kernel in its packages")
    return found[0]


def unpack(package):
    """Puts the package's vmlinuz next to it, and returns its path; None if it is the package that only depends on the
    other."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process, tarfile.open(fileobj=process.stdout, mode="r|") as files:
        for file in files:
            if file.isfile() and os.path.basename(file.name).startswith("vmlinuz"):
                package.with_suffix(".vmlinuz").write_bytes(files.extractfile(file).read())
                return package.with_suffix(".vmlinuz")
    return None


# ---- The machine that it boots

def entry(name, mode, data=b"", device=(0, 0)):
    """A file in a cpio archive (newc): a header of 13 numbers, name and content, padded to multiples of 4."""
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(commands):
    """The file system: what a kernel runs first is /init."""
    files = {"busybox": Path(shutil.which("busybox")).read_bytes(), "init": (INIT % commands).encode(),
             **{name: (FOLDER / name).read_bytes() for name in PROGRAMS}}
    return (entry("proc", 0o40755) + entry("dev", 0o40755) + entry("dev/console", 0o20600, device=(5, 1)) +
            b"".join(entry(name, 0o100755, data) for name, data in files.items()) + entry("TRAILER!!!", 0))


def boot(kernel, commands):
    """What it prints until it is switched off."""
    initrd, log = FOLDER / "initrd", kernel.with_suffix(".log")
    initrd.write_bytes(archive(commands))
    try:
        with open(log, "wb") as out:
            subprocess.run(["qemu-system-x86_64", "-accel", "tcg", "-smp", "2", "-m", "512", "-nodefaults", "-no-reboot",
                            "-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
                            "-append", "console=ttyS0 quiet panic=-1"], stdin=subprocess.DEVNULL, stdout=out,
                           stderr=subprocess.STDOUT, check=False, timeout=LIMIT, preexec_fn=measuring.die_with_parent)
    except subprocess.TimeoutExpired:
        raise Failed("not finished after %d s; its output is in %s" % (LIMIT, os.path.relpath(log, ROOT)))
    finally:
        initrd.unlink()
    return log.read_text(errors="replace").replace("\r", "")


def run_here(commands):
    """The same on this machine's own kernel."""
    commands = re.sub(r"(?<!\S)/(%s)\b" % "|".join(PROGRAMS), lambda match: str(FOLDER / match[1]), commands)
    return said(["sh", "-ec", commands + "echo ---- end"], "it failed", Failed, preexec_fn=measuring.die_with_parent)


# ---- What is printed

def parse(text):
    """What one kernel has printed, {"facts": {group: {question: answer}}, "ways": {"woken": {way: how many for one
    connection}, "returned": the same}, "nap": the same}, and what the kernel calls itself."""
    parts = dict(re.findall(r"^---- (\w+)\n(.*?)(?=^---- )", text + "---- ", re.M | re.S))
    if "end" not in parts:  # a program has failed, and said why; or the kernel has, in lines that begin with [
        last = re.findall(r"^[^\[\n].*", text, re.M) or text.splitlines() or ["nothing"]
        raise Failed("it did not finish; the last line that it printed: " + last[-1])
    found = {"facts": {}}
    for group, question, answer in re.findall(r"^(\w+)\t(.*)\t(.*)$", parts["facts"], re.M):
        found["facts"].setdefault(group, {})[question] = answer
    for part in [part for part in ("ways", "nap") if part in parts]:
        found[part] = {what: {row["way"]: row[what] / row["connections"] for row in herd.parse(parts[part])}
                       for what in ("woken", "returned")}
    return found, parts.get("kernel", "")


def show(kernels):
    """The ways by kernel, and of the facts those that are not the same everywhere."""
    def row(title, cells):
        print("%-16s" % title + "".join("%14s" % cell for cell in cells))

    found = list(kernels.values())
    row("", kernels)
    row("Linux", (kernel["version"] for kernel in found))
    for title, part, what in (("woken", "ways", "woken"), ("returned after a nap of %d ms" % NAP, "nap", "returned")):
        if part in found[0]:
            print("\n%s, for one connection" % title)
            for way in found[0][part][what]:
                row(way, ("%.1f" % kernel[part][what][way] for kernel in found))
    same, differ = compare(found)
    print("\n%d facts are the same on all%s" % (len(same), ", and these are not:" if differ else ""))
    for (group, question), answers in differ.items():
        print("%s, %s" % (group, question))
        for answer in dict.fromkeys(answers):
            print("    %s: %s" % (", ".join(name for name, one in zip(kernels, answers) if one == answer), answer))


def compare(found):
    """Those facts that are the same on all of these kernels, {(group, question): answer}, and those that are not,
    with the answer of each."""
    answers = {(group, question): [kernel["facts"][group][question] for kernel in found]
               for group, questions in found[0]["facts"].items() for question in questions}
    same = {key: row[0] for key, row in answers.items() if len(set(row)) == 1}
    return same, {key: row for key, row in answers.items() if key not in same}


def missing():
    """What is not there, or None."""
    if platform.machine() != "x86_64":
        return "it needs an x86-64 machine"
    packages = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if "busybox-static" not in packages and b"/lib64/ld-linux" in Path(shutil.which("busybox")).read_bytes():
        packages.append("busybox-static")  # it is the one that needs libraries
    if packages:
        return "missing: %s (Debian's packages)" % " ".join(packages)
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        said(["make", "-s", "-C", ROOT, *(os.path.relpath(FOLDER / name, ROOT) for name in PROGRAMS)],
             "cannot link statically (Debian: libc6-dev)")
    except LeftOut as reason:
        return str(reason)
    return None


def measure(name, codename, commands):
    """A row of the data; raises LeftOut if there is no such kernel here, and Failed if it does not finish."""
    measuring.progress(name)
    found, kind = parse(boot(fetch(codename), commands))
    return {"version": re.search(r"Debian ([\d.]+\d)", kind)[1], "emulated": True, **found}


def measure_here(commands):
    measuring.progress("this machine's kernel")
    found, _ = parse(run_here(commands))
    return {"version": re.match(r"[\d.]+\d", os.uname().release)[0], "emulated": False, **found}


def run():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one kernel and three ways, or a line that says why not")
    quick = parser.parse_args().quick
    reason = missing()
    if reason:
        print("kernels: left out: " + reason, file=sys.stderr)
        sys.exit(0 if quick else 1)
    commands, kernels, status = QUICK if quick else COMMANDS, {}, 0
    jobs = {name: functools.partial(measure, name, codename, commands) for name, codename in RELEASES.items()
            if not quick or codename == "trixie"}
    for name, job in {**jobs, HERE: functools.partial(measure_here, commands)}.items():
        try:
            kernels[name] = job()
        except LeftOut as reason:
            print("kernels: %s is left out: %s" % (name, reason), file=sys.stderr)
        except Failed as reason:
            print("kernels: %s: %s" % (name, reason), file=sys.stderr)
            status = 1
    measuring.progress("")
    if not kernels:
        sys.exit(1)  # each has said why
    show(kernels)
    measuring.save("kernels", "make kernels" + (" QUICK=1" if quick else ""), quick, nap=NAP, kernels=kernels)
    sys.exit(status)


if __name__ == "__main__":
    measuring.main(run)
