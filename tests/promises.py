"""What a server promises to its clients: the lines of make check's score card. Each promise can be seen from
outside, whatever the server is written in, and each is held by tests of test_contract.py."""

from typing import NamedTuple


class Promise(NamedTuple):
    sentence: str
    step: tuple  # (day, step): where NOTES.md treats it
    tests: dict  # the name of a test: what its client does, in words, with its parameters in braces
    needed_for: object = ()  # the tests that say nothing if this promise is broken: MUCH, or all that follow


ALL = object()
MUCH = {  # their clients send megabytes, and want them back
    "test_half_close_with_much_to_come", "test_half_close_and_a_pause", "test_half_close_while_something_is_held",
    "test_stopped_and_continued_while_busy", "test_many_clients_at_the_same_time",
    "test_a_client_that_never_reads_delays_nobody", "test_a_true_broken_pipe", "test_nothing_is_lost_at_the_end",
}

PROMISES = [
    Promise("A client gets back what it sends.", (1, 1), {
        "test_a_line_comes_back": "a client sent one line",
    }, needed_for=ALL),
    Promise("Every byte comes back, in order, however many there are.", (1, 2), {
        "test_bytes_come_back": "a client sent {size:,} bytes",
        "test_one_byte_at_a_time": "a client sent 2,000 bytes, each by itself",
    }, needed_for=MUCH),
    Promise("A client that reads late or slowly gets all of its bytes.", (1, 5), {
        "test_bytes_come_back_to_a_slow_reader": "a client with a small buffer sent 8 MiB, and read late",
        "test_a_client_that_waits_before_it_reads": "a client sent all that there was room for, and only then read",
        "test_a_client_that_takes_small_pieces": "a client with a small buffer sent all that there was room for, and "
                                                 "only then read",
        "test_much_waits_when_the_server_comes_to_look": "a client sent 2 MiB while the server was stopped (SIGSTOP), "
                                                         "and it was continued (SIGCONT)",
    }, needed_for=MUCH),
    Promise("A client that closes its sending side still gets all of its bytes, then end of file.", (1, 2), {
        "test_half_close": "a client sent {size:,} bytes and closed its sending side at once",
        "test_half_close_with_much_to_come": "a client sent all that there was room for and closed its sending side; "
                                             "only then did it read",
        "test_half_close_and_a_pause": "a client sent 3,000,000 bytes, closed its sending side, and read a second "
                                       "later",
        "test_half_close_while_something_is_held": "a client sent a little more than there was room for and closed its "
                                                   "sending side; only then did it read",
    }),
    Promise("When one client has left, the next one is served.", (1, 2), {
        "test_the_next_client": "ten clients came, one after the other",
    }),
    Promise("It can be started again at once, on the same port.", (1, 4), {
        "test_the_port_is_free_at_once": "it ended while a client was connected, and it was started again",
    }),
    Promise("Stopped and continued (Ctrl-Z, fg), it goes on as before.", (1, 5), {
        "test_stopped_and_continued": "it was stopped (SIGSTOP) and continued (SIGCONT) while a client was idle",
        "test_stopped_and_continued_while_busy": "it was stopped (SIGSTOP) and continued (SIGCONT) again and again "
                                                 "while a client sent 8 MiB",
    }),
    Promise("One client's trouble is not the end of the server.", (1, 6), {
        "test_resets": "fifty clients left with a reset, and then the next one spoke",
        "test_writing_to_a_client_that_is_gone": "a client closed with many of its answers unread, and then the next "
                                                 "one spoke",
        "test_answers_to_a_client_that_only_sends": "twenty clients sent a byte and closed without reading, and then "
                                                    "the next one spoke",
        "test_a_true_broken_pipe": "a client closed while the server had much to send to it, and then the next one "
                                   "spoke",
    }),
    Promise("While there is nothing to do, it sleeps.", (1, 6), {
        "test_sleeps_while_a_client_does_not_read": "a client sent and did not read, and the server had to wait for it",
        "test_sleeps_when_all_have_gone": "a few clients came and left, some with a reset",
    }),
    Promise("Out of descriptors, it lets newcomers wait, and serves them when there is one again.", (1, 7), {
        "test_looks_again_each_second": "it was left without a free descriptor (RLIMIT_NOFILE), newcomers came, and "
                                        "the limit was raised again",
    }),
    Promise("An urgent byte comes back like any other.", (1, 12), {
        "test_urgent_bytes_come_back": "a client sent 12, then X as urgent data (MSG_OOB), then 34",
    }),
    Promise("A small answer does not wait until the one before it is acknowledged.", (1, 12), {
        "test_small_answers_do_not_wait": "a client was connected",
    }),
    Promise("A client whose machine has vanished is found in the end.", (1, 12), {
        "test_a_client_whose_machine_has_vanished_is_found": "a client was connected and idle",
    }),
    Promise("What it takes from a client that does not read has a bound.", (2, 4), {
        "test_memory_of_a_client_that_never_reads": "a client sent as much as was taken",
    }),
    Promise("SIGTERM and SIGINT (Ctrl-C) end it within a second.", (2, 7), {
        "test_ends_when_idle": "it had no client",
        "test_ends_with_a_client_connected": "it had a client, which was idle",
        "test_ends_with_a_client_that_never_reads": "it had a client that never read",
        "test_ends_while_busy": "it had a client that never paused",
    }),
    Promise("A client that is silent delays no other.", (2, 1), {
        "test_a_silent_client_delays_nobody": "ten clients came and were silent, and then one more spoke",
    }, needed_for=ALL),
    Promise("Clients that come at the same time each get their own bytes.", (2, 1), {
        "test_many_clients_at_the_same_time": "twenty clients sent up to 2 MiB each, all at once",
        "test_a_thousand_come_and_go": "a thousand clients came, one after the other; it had 500 descriptors",
    }),
    Promise("A client that never reads delays no other.", (2, 4), {
        "test_a_client_that_never_reads_delays_nobody": "a client sent all that there was room for and read nothing; "
                                                        "another one sent 1 MiB",
    }),
    Promise("A client that sends without end delays no other.", (2, 3), {
        "test_a_client_that_sends_without_end_starves_nobody": "a client sent and read without a pause; twenty others "
                                                               "came, one after the other",
    }),
    Promise("Many newcomers at once are all served soon, and delay no other.", (2, 3), {
        "test_five_hundred_connect_at_once": "five hundred clients connected at once and spoke",
    }),
    Promise("SIGTERM ends it though its clients never pause, and destroys nothing that is on its way.", (2, 9), {
        "test_nothing_is_lost_at_the_end": "four clients were sending and reading without a pause when SIGTERM came",
        "test_ends_though_somebody_is_always_ready": "three clients never paused when SIGTERM came",
    }),
    Promise("More than a thousand clients are served at the same time.", (3, 3), {
        "test_thousands_of_clients_at_the_same_time": "1,100 clients connected, one after the other, and stayed",
    }),
]
