"""Every report template through a real kernel: with small parameters, with others, twice to the same bits, and refused."""

import json
import re
from pathlib import Path

import pytest

from anomaly_nb.core.errors import DataError
from anomaly_nb.core.plain import read_json
from anomaly_nb.reports import ReportError, run_report, templates

# small enough for every check; the second set takes another way through the report
SMALL = {
    "image_anomaly": [
        {"category": "granite", "image_size": 96},
        {
            "category": "nut",
            "recipe": "winclip",
            "backbone": "open_clip:tiny",
            "image_size": 0,
            "image_reduce": "",
            "shots": 0,
        },
        {
            "category": "weave",
            "image_size": 96,
            "bank": "mahalanobis",
            "image_reduce": "max",
            "threshold": "youden",
            "seed": 3,
        },
    ],
    "atoms": [{"videos": 40, "epochs": 10}, {"videos": 100, "epochs": 5, "random_state": 1, "calibrate": "quantile"}],
    "street_anomaly": [
        {"train_scenes": 16, "test_scenes": 8, "epochs": 2, "n_resamples": 50, "methods": "max_logit,energy,heat"},
        {"train_scenes": 16, "test_scenes": 8, "epochs": 1, "n_resamples": 50, "methods": "sml,msp", "seed": 1},
    ],
    "street_ablation": [
        {"train_scenes": 8, "test_scenes": 8, "epochs": 1},
        {"train_scenes": 8, "test_scenes": 8, "epochs": 1, "study": "scale_range", "method": "energy", "seeds": "0"},
    ],
    "method_comparison": [
        {"categories": "nut", "recipes": "patchcore,padim,subspacead", "image_size": 64, "n_resamples": 50},
        {
            "categories": "wood,weave",
            "recipes": "anomalydino,whitened",
            "image_size": 64,
            "seeds": "0,1",
            "validate": False,
            "n_resamples": 50,
            "shots": "0,2",
            "n_repeats": 2,
        },
    ],
    "calibration_drift": [{"batches": 3}, {"batches": 2, "policy": "auto", "min_files": 40, "seed": 5}],
    "few_shot": [
        {"categories": "red circle", "recipes": "winclip,knn", "shots": "0,1", "seeds": 2},
        {
            "dataset": "samples",
            "categories": "nut",
            "recipes": "knn",
            "backbones": "filters",
            "image_size": 48,
            "shots": "1,4",
            "seeds": 2,
            "sample": "order",
        },
    ],
    "video_calibration": [
        {"image_size": 32},
        {"image_size": 32, "k": 1, "metric": "cosine", "max_image_count": 90, "seed": 2},
    ],
}


SMALL |= {
    "benchmark_run": [{"category": "nut", "image_size": 48, "shots": [2]}],
    "benchmark": [
        {"results": "results.csv"},
        {"results": "results.csv", "metric": "aupro", "references": "published.csv"},
    ],
}
DRAWN = {"benchmark_run": 0, "few_shot": 1}  # images on the page; 2 of all others
RESULTS = """data,method,recipe,backbone,shots,seed,status,error,image_auroc,aupro
""" + "".join(
    f"{d},{m},{m},filters,{s},0,ok,,{0.8 + 0.02 * i + 0.01 * j},{0.5 + 0.03 * i}\n"
    for j, d in enumerate("abcdef")
    for i, m in enumerate(("knn", "padim", "spade"))
    for s in (2, -1)
)
PUBLISHED = "method,backbone,data,metric,value,source\nknn,resnet,a,aupro,0.9,a paper\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder to run in, so that relative data and cache folders are its own."
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("reports")
        patch.chdir(folder)
        (folder / "results.csv").write_text(RESULTS)
        (folder / "published.csv").write_text(PUBLISHED)
        yield folder


def essence(notebook):
    "Sources and outputs of an executed notebook, without times, ids and the name of the run's folder."
    cells = json.loads(Path(notebook).read_text())["cells"]
    kept = [
        [c["source"], [{k: v for k, v in o.items() if k != "execution_count"} for o in c.get("outputs", [])]]
        for c in cells
    ]
    return re.sub(r'out = \\"[^"]*\\"', "", json.dumps(kept))


