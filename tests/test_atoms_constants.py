"""The rules of atoms that a wrong constant, seed or scale would break unseen: presences, evidence in log space, unions of
frames, the baselines, roles and how videos are dealt and ranked.
"""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sklearn.model_selection
import torch

from anomaly_nb.atoms import baselines, presence
from anomaly_nb.atoms.baselines import ConceptBottleneck, MILProbe
from anomaly_nb.atoms.evaluation import auroc_within, deal_parts
from anomaly_nb.atoms.evidence import evidence, log1mexp, log_absence, log_pair_absence
from anomaly_nb.atoms.presence import PresenceCalibration, caption_resemblance, image_embeddings
from anomaly_nb.atoms.roles import RoleFit, RoleModel, explain, fit_roles
from anomaly_nb.atoms.union import log_no_event, union_loss
from anomaly_nb.core.errors import DataError


def double(values):
    return torch.tensor(values, dtype=torch.double)


# Presences


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.8), (0.6, 0.605)])  # cosines lie close together
def test_a_presence_runs_from_the_5th_to_the_95th_percentile_of_normal_frames(low, high):
    calibration = PresenceCalibration().fit(torch.linspace(low, high, 101, dtype=torch.double)[:, None])
    seen = low + (high - low) * double([0, 0.05, 0.275, 0.5, 0.95, 1])
    wanted = double([0, 0, 0.25, 0.5, 1, 1])  # never below 0 or above 1
    assert torch.allclose(calibration.apply(seen[:, None]).flatten(), wanted, atol=1e-6)


def test_a_presence_that_equals_all_others_is_in_their_middle():
    calibration = PresenceCalibration("quantile").fit(torch.full((50, 1), 0.5))
    assert float(calibration.apply(torch.tensor([[0.5]]))) == 0.5


def test_presences_are_calibrated_on_normal_frames_alone(monkeypatch):
    seen = torch.linspace(0, 1, 100)[:, None]
    monkeypatch.setattr(presence, "load_clip", lambda *a: SimpleNamespace(sha256=""))
    for name, value in (("text_embeddings", None), ("image_embeddings", None), ("presence_scores", seen)):
        monkeypatch.setattr(presence, name, lambda *a, value=value: value)

    class Frames:
        keys = paths = video = ()

        def __len__(self):
            return 100

    settings = presence.PresenceSettings(calibrate="affine")
    got = presence.measure_presence(Frames(), SimpleNamespace(atoms=["a"]), np.arange(100) < 50, settings=settings)
    assert torch.equal(got.calibration.table_, PresenceCalibration().fit(seen[:50]).table_)


def test_an_atom_resembles_the_most_similar_thing_that_was_said():
    vectors = {"cat": [1.0, 0], "dog": [0, 1.0]}
    clip = SimpleNamespace(encode_texts=lambda texts: torch.tensor([vectors[t] for t in texts]))
    captions = {"f": SimpleNamespace(atoms=["cat", "dog"])}
    assert caption_resemblance(captions, ["f"], clip, torch.tensor([[1.0, 0]])).tolist() == [[1]]


def test_each_model_has_embeddings_of_its_own_in_a_cache(tmp_path):
    (tmp_path / "a.png").write_bytes(b"frame")
    values = []
    for k in (1, 2):
        clip = SimpleNamespace(
            sha256=str(k), encode_images=lambda paths, batch, k=k: torch.full((len(paths), 2), k / 1)
        )
        values.append(image_embeddings(clip, [tmp_path / "a.png"], ["v"], tmp_path / "cache")[0, 0].item())
    assert values == [1, 2]


# Evidence


@pytest.mark.parametrize(("x", "wanted"), [(-19.0, math.log1p(-math.exp(-19.0))), (-1e-12, math.log(1e-12))])
def test_the_logarithm_of_a_complement_keeps_its_digits(x, wanted):
    assert float(log1mexp(double([x]))) == pytest.approx(wanted, rel=1e-15 if x < -1 else 1e-9, abs=0)


