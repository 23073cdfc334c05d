"""The whole evaluation of a street data set beyond the network: score maps counted, classes counted, both protocols
with intervals, written.
"""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from bench.metrics import peak_memory, images, row


def _evaluate(n: int, n_resamples: int) -> tuple[float, float, float, float]:
    "Seconds to count n maps, seconds of the tables, pooled AUROC, and peak memory in MB; run in a process of its own."
    from anomaly_nb.segmentation.evaluation import StreetEvaluation
    from anomaly_nb.segmentation.evaluation_files import save_evaluation
    from anomaly_nb.segmentation.scorer import PixelScorer
    from anomaly_nb.segmentation.tables import results_table

    scorer, rng = PixelScorer(("max_logit",)), np.random.default_rng(0)
    scorer.scale_ = {"max_logit": (-8.0, 4.0)}  # as fitted on the training images of a logit
    evaluation = StreetEvaluation({"max_logit": "Max logit"}, [f"class {i}" for i in range(13)])
    labels, prediction = rng.integers(0, 13, (2, 512, 512))
    counting = 0.0
    for i, (mask, score) in enumerate(images(n, (512, 512))):
        anomaly, score = mask.astype(np.uint8), 4 * score - 8
        anomaly[:20] = 255  # some void
        start = time.perf_counter()
        evaluation.update(f"{i:04}", {"max_logit": scorer.ranked("max_logit", score)}, anomaly, labels, prediction)
        counting += time.perf_counter() - start
    start = time.perf_counter()
    table = results_table(evaluation, n_resamples)
    with tempfile.TemporaryDirectory() as folder:
        save_evaluation(folder, evaluation)
    return counting, time.perf_counter() - start, float(table["auroc"].iloc[0]), peak_memory()


def _components(n: int) -> tuple[float, float, float]:
    """Seconds to count pixels and components of n maps, the table included, its F1*, and peak memory in MB; run in a
    process of its own.
    """
    from anomaly_nb.segmentation.evaluation import StreetEvaluation, count_components
    from anomaly_nb.segmentation.tables import results_table
    from anomaly_nb.segmentation.scorer import PixelScorer

    scorer = PixelScorer(("max_logit",))
    scorer.scale_ = {"max_logit": (-8.0, 4.0)}
    evaluation, spent = StreetEvaluation({"max_logit": "Max logit"}), 0.0

    def scenes():
        for i, (mask, score) in enumerate(images(n, (512, 512))):
            yield f"{i:04}", mask.astype(np.uint8), 4 * score - 8

    for key, anomaly, score in scenes():
        start = time.perf_counter()
        evaluation.update(key, {"max_logit": scorer.ranked("max_logit", score)}, anomaly)
        spent += time.perf_counter() - start
    making = time.perf_counter()
    for _ in scenes():
        pass
    making = time.perf_counter() - making
    start = time.perf_counter()
    count_components(
        evaluation, ((k, {"max_logit": scorer.ranked("max_logit", s)}, a) for k, a, s in scenes()), "anomaly"
    )
    table = results_table(evaluation, 200)
    return spent + time.perf_counter() - start - making, float(table["f1_star"].iloc[0]), peak_memory()


def run(small: bool) -> list[dict]:
    "1500 maps of 512x512, the test split of StreetHazards (small: 40)."
    n, n_resamples = (40, 50) if small else (1500, 200)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        counting, tables, auroc, memory = pool.submit(_evaluate, n, n_resamples).result()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        seconds, f1, most = pool.submit(_components, n).result()
    assert 0.5 < auroc < 1, "the maps hold a signal"
    note = f"counting {counting:.1f} s, tables with {n_resamples} bootstrap resamples {tables:.1f} s; {memory:.0f} MB of memory at most"
    assert 0 <= f1 <= 1
    parts = {
        **row(
            f"street components, {n} maps",
            seconds,
            None,
            f"pixels and components of {n} maps 512x512, with intervals",
            f"{most:.0f} MB of memory at most",
        ),
        "peak_mb": most,
    }
    return [
        {
            **row(
                f"street evaluation, {n} maps",
                counting + tables,
                None,
                f"mIoU, pooled and per-image figures of {n} maps 512x512",
                note,
            ),
            "peak_mb": memory,
        },
        parts,
    ]
