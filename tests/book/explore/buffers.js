"use strict";
/* The four buffers between two programs: what happens when the client does not read, and when it reads again?
 *
 * A square is 16 KiB. The client has 48 to send. The server reads 4 at a time at most (64 KiB) and sends them
 * back; what send does not take it holds, and reads on only when that is gone. The buffers are those of the notes,
 * only smaller. tests/test_explore.py lets the server of day 3 do the same, and compares.
 */
{
  const TOTAL = 48, PIECE = 4, PACE = 3; // PIECE: what a program reads at most; PACE: what else moves in a step
  const ROOM = { clientReceive: 6, serverSend: 10, held: PIECE, serverReceive: 6, clientSend: 10 };
  const FULL = {
    clientReceive: "The client's receive buffer is full, and its kernel tells ours to stop.",
    serverReceive: "We hold and do not read, so our receive buffer is full. TCP tells the client's kernel to stop.",
    clientSend: "The last buffer is full. The client's own send sleeps, without a line of ours: back-pressure.",
  };

  /* Each place gives the next one what that has room for, the last place first, so that bytes move by one place. */
  function next(before, reads) {
    const f = { ...structuredClone(before), moved: {} };
    const pass = (from, to, most) => {
      const n = Math.min(f[from], most, to === "read" ? most : ROOM[to] - f[to]);
      f[from] -= n;
      f[to] += n;
      return (f.moved[from] = n);
    };
    pass("clientReceive", "read", reads ? PIECE : 0);
    pass("serverSend", "clientReceive", PACE);
    if (before.held === 0)
      pass("serverReceive", "held", PIECE);
    const n = f.held, took = pass("held", "serverSend", n);
    pass("clientSend", "serverReceive", PACE);
    pass("unsent", "clientSend", PACE);

    const full = Object.keys(ROOM).filter((name) => (name === "held" ? f.held > 0 : f[name] === ROOM[name]));
    const newly = full.filter((name) => !before.full.includes(name));
    f.full = [...before.full.filter((name) => full.includes(name)), ...newly]; // in the order in which they filled
    f.said =
      f.held && !before.held ? `send takes ${took} of ${n}. We hold the rest, and read no more from this client.` :
      before.held && took ? "Our send buffer has room: what we hold goes out, and then we read on." :
      f.read === TOTAL ? `All ${TOTAL} are back, in order. Nothing was lost.` :
      reads ? "The client reads. Each buffer gives to the next one, and the bytes go around." :
      newly.length ? FULL[newly[0]] :
      f.held ? "The client sends on, into the room that is left." :
      full.length ? "Nothing leaves our send buffer now, and each answer fills it further." :
      "The client does not read: what comes back stays in its receive buffer.";
    return f;
  }

  function run(chosen, frame) {
    const start = { unsent: TOTAL, clientSend: 0, serverReceive: 0, held: 0, serverSend: 0, clientReceive: 0, read: 0,
                    full: [], moved: {}, said: `The client has ${TOTAL} to send. Does it read what comes back?` };
    const frames = frame ? [] : [start];
    let f = frame ?? start;
    while (Object.values((f = next(f, chosen["the client"] === "reads")).moved).some((n) => n > 0))
      frames.push(f); // until nothing moves any more
    return frames;
  }

  function draw(frame, chosen) {
    const { box, text, arrow } = explore, reads = chosen["the client"] === "reads";
    const full = (name) => !frame.full.includes(name) ? "" : reads ? "full" :
      "full: " + ["1st", "2nd", "3rd", "4th", "5th"][frame.full.indexOf(name)];
    const cells = (x, y, name, height, leftwards) => Array.from({ length: ROOM[name] }, (_, i) =>
      box(x + 8 * i, y, 7, height, (leftwards ? ROOM[name] - 1 - i : i) < frame[name] ? "byte" : "plain")).join("");
    const buffer = (x, y, name, words, leftwards) =>
      text(leftwards ? x + 8 * ROOM[name] : x, y - 6, words, leftwards ? "small end" : "small") +
      cells(x, y, name, 24, leftwards) + text(x + 4 * ROOM[name], y + 37, full(name), "small middle warn");
    const flow = (x, toX, y, name) => arrow(x, y, toX, y, frame.moved[name] ? "moving" : "") +
      text((x + toX) / 2, y + 15, frame.moved[name] || "", "small middle");

    return text(166, 10, "client's kernel", "small end") + text(176, 10, "server's kernel", "small") +
      box(171, 18, 0.1, 158, "gone") + box(1, 18, 54, 158, "plain") + box(289, 18, 50, 158, "plain") +
      text(28, 34, "client", "middle") + text(28, 55, "to send", "small middle") +
      text(28, 70, frame.unsent, "middle") + text(28, 125, "read", "small middle") +
      text(28, 140, frame.read, "middle") + text(28, 168, reads ? "" : "stopped", "small middle warn") +
      text(314, 34, "server", "middle") + text(314, 86, "held", "small middle") + cells(298, 91, "held", 14) +
      text(314, 120, full("held").slice(6), "small middle warn") +
      flow(58, 75, 57, "unsent") + buffer(78, 45, "clientSend", "send buffer") + flow(161, 181, 57, "clientSend") +
      buffer(184, 45, "serverReceive", "receive buffer") + flow(235, 286, 57, "serverReceive") +
      flow(286, 267, 137, "held") + buffer(184, 125, "serverSend", "send buffer", true) +
      flow(181, 161, 137, "serverSend") + buffer(110, 125, "clientReceive", "receive buffer", true) +
      flow(107, 58, 137, "clientReceive");
  }

  explore.add({
    name: "buffers", title: "The four buffers, and a client that stops reading", height: 180, pace: 900, live: true,
    choices: { "the client": ["does not read", "reads"] },
    still: [{ "the client": "does not read" }, 12],
    run, draw,
    count: (f) => [["squares of 16 KiB", "sent", "in the buffers", "held", "read"],
                   ["now", TOTAL - f.unsent, TOTAL - f.unsent - f.held - f.read, f.held, f.read]],
  });
}
