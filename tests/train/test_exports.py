"""What a method exports of training images: the pictures in the run folder, and their place in the report."""

import numpy as np
from fake_run import make_run, write_config
from PIL import Image

from ophjax.train.report import page
from ophjax.train.results import write_pictures


def test_pictures(tmp_path):
    """Grey PNGs of 8 bits, 255 for 1; several maps side by side, the first on the left."""
    rng = np.random.default_rng(0)
    flat, many = rng.random((2, 5, 6)), rng.random((2, 5, 6, 3))
    write_pictures(tmp_path / "flat", ["a", "ward/b"], flat)
    write_pictures(tmp_path / "many", ["a", "ward/b"], many)
    assert sorted(path.name for path in (tmp_path / "flat").iterdir()) == ["a.png", "ward_b.png"]
    for folder, wanted in (("flat", flat[1]), ("many", np.concatenate([many[1, ..., r] for r in range(3)], 1))):
        with Image.open(tmp_path / folder / "ward_b.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), np.round(255 * wanted))


def test_maps_and_the_caution_stand_in_the_report(tmp_path):
    """Each rater's map under his name with its mean; the caution beside the scores; names are escaped."""
    folder = make_run(tmp_path / "run")
    shown = page.render(page.read_run(folder))
    assert "Maps of training images" not in shown and "Caution." not in shown
    write_config(folder, raters=["reader <1>", "reader 2"], caution="A < B is circular.")
    with np.load(folder / "samples.npz") as arrays:
        samples = dict(arrays)
    rng = np.random.default_rng(0)
    samples |= {
        "train_image": rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8),
        "train_label": np.array([0, 1, 0, 1, 1]),
        "train_name": np.array([f"case-{i}" for i in range(5)]),
        "map_dfgt": rng.random((5, 32, 32)).astype(np.float16),
        "map_expertness": np.stack([np.full((5, 32, 32), 0.25), np.full((5, 32, 32), 0.75)], -1).astype(np.float16),
    }
    np.savez_compressed(folder / "samples.npz", **samples)
    shown = page.render(page.read_run(folder))
    assert "Maps of training images" in shown and "A &lt; B is circular." in shown
    assert "reader &lt;1&gt;<br>0.250" in shown and "reader 2<br>0.750" in shown and "<1>" not in shown
    assert "case-3" in shown and "case-4" not in shown  # four images
