"A benchmark's ranks: which way a metric is better is told by its name, in the words, the ranks and the tables alike."

import pandas as pd
import pytest

from anomaly_nb.core.tables import write_table
from anomaly_nb.reports import run_report
from anomaly_nb.reports.gallery import read_verdict


@pytest.mark.parametrize(
    "metric, best, words",
    [("image_auroc", "b", "higher is better"), ("image_fpr95", "a", "lower is better"), ("fit_s", "a", "lower is better")],
)
def test_the_best_method_is_the_best_by_its_metric(tmp_path, metric, best, words):
    rows = [
        {"data": f"d{i}", "method": m, "shots": -1, "seed": 0, metric: value + 0.01 * i, "status": "ok", "error": ""}
        for i in range(7)
        for m, value in (("a", 0.1), ("b", 0.5), ("c", 0.3))
    ]
    table = write_table(tmp_path / "rows.csv", pd.DataFrame(rows))
    run = run_report("benchmark", {"results": str(table), "metric": metric}, tmp_path, gallery=False)
    assert f"({words}), {best} has the best mean rank, 1.00" in read_verdict(run.folder)
    first = (run.folder / "table.md").read_text().splitlines()[2]
    assert first.startswith(f"| {best}* |") and first.count("**") == 2 * 7
    assert f"{metric}, {'lower' if best == 'b' else 'higher'} is better" not in run.page.read_text()
