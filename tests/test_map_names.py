"""No two images share the file of a map, whatever they are called."""

from itertools import product

from anomaly_nb.scoring.predict import map_names


def test_every_image_has_a_name_of_its_own():
    for size in (1, 2, 3):
        files = ["".join(p) + end for p in product("a._", repeat=size) for end in ("", ".png", ".jpg", ".png.bmp")]
        files = [f for f in files if not f.endswith(".") and f.strip(".")]
        names = map_names([f"x/{f}" for f in files])
        assert len(names) == len(set(names.values())) == len(set(files))
    assert len(set(map_names(["a.png", "a.jpg", "a_png.bmp"]).values())) == 3


def test_names_stay_short_where_nobody_meets():
    assert map_names(["b/x.png", "c/x.png", "c/y.png"]) == {"b/x.png": "b/x", "c/x.png": "c/x", "c/y.png": "c/y"}
    many = [f"{i:05d}.png" for i in range(20000)]
    assert map_names(many)[many[-1]] == "19999"