@pytest.mark.parametrize(
    ("atoms", "present", "strength", "wanted"),
    [(16, 1e-12, 0.5, -8e-12), (64, 1.0, 1 - 1e-6, 64 * math.log(1e-6))],  # hardly there, and many that suffice
)
def test_absences_keep_their_digits_at_both_ends(atoms, present, strength, wanted):
    got = log_absence(torch.full((1, atoms), present, dtype=torch.double), torch.full((atoms, 1), strength).double())
    exact = atoms * math.log1p(-float(torch.tensor(strength)) * present)
    assert float(got) == pytest.approx(exact, rel=1e-9, abs=0) and exact == pytest.approx(wanted, rel=1e-2, abs=0)


def test_one_atom_makes_no_pair_and_no_probability_above_1():
    rng = torch.Generator().manual_seed(0)
    for seed in range(100):
        roles = torch.zeros(30, 2)
        roles[seed % 30] = 0.3
        assert float(log_pair_absence(torch.rand(20, 30, generator=rng), roles).max()) <= 0


def test_an_atom_that_speaks_against_certain_evidence_has_its_whole_slope():
    "At K = 0 the logit of the counter-evidence rises by the odds of the support, here a million to the eighth."
    none = torch.zeros(8, 1, dtype=torch.double)
    counter = none.clone().requires_grad_()
    support = torch.full((8, 1), 1 - 1e-6, dtype=torch.double)
    evidence(torch.ones(1, 8, dtype=torch.double), support, none, counter).counter.sum().backward()
    assert counter.grad.log().flatten().tolist() == pytest.approx([8 * math.log(1e6)] * 8, rel=1e-6)


# Unions of frames


def test_a_video_counts_a_frame_and_one_more_for_each_sixteen():
    z = torch.arange(50.0)[:, None] / 50
    wanted = [-torch.nn.functional.softplus(part).sum() for part in (z[9:10], z[47:])]  # one of 10, and three of 40
    assert torch.allclose(log_no_event(z, [10, 40])[:, 0], torch.stack(wanted))


def test_the_loss_is_a_mean_over_videos_and_events():
    log_none = torch.log(torch.tensor([[0.5, 0.25], [0.5, 0.5]]))
    wanted = -np.log([0.5, 0.25, 0.5, 0.5]).mean()  # of no event in the three, and of one in the first
    assert float(union_loss(log_none, torch.tensor([[1, 0], [0, 0]]))) == pytest.approx(wanted, rel=1e-6)


# Baselines

VIDEO = np.repeat(np.arange(12), 8)
LABELS = (np.arange(12) % 2)[:, None]  # every second video shows the event


@pytest.fixture
def presences():
    "Of three atoms, the first of which shows the event."
    p = torch.rand(96, 3, generator=torch.Generator().manual_seed(0))
    p[:, 0] = 0.3 * p[:, 0] + 0.6 * torch.from_numpy(LABELS[VIDEO, 0]).float()
    return p


def test_an_atom_that_never_changes_spoils_no_probe(presences):
    presences[:, 2] = 0.5
    assert np.isfinite(MILProbe().fit(presences, VIDEO, LABELS, epochs=3).score_frames(presences)).all()


@pytest.mark.parametrize(("topk", "count"), [(1, 1), (2, 2), (10, 4)])
def test_a_probe_scores_a_video_by_its_top_frames(topk, count):
    p, video = torch.rand(4 * 48, 3, generator=torch.Generator().manual_seed(0)), np.repeat(np.arange(4), 48)
    probe = MILProbe(topk).fit(p, video, np.array([[0], [1], [0], [1]]), epochs=2)
    frames = np.sort(probe.score_frames(p).reshape(4, 48))
    np.testing.assert_allclose(probe.score_videos(p, video)[:, 0], frames[:, -count:].mean(axis=1))


def test_a_sparse_probe_has_small_weights(presences):
    weak, strong = (
        MILProbe(sparsity=s).fit(presences, VIDEO, LABELS, epochs=60).weight.abs().max().item() for s in (0.001, 10.0)
    )
    assert strong < 0.2 * weak


def test_the_penalty_of_a_probe_is_the_sum_over_atoms():
    probe = MILProbe()
    probe.weight = torch.nn.Parameter(torch.tensor([[1.0, -2], [3, 4]]))
    assert probe.penalty().item() == 5  # of each event 4 and 6


def test_a_probe_learns_its_bias_from_the_first_epoch(presences, monkeypatch):
    settings = []
    monkeypatch.setattr(baselines, "train_on_videos", lambda *a, **more: settings.append(more["settings"]))
    MILProbe().fit(presences, VIDEO, LABELS)
    assert settings[0].freeze_bias_epochs == 0


