"""Run benchmarks by name: `python -m bench [names] [--small]`. A full run writes figures/bench.json and figures/bench.png.

A row is a dict: name, ours_s, reference_s (None without one), ratio (reference / ours), work (what was done), note.
"""

import argparse
import importlib
import os
import platform
from pathlib import Path

from anomaly_nb.core.files import atomic_write, read_json, write_json
from anomaly_nb.core.runtime import versions

MODULES = ("metrics", "banks", "leave_one_out", "street", "video", "detector")  # in the order they are shown
FIGURES = Path(__file__).parent.parent / "figures"


def machine() -> dict:
    "What the figures were measured on."
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    packages = versions()
    return {"cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(), "versions": packages}


def show(row: dict) -> None:
    "Print a row, ours and the reference side by side."
    reference = f"{row['reference_s']:8.2f} s" if row["reference_s"] is not None else " " * 10
    ratio = f"{row['ratio']:6.1f} x" if row["ratio"] is not None else " " * 8
    print(f"{row['name']:34s} ours {row['ours_s']:8.3f} s   reference {reference} {ratio}   {row['work']}; {row['note']}", flush=True)


def draw(results: dict) -> None:
    "Bars of the seconds taken, ours and the reference's, on a logarithmic axis."
    import matplotlib.pyplot as plt

    from anomaly_nb.core.style import ANOMALOUS, NORMAL, figure_style

    rows = [row for module in results["rows"].values() for row in module][::-1]
    with figure_style():
        figure, ax = plt.subplots(figsize=(9, 1.2 + 0.55 * len(rows)))
        for i, row in enumerate(rows):
            ax.barh(i + 0.18, row["ours_s"], 0.34, color=NORMAL, label="ours" if i == 0 else None)
            label = f" {row['ours_s']:.2f} s"
            if row["reference_s"] is not None:
                ax.barh(i - 0.18, row["reference_s"], 0.34, color=ANOMALOUS, label="reference" if "reference" not in ax.get_legend_handles_labels()[1] else None)
                ax.text(row["reference_s"], i - 0.18, f" {row['reference_s']:.2f} s, {row['ratio']:.0f} x", va="center", fontsize=8)
            ax.text(row["ours_s"], i + 0.18, label, va="center", fontsize=8)
        ax.set(yticks=range(len(rows)), yticklabels=[row["name"] for row in rows], xscale="log", xlabel="seconds", title="Seconds taken; results checked against each other")
        ax.margins(x=0.2)
        ax.grid(axis="y", visible=False)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
        with atomic_write(FIGURES / "bench.png") as f:
            figure.savefig(f, metadata={"Software": None})
        plt.close(figure)


def main() -> None:
    "Run the named benchmarks, all by default."
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(MODULES)}; all if none is given")
    parser.add_argument("--small", action="store_true", help="a fraction of the work in seconds; prints, writes nothing")
    args = parser.parse_args()
    if unknown := set(args.names) - set(MODULES):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    path = FIGURES / "bench.json"
    results = read_json(path) if path.exists() else {"rows": {}}
    for name in args.names or MODULES:
        rows = importlib.import_module(f"bench.{name}").run(args.small)
        for row in rows:
            show(row)
        results["rows"][name] = rows
    if not args.small:
        results["rows"] = {name: results["rows"][name] for name in MODULES if name in results["rows"]}
        results["machine"] = machine()
        write_json(path, results)
        draw(results)


if __name__ == "__main__":
    main()
