"What callers of the atoms give from Python: sorted tables, arrays of any type, names in the place of numbers."

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError

from anomaly_nb.atoms import divergence, explain, fit_roles, load_clip, planted_presences, presence_scores
from anomaly_nb.atoms import segment_presence
from anomaly_nb.atoms.baselines import ConceptBottleneck, MILProbe
from anomaly_nb.atoms.captions import is_cut, parse_atoms
from anomaly_nb.atoms.evaluation import evaluation_table, held_out_scores
from anomaly_nb.atoms.pipeline import TrainingSet, select_videos
from anomaly_nb.atoms.presence import PresenceCalibration, image_embeddings
from anomaly_nb.atoms.roles import RoleModel
from anomaly_nb.atoms.segments import boundary_probability, fit_delta
from anomaly_nb.core.entries import entries, real_tensor, table_values
from anomaly_nb.core.errors import DataError, Notice


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    "Ten frames of two videos in turn, and their paths."
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(10)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return pd.DataFrame({"path": paths, "video": ["a", "b"] * 5})


def same(a, b):
    "Whether embeddings are those of the same images; batches of another size may round the last digit."
    return torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_embeddings_stand_in_the_order_of_the_frames(clip, frames, tmp_path, cached):
    cache = tmp_path if cached else None
    alone = torch.cat([clip.encode_images([p]) for p in frames.path])
    assert same(image_embeddings(clip, list(frames.path), list(frames.video), cache), alone)
    by_video = frames.sort_values("video", kind="stable")
    assert same(image_embeddings(clip, by_video.path, by_video.video, cache), alone[by_video.index.tolist()])
    mixed = frames.sample(frac=1, random_state=3)
    assert same(image_embeddings(clip, mixed.path, mixed.video, cache), alone[mixed.index.tolist()])
    assert same(image_embeddings(clip, (p for p in mixed.path), mixed.video, cache), alone[mixed.index.tolist()])


@pytest.mark.parametrize(
    "paths, video, words",
    [
        (slice(None), ["a"] * 3, r"video has shape \(3,\) for 10 frames; give one entry a frame"),
        (slice(None), ["a"] * 9 + [None], "1 frame without a video, the first at 9"),
        (slice(None), [0.0] * 8 + [np.nan] * 2, "2 frames without a video, the first at 8"),
        (slice(0), [], "there are no frames"),
    ],
)
def test_frames_and_videos_that_do_not_fit_are_refused(clip, frames, paths, video, words):
    with pytest.raises(DataError, match=words):
        image_embeddings(clip, frames.path[paths], video)


def test_one_text_is_no_list(clip, frames):
    for call in (lambda: clip.encode_texts("a red circle"), lambda: clip.encode_images(str(frames.path[0]))):
        with pytest.raises(DataError, match=r"is one text, .*; give a list of them"):
            call()
    with pytest.raises(DataError, match="texts: the list is empty"):
        clip.encode_texts([])
    texts = pd.Series(["a red circle", "a blue square"], index=[7, 3])
    assert torch.equal(clip.encode_texts(texts), clip.encode_texts(list(texts)))
    assert len(repr(clip)) < 200 and "Clip(local-dir:" in repr(clip)


def test_the_tiny_model_loads_by_its_name(clip):
    from anomaly_nb.features.clip import tiny_clip_folder

    assert clip.sha256 == load_clip("tiny", None).sha256 == load_clip(f"local-dir:{tiny_clip_folder()}").sha256


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-14, 1e-7, 1, 1e15, 1e30])
def test_presence_knows_no_length(scale):
    image, text = torch.eye(3), torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 1, 0]])
    wanted = presence_scores(image, text)
    assert torch.allclose(presence_scores(image * scale, text), wanted, atol=1e-6)
    assert torch.allclose(presence_scores(image, text * scale), wanted, atol=1e-6)
    for wrong in (torch.zeros(1, 3), torch.full((1, 3), np.nan), torch.full((1, 3), np.inf)):
        with pytest.raises(DataError, match="1 embeddings are zero or not finite"):
            presence_scores(wrong, text)


def test_presence_takes_every_type():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(5, 8)), rng.normal(size=(3, 8))
    wanted = presence_scores(torch.tensor(image), torch.tensor(text))
    assert torch.equal(presence_scores(image, text), wanted)
    assert torch.equal(presence_scores(image[::-1], text), wanted.flip(0))
    for kind in (np.float16, np.float32):
        assert torch.allclose(presence_scores(image.astype(kind), torch.tensor(text)), wanted, atol=1e-2)
    with pytest.raises(DataError, match="image_emb: holds <U1 values"):
        presence_scores([["a", "b"]], text)


