import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ophjax import trees
from ophjax.errors import InputError
from ophjax.train import loop, mesh
from ophjax.transforms.bundling import bundle
from ophjax.transforms.stepping import begin, descend
from ophjax.types import Stage, TrainState


def specs(shapes, *, model, **options):
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return {
        name: leaf.spec for name, leaf in mesh.state_shardings(tree, mesh.make_mesh(model=model), **options).items()
    }


def test_rule_for_the_state():
    """Small leaves replicate; large ones split their largest axis among those that model divides."""
    shapes = {"bias": (100,), "square": (64, 128), "tall": (999, 128), "odd": (999, 99), "kernel": (3, 3, 64, 64)}
    found = specs(shapes, model=2, small=1000)
    assert found["bias"] == found["odd"] == PartitionSpec()
    assert found["square"] == found["tall"] == PartitionSpec(None, "model")
    assert found["kernel"] == PartitionSpec(None, None, "model", None)
    assert set(specs(shapes, model=1, small=1000).values()) == {PartitionSpec()}, "nothing to split over"
    # The limit itself is large.
    assert specs({"just": (10, 100)}, model=2, small=1000)["just"] == PartitionSpec(None, "model")
    assert specs({"under": (10, 100)}, model=2, small=1001)["under"] == PartitionSpec()
    assert specs({"default": (512, 512)}, model=2)["default"] == PartitionSpec("model", None)
    assert specs({"default": (511, 512)}, model=2)["default"] == PartitionSpec()


def test_overrides_come_first_and_in_order():
    shapes = {"head": (64, 128), "body": (64, 128)}
    overrides = [("head", PartitionSpec("model", None)), ("e|o", PartitionSpec())]
    found = specs(shapes, model=2, small=1, overrides=overrides)
    assert found == {"head": PartitionSpec("model", None), "body": PartitionSpec()}


@pytest.mark.parametrize("sizes", [{"model": 3}, {"model": 0}, {"model": 16}, {"data": 3, "model": 2}, {"data": 0}])
def test_meshes_that_devices_do_not_make(sizes):
    with pytest.raises(InputError, match="8 devices"):
        mesh.make_mesh(**sizes)


def test_meshes():
    assert dict(mesh.make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(mesh.make_mesh(model=4).shape) == dict(mesh.make_mesh(data=2, model=4).shape) == {"data": 2, "model": 4}


def test_processes_lie_one_after_the_other(monkeypatch):
    """Whatever the order that a TPU slice's rings give: each process then reads one block of a batch."""
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: devices[::-1])
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)
    assert [d.id for d in mesh.make_mesh(model=2).devices.flat] == [d.id for d in devices]


def test_share_of_a_process():
    """One process reads whole batches; a batch must divide over data, not over all devices."""
    assert mesh.local_share(mesh.make_mesh(), 24) == (24, 0, 1)
    assert mesh.local_share(mesh.make_mesh(model=4), 6) == (6, 0, 1)
    with pytest.raises(InputError, match=r"batch size is 6.*8 ways.*--train\.batch-size a multiple of 8"):
        mesh.local_share(mesh.make_mesh(), 6)


def test_rows_lie_where_they_belong():
    where = mesh.make_mesh(model=2)
    placed = mesh.place({"index": np.arange(8)}, where)["index"]
    assert placed.sharding == mesh.split_rows(where)
    for shard in placed.addressable_shards:
        row, _ = np.argwhere(where.devices == shard.device)[0]
        np.testing.assert_array_equal(shard.data, [2 * row, 2 * row + 1])


def first_steps(model):
    """Three steps of a linear net whose kernel is large enough to be split, on a mesh; losses, state, shardings."""

    def loss(key, params, extra, batch):
        del key
        return ((batch["x"] @ params["net"]["kernel"]) ** 2).mean(), ({}, {})

    tx = bundle(optax.adam(1e-3))
    kernel = np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)
    params = {"net": {"kernel": jnp.asarray(kernel)}}
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt={"net": begin(tx, params, ("net",))}, extra={})
    where = mesh.make_mesh(model=model)
    shardings = mesh.state_shardings(state, where)
    learn = descend(loss, tx, trains=("net",), slot="net")
    step = loop.compile_step(Stage("only", 3, learn, "train", ("net",)), where, shardings)
    state = jax.device_put(state, shardings)
    batch = mesh.place({"x": np.random.default_rng(1).normal(size=(8, 512)).astype(np.float32)}, where)
    losses = []
    for _ in range(3):
        state, logs = step(jax.random.key(0), state, batch)
        losses.append(float(logs["loss"]))
    return losses, state, shardings


def test_split_parameters_compute_the_same():
    """A kernel and its two moments split over two devices: the losses of the replicated ones, but for the order of
    sums; each device holds half of them, and the step leaves them so."""
    whole, _, _ = first_steps(1)
    split, state, shardings = first_steps(2)
    np.testing.assert_allclose(whole, split, rtol=1e-5)
    leaves = trees.named_leaves(state)
    large = [name for name, leaf in leaves.items() if leaf.size == 512 * 1024]
    assert len(large) == 3
    for name in large:
        assert leaves[name].sharding.spec == trees.named_leaves(shardings)[name].spec == PartitionSpec(None, "model")
        assert leaves[name].addressable_shards[0].data.shape == (512, 512)


def test_shapes_of_a_batch():
    batch = {"image": np.zeros((2, 5, 5, 3), np.uint8), "label": np.zeros(2, np.int32)}
    spec = mesh.spec_of(batch, 8)
    assert {name: (s.shape, s.dtype) for name, s in spec.items()} == {
        "image": ((8, 5, 5, 3), np.uint8),
        "label": ((8,), np.int32),
    }
    everywhere = mesh.replicated(mesh.make_mesh())
    joined = mesh.with_shardings(spec, dict.fromkeys(spec, everywhere))
    assert joined["image"].shape == (8, 5, 5, 3) and joined["image"].sharding == everywhere
