"use strict";
/* The ready list, with the same six bytes, level- and edge-triggered.
 *
 * The two lines and the first recv, which fails, are those of the experiment in the notes (day 3, step 5). `call`
 * is a call and its result: tests/test_explore.py makes the same calls on a real epoll instance, and compares.
 */
{
  const LINES = ["hello\n", "are you there?\n"];
  const bytes = (text) => text.length + (text.length === 1 ? " byte" : " bytes");

  function run(chosen) {
    const edge = chosen.mode === "edge-triggered", frames = [];
    const f = { unread: "", listed: false, at: "sleeps", step: 0, reports: 0, reads: 0, call: null };
    const say = (step, at, said, call = null) => frames.push({ ...Object.assign(f, { step, at, call }), said });
    const recv = (most) => {
      const got = f.unread.slice(0, most);
      f.reads++;
      f.unread = f.unread.slice(got.length);
      say(0, "recv", most === 0 ? `strace lets this recv fail, and ${bytes(f.unread)} stay unread.` :
          got === "" ? "recv says EAGAIN: this is the end." :
          `recv gives ${bytes(got)}, and leaves ${f.unread.length} unread.`, ["recv", most, got.length]);
      return got.length;
    };

    say(0, "sleeps", "The ready list is empty, and the server sleeps in epoll_wait.");
    for (const line of LINES) {
      f.unread += line;
      say(1, "sleeps", `A packet brings ${bytes(line)} into the receive buffer.`, ["send", line.length]);
      f.listed = true;
      say(2, "sleeps", "The callback in the wait queue puts the item on the ready list, and wakes the sleeper.");
      while (f.listed && f.unread) {
        f.listed = !edge;
        f.reports++;
        say(3, "epoll_wait", "epoll_wait asks the socket: it is ready, and is reported. The item " +
            (edge ? "leaves the list." : "goes back to the end of the list."), ["wait", 1]);
        if (chosen["it reads"] === "two bytes")
          recv(2);
        else if (chosen["it reads"] === "nothing at first" && f.reads === 0)
          recv(0);
        else
          while (recv(65536) > 0 && edge); // level-triggered, once is enough
      }
      if (f.listed) {
        f.listed = false;
        say(3, "epoll_wait", "epoll_wait asks the socket: it is not ready any more, and the item leaves the list.");
      }
      say(0, "sleeps", "The list is empty, and the server sleeps" +
          (f.unread ? `, although ${bytes(f.unread)} are there. Only new ones are reported.` : "."), ["wait", 0]);
    }
    return frames;
  }

  function draw(frame) {
    const { box, text, arrow, group } = explore, show = { "\n": "\u21b5", " ": "\u00b7" };
    const hot = (step) => (frame.step === step ? "moving" : "");
    const cells = Array.from({ length: 21 }, (_, i) =>
      box(8 + 15.5 * i, 34, 15, 22, i < frame.unread.length ? "byte" : "plain") +
      text(15.5 + 15.5 * i, 49, show[frame.unread[i]] ?? frame.unread[i] ?? "", "middle")).join("");
    const named = (x, y, words, kind) => box(x, y, 80, 26, kind) + text(x + 40, y + 17, words, "small middle");

    return box(1, 14, 338, 92, "lane") + arrow(24, 1, 24, 32, hot(1)) + text(32, 10, "1. a packet", "small") +
      text(32, 28, `socket 6: receive buffer, ${frame.unread.length} unread`, "small") + cells +
      text(8, 87, "wait queue", "small") + named(80, 70, "callback", frame.step === 2 ? "answer" : "plain") +
      arrow(120, 58, 120, 69, hot(2)) + arrow(120, 98, 120, 133, hot(2)) +
      text(128, 122, "2. puts the item on the list", "small") + text(8, 151, "ready list", "small") +
      named(80, 135, "", "plain") + group(80, 135, frame.listed ? "" : "hidden", named(0, 0, "item of 6", "byte")) +
      arrow(120, 163, 120, 192, hot(3)) + text(128, 182, "3. asks the socket, and reports", "small") +
      text(8, 210, "the server", "small") + ["sleeps", "epoll_wait", "recv"].map((at, i) =>
        named(80 + 84 * i, 194, at, frame.at === at ? "answer" : "plain")).join("");
  }

  explore.add({
    name: "ready", title: "The ready list, with the same six bytes", height: 224, pace: 1800,
    choices: { mode: ["level-triggered", "edge-triggered"], "it reads": ["nothing at first", "two bytes", "all"] },
    still: [{ mode: "level-triggered", "it reads": "nothing at first" }, 2],
    run, draw,
    count: (f) => [["", "reports", "calls of recv", "bytes unread"], ["now", f.reports, f.reads, f.unread.length]],
  });
}
