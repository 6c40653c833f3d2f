"""Day 4: epoll as an object, and the pitfall in its pointer."""

import subprocess

import pytest

from conftest import program

ARRAY, POINTER = "events is an array:", "events is a pointer to as many on the heap:"
RIGHT = "bzero(events, sizeof(*events) * MAX)"
ADDRESS = "bzero(&events, sizeof(*events) * MAX)"
SIZEOF = "bzero(events, sizeof(events))"


@pytest.fixture(scope="module")
def pitfall():
    """{(array or pointer, call): what was printed of it}"""
    text = subprocess.run([program("day04", "bzero_pitfall")], stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    found, kind, call = {}, None, None
    for line in text.splitlines():
        if not line.startswith(" "):
            kind = line
        elif not line.startswith("    "):
            call = line.strip()
            found[kind, call] = []
        else:
            found[kind, call].append(line.strip())
    return found


@pytest.mark.parametrize("call", [RIGHT, ADDRESS, SIZEOF])
def test_an_array_forgives_everything(pitfall, call):
    assert pitfall[ARRAY, call] == [
        "768 of 768 bytes cleared", "epoll_wait: 1 event", "the child exited with 0"]


@pytest.mark.parametrize("call, outcome", [
    (RIGHT, ["768 of 768 bytes cleared, the pointer is as it was, 0 bytes of its neighbour are lost",
             "epoll_wait: 1 event", "the child exited with 0"]),
    (ADDRESS, ["0 of 768 bytes cleared, the pointer is NULL, 760 bytes of its neighbour are lost",
               "epoll_wait: Bad address", "the child exited with 1"]),
    (SIZEOF, ["8 of 768 bytes cleared, the pointer is as it was, 0 bytes of its neighbour are lost",
              "epoll_wait: 1 event", "the child exited with 0"]),
])
def test_a_pointer_forgives_nothing(pitfall, call, outcome):
    assert pitfall[POINTER, call] == outcome
