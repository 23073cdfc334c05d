"""The rules of features that a wrong constant or side would break unseen: the responses that saved detectors rest on,
cells at the edge of an image, and what a pickle may name.
"""

import pickle

import numpy as np
import pandas as pd
import pytest

from anomaly_nb.core.errors import UnsafeFileError
from anomaly_nb.features.convert import convert_pickled
from anomaly_nb.features.filters import filter_cells, filter_responses_1, oriented
from anomaly_nb.features.geometry import Placement, cells_inside

# Filters


def test_values_below_black_have_features():
    "Resizing leaves some a little below -1."
    cells, _ = filter_cells(np.full((3, 16, 16), -1.2, np.float32))
    assert np.isfinite(cells).all()


def test_responses_of_version_1_are_on_the_scale_they_were_saved_with():
    ramp = np.tile(np.arange(64, dtype=np.float32) / 64, (3, 64, 1))
    assert filter_responses_1(ramp)[3, 32, 32] == pytest.approx(np.log1p(20 / 64), abs=1e-4)


@pytest.mark.parametrize("place", range(4))
def test_an_edge_is_positive_where_light_rises_along_its_angle(place):
    "Of 0, 45, 90 and 135 degrees, from columns to rows."
    angle, (rows, columns) = place * np.pi / 4, np.mgrid[:64, :64].astype(np.float32)
    ramp = np.cos(angle) * columns + np.sin(angle) * rows
    edges = oriented(ramp, (2.0,))[::2, 32, 32]
    assert edges.argmax() == place and edges[place] == pytest.approx(2, rel=1e-3)


# Cells


@pytest.mark.parametrize(
    ("placement", "inside"),
    [
        # centres of cells lie at 4 and 12, and the image ends at 12
        (Placement((12, 16), (12, 16), (0, 0), (16, 16)), [True, False]),
        # rows 13 to 19 hold none of 4, 12, 20 and 28; their middle, 16.5, is nearest to 20
        (Placement((7, 32), (7, 32), (13, 0), (32, 32)), [False, False, True, False]),
    ],
)
def test_cells_whose_centre_lies_in_the_image_count_or_else_the_nearest(placement, inside):
    assert cells_inside(placement, 8)[:, 0].tolist() == inside


# Pickles


@pytest.fixture
def pickled(tmp_path):
    def write(**content):
        path = tmp_path / "features.pkl"
        path.write_bytes(pickle.dumps({"patch_hw": (2, 2), **content}))
        return path

    return write


TABLE = pd.DataFrame({"image_path": ["a.png"], "split": "train", "label": 0, "defect": "good", "mask_path": ""})


def test_the_table_in_a_file_is_that_of_its_features(pickled):
    path = pickled(patches=np.ones((1, 4, 2), np.float32), meta=TABLE)
    assert convert_pickled(path, True, TABLE.assign(image_path="b.png")).meta["image_path"][0] == "a.png"


@pytest.mark.parametrize(("stored", "type"), [(np.float64, np.float32), (np.float16, np.float16)])
def test_features_are_converted_to_no_more_than_single_precision(pickled, stored, type):
    assert convert_pickled(pickled(patches=np.ones((1, 4, 2), stored), meta=TABLE), True).patches.dtype == type


def test_a_dotted_name_in_a_pickle_is_refused(tmp_path):
    "Module and name together are those of an allowed one; names with dots would reach the methods of these too."
    path = tmp_path / "features.pkl"
    path.write_bytes(b"\x80\x04\x8c\x06pandas\x8c\x12arrays.StringArray\x93.")
    with pytest.raises(UnsafeFileError, match=r"names pandas\.arrays\.StringArray"):
        convert_pickled(path, True)