def test_a_bottleneck_chooses_by_likelihood_in_folds_of_its_seed(presences, monkeypatch):
    "By accuracy most strengths would be alike on few videos."
    seen = {}

    def noted(name, option):
        real = getattr(sklearn.model_selection, name)

        def made(*values, **options):
            seen[option] = options.get(option)
            return real(*values, **options)

        monkeypatch.setattr(sklearn.model_selection, name, made)

    noted("StratifiedKFold", "random_state")
    noted("GridSearchCV", "scoring")
    ConceptBottleneck(random_state=7).fit(presences, VIDEO, LABELS)
    assert seen == {"random_state": 7, "scoring": "neg_log_loss"}


def test_a_bottleneck_refuses_two_videos_of_a_class(presences):
    with pytest.raises(DataError, match="fewer than 3 videos"):
        ConceptBottleneck().fit(presences, VIDEO, (np.arange(12) > 1)[:, None].astype(int))


# Roles


def role_fit(seeds=3, topk=10, **options):
    models = [RoleModel(3, 1, random_state=s, **options) for s in range(seeds)]
    return RoleFit(models, list("abc"), ["e"], topk, pd.DataFrame())


def test_roles_score_a_video_by_as_many_frames_as_they_were_learned_from():
    frames = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    one, five = (role_fit(1, topk).score_videos(frames, np.zeros(64)) for topk in (1, 5))
    assert one != five


@pytest.mark.parametrize(("option", "values"), [("topk", (1, 4)), ("sparsity", (0.0, 0.5))])
def test_roles_are_learned_with_their_settings(option, values):
    p = torch.rand(12 * 48, 3, generator=torch.Generator().manual_seed(0))
    one, two = (
        fit_roles(p, np.repeat(np.arange(12), 48), LABELS, n_fits=1, epochs=3, **{option: value}) for value in values
    )
    assert one.history["loss"].tolist() != two.history["loss"].tolist()
    assert not np.array_equal(one.roles(), two.roles())


def test_a_table_of_roles_by_hand():
    fit = role_fit()
    for row in fit.table(0.0).itertuples():
        strengths = fit.roles()[:, ["direct", "indirect", "counter"].index(row.role), "abc".index(row.atom), 0]
        assert row.strength == pytest.approx(strengths.mean()) and row.spread == pytest.approx(strengths.std())
    assert len(fit.table(0.0)) == 9


def test_a_table_of_roles_is_cut_at_the_mean_strength():
    fit = role_fit()
    fit.models[0].theta.data[1, 0] = 5.0  # strong in one of three fits
    assert (fit.table(0.5)["strength"] >= 0.5).all() and fit.roles().max() > 0.5


def test_roles_come_back_from_a_file_with_their_leak(tmp_path, presences):
    fit = role_fit(1, leak=0.3)
    again = RoleFit.load(fit.save(tmp_path / "roles.pt"))
    assert np.array_equal(again.score_frames(presences), fit.score_frames(presences))


def test_an_explanation_is_the_mean_of_the_fits_terms():
    fit = role_fit(2)
    fit.models[0].theta.data[1, 0] = 5.0  # one fit takes the first atom for a sign, the other does not
    terms = explain(fit, torch.ones(3), 0, list("abc")).query("evidence_type == 'direct'").set_index("atoms")["term"]
    assert terms["a"] == pytest.approx(np.mean([-np.log1p(-m.roles()[0, 0, 0].item()) for m in fit.models]))


# Evaluation


def test_pairs_of_one_part_alone_are_ranked():
    y, score, part = [1, 0, 1, 0, 0, 0], [1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]
    assert auroc_within(y, score, part) == 0.25  # one pair of four


def test_videos_of_an_event_are_dealt_over_all_parts():
    y = (np.arange(20) < 5)[:, None].astype(int)
    parts = deal_parts(y, np.arange(20), ["e"], 5)
    assert sorted(parts[:5]) == list(range(5)) and np.bincount(parts).tolist() == [4] * 5


def test_videos_are_dealt_into_at_most_five_parts():
    assert deal_parts((np.arange(40) % 2)[:, None], np.arange(40), ["e"]).max() == 4
