"""Run benchmarks by name: `python -m bench [names] [--small]`. A full run writes figures/bench.json and
figures/bench.png, figures/bench_float32.json and .png on a machine without fast bfloat16, and
figures/bench_avx2.json and .png on one without fast whole numbers of eight bits as well.

A row is a dict: name, ours_s, reference_s (None without one), ratio (reference / ours), work (what was done), note;
where it says something, flop or bytes of the work as well.
"""

import argparse
import importlib
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from anomaly_nb.core.device import capability, int8_largest
from anomaly_nb.core.files import atomic_write, write_json
from anomaly_nb.core.plain import read_json
from anomaly_nb.core.runtime import versions

MODULES = ("metrics", "banks", "leave_one_out", "street", "video", "detector")  # in the order they are shown
FIGURES = Path(__file__).parent.parent / "figures"


def copied() -> float:
    "Bytes a second that a copy of 256 MB reads and writes, the best of three."
    given, best = np.ones(2**25), np.inf
    target = np.empty_like(given)
    for _ in range(4):
        start = time.perf_counter()
        np.copyto(target, given)
        best = min(best, time.perf_counter() - start)
    return 2 * given.nbytes / best


def machine() -> dict:
    "What the figures were measured on, and what it can do."
    can = capability()
    about = {
        "cpu": can.name,
        "cores": os.cpu_count(),
        "threads": can.threads,
        "instructions": list(can.instructions),
        "device": can.device,
    }
    about |= {
        "float32_gflops": round(can.float32 / 1e9),
        "bfloat16_gflops": round(can.bfloat16 / 1e9),
        "bf16": can.bf16,
        "int8_gflops": round(can.int8 / 1e9),
        "int8_largest": can.largest,
        "copy_gbs": round(copied() / 1e9, 1),
    }
    return about | {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def reached(row: dict, about: dict) -> str:
    """How much of what the machine can do the work asked of it, where a row says how much work it was: above all of it,
    work was avoided.
    """
    if row.get("flop"):
        rate = row["flop"] / row["ours_s"] / 1e9
        return f"; {rate:.0f} GFLOP/s of plain work, the machine's float32 does {about['float32_gflops']}"
    if row.get("bytes"):
        rate = row["bytes"] / row["ours_s"] / 1e9
        return f"; {rate:.1f} GB/s, a copy does {about['copy_gbs']}"
    return ""


def show(row: dict, about: dict) -> None:
    "Print a row, ours and the reference side by side."
    reference = f"{row['reference_s']:8.2f} s" if row["reference_s"] is not None else " " * 10
    ratio = f"{row['ratio']:6.1f} x" if row["ratio"] is not None else " " * 8
    print(
        f"{row['name']:34s} ours {row['ours_s']:8.3f} s   reference {reference} {ratio}   {row['work']}; {row['note']}{reached(row, about)}",
        flush=True,
    )


def draw(results: dict, name: str) -> None:
    "Bars of the seconds taken, ours and the reference's, on a logarithmic axis."
    import matplotlib.pyplot as plt

    from anomaly_nb.core.style import ANOMALOUS, NORMAL, figure_style

    rows = [row for module in MODULES for row in results["rows"].get(module, [])][::-1]
    with figure_style():
        figure, ax = plt.subplots(figsize=(9, 1.2 + 0.55 * len(rows)))
        for i, row in enumerate(rows):
            ax.barh(i + 0.18, row["ours_s"], 0.34, color=NORMAL, label="ours" if i == 0 else None)
            label = f" {row['ours_s']:.2f} s"
            if row["reference_s"] is not None:
                ax.barh(
                    i - 0.18,
                    row["reference_s"],
                    0.34,
                    color=ANOMALOUS,
                    label="reference" if "reference" not in ax.get_legend_handles_labels()[1] else None,
                )
                ax.text(
                    row["reference_s"],
                    i - 0.18,
                    f" {row['reference_s']:.2f} s, {row['ratio']:.2g} x",
                    va="center",
                    fontsize=8,
                )
            ax.text(row["ours_s"], i + 0.18, label, va="center", fontsize=8)
        ax.set(
            yticks=range(len(rows)),
            yticklabels=[row["name"] for row in rows],
            xscale="log",
            xlabel="seconds",
        )
        ax.margins(x=0.2, y=0.01)
        ax.set_title("Seconds taken; results checked against each other", loc="left", pad=30)
        ax.grid(axis="y", visible=False)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        with atomic_write(FIGURES / f"{name}.png") as f:
            figure.savefig(f, metadata={"Software": None})
        plt.close(figure)


def main() -> None:
    "Run the named benchmarks, all by default."
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(MODULES)}; all if none is given")
    parser.add_argument(
        "--small", action="store_true", help="a fraction of the work in seconds; prints, writes nothing"
    )
    args = parser.parse_args()
    if unknown := set(args.names) - set(MODULES):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    about = machine()
    print(f"{capability()}; a copy moves {about['copy_gbs']} GB/s", flush=True)
    name = "bench" if about["bf16"] else "bench_float32" if int8_largest(torch.device("cpu")) else "bench_avx2"
    path = FIGURES / f"{name}.json"
    results = read_json(path) if path.exists() else {"rows": {}}
    same = ("cpu", "cores", "threads", "instructions")
    if results["rows"] and any(results["machine"].get(what) != about[what] for what in same):
        print(f"{path.name} holds figures of another machine; those of this one take their place", flush=True)
        results = {"rows": {}}
    for module in args.names or MODULES:
        rows = importlib.import_module(f"bench.{module}").run(args.small)
        for row in rows:
            show(row, about)
        results["rows"][module] = rows
        if not args.small:  # what is measured is kept, whatever becomes of the next one
            results["rows"] = {name: results["rows"][name] for name in MODULES if name in results["rows"]}
            results["machine"] = about
            write_json(path, results)
            draw(results, name)


if __name__ == "__main__":
    main()
