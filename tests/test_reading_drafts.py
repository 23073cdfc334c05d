'`resize="draft"`: the decoder of JPEGs leaves out what the input is too small to show, everywhere or nowhere.'

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from anomaly_nb.core.errors import DataError
from anomaly_nb.data.images import read_image, read_upright
from anomaly_nb.features import create_backbone, extract_features
from anomaly_nb.scoring import Detector, predict_files


def cloud(i: int, side: tuple[int, int] = (420, 500)) -> Image.Image:
    "A cloudy image; every third has a dark spot."
    rng = np.random.default_rng(i)
    image = 128 + 600 * gaussian_filter(rng.normal(size=(*side, 3)), (6, 6, 0)) + rng.normal(0, 3, (*side, 1))
    if i % 3 == 2:
        image[100:180, 200:280] -= 90
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Normal JPEGs, and new ones."
    folder = tmp_path_factory.mktemp("photos")
    files = {
        "train": [folder / f"{i:02}.jpg" for i in range(0, 36, 3)],
        "new": [folder / f"{i:02}.jpg" for i in (1, 2)],
    }
    for path in files["train"] + files["new"]:
        cloud(int(path.stem)).save(path, quality=92)
    return files


@pytest.fixture(scope="module")
def detector(photos):
    "A detector that reads drafts."
    return Detector("knn", "filters", image_size=64, resize="draft").fit(photos["train"])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "progressive", "turned", "MPO"])
def test_every_kind_of_jpeg_is_read_small_and_nearly_the_same(mode, tmp_path):
    "Colour, grey, print colours, progressive, turned by EXIF, of two pictures: upright RGB, with the size of the file."
    path, image = tmp_path / "x.jpg", cloud(2)
    options = {"quality": 95}
    if mode == "progressive":
        options["progressive"] = True
    elif mode == "turned":
        options["exif"] = Image.Exif()
        options["exif"][274] = 8
    elif mode == "MPO":
        path, options = tmp_path / "x.mpo", options | {"save_all": True, "append_images": [cloud(0)]}
    else:
        image = image.convert(mode)
    image.save(path, **options)
    small, clipped, info = read_upright(path, enough=100)
    whole = read_image(path)
    assert small.mode == "RGB" and clipped == 0 and info.size == whole.shape[:2]
    assert small.size == tuple(side // 4 for side in whole.shape[1::-1])
    near = np.asarray(Image.fromarray(whole).resize(small.size, Image.Resampling.BOX), int)
    assert np.abs(near - np.asarray(small, int)).mean() < 1.5


def test_the_same_bits_wherever_a_file_is_read(detector, photos, tmp_path):
    "In memory, from the disk, in another process; rotated copies of what was learned only bring patches nearer."
    new = [str(p) for p in photos["new"]]
    scores = [p.score for p in predict_files(detector, new)]
    assert scores == detector.score(new).tolist()
    folder = detector.save(tmp_path / "saved")
    assert [p.score for p in predict_files(Detector.load(folder), new)] == scores
    code = (
        "import sys\nfrom anomaly_nb.scoring import Detector, predict_files\n"
        "print([p.score for p in predict_files(Detector.load(sys.argv[1]), sys.argv[2:])])"
    )
    child = subprocess.run([sys.executable, "-c", code, str(folder), *new], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == str(scores)
    turned = Detector("knn", "filters", image_size=64, resize="draft", angles=(0.0, 90.0)).fit(photos["train"])
    assert turned.spec_["resize"] == "draft" and (turned.score(new) <= detector.score(new) + 1e-5).all()


def test_a_draft_decides_as_the_whole_does(detector, photos):
    "Scores are near those of a detector that reads all pixels, and not the same; the spot stands out in both."
    whole = Detector("knn", "filters", image_size=64, resize="square").fit(photos["train"])
    small, large = (list(predict_files(d, photos["new"])) for d in (detector, whole))
    assert [p.anomalous for p in small] == [p.anomalous for p in large] and small[1].score > 2 * small[0].score
    assert [p.score for p in small] != [p.score for p in large]
    assert np.allclose([p.score for p in small], [p.score for p in large], rtol=0.15)


def test_other_files_and_images_without_much_to_leave_out_are_read_whole(tmp_path):
    "PNGs, and JPEGs that are not 1.5 times two times as large as the input."
    draft, square = (create_backbone("filters", image_size=96, resize=r) for r in ("draft", "square"))
    cloud(0).save(tmp_path / "x.png")
    cloud(0, (250, 287)).save(tmp_path / "x.jpg")
    for name in ("x.png", "x.jpg"):
        a, b = (net.transform(read_upright(tmp_path / name, enough=net.spec.enough)[0]) for net in (draft, square))
        assert np.array_equal(a, b)


def test_a_table_with_the_boxes_of_whole_images_is_read_as_one_without(photos):
    "The box of all of an image is no reason to read all of it."
    table = pd.DataFrame({"image_path": [str(p) for p in photos["new"]]})
    boxed = table.assign(top=0, left=0, bottom=420, right=500, height=420, width=500)
    draft = create_backbone("filters", image_size=64, resize="draft")
    assert np.array_equal(extract_features(table, draft).patches, extract_features(boxed, draft).patches)


def test_a_cut_file_is_named_as_ever(detector, photos, tmp_path):
    "A JPEG that ends too soon is a row with an error, and no fit."
    path = tmp_path / "cut.jpg"
    path.write_bytes(photos["new"][0].read_bytes()[:4000])
    (row,) = predict_files(detector, [path])
    assert "cut.jpg" in row.error and "damaged" in row.error
    with pytest.raises(DataError, match=r"cut\.jpg: damaged"):
        Detector("knn", "filters", image_size=64, resize="draft").fit([*photos["train"], path])


def test_what_a_draft_cannot_be_is_said(detector, tmp_path):
    "Tiles, regions and the exported graph are of whole images."
    with pytest.raises(DataError, match="tiles are square"):
        create_backbone("filters", resize="draft", tile=64, overlap=8)
    with pytest.raises(DataError, match="a region is in pixels of the whole image"):
        create_backbone("filters", resize="draft", region="0,0,50,50")
    with pytest.raises(DataError, match="resize='draft' is not exported"):
        detector.export(tmp_path / "line")
