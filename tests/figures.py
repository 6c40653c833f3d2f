#!/usr/bin/env python3
"""make figures: draws what make herd, switches, scale, bench, modes and balance have measured.

Reads NAME.json (herd: NAME.txt) and writes NAME.svg next to it, for each command that has been run. The figures
have no background, and colours that can be read on a light page and on a dark one. Each contains the checksum of
its data. The tables of the notes come from here, too, those of make kernels included, so that a test can compare
them with the data.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from statistics import median

import balance
import herd
import kernels
from harness import ROOT
from measuring import MEASURED

GREY, BLUE, ORANGE, GREEN = "#787878", "#3b82d0", "#d9701a", "#3a9a5b"
COMMANDS = {"herd": "make herd", "herd-delay": "make herd DELAY=100", "switches": "make switches",
            "scale": "make scale", "bench": "make bench", "modes": "make modes", "kernels": "make kernels",
            "balance": "make balance"}


def data_file(folder, name):
    return folder / (name + (".txt" if name.startswith("herd") else ".json"))


def load(folder, name):
    path = data_file(folder, name)
    return herd.load(path) if path.suffix == ".txt" else json.loads(path.read_text())


def checksum(folder, *names):
    return hashlib.sha256(b"".join(data_file(folder, name).read_bytes() for name in names)).hexdigest()


# ---- Tables

def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| %s |\n" % " | ".join(map(str, line)) for line in lines)


def takers(got, workers):
    """How many of the workers got the connections."""
    if got.endswith("all to one"):
        return "1"
    count = int(got.split()[0]) if " x " in got else len(got.split())
    return "more than 10" if got.endswith("...") else "all in turn" if got.startswith("%d x" % workers) else str(count)


def herd_table(plain, delay):
    napping = {row["way"]: row for row in delay["ways"]}
    return markdown(
        ["way", "woken", "returned", "CPU, us", "delay, us", "workers that got one", "with the nap: woken", "returned",
         "found nothing"],
        [[row["way"], row["woken"], row["returned"], round(row["cpu"]), row["delay"],
          takers(row["got"], plain["workers"]), nap["woken"], nap["returned"], nap["nothing"]]
         for row in plain["ways"] for nap in [napping[row["way"]]]])


def switches_table(data):
    each, loop = data["each"], data["loop"]
    return markdown(
        ["in flight", "switches for a request: a process each", "one loop",
         "CPU for a request, us: a process each", "one loop"],
        [[n, "%.3f" % each[n]["switches"], "%.3f" % loop[n]["switches"],
          "%.1f" % each[n]["cpu"], "%.1f" % loop[n]["cpu"]] for n in each])


def scale_table(data):
    figures = data["figures"]

    def cell(name, idle):
        rows = figures[name]
        if idle not in rows:
            return "-"
        cpu = median(rows[idle]["cpu"])
        return "%.1f, x %.2f" % (cpu, cpu / median(rows["0"]["cpu"]))

    def latency(name, idle):
        return "%.3f" % median(figures[name][idle]["median"]) if idle in figures[name] else "-"

    idles = max(figures.values(), key=len)
    return markdown(
        ["idle clients", *("%s: CPU, us" % day(name) for name in figures), "day 2: ms", "day 3: ms"],
        [["{:,}".format(int(idle)), *(cell(name, idle) for name in figures),
          latency("day02", idle), latency("day03", idle)] for idle in idles])


def day(name):
    return "day %d" % int(name[3:]) if name.startswith("day") else name


def ratio(figures, name):
    return median(figures[name]) / median(figures["barest"])


def echo_table(data):
    cpu = data["figures"]["cpu"]
    rest = [data["figures"][what] for what in ("requests", "median", "p99")]
    return markdown(
        ["server", "CPU for an echo, us", "range", "x barest", "requests a second", "median, ms", "p99, ms"],
        [[day(name), "%.2f" % median(cpu[name]), "%.2f to %.2f" % (min(cpu[name]), max(cpu[name])),
          "%.2f" % ratio(cpu, name), "{:,.0f}".format(median(rest[0][name])),
          "%.2f" % median(rest[1][name]), "%.2f" % median(rest[2][name])] for name in cpu])


def other_table(data):
    figures = data["figures"]
    return markdown(
        ["server", "connections a second", "CPU for one, us", "stream, MiB a second", "CPU for a GiB, s",
         "bytes for an idle client"],
        [[day(name), "{:,.0f}".format(median(figures["connections"][name])),
          "%.1f" % median(figures["cpu-connection"][name]), "{:,.0f}".format(median(figures["stream"][name])),
          "%.2f" % median(figures["cpu-stream"][name]), "{:,.0f}".format(median(figures["memory"][name]))]
         for name in figures["memory"]])


def buffer_table(data):
    return markdown(["buffer, KiB", "CPU for a GiB, s", "range"],
                    [[size, "%.2f" % median(cpu), "%.2f to %.2f" % (min(cpu), max(cpu))]
                     for size, cpu in data["buffers"].items()])


def with_range(values, form):
    return "%s (%s to %s)" % tuple(form % value for value in (median(values), min(values), max(values)))


def busiest(data, mode, load):
    """For each round, how many times its fair share the busiest worker got."""
    return [max(got) * len(got) / sum(got) for got in data["modes"][mode][load]["got"]]


def clients_of_each(data, mode, load):
    """In the round that is in the middle, if the rounds are sorted by the busiest worker."""
    rounds = sorted(data["modes"][mode][load]["got"], key=max)
    return " ".join(map(str, rounds[len(rounds) // 2]))


def modes_table(data):
    modes = data["modes"]

    def row(what, load, figure, form, ranges=False):
        values = [modes[mode][load][figure] for mode in modes]
        return [what, *(with_range(each, form) if ranges else form % median(each) for each in values)]

    rows = []
    for load, title in (("one by one", "%d, one by one" % data["clients"]), ("burst", "%d in a burst" % data["clients"])):
        rows += [["**%s**: clients of each worker" % title, *(clients_of_each(data, mode, load) for mode in modes)],
                 ["the busiest one's, times its fair share",
                  *(with_range(busiest(data, mode, load), "%.2f") for mode in modes)],
                 row("wake-ups for a newcomer", load, "woken", "%.2f"),
                 row("CPU for a newcomer, us", load, "cpu", "%.1f", ranges=True)]
    for load, title in (("quiet", "each comes, says a byte and leaves"), ("hang", "the same, and a worker hangs")):
        rows += [row("**%s**: wait, median, ms" % title, load, "median", "%.2f"),
                 row("99th percentile, ms", load, "p99", "%.2f"), row("worst, ms", load, "worst", "%.2f", ranges=True)]
        if load == "quiet":
            rows.append(row("CPU for such a client, us", load, "cpu", "%.1f", ranges=True))
    rows += [row("**a worker hangs and dies**: newcomers lost", "dying", "lost", "%.1f", ranges=True),
             row("**the busiest dies**: its clients, lost", "one by one", "gone", "%.0f", ranges=True)]
    if data["migrated"]:
        rows.insert(-1, ["the same with `tcp_migrate_req` = 1", *["-"] * (len(modes) - 1),
                         with_range(data["migrated"], "%.1f")])
    return markdown(["load and figure", *modes], rows)


def herds_table(data):
    ways = data["herds"]
    return markdown(
        ["workers", *("%s: %s" % (way, what) for what in ("woken", "CPU, us", "delay, us") for way in ways)],
        [[workers, *(form % median(ways[way][workers][figure])
                     for figure, form in (("woken", "%.1f"), ("cpu", "%.0f"), ("delay", "%.0f")) for way in ways)]
         for workers in next(iter(ways.values()))])


def by_version(data):
    return sorted(data["kernels"].values(), key=lambda kernel: list(map(int, kernel["version"].split("."))))


def release(kernel):
    return ".".join(kernel["version"].split(".")[:2])


def kernels_table(data):
    """How many workers are woken for one connection, and how many return after a nap."""
    found = by_version(data)
    return markdown(["way", *("%s%s" % (release(kernel), "" if kernel["emulated"] else ", not emulated")
                              for kernel in found)],
                    [[way, *("%.1f (%.0f)" % (kernel["ways"]["woken"][way], kernel["nap"]["returned"][way])
                             for kernel in found)] for way in found[0]["ways"]["woken"]])


def masks_table(data):
    """Those of the newest kernel; a test checks that the others say the same."""
    rows = [[peer, *answer.split(" / ")] for peer, answer in by_version(data)[-1]["facts"]["mask"].items()]
    return markdown(["the peer", "`epoll_wait`", "`select`", "`recv`"],
                    [[peer, epoll, select.replace(" ", ", "), recv.replace(" ", ", then ")]
                     for peer, epoll, select, recv in rows])


def differences_table(data):
    found = by_version(data)
    return markdown(["", *map(release, found)],
                    [[": ".join(key), *answers] for key, answers in kernels.compare(found)[1].items()])


def balance_table(data):
    return markdown(["event and figure", *data["figures"]], balance.rows(data["figures"]))


def in_flight_table(data):
    return markdown(
        ["in flight", "server", "CPU for an echo, us", "range", "x barest", "requests a second",
         "system calls for an echo"],
        [["{:,}".format(int(count)), day(name), "%.2f" % median(row["cpu"]),
          "%.2f to %.2f" % (min(row["cpu"]), max(row["cpu"])),
          "%.2f" % (median(row["cpu"]) / median(rows["barest"]["cpu"])),
          "{:,.0f}".format(median(row["requests"])), "%.2f" % median(row["calls"])]
         for count, rows in data["in_flight"].items() for name, row in rows.items()])


# name of the figure: the data, the tables; no figure if DRAW has none
TABLES = {
    "herd": (["herd", "herd-delay"], [herd_table]),
    "switches": (["switches"], [switches_table]),
    "scale": (["scale"], [scale_table]),
    "bench": (["bench"], [echo_table, other_table, buffer_table, in_flight_table]),
    "modes": (["modes"], [modes_table, herds_table]),
    "kernels": (["kernels"], [kernels_table, masks_table, differences_table]),
    "balance": (["balance"], [balance_table]),
}


# ---- Figures

def canvas(plt, columns=1, height=3.2, sharey=True):
    figure, axes = plt.subplots(1, columns, figsize=(8, height), layout="constrained", squeeze=False, sharey=sharey)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def draw_herd(plt, plain, delay):
    figure, axes = canvas(plt, 2, 4)
    titles = ("as it is", "with a nap of %d ms before accept" % delay["delay"])
    for axis, data, title in zip(axes, (plain, delay), titles):
        ways = [row["way"] for row in data["ways"]]
        for shift, what, color, label in ((-0.2, "woken", BLUE, "woken by the kernel"),
                                          (0.2, "returned", ORANGE, "returned to the program")):
            axis.barh([y + shift for y in range(len(ways))],
                      [row[what] / row["connections"] for row in data["ways"]], 0.4, color=color, label=label)
        axis.set_yticks(range(len(ways)), ways)
        axis.set_xlabel("workers for one connection")
        axis.set_title(title)
    axes[0].invert_yaxis()
    axes[0].legend()
    return figure


def draw_switches(plt, data):
    figure, (axis,) = canvas(plt)
    for which, color, label in (("each", ORANGE, "a process each"), ("loop", BLUE, "one epoll loop")):
        rows = data[which]
        axis.plot([int(n) for n in rows], [row["switches"] for row in rows.values()], "o-", color=color,
                  label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks([int(n) for n in data["each"]], list(data["each"]))
    axis.set_yticks([1, 0.1, 0.01], ["1", "0.1", "0.01"])
    axis.set_xlabel("requests in flight")
    axis.set_ylabel("switches for a request")
    axis.legend()
    return figure


def draw_scale(plt, data):
    figure, axes = canvas(plt, 2)
    labels = {"day02": "day 2, select", "day03": "day 3, epoll"}
    for name, color in (("day02", ORANGE), ("day03", BLUE)):
        rows = data["figures"][name]
        idle = [int(n) for n in rows]
        axes[0].plot(idle, [median(row["cpu"]) for row in rows.values()], "o-", color=color, label=labels[name])
        axes[1].plot(idle, [median(row["median"]) * 1000 for row in rows.values()], "o-", color=color)
    for axis, title in zip(axes, ("CPU for an echo", "latency of an echo, median")):
        axis.set_xscale("symlog", linthresh=100)
        axis.set_xlim(-8, 30_000)
        axis.set_xticks([0, 100, 1_000, 10_000], ["0", "100", "1,000", "10,000"])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("idle clients")
        axis.set_title(title)
    axes[0].set_ylabel("us")
    axes[0].legend()
    return figure


def draw_bench(plt, data):
    figure, (axis,) = canvas(plt)
    cpu = data["figures"]["cpu"]
    names = list(cpu)
    for y, name in enumerate(names):
        color = GREY if name == "barest" else BLUE if name.startswith("day") else ORANGE
        axis.barh(y, median(cpu[name]), 0.7, color=color)
        axis.plot([min(cpu[name]), max(cpu[name])], [y, y], color=GREY, linewidth=2)
        axis.annotate("%.1f (x %.2f)" % (median(cpu[name]), ratio(cpu, name)), (max(cpu[name]), y), (6, 0),
                      textcoords="offset points", va="center")
    axis.axvline(median(cpu["barest"]), color=GREY, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), map(day, names))
    axis.invert_yaxis()
    axis.set_xlabel("CPU for an echo, us: median and range")
    return figure


def draw_modes(plt, data):
    figure, (spread, wait, price) = canvas(plt, 3, sharey=False)
    modes, workers = list(data["modes"]), data["workers"]
    colors, widths = dict(zip(modes, (ORANGE, BLUE, GREEN))), dict(zip(modes, (4, 1.5, 1.5)))  # one lies on another
    for place, mode in enumerate(modes):
        columns = [place * (workers + 1) + i for i in range(workers)]
        counts = {load: list(map(int, clients_of_each(data, mode, load).split())) for load in ("one by one", "burst")}
        spread.bar(columns, counts["one by one"], color=colors[mode])
        spread.plot(columns, counts["burst"], "_", color=GREY, markersize=9, markeredgewidth=2)
        wait.plot(data["modes"][mode]["hang"]["percentiles"], color=colors[mode], linewidth=widths[mode], label=mode)
    spread.axhline(data["clients"] / workers, color=GREY, linestyle="--", linewidth=1)
    spread.set_xticks([place * (workers + 1) + (workers - 1) / 2 for place in range(len(modes))], modes,
                      fontsize=9)
    spread.set_title("clients of each worker")
    spread.set_xlabel("%d, one by one\n(marks: in a burst)" % data["clients"])
    wait.set_xlim(75, 100)
    wait.set_title("first echo while a worker hangs")
    wait.set_xlabel("% of the clients, the fastest first")
    wait.set_ylabel("ms")
    wait.legend()
    for way, rows in data["herds"].items():
        price.plot([int(count) for count in rows], [median(row["cpu"]) for row in rows.values()], "o-", markersize=4,
                   color=colors[way])
    price.set_xticks([int(count) for count in rows if int(count) == 1 or int(count) > 8])
    price.set_ylim(bottom=0)
    price.set_title("CPU for a newcomer")
    price.set_xlabel("workers")
    price.set_ylabel("us")
    return figure


def draw_balance(plt, data):
    figure, axes = canvas(plt, 2)
    for axis, (algorithm, curves) in zip(axes, data["curves"].items()):
        for (machine, counts), color in zip(curves["clients"].items(), (ORANGE, BLUE, GREY)):
            axis.plot([n * data["tick"] for n in range(len(counts))], counts, color=color, label="machine " + machine)
        for event, label in (("killed", "1 is\nkilled"), ("back", "1 is\nback"), ("drained", "2 is\ndrained"),
                             ("silent", "3 is\nsilent")):
            axis.axvline(curves["at"][event], color=GREY, linestyle="--", linewidth=1)
            axis.annotate(label, (curves["at"][event], 1.3 * data["clients"]), (3, 0), textcoords="offset points",
                          va="top")
        axis.set_ylim(-0.02 * data["clients"], 1.3 * data["clients"])
        axis.set_yticks(range(0, data["clients"] + 1, data["clients"] // 3))
        axis.set_xticks(range(0, int(max(curves["at"].values())) + 1, 2))
        axis.set_xlabel("seconds")
        axis.set_title(algorithm)
    axes[0].set_ylabel("clients")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0.44, 0.42), handlelength=1)
    return figure


DRAW = {"herd": draw_herd, "switches": draw_switches, "scale": draw_scale, "bench": draw_bench,
        "modes": draw_modes, "balance": draw_balance}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "echo", "font.family": "sans-serif", "font.size": 10,
    "axes.titlesize": 10, "legend.frameon": False, "savefig.transparent": True,
    **{key: GREY for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor",
                             "xtick.color", "ytick.color", "legend.labelcolor")},
}


def pyplot():
    """matplotlib.pyplot, of whichever python3 has it."""
    try:
        import matplotlib
    except ImportError:
        if sys.executable != "/usr/bin/python3" and os.access("/usr/bin/python3", os.X_OK):
            os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])
        sys.exit("figures: matplotlib is missing (Debian: python3-matplotlib)")
    matplotlib.use("svg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib import pyplot as plt
    return plt


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=MEASURED,
                        help="where the data are, and the figures go")
    folder = parser.parse_args().folder.absolute()
    plt = pyplot()
    drawn = 0
    for name, (needed, _) in [(name, TABLES[name]) for name in DRAW]:
        missing = [COMMANDS[one] for one in needed if not data_file(folder, one).exists()]
        if missing:
            print("no %s.svg: it needs %s" % (name, " and ".join(missing)))
            continue
        data = [load(folder, one) for one in needed]
        if name == "bench" and not data[0]["figures"]["cpu"]:
            print("no bench.svg: make bench had no redis-benchmark")
            continue
        figure = DRAW[name](plt, *data)
        path = folder / (name + ".svg")
        figure.savefig(path, metadata={"Date": None, "Description": checksum(folder, *needed)})
        path.write_text("".join(line.rstrip() + "\n" for line in path.read_text().splitlines()))
        print(os.path.relpath(path, ROOT))
        drawn += 1
    sys.exit(0 if drawn else 1)


if __name__ == "__main__":
    main()