def test_every_template_is_tested():
    assert set(SMALL) == set(templates())


@pytest.mark.parametrize(("name", "parameters"), [(n, p) for n, sets in SMALL.items() for p in sets])
def test_template_runs(place, name, parameters, request):
    if parameters is SMALL[name][0]:  # what a template needs it imports itself
        request.getfixturevalue("fresh_kernels")
    run = run_report(name, parameters, figures="figures")
    assert run.status == "ok" and run.metrics
    assert read_json(run.folder / "run.json")["provenance"]["versions"]["numpy"]
    page = run.page.read_text()
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", page)
    assert page.count("data:image/png") >= DRAWN.get(name, 2)
    assert run.folder.name in (place / "figures" / "index.html").read_text()


@pytest.mark.parametrize("name", SMALL)
def test_unknown_parameter_is_refused_before_anything_runs(place, name):
    before = sorted((place / "figures").rglob("*"))
    with pytest.raises(DataError, match="no parameter 'sede'"):
        run_report(name, {"sede": 1}, figures="figures")
    assert sorted((place / "figures").rglob("*")) == before


def test_same_parameters_same_bits(place, request):
    from anomaly_nb.data import write_samples

    write_samples(place / "few", n_train=8, n_good=4, n_defect=1, size=96)
    given = {"dataset": "mvtec", "root": "few", "category": "nut", "image_size": 96, "coreset": 0.1}
    first = run_report("image_anomaly", given, figures="bits1", force=True)
    other = run_report("image_anomaly", given | {"seed": 1}, figures="bits3")
    request.getfixturevalue("fresh_kernels")  # a process that shares nothing with the one before, hash seed included
    second = run_report("image_anomaly", given, figures="bits2", force=True)
    for name in ("scores.csv", "metrics.json", "by_defect.csv"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name
    assert essence(first.folder / "notebook.ipynb") == essence(second.folder / "notebook.ipynb")
    assert (first.folder / "scores.csv").read_bytes() != (other.folder / "scores.csv").read_bytes()
    detectors = [run.record["outputs"]["detector"] for run in (first, second, other)]
    assert detectors[0] == detectors[1] != detectors[2]


def test_own_folder_without_defects(place):
    from PIL import Image

    from anomaly_nb.data import draw_sample

    for i in range(12):
        path = place / "mine" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw_sample("wood", number=i, size=96)[0]).save(path)
    run = run_report(
        "image_anomaly", {"dataset": "folder", "root": "mine", "category": "", "image_size": 96}, figures="figures"
    )
    assert run.metrics["threshold"] > 0 and "image_auroc" not in run.metrics


def test_damaged_data_fails_with_the_file_and_a_page(place):
    from anomaly_nb.data import write_samples

    write_samples(place / "broken", n_train=3, n_good=1, n_defect=1, size=64)
    victim = place / "broken" / "wood" / "train" / "good" / "001.png"
    victim.write_bytes(victim.read_bytes()[:900])
    with pytest.raises(ReportError, match=r"001\.png: damaged") as caught:
        run_report(
            "image_anomaly",
            {"dataset": "mvtec", "root": "broken", "category": "wood", "image_size": 64},
            figures="figures",
        )
    assert Path(re.search(r"see (\S+)", str(caught.value))[1]).exists()


def test_a_head_without_a_number_is_left_out_of_the_drift_report(tmp_path, monkeypatch):
    import numpy as np
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    for name, scores in (("a", np.random.default_rng(0).gamma(4, size=120)), ("b", np.full(120, np.nan))):
        pd.DataFrame({"file": [f"{i}.png" for i in range(120)], "score": scores}).to_csv(f"{name}.csv", index=False)
    done = run_report("calibration_drift", {"scores": "a.csv,b.csv", "heads": "a,b", "batches": 2})
    page = done.page.read_text()
    assert done.metrics["heads"] == 1 and "b is left out: none of its 120 scores is a number" in page
    with pytest.raises(ReportError, match="b is left out: none of its 120 scores is a number; score these files again"):
        run_report("calibration_drift", {"scores": "b.csv", "heads": "b", "batches": 2})
