"Names of recipes and backbones are looked up before anything runs."

import pytest

from anomaly_nb.core.errors import DataError
from anomaly_nb.reports.benchmark import read_benchmark
from anomaly_nb.reports.run import prepare
from anomaly_nb.reports.sweep import read_plan
from anomaly_nb.scoring import recipe_table
from tests.commands import fails

DATA = {"data": [{"dataset": "samples", "category": "nut"}]}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"recipes": ["knn-euclidean", "trimmed"]}, "benchmark: recipe='trimmed'; known are knn, "),
        ({"recipes": ["knn"], "backbones": ["fliters"]}, "benchmark: backbone='fliters': unknown family 'fliters'; known"),
        ({"recipes": ["knn"], "backbones": [{"backbone": "timm:resnte18"}]}, "benchmark: timm has no model 'resnte18'"),
        ({"recipes": ["winclip"], "backbones": ["open_clip:ViT-B"]}, "benchmark: open_clip has no model 'ViT-B'"),
    ],
)
def test_a_benchmark_refuses_what_it_could_not_measure(plan, words):
    with pytest.raises(DataError, match=f"^{words}"):
        read_benchmark(DATA | plan)


def test_a_check_of_a_plan_ends_with_2(tmp_path, capsys):
    (tmp_path / "plan.yml").write_text("data: [{dataset: samples}]\nrecipes: [knn, trimmed]\n")
    assert "plan.yml: recipe='trimmed'; known are" in fails(capsys, "benchmark", tmp_path / "plan.yml", "--check")


@pytest.mark.parametrize(
    ("template", "parameters", "words"),
    [
        ("method_comparison", {"recipes": "knn,trimmed"}, "recipes='trimmed'; known are knn, "),
        ("few_shot", {"recipes": "trimmed"}, "recipes='trimmed'; known are knn, "),
        ("method_comparison", {"backbones": "filters fliters"}, "backbones='fliters': unknown family"),
        ("image_anomaly", {"backbone": "fliters"}, "backbone='fliters': unknown family"),
        ("video_calibration", {"backbone": "fliters"}, "backbone='fliters': unknown family"),
        ("benchmark_run", {"recipe": "fusion:knn+trimmed"}, "recipe='trimmed'; known are knn, "),
    ],
)
def test_a_report_and_a_sweep_refuse_unknown_names_before_a_kernel_starts(template, parameters, words):
    with pytest.raises(DataError, match=words):
        prepare(template, parameters)
    with pytest.raises(DataError, match=words):
        read_plan({"template": template, "parameters": parameters})


def test_known_names_pass():
    prepare("method_comparison", {"recipes": "knn, fusion:knn+placed", "backbones": "filters filters-1 timm:resnet18"})
    prepare("image_anomaly", {})


def test_a_table_of_some_recipes_has_them_in_their_order():
    some = recipe_table(["padim", "fusion:knn+placed", "knn"])
    assert some["recipe"].tolist() == ["padim", "fusion:knn+placed", "knn"]
    assert list(some) == list(recipe_table()) and len(recipe_table()) > 15
    with pytest.raises(DataError, match="recipe='trimmed'; known are"):
        recipe_table(["knn", "trimmed"])