@pytest.mark.parametrize("method", ["affine", "quantile"])
def test_no_nan_becomes_a_presence(method):
    p = np.random.default_rng(0).random((50, 3))
    calibration = PresenceCalibration(method)
    for call in (lambda: calibration.apply(p), lambda: calibration.save("nowhere.pt")):
        with pytest.raises(NotFittedError, match="fit PresenceCalibration on presences of normal frames first"):
            call()
    assert "not fitted yet" in repr(calibration)
    calibration.fit(p)
    assert "fitted to 3 atoms" in repr(calibration)
    assert torch.equal(calibration.apply(p), PresenceCalibration(method).fit(torch.tensor(p)).apply(torch.tensor(p)))
    for value in (np.nan, np.inf):
        odd = p.copy()
        odd[4, 1] = value
        for call in (calibration.apply, PresenceCalibration(method).fit):
            with pytest.raises(DataError, match=r"presences: 1 of 150 values are NaN or infinite, the first at \(4, 1\)"):
                call(odd)


def test_segments_take_arrays():
    p = np.random.default_rng(0).random((12, 3))
    tensor, b = torch.tensor(p), torch.linspace(0, 1, 12, dtype=torch.double)
    assert torch.equal(divergence(p), divergence(tensor)) and torch.equal(divergence(pd.DataFrame(p)), divergence(tensor))
    assert torch.equal(segment_presence(p, b.numpy()), segment_presence(tensor, b))
    assert torch.equal(boundary_probability(p[:, 0]), boundary_probability(tensor[:, 0]))
    assert fit_delta(p[:, 0]) == fit_delta(tensor[:, 0])
    with pytest.raises(DataError, match="6 frames without a video"):
        divergence(p, ["a"] * 6 + [None] * 6)


@pytest.fixture(scope="module")
def world():
    made = planted_presences(videos=40, events=2, frames=6, random_state=0)
    return made, [f"v{v}" for v in made.video], [f"v{v}" for v in dict.fromkeys(made.video.tolist())]


def quick(p, video, labels, **more):
    return fit_roles(p, video, labels, n_fits=1, epochs=2, **more)


@pytest.mark.parametrize("wrong", [3.0, -0.1, float("nan")])
def test_segments_refuse_boundaries_that_are_no_probability(wrong):
    with pytest.raises(DataError, match=r"boundaries must lie in \[0, 1\]"):
        segment_presence(torch.tensor([[0.2], [0.4], [0.6]]), torch.tensor([1.0, wrong, 0.1]), 2)


@pytest.mark.parametrize("wrong", [7.0, -0.1, float("nan")])
def test_a_bottleneck_refuses_presences_that_are_none(wrong):
    p = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
    video, labels = np.repeat(list("abcdef"), 2), np.array([[0], [1]] * 3)
    fit, odd = ConceptBottleneck().fit(p, video, labels), p.clone()
    odd[3, 1] = wrong
    uses = [fit.score_frames, lambda q: fit.score_videos(q, video), lambda q: ConceptBottleneck().fit(q, video, labels)]
    for use in uses:
        with pytest.raises(DataError, match="presences"):
            use(odd)


@pytest.mark.parametrize(
    "answer, atoms, cut",
    [
        ('["smoke", "fire", "people runn', ("smoke", "fire"), True),
        ('["smoke", "fire",', ("smoke", "fire"), True),
        ('```json\n["smoke"', ("smoke",), True),
        ('["smo', (), True),
        ('["a sign [stop]", "fire"]', ("a sign [stop]", "fire"), False),
        ('Here: ["a \\"quoted\\" word", "b, c"] is all.', ('a "quoted" word', "b, c"), False),
        ("[]", (), False),
        ("- smoke\n- fire", ("smoke", "fire"), False),
    ],
)
def test_whole_atoms_of_an_answer_that_breaks_off_count(answer, atoms, cut):
    assert parse_atoms(answer) == atoms and is_cut(answer) == cut


def test_scores_say_what_has_seen_the_videos_that_are_kept_out_and_the_probe_trains_as_long_as_roles(monkeypatch):
    p, names, events, epochs = torch.rand(40, 2), np.repeat([f"v{i}" for i in range(8)], 5), ["e"], []
    data = TrainingSet(p, names, np.array([[0], [1]] * 4), None, ["a", "b"], events, np.ones((2, 1), bool))
    probe = MILProbe.fit
    monkeypatch.setattr(MILProbe, "fit", lambda *a, **k: epochs.append(k.get("epochs")) or probe(*a, **k))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = held_out_scores(data, 2, ["roles", "linear probe"], n_fits=1, epochs=3)
    assert set(epochs) == {3} and set(evaluation_table(data, scores, 10)["fitted_on_all_videos"]) == {""}
    seen = replace(data, seen_by=("calibration", "delta"))
    with pytest.warns(Notice, match="calibration and delta of the presences were fitted to frames of all videos"):
        scores = held_out_scores(seen, 2, ["roles"], n_fits=1, epochs=1)
    assert set(evaluation_table(seen, scores, 10)["fitted_on_all_videos"]) == {"calibration, delta"}


