import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.data import augment
from ophjax.data.augment import unit

# Compiled whole, which is quicker than operation by operation.
flip, jitter = jax.jit(augment.flip), jax.jit(augment.jitter)


def make_batch(count=16, raters=False):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (count, 6, 8, 3), np.uint8),
        "mask": rng.integers(0, 2, (count, 6, 8, 2), np.uint8),
        "label": np.arange(count, dtype=np.int32) % 2,
        "index": np.arange(count, dtype=np.int32) * 3,
        "weight": np.ones(count, np.float32),
    }
    if raters:
        batch["raters"] = rng.integers(0, 2, (count, 3, 6, 8, 2), np.uint8)
    return {key: jnp.asarray(value) for key, value in batch.items()}


def test_unit():
    values = unit(jnp.asarray([0, 51, 255], jnp.uint8))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [0, 0.2, 1], rtol=1e-6)


@pytest.mark.parametrize("raters", [False, True])
def test_flip_is_joint(raters):
    batch = make_batch(raters=raters)
    flipped = flip(jax.random.key(0), batch)
    assert flipped.keys() == batch.keys()
    mirrored = []
    for row in range(16):
        moved = bool((flipped["image"][row] != batch["image"][row]).any())
        mirrored.append(moved)
        for name in ("image", "mask", "raters") if raters else ("image", "mask"):
            before = np.asarray(batch[name][row])
            np.testing.assert_array_equal(flipped[name][row], before[..., ::-1, :] if moved else before)
            assert flipped[name].dtype == batch[name].dtype
    assert 0 < sum(mirrored) < 16
    for name in ("label", "index", "weight"):
        np.testing.assert_array_equal(flipped[name], batch[name])


def test_half_are_flipped():
    batch = {
        "image": jnp.broadcast_to(jnp.arange(2, dtype=jnp.uint8)[:, None], (2000, 1, 2, 1)),
        "index": jnp.arange(2000, dtype=jnp.int32),
    }
    share = float(flip(jax.random.key(1), batch)["image"][:, 0, 0, 0].mean())
    assert abs(share - 0.5) < 4 * 0.5 / 2000**0.5  # four standard deviations


@pytest.mark.parametrize("function", ["flip", "jitter"])
def test_result_follows_the_index_not_the_row(function):
    def change(key, batch):
        if function == "flip":
            return flip(key, batch)["image"]
        return jitter(key, unit(batch["image"]), batch["index"])

    batch = make_batch()
    order = np.random.default_rng(1).permutation(16)
    whole = change(jax.random.key(2), batch)
    mixed = change(jax.random.key(2), {key: value[order] for key, value in batch.items()})
    half = change(jax.random.key(2), {key: value[4:9] for key, value in batch.items()})
    np.testing.assert_array_equal(mixed, whole[order])
    np.testing.assert_array_equal(half, whole[4:9])
    assert (change(jax.random.key(3), batch) != whole).any()


def test_sharded_equals_whole():
    batch = make_batch()
    devices = jax.devices()[:8]
    if len(devices) < 2:
        pytest.skip("one device: nothing to shard over")
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = jax.device_put(batch, rows)
    for name, array in flip(jax.random.key(0), sharded).items():
        np.testing.assert_array_equal(array, flip(jax.random.key(0), batch)[name])


def test_padding_rows_are_allowed():
    batch = make_batch(4) | {"index": jnp.asarray([0, 1, -1, -1], jnp.int32)}
    assert flip(jax.random.key(0), batch)["image"].shape == (4, 6, 8, 3)
    assert jnp.isfinite(jitter(jax.random.key(0), unit(batch["image"]), batch["index"])).all()


def test_jitter_of_nothing_changes_nothing():
    image = unit(make_batch()["image"])
    still = jitter(jax.random.key(0), image, jnp.arange(16), brightness=0, contrast=0, gamma=0)
    np.testing.assert_allclose(still, image, atol=1e-6)  # rounding of one power and two sums


def test_jitter_stays_in_range_and_differs_by_channel():
    image = jnp.full((16, 4, 4, 3), 0.5) + jnp.linspace(-0.5, 0.5, 16).reshape(1, 4, 4, 1)
    changed = jitter(jax.random.key(0), image, jnp.arange(16))
    assert changed.dtype == jnp.float32 and changed.shape == image.shape
    assert float(changed.min()) >= 0 and float(changed.max()) <= 1
    assert len({round(float(value), 6) for value in changed.mean((1, 2)).ravel()}) == 48


def test_jitter_of_brightness_alone_is_a_bounded_shift():
    image = jnp.full((64, 2, 2, 3), 0.5)
    shift = jitter(jax.random.key(0), image, jnp.arange(64), brightness=0.1, contrast=0, gamma=0) - 0.5
    assert float(jnp.abs(shift).max()) <= 0.1 + 1e-6
    # 192 uniform draws: the largest is above 0.9 of the bound but for a chance of 0.9**192, about 2e-9.
    assert float(jnp.abs(shift).max()) > 0.09
    np.testing.assert_allclose(shift.std((1, 2)), 0, atol=1e-6)
