"""What the dry run says of memory is what a real step takes of a device, within 15 per cent."""

import dataclasses

import jax
import pytest
from made_run import fill

import presets
from ophjax import data as datasets
from ophjax import methods
from ophjax.train import loop, mesh
from ophjax.train.estimate import estimate


def on_first_device(tree):
    """Bytes that arrays hold there."""
    first = jax.devices()[0]
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards
               if shard.device == first)  # fmt: skip


def test_memory_of_a_step():
    """Real arrays on eight devices through the loop's own step: the arrays that lie on one device before and after are
    counted one by one, what the program takes besides is its compiled temporaries."""
    config, data_config, train = presets.preset("smoke", "fccl")
    data = datasets.load("lesions").make(data_config)
    method = methods.load("fccl").make(methods.fit_to(config, data))
    train = dataclasses.replace(train, batch_size=32)
    said = estimate(method, data, train)["bytes_per_device"]

    where = mesh.make_mesh()
    arrays = next(iter(loop.eval_split(data, "val", train, where)))
    state = fill(jax.eval_shape(method.init, jax.random.key(0), loop.batch_spec(data, train, where)))
    shardings = mesh.state_shardings(state, where)
    state, batch, following = jax.device_put(state, shardings), mesh.place(arrays, where), mesh.place(arrays, where)
    held = on_first_device((state, batch, following))
    step = loop.compile_step(method.stages[0], where, shardings).lower(jax.random.key(0), state, batch).compile()
    old = jax.tree.leaves(state.params)[0]
    state, logs = step(jax.random.key(0), state, batch)
    assert old.is_deleted(), "the new state lies where the old one lay"
    assert on_first_device((state, batch, following)) == held
    real = held + on_first_device(logs) + step.memory_analysis().temp_size_in_bytes
    assert said == pytest.approx(real, rel=0.15)
    assert 0.15 * real < held < 0.85 * real, "neither part alone would do"
