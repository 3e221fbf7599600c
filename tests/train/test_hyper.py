"""A method's networks started by a hypernetwork, and what is refused."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_hyper import write_run

from ophjax import trees
from ophjax.errors import InputError
from ophjax.methods import fccl
from ophjax.nets.hyperinit import hyper_init
from ophjax.train.hyper import load_hyper, parse_source, starter
from ophjax.transforms.generation import kernel_gain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "hyper"
    return folder, write_run(folder)


def test_a_run_gives_back_its_hypernetwork(run):
    folder, state = run
    ghn, params = load_hyper(folder)
    assert ghn.config.classes == 4 and ghn.config.width == 16
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(state.params["hyper"]), strict=True):
        np.testing.assert_array_equal(one, two)


def test_networks_of_another_method_are_started_and_their_heads_left(run, capsys):
    """Kernels, norms and biases change, the head and everything beside the parameters does not; zeros stay zero."""
    folder, _ = run
    method = fccl.make(dataclasses.replace(fccl.Config(), **fccl.SMOKE))
    batch = {
        "image": jnp.zeros((2, 32, 32, 3), jnp.uint8), "label": jnp.zeros(2, jnp.int32), "weight": jnp.ones(2),
        "index": jnp.arange(2),
    }  # fmt: skip
    fresh = jax.jit(method.init)(jax.random.key(0), batch)
    zeroed = trees.map_named(
        lambda name, x: jnp.zeros_like(x) if name == "classifier/backbone/conv2/kernel" else x, fresh.params
    )
    shapes = jax.eval_shape(lambda: batch)
    start = starter(f"hyper:{folder}", method, jax.random.key(1), shapes)
    begun = start(fresh.replace(params=zeroed))
    said = capsys.readouterr().out
    assert "classifier: 6 of 8 parameter tensors" in said
    before, after = trees.named_leaves(zeroed), trees.named_leaves(begun.params)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {f"classifier/backbone/conv{i}/{name}" for i, name in
                       ((1, "kernel"), (3, "kernel"), (1, "bias"), (2, "bias"), (3, "bias"))}  # fmt: skip
    assert jax.tree.structure(begun) == jax.tree.structure(fresh)
    for path, x in after.items():
        assert x.sharding == before[path].sharding and x.dtype == before[path].dtype
    again = starter(f"hyper:{folder}", method, jax.random.key(1), shapes)(fresh.replace(params=zeroed))
    for path, x in trees.named_leaves(again.params).items():
        np.testing.assert_array_equal(x, after[path])


def test_a_run_without_normalisation_predicts_without(run, tmp_path):
    """What the hypernetwork was trained with goes with it: kernels as decoded, not scaled by their fan-in."""
    folder, _ = run
    other = tmp_path / "other"
    assert load_hyper(folder)[0].config.normalise
    write_run(other, normalise=False)
    ghn, params = load_hyper(other)
    assert not ghn.config.normalise
    module, image = nn.Dense(4), jax.ShapeDtypeStruct((1, 32), jnp.float32)
    made = [
        hyper_init(params, module, image, ghn=each, head="predict", noise=0)(jax.random.key(0))["params"]["kernel"]
        for each in (ghn, load_hyper(folder)[0])
    ]
    np.testing.assert_allclose(made[0] * kernel_gain(32, ()), made[1], rtol=1e-5)


def test_what_is_no_hypernetwork_is_refused(run, tmp_path):
    folder, _ = run
    for source in ("", "hyper:", str(folder), "HYPER:x"):
        with pytest.raises(InputError, match="hyper:RUN_FOLDER"):
            parse_source(source)
    with pytest.raises(InputError, match="cannot be read"):
        parse_source(f"hyper:{tmp_path / 'nothing'}")
    other = tmp_path / "other"
    other.mkdir()
    about = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(about | {"method": "fccl"}))
    with pytest.raises(InputError, match="is a run of fccl"):
        load_hyper(other)
    (other / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="no checkpoints"):
        load_hyper(other)
    (other / "checkpoints").mkdir()
    with pytest.raises(InputError, match="whole checkpoint"):
        load_hyper(other)
