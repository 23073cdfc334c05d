"""Drift verdicts on somebody's own scores: random halves of the normal files, the second half with a fraction of real
defects.

    python -m tests.drift_on_scores figures/runs/image_anomaly-XXXX/scores.csv

Needs the columns `score` and `label` (0 normal, 1 defective) of an image report. 200 random splits per fraction, seeds
0 to 199.
"""

import sys

import numpy as np
import pandas as pd

from anomaly_nb.calibration import SequentialAlarm, drift_metrics
from anomaly_nb.core.errors import DataError

SPLITS = 200


def table(scores: pd.DataFrame, fractions=(0.0, 0.05, 0.1, 0.2, 0.3)) -> pd.DataFrame:
    """One row per fraction of defects: how many of the splits the plain rule fails, the verdict is unstable, the
    sequential alarm rings.
    """
    if not {"score", "label"} <= set(scores):
        raise DataError("the table needs columns score and label; use the scores.csv of an image report")
    good, bad = (scores.loc[scores.label == k, "score"].to_numpy() for k in (0, 1))
    n, rows = len(good) // 2, []
    for fraction in fractions:
        rng, counts = np.random.default_rng(0), np.zeros(3, dtype=int)
        k = round(fraction * (len(good) - n))
        for i in range(SPLITS):
            order = rng.permutation(good)
            now = np.r_[order[n + k :], rng.choice(bad, k, replace=False)] if k else order[n:]
            result = drift_metrics(order[:n], now, random_state=i)
            alarm = SequentialAlarm(0.05, random_state=i).fit(order[:n]).update(rng.permutation(now))
            counts += [not result.is_stable, result.verdict == "unstable", alarm.alarm_]
        rows.append([f"{fraction:.0%}", n, len(good) - n, *counts.tolist()])
    return pd.DataFrame(
        rows, columns=["defects", "reference", "current", "plain rule fails", "verdict unstable", "sequential alarm"]
    )


if __name__ == "__main__":
    print(f"of {SPLITS} splits each:\n" + table(pd.read_csv(sys.argv[1])).to_string(index=False))
