"""Enlarging images and compacting runs by their commands."""

import dataclasses
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_run import drawn_like
from PIL import Image

import compact
import enlarge as enlarging
import presets
import run
from ophjax import trees
from ophjax.errors import InputError
from ophjax.methods import dualsr
from ophjax.metrics.restoration import luma_scores
from ophjax.nets.superres import DRN, inner_of, units
from ophjax.nets.superres_weights import from_state_dict, read_weights, to_state_dict, write_weights
from ophjax.train import host
from ophjax.train.restore import Restored
from ophjax.train.runfolder import plain_config
from ophjax.train.tiles import upscale
from ophjax.transforms import pruning


def nearest(scale):
    return lambda tile: tile.repeat(scale, 0).repeat(scale, 1)


@pytest.mark.parametrize(("height", "width"), [(7, 50), (16, 16), (17, 33), (100, 41)])
@pytest.mark.parametrize("overlap", [0, 5])
def test_tiles_make_the_whole(height, width, overlap):
    """Any size: a local enlargement gives the same in tiles; every tile has the same shape where there are several."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shapes = set()

    def enlarge(tile):
        shapes.add(tile.shape)
        return nearest(2)(tile)

    found = upscale(enlarge, image, scale=2, tile=16, overlap=overlap)
    np.testing.assert_array_equal(found, nearest(2)(image))
    assert shapes == {(min(height, 16), min(width, 16), 3)}


def test_tiles_keep_what_they_share_apart_from_their_edges():
    """A tile's own border never reaches the result where another tile has its inside there."""
    image = np.full((40, 16, 3), 9, np.uint8)

    def enlarge(tile):
        out = nearest(2)(tile).copy()
        out[:4] = out[-4:] = 0  # two input pixels at top and bottom are spoilt
        return out

    found = upscale(enlarge, image, scale=2, tile=16, overlap=4)
    assert (found[4:-4] == 9).all() and (found[:4] == 0).all() and (found[-4:] == 0).all()


def test_rounding_and_clipping():
    image = np.zeros((2, 2, 3), np.uint8)
    found = upscale(lambda tile: np.full((4, 4, 3), 300.0), image, scale=2, tile=8, overlap=1)
    assert (found == 255).all()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    net = DRN(2, 1, 4)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    params = jax.tree.map(lambda leaf: 0.4 * leaf, drawn_like(shapes)["params"])  # about as its own start
    path = tmp_path_factory.mktemp("weights") / "drn.safetensors"
    write_weights(path, to_state_dict(net, params))
    return path


def test_enlarging_with_a_file_of_weights(weights, tmp_path, capsys):
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, shape in ((small, (14, 11, 3)), (large, (28, 23, 3))):
        folder.mkdir()
        image = np.random.default_rng(len(folder.name)).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(image).save(folder / ("eyex2.png" if folder is small else "eye.png"))
    argv = [str(weights), "--images", str(small), "--out", str(tmp_path / "out")]
    scores = enlarging.run([*argv, "--truth", str(large)])
    found = np.asarray(Image.open(tmp_path / "out" / "eyex2.png"))
    assert found.shape == (28, 22, 3)
    truth = np.asarray(Image.open(large / "eye.png")).astype(np.float64)
    assert scores["eyex2"] == pytest.approx(luma_scores(found.astype(np.float64), truth, 2))
    assert "mean of 1: PSNR" in capsys.readouterr().out
    net, params = from_state_dict(read_weights(weights))
    image = np.asarray(Image.open(small / "eyex2.png")).astype(np.float32)
    ours = np.asarray(jax.jit(net.apply)({"params": params}, image[None]).images[-1][0])
    np.testing.assert_allclose(found, ours.clip(0, 255), atol=0.501)
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(found).save(other / "stranger.png")
    with pytest.raises(InputError, match="no image of the same name"):
        enlarging.run([*argv, "--truth", str(other)])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--tile", "8", "--overlap", "8"], "below the tile's side"),
        (["--images", "nowhere.png"], "no image file nowhere.png"),
    ],
)
def test_mistakes(weights, tmp_path, words, match):
    with pytest.raises(InputError, match=match):
        enlarging.run([str(weights), "--images", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *words])


def test_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run"):
        enlarging.read_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"method": "ads", "config": {"method": {}}}))
    with pytest.raises(InputError, match="run of ads"):
        enlarging.read_run(tmp_path)


