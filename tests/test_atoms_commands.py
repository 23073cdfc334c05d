"The atoms commands as they are typed: settings that cannot work, and the way from a run to roles."

import shlex
from pathlib import Path

import numpy as np
import pytest

from anomaly_nb.atoms.ontology import load_ontology
from anomaly_nb.cli.main import main
from anomaly_nb.core.files import write_text


def ends(capsys, *words: object) -> tuple[int, str, str]:
    "Exit code, standard output and errors of one command."
    with pytest.raises(SystemExit) as end:
        main(["atoms", *map(str, words)])
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err


@pytest.mark.parametrize(
    "option",
    [
        "--delta_quantile 2",
        "--delta_quantile nan",
        "--delta nan",
        "--delta inf",
        "--window -1",
        "--kappa 0",
        "--kappa inf",
        "--lambda_atoms nan --qwen_json c.json",
        "--lambda_resemble -1 --qwen_json c.json",
        "--calibrate minmax",
    ],
)
def test_a_setting_out_of_its_range_is_one_line_before_anything_is_read(tmp_path, capsys, option):
    code, _, said = ends(capsys, "run", "--frames_root", tmp_path / "none", "--out_dir", tmp_path / "o", *option.split())
    assert code == 2 and option.split()[0].strip("-").split("_")[0][:7] in said and "Traceback" not in said, said
    assert len(said.strip().splitlines()) == 1 and "none" not in said and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "option", ["--epochs 0", "--topk 0", "--freeze_bias_epochs -1", "--seeds 0", "--clip_frames 0"]
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_setting_of_the_training_out_of_its_range_is_refused_before_a_run_is_read(tmp_path, capsys, option, command):
    if command == "evaluate" and "freeze" in option:
        return  # it has no such option
    code, _, said = ends(capsys, command, "--manifest_csv", tmp_path / "none.csv", *option.split())
    assert code == 2 and option.split()[0].strip("-").split("_")[0] in said and "none.csv" not in said, said
    assert len(said.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    "Four short films, and one of another day."
    cv2 = pytest.importorskip("cv2")
    home = tmp_path_factory.mktemp("street")
    for name, level in {"a": 40, "b": 80, "c": 120, "d": 160, "new": 200}.items():
        writer = cv2.VideoWriter(str(home / f"{name}.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 64))
        for t in range(20):
            image = np.full((64, 64, 3), level, np.uint8)
            image[8 : 8 + t, 8:40] = (255, level, 10 * t)
            writer.write(image)
        writer.release()
    return home


def command_lines(text):
    "The commands about atoms that a text shows, without program and group."
    lines = [line.partition(" #")[0] for line in text.splitlines() if line.strip().startswith("anomaly-nb atoms ")]
    return [shlex.split(line)[2:] for line in lines]


def test_the_commands_of_the_help_work_as_printed(street, monkeypatch, capsys):
    monkeypatch.chdir(street)
    names = list(load_ontology("incidents").events)
    # of the events of the ontology one has a column that says something, one a column of zeros, the others none
    write_text(street / "events.csv", f"video_id,{names[0]},{names[1]}\na,0,0\nb,1,0\nc,0,0\nd,1,0\n")
    _, shown, _ = ends(capsys, "-h")
    lines = command_lines(shown)
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    assert sorted(command_lines(readme)) == sorted(lines)
    assert [line[0] for line in lines] == ["frames", "run", "train", "evaluate", "frames", "run", "score"]
    for words in lines:
        code, said, error = ends(capsys, *words, *(["--model", "tiny"] if words[0] == "run" else []))
        assert code == 0, (words, said, error)
        if words[0] == "run" and "--events_csv" in words:
            assert f"train with: anomaly-nb atoms train --manifest_csv {lines[2][2]}" in said, said
        if words[0] == "train":
            assert f"event '{names[1]}': no video has it" in error and f" {names[2]}" in error, error


def test_training_is_proposed_only_where_it_can_work_and_the_reason_names_a_way_that_does(street, monkeypatch, capsys):
    monkeypatch.chdir(street)
    assert ends(capsys, "frames", "--video", "a.mp4", "--video", "b.mp4", "--out_dir", "f", "--fps", "5")[0] == 0
    keys = [f"{v}/{t:06d}.jpg,{int(v == 'b')}" for v in "ab" for t in range(20)]
    write_text(street / "labels.csv", "\n".join(keys) + "\n")
    tiny = ("--frames_root", "f", "--model", "tiny", "--labels_csv", "labels.csv")
    code, said, _ = ends(capsys, "run", *tiny, "--out_dir", "many/a")
    assert code == 0 and "train with" not in said and "nothing to train on yet" in said and "--events_csv" in said, said
    name = next(iter(load_ontology("incidents").events))
    write_text(street / "two.csv", f"video_id,{name}\na,0\nb,1\n")
    code, said, _ = ends(capsys, "run", *tiny, "--out_dir", "many/a", "--events_csv", "two.csv")
    assert "train with: anomaly-nb atoms train --manifest_csv many/manifest.csv" in said, said
    assert ends(capsys, "train", "--manifest_csv", "many/manifest.csv", "--epochs", "1", "--seeds", "1")[0] == 0
    write_text(street / "odd.csv", "video_id,nothing\na,0\nb,1\n")
    code, said, _ = ends(capsys, "run", *tiny, "--out_dir", "odd/a", "--events_csv", "odd.csv")
    assert "odd.csv: no column has the name of an event" in said and "--ontology" in said
    # one event: one film that shows it in a part, so that clips can be learned from
    write_text(street / "half.csv", "\n".join(f"b/{t:06d}.jpg,{int(t > 9)}" for t in range(20)) + "\n")
    (street / "one").mkdir()
    (street / "f" / "b").rename(street / "one" / "b")
    half = ("--frames_root", "one", "--model", "tiny", "--labels_csv", "half.csv", "--ontology", "walkway")
    code, said, _ = ends(capsys, "run", *half, "--out_dir", "clips/a")
    assert "train with: anomaly-nb atoms train --manifest_csv clips/manifest.csv --clip_frames 8" in said, said
    more = ("--clip_frames", "8", "--epochs", "1", "--seeds", "1")
    assert ends(capsys, "train", "--manifest_csv", "clips/manifest.csv", *more)[0] == 0