def test_labels_of_a_table_belong_to_their_video(world):
    made, video, names = world
    wanted = quick(made.p, video, made.labels, events=["fire", "fall"]).roles()
    table = pd.DataFrame(made.labels, index=names, columns=["fire", "fall"])
    turned = table.sample(frac=1, random_state=1)
    assert np.array_equal(quick(made.p, video, turned, events=["fire", "fall"]).roles(), wanted)
    assert np.array_equal(quick(made.p, video, turned[["fall", "fire"]], events=["fire", "fall"]).roles(), wanted)
    assert np.array_equal(quick(made.p, video, table.reset_index(drop=True), events=["fire", "fall"]).roles(), wanted)
    assert np.array_equal(quick(made.p, video, turned.astype(object), events=["fire", "fall"]).roles(), wanted)
    for model in (MILProbe(), ConceptBottleneck()):
        one, two = (model.fit(made.p, video, t, ["fire", "fall"]).score_frames(made.p) for t in (table, turned))
        assert np.array_equal(one, two)


def test_labels_of_a_table_of_other_names_are_refused(world):
    made, video, names = world
    table = pd.DataFrame(made.labels, index=[f"clip {n}" for n in names])
    with pytest.raises(DataError, match=r"labels: its rows are labelled 'clip v0', .*, wanted are 'v0', .*\.to_numpy\(\)"):
        quick(made.p, video, table)
    with pytest.raises(DataError, match="labels: its rows are labelled"):
        quick(made.p, video, pd.DataFrame(made.labels, index=[*names[:-1], names[0]]))
    with pytest.raises(DataError, match="labels: its columns are labelled 'fire', 'fog', wanted are 'fire', 'fall'"):
        quick(made.p, video, pd.DataFrame(made.labels, columns=["fire", "fog"]), events=["fire", "fall"])
    with pytest.raises(DataError, match=r"give \(N, E\), of a single event labels\[:, None\]"):
        quick(made.p, video, made.labels[:, 0])
    for odd in (made.labels.astype(str), [[None, 1]] * len(names)):
        with pytest.raises(DataError, match=r"labels: holds .*pass real numbers"):
            quick(made.p, video, odd)


def test_numbered_videos_are_no_places(world):
    made, _, _ = world
    order = np.argsort(made.video % 7, kind="stable")  # numbered, and not in order
    order = np.concatenate([np.flatnonzero(made.video == v) for v in dict.fromkeys(made.video[order].tolist())])
    video, p = made.video[order], made.p[order]
    names = list(dict.fromkeys(video.tolist()))
    with pytest.raises(DataError, match="labels: its rows are labelled 0, 1, 2"):  # numbers of rows, or of videos?
        quick(p, video, pd.DataFrame(made.labels))
    wanted = quick(p, video, made.labels[names]).roles()
    assert np.array_equal(quick(p, video, pd.DataFrame(made.labels[names], index=names)).roles(), wanted)
    assert np.array_equal(quick(p, video + 1, pd.DataFrame(made.labels[names])).roles(), wanted)


def test_presences_of_every_type_give_the_same_roles(world):
    made, video, _ = world
    atoms = [f"atom {c}" for c in range(made.p.shape[1])]
    wanted = quick(made.p, video, made.labels, atoms=atoms)
    table = pd.DataFrame(made.p, columns=atoms)
    read_only = made.p.copy()
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch says of a table that its array is not writeable
        for p in (table, table[atoms[::-1]], read_only, made.p[::-1].copy()[::-1], torch.tensor(made.p)):
            fit = quick(p, video, pd.DataFrame(made.labels), atoms=atoms)
            assert np.array_equal(fit.roles(), wanted.roles())
            assert np.array_equal(fit.score_videos(p, video), wanted.score_videos(made.p, video))
    assert np.allclose(quick(made.p.astype(np.float16), video, made.labels).roles(), wanted.roles(), atol=1e-2)
    assert repr(wanted) == f"RoleFit(event 0, event 1: {len(atoms)} atoms, 1 fit, topk 10)"