@pytest.fixture
def compressed(tmp_path, monkeypatch):
    """A run that was never trained and has chosen its channels; its options are others than its preset's."""
    method, data, train = presets.preset("smoke", "dualsr", "superres")
    changes = dict(ratio=0.5, widths="uniform", selection="magnitude", width=4, augment=True, tune_lr=3e-5, steps=7)
    method = dataclasses.replace(method, **changes, tune_steps=5, betas=(0.5, 0.9), scale=2)
    data = dataclasses.replace(data, root="my images", rounded=False, step=8)
    train = dataclasses.replace(train, batch_size=4)
    made = dualsr.make(method)
    size = {"image": (2, 16, 16, 3), "target": (2, 32, 32, 3)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.uint8) for name, shape in size.items()}
    batch["index"] = jax.ShapeDtypeStruct((2,), jnp.int32)
    shapes = jax.eval_shape(made.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes).replace(opt={})
    counts = jnp.asarray(pruning.uniform_counts(pruning.layout(units(dualsr.build(method))), 0.5), jnp.int32)
    state = state.replace(extra=state.extra | {"counts": counts})
    state = next(one for one in made.stages if one.name == "selection").enter(jax.random.key(0), state)
    about = {"preset": "smoke", "data": "superres", "config": plain_config(method=method, data=data, train=train)}
    found = Restored(tmp_path / "half", about, method, data, made, state, 3, {})
    monkeypatch.setattr(enlarging, "read_run", lambda folder: found)
    return found


def test_the_command_that_compact_prints_goes_on_as_the_run_was(compressed):
    """Preset, data and every option are the run's; the net is the smaller one and is tuned. Twice, it is the same."""
    folder = compressed.folder
    said = compact.run([str(folder)])
    (folder / "compact" / "checkpoints" / "0" / "spoilt").touch()
    assert compact.run([str(folder)]) == said
    assert not (folder / "compact" / "checkpoints" / "0" / "spoilt").exists()
    words = shlex.split(said.split("experiments/run.py ")[1])
    chosen, options = run.parse(words)
    assert (chosen.method, chosen.data, chosen.preset) == ("dualsr", "superres", "smoke")
    assert (options.runs / options.name) == folder.with_name("half-compact")
    assert options.data == compressed.data_config and options.train.batch_size == 4
    inner = tuple(int(line) for line in (folder / "compact" / "widths.txt").read_text().split())
    wanted = dict(inner=inner, ratio=0.0, dual_steps=0, lr=3e-5, steps=5, scale=4)
    assert options.method == dataclasses.replace(compressed.config, **wanted)
    assert list(options.start_from) == [f"{name}={folder / 'compact'}" for name in ("primal", "dual")]
    dualsr.make(dataclasses.replace(options.method, scale=2))


def test_compact_never_writes_over_a_run(compressed):
    compressed.folder.mkdir()
    (compressed.folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="another --out"):
        compact.run([str(compressed.folder), "--out", str(compressed.folder)])


@pytest.mark.slow
def test_a_run_is_compacted_and_trained_on(tmp_path, monkeypatch, one_report):
    """Compress and tune; take the channels out; the files agree; train the smaller network in a run of its own."""
    monkeypatch.setattr(host, "prepare_compiler", lambda: None)
    fixed = ["--method", "dualsr", "--preset", "smoke", "--runs", str(tmp_path), "--train.eval-every", "100"]
    first = [*fixed, "--name", "first", "--method.widths", "uniform", "--method.ratio", "0.5"]
    first += ["--method.dual-steps", "0", "--method.steps", "0"]
    assert run.run([*first, "--method.selection", "magnitude"]) == 0
    said = compact.run([str(tmp_path / "first")])
    out = tmp_path / "first" / "compact"
    net, params = from_state_dict(read_weights(out / "primal.safetensors"))
    assert [int(line) for line in (out / "widths.txt").read_text().split()] == list(inner_of(net)) == [4, 8, 8, 8]
    assert f"became {trees.count(params) - 24:,};" in said
    # The folder of the run gives the same compact network as the file.
    own, from_folder = enlarging.load(tmp_path / "first")
    assert own.inner == net.inner
    image = np.random.default_rng(0).uniform(0, 255, (1, 9, 8, 3)).astype(np.float32)
    one, other = (jax.jit(n.apply)({"params": p}, image).images[-1] for n, p in ((own, from_folder), (net, params)))
    np.testing.assert_allclose(one, other, atol=1e-3)
    # What it prints goes on with it.
    assert run.run(shlex.split(said.split("experiments/run.py ")[1])) == 0
    second, _ = enlarging.load(tmp_path / "first-compact")
    assert second.inner == net.inner
    report = (tmp_path / "first-compact" / "report.html").read_text()
    assert "Restored images" in report and "bicubic" in report
