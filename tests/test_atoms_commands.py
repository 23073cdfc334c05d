"The atoms commands as they are typed: settings that cannot work, and the way from a run to roles."

import pytest

from anomaly_nb.cli.main import main


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
