"""What a notebook stores and what it gives today: `python -m tests.outputs [--write] [notebook ...]`, all without names.

Each notebook runs from top to bottom, in a kernel of its own. Of every cell whose text is another now, the lines that
differ are shown; times and identifiers differ on every run, so a person decides. `--write` stores what came, but for
warnings and for outputs that name a folder of this machine.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 12  # lines of a cell
PLACES = re.compile(r"/(tmp|var/folders|home|root|Users)/")  # of one machine
# what decides where text breaks, which colours are used and what is said besides the results
ENVIRON = {"OMP_NUM_THREADS": "1", "ANOMALY_NB_PROGRESS": "0", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def words(output):
    "The text of an output; of a figure that there is one."
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    data = output.get("data", {})
    text = next((data[k] for k in ("text/html", "text/markdown", "text/plain") if k in data), "")
    return re.sub(r"<style.*?</style>", "", text, flags=re.S) + "<figure>" * ("image/png" in data)


def texts(notebook):
    "The text of each cell's outputs."
    joined = ("\n".join(map(words, cell.get("outputs", []))) for cell in notebook.cells)
    return [re.sub(r"(?m) at 0x[0-9a-f]+|\x1b\[[0-9;]*m|\n+$", "", text).strip() for text in joined]


def compared(path, write):
    "How many cells of a notebook give another text now; -1 where it fails."
    notebook = nbformat.read(path, 4)
    before, fresh = texts(notebook), deepcopy(notebook)
    left = [re.search(r"(?m)^#\|\s*eval:\s*false", cell.source) for cell in notebook.cells]  # as the tests leave them
    for cell, skipped in zip(fresh.cells, left, strict=True):
        cell.source = "" if skipped else cell.source
    where = {"metadata": {"path": str(path.parent)}}
    try:
        NotebookClient(fresh, timeout=900, kernel_name="python3", resources=where).execute()
    except CellExecutionError as e:
        print(f"{path.relative_to(ROOT)}: fails: {str(e).strip().splitlines()[-1]}")
        return -1
    for cell, now, skipped in zip(notebook.cells, fresh.cells, left, strict=True):
        if cell.cell_type == "code" and not skipped:
            fresh_outputs = [o for o in now.outputs if o.get("name") != "stderr"]
            if not any(PLACES.search(str(o)) for o in fresh_outputs):  # the machine's own stay with the machine
                cell.outputs = fresh_outputs
    differ = [(i, a, b) for i, (a, b) in enumerate(zip(before, texts(notebook), strict=True)) if a != b]
    for i, a, b in differ:
        lines = list(difflib.unified_diff(a.splitlines(), b.splitlines(), lineterm="", n=0))[2:]
        more = [f"and {len(lines) - SHOWN} more lines"] * (len(lines) > SHOWN)
        print(f"{path.relative_to(ROOT)}, cell {i}:", *[f"    {line[:200]}" for line in lines[:SHOWN] + more], sep="\n")
    if write and differ:
        nbformat.write(notebook, path)
    return len(differ)


def main():
    "Compare, and clean what was written."
    parser = argparse.ArgumentParser(
        prog="python -m tests.outputs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="store the new outputs")
    parser.add_argument("notebook", nargs="*", type=Path, help="none: every one below nbs/")
    args = parser.parse_args()
    os.environ |= ENVIRON
    os.environ.pop("MPLBACKEND", None)  # figures go into the notebook
    every = sorted(p for p in (ROOT / "nbs").glob("[0-9]*/*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    counts = {path: compared(path.resolve(), args.write) for path in args.notebook or every}
    if args.write:
        subprocess.run([Path(sys.executable).parent / "nbdev_clean"], cwd=ROOT, check=True)
    differ = sum(n > 0 for n in counts.values())
    failed = sum(n < 0 for n in counts.values())
    print(f"{len(counts)} notebooks: {differ} give other outputs{' (stored)' * args.write}, {failed} fail")


if __name__ == "__main__":
    main()