def test_masks_and_seeds_and_events_are_checked(world):
    made, video, _ = world
    c = made.p.shape[1]
    with pytest.raises(DataError, match=rf"mask has shape \({c},\); it must be \(C, E\) = \({c}, 2\)"):
        quick(made.p, video, made.labels, mask=np.ones(c))
    assert RoleModel(c, 2, np.eye(c, 2)).mask.dtype == torch.bool
    for call in (lambda: quick(made.p, video, made.labels, random_state=None), lambda: RoleModel(c, 2, random_state=None)):
        with pytest.raises(DataError, match="random_state=None: give a whole number"):
            call()
    with pytest.raises(DataError, match="random_state=None: give a whole number"):
        MILProbe(random_state=None).fit(made.p, video, made.labels)
    fit = quick(made.p, video, made.labels, events=["fire", "fall"])
    assert explain(fit, made.p[0], "fall", fit.atoms).equals(explain(fit, made.p[0], 1, fit.atoms))
    for model, event in ((fit, "smoke"), (fit, 2), (fit, 0.5), (fit.models[0], "fall")):
        with pytest.raises(DataError, match=f"event is {event!r}; the model has 2 events"):
            explain(model, made.p[0], event, fit.atoms)


def test_entries_and_tables():
    for odd, words in (("a", "is one text"), (b"a", "is one text"), ({"a": 1}, "dict is no list"), ({1}, "set is no list")):
        with pytest.raises(DataError, match=words):
            entries("x", odd)
    for odd in (None, 3, 2.5):
        with pytest.raises(DataError, match="is no list"):
            entries("x", odd)
    assert entries("x", pd.Index(["b", "a"])) == ["b", "a"] and entries("x", np.arange(2)) == [0, 1]
    assert table_values("x", [[1]], ["a"], ["b"]) == [[1]]
    series = pd.Series([1, 2], index=["b", "a"])
    assert table_values("x", series, ["a", "b"]).tolist() == [2, 1]
    assert real_tensor("x", torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    with pytest.raises(DataError, match="complex"):
        real_tensor("x", torch.ones(2, dtype=torch.complex64))


def planted(n=6):
    "Presences of two atoms in six videos, and a table of labels of two events."
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.random((4 * n, 2)).astype(np.float32))
    names = [f"v{i}" for i in range(n)]
    return p, np.repeat(names, 4), pd.DataFrame({"fire": [0, 1] * (n // 2), "fall": [1, 0] * (n // 2)}, index=names)


def test_events_are_called_as_their_columns():
    p, names, table = planted()
    fit = fit_roles(p, names, table, epochs=1, n_fits=1)
    assert fit.events == ["fire", "fall"] and set(fit.stability()["event"]) == {"fire", "fall"}
    assert fit_roles(p, names, table, events=["a", "b"], epochs=1, n_fits=1).events == ["a", "b"]
    for labels in (table.to_numpy(), torch.from_numpy(table.to_numpy()), table.set_axis([0, 1], axis=1)):
        assert fit_roles(p, names, labels, epochs=1, n_fits=1).events == ["event 0", "event 1"]
    for model in (MILProbe(), ConceptBottleneck()):
        with pytest.raises(DataError, match="fire"):
            model.fit(p, names, table.assign(fire=0))


@pytest.mark.parametrize("use", [fit_roles, MILProbe().fit], ids=["fit_roles", "MILProbe"])
def test_a_setting_that_is_none_is_named_with_those_that_are(use):
    with pytest.raises(DataError, match=r"^epoch=6: no setting of the training; known are epochs, freeze_bias_epochs"):
        use(*planted(), epoch=6)


def training_set(**parts):
    p, names, table = planted()
    whole = {"pbar": p, "video": names, "labels": table.to_numpy(), "frame_labels": None, "atoms": ["a", "b"]}
    return TrainingSet(**whole | {"events": ["fire", "fall"], "mask": np.ones((2, 2), bool)} | parts)


def test_a_training_set_takes_lists_and_tensors():
    usual, (_, names, table) = training_set(), planted()
    lists = training_set(video=names.tolist(), labels=table.to_numpy().tolist(), mask=[[True, True]] * 2)
    tensors = training_set(labels=torch.from_numpy(table.to_numpy()), frame_labels=torch.zeros(24))
    for one in (lists, tensors):
        assert one.video.tolist() == one.clip.tolist() == usual.video.tolist()
        assert np.array_equal(one.labels, usual.labels)
    assert select_videos(lists, ["v1"]).labels.tolist() == [[1, 0]]


MISFITS = {
    "labels": {"labels": np.zeros((5, 2), int)},
    "pbar": {"pbar": torch.zeros(23, 2)},
    "mask": {"mask": np.ones((3, 2), bool)},
    "clip": {"clip": ["c"] * 5},
    "frame_labels": {"frame_labels": [0] * 6},
}


@pytest.mark.parametrize("part", MISFITS)
def test_parts_of_a_training_set_fit_together(part):
    with pytest.raises(DataError, match=rf"^{part}: of shape \(.*there are 24 frames of .*2 atoms and 2 events; give"):
        training_set(**MISFITS[part])
