"""Bank rows become parameters: layout, tiling, normalisation, noise, and staged gradients."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.transforms import generation
from ophjax.transforms.generation import VECTOR, Piece, cut, kernel_gain, norm_penalty, postprocess, staged_scan, tile


def kernel(shape, *, out, fan, space, group="3x3", kind="kernel", dtype="float32"):
    return Piece(("k",), shape, dtype, kind, group, 0, out, fan, space)


@pytest.fixture
def bank():
    rng = np.random.default_rng(0)
    return {
        "3x3": jnp.asarray(rng.normal(size=(2, 8, 8, 3, 3)), jnp.float32),
        "1x1": jnp.asarray(rng.normal(size=(2, 8, 8, 1, 1)), jnp.float32),
        VECTOR: jnp.asarray(rng.normal(size=(2, 2, 8)), jnp.float32),
    }


def test_docstring_examples():
    assert doctest.testmod(generation).failed == 0


def test_tiling_is_a_gather_by_remainders():
    x = jnp.arange(12.0).reshape(3, 4)
    expected = x[jnp.arange(7) % 3][:, jnp.arange(9) % 4]
    np.testing.assert_array_equal(tile(x, (7, 9)), expected)
    np.testing.assert_array_equal(tile(x, (2, 3)), x[:2, :3])


def test_a_kernel_is_the_transposed_and_scaled_bank_row(bank):
    piece = kernel((3, 3, 4, 6), out=(3,), fan=(2,), space=(0, 1))
    expected = bank["3x3"][0, :6, :4].transpose(2, 3, 1, 0) * np.sqrt(2 / (4 * 9))
    np.testing.assert_allclose(cut(piece, bank), expected, rtol=1e-6)


def test_doubling_the_output_channels_repeats_the_kernel(bank):
    """Check 4: above the bank's channels the second half equals the first; the fan-in, and so the gain, is the same."""
    wide = cut(kernel((3, 3, 4, 16), out=(3,), fan=(2,), space=(0, 1)), bank)
    np.testing.assert_array_equal(wide[..., 8:], wide[..., :8])
    np.testing.assert_array_equal(wide[..., :8], cut(kernel((3, 3, 4, 8), out=(3,), fan=(2,), space=(0, 1)), bank))


def test_kernels_that_share_a_row_differ_by_their_fan_in_only(bank):
    """Check 5: std times sqrt(fan_in / beta) is the same."""
    spreads = []
    for fan in (8, 16, 32):
        made = cut(kernel((3, 3, fan, 8), out=(3,), fan=(2,), space=(0, 1)), bank)
        spreads.append(float(made.std()) * np.sqrt(fan * 9 / 2))
    np.testing.assert_allclose(spreads, spreads[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("fan", "space", "beta"),
    [(4, (3, 3), 2), (1, (3, 3), 1), (4, (1, 3), 1), (4, (3, 1), 2), (4, (), 2), (4, (2, 3, 3), 2)],
)
def test_gain_by_hand(fan, space, beta):
    assert kernel_gain(fan, space) == pytest.approx(np.sqrt(beta / (fan * np.prod(space))))


def test_layouts_of_dense_volume_and_head_tensors(bank):
    several = kernel((5, 2, 3), out=(1, 2), fan=(0,), space=(), group="1x1")  # (in, heads, width)
    made = cut(several, bank)
    flat = bank["1x1"][0, :6, :5, 0, 0] * np.sqrt(2 / 5)
    np.testing.assert_allclose(made, flat.T.reshape(5, 2, 3), rtol=1e-6)
    deep = cut(kernel((2, 3, 3, 4, 6), out=(4,), fan=(3,), space=(0, 1, 2)), bank)
    np.testing.assert_array_equal(deep[0], deep[1])
    np.testing.assert_allclose(deep[0], bank["3x3"][0, :6, :4].transpose(2, 3, 1, 0) * np.sqrt(2 / 72), rtol=1e-6)
    head = Piece(("h",), (5, 3), "float32", "head", "head", 0, (1,), (0,), ())
    rows = {"head": jnp.arange(24.0).reshape(1, 3, 8)}
    np.testing.assert_allclose(cut(head, rows), rows["head"][0, :, :5].T * np.sqrt(2 / 5), rtol=1e-6)


def test_norms_and_biases_are_neutral_at_zero_and_bounded(bank):
    zero = {VECTOR: jnp.zeros((1, 2, 8))}
    scale = Piece(("s",), (12,), "float32", "scale", VECTOR, 0)
    bias = scale._replace(kind="bias")
    np.testing.assert_array_equal(cut(scale, zero), jnp.ones(12))
    np.testing.assert_array_equal(cut(bias, zero), jnp.zeros(12))
    loud = {VECTOR: 100 * bank[VECTOR]}
    assert float(cut(scale, loud).min()) >= 0 and float(cut(scale, loud).max()) <= 2
    assert float(jnp.abs(cut(bias, loud)).max()) <= 1
    np.testing.assert_array_equal(cut(bias, bank, normalise=False)[:8], bank[VECTOR][0, 1])


def test_types_are_cast_last(bank):
    piece = kernel((3, 3, 4, 6), out=(3,), fan=(2,), space=(0, 1), dtype="bfloat16")
    assert cut(piece, bank).dtype == jnp.bfloat16
    np.testing.assert_array_equal(cut(piece, bank), cut(piece._replace(dtype="float32"), bank).astype(jnp.bfloat16))


def test_noise_breaks_the_tiling_and_nothing_else(bank):
    piece = kernel((3, 3, 4, 16), out=(3,), fan=(2,), space=(0, 1))
    bias = Piece(("b",), (16,), "float32", "bias", VECTOR, 0)
    made = {piece.path: cut(piece, bank), bias.path: cut(bias, bank)}
    noisy = postprocess(jax.random.key(0), made, [piece, bias], noise=1e-3)
    moved = np.asarray(noisy[piece.path] - made[piece.path])
    assert not np.array_equal(noisy[piece.path][..., 8:], noisy[piece.path][..., :8])
    rows = made[piece.path].transpose(3, 2, 0, 1).reshape(16, -1)
    assert moved.std() == pytest.approx(1e-3 * np.corrcoef(rows).std(), rel=0.1)
    np.testing.assert_array_equal(noisy[bias.path], made[bias.path])
    same = postprocess(jax.random.key(0), made, [piece, bias], noise=0)
    np.testing.assert_array_equal(same[piece.path], made[piece.path])


def test_spread_of_he_keeps_the_pattern(bank):
    piece = kernel((3, 3, 4, 6), out=(3,), fan=(2,), space=(0, 1))
    made = {piece.path: 7 * cut(piece, bank)}
    (found,) = postprocess(jax.random.key(0), made, [piece], noise=0, spread="he").values()
    assert float(found.std()) == pytest.approx(np.sqrt(2 / 36), rel=1e-5)
    ratio = found / made[piece.path]
    np.testing.assert_allclose(ratio, ratio.ravel()[0], rtol=1e-5)
    with pytest.raises(InputError, match="predicted"):
        postprocess(jax.random.key(0), made, [piece], spread="her")


def test_orthogonal_kernels_keep_their_norm_and_the_last_is_left(bank):
    first = kernel((3, 3, 4, 6), out=(3,), fan=(2,), space=(0, 1))
    last = first._replace(path=("last",))
    made = {first.path: cut(first, bank), last.path: cut(last, bank)}
    found = postprocess(jax.random.key(0), made, [first, last], noise=0, orth_from=0)
    matrix = found[first.path].transpose(3, 2, 0, 1).reshape(6, -1)
    gram = matrix @ matrix.T
    np.testing.assert_allclose(gram, jnp.eye(6) * gram[0, 0], atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(matrix), jnp.linalg.norm(made[first.path]), rtol=1e-5)
    np.testing.assert_array_equal(found[last.path], made[last.path])


def test_penalty_sums_norms_that_are_not_squared():
    tensors = {("a",): jnp.array([3.0, 4.0]), ("b",): jnp.full((2, 2), 0.5), ("c",): jnp.zeros(3)}
    assert float(norm_penalty(tensors)) == pytest.approx(6.0, abs=1e-5)
    grads = jax.grad(norm_penalty)(tensors)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in grads.values())


def test_staged_gradients_equal_ordinary_ones():
    """Values, gradients, what is carried and what is handed out agree with a plain switch in a scan, under jit."""

    def first(x, carry, turn, shift):
        return (jnp.sin(x["a"]) * x["b"]).sum() * (1 + carry) + shift, (x["a"].mean(), turn)

    def second(x, carry, turn, shift):
        return (x["a"] ** 3).sum() * x["b"].mean() - shift * carry, (x["b"].mean(), turn)

    def third(x, carry, turn, shift):
        return jnp.tanh(x["a"] * shift).sum() * turn, (carry + shift, turn)

    branches = [first, second, third]
    picks = jnp.array([2, 0, 1, 1])
    x = {"a": jnp.array([0.3, -1.2]), "b": jnp.array([2.0, 0.7])}

    # What is carried has no gradient in a staged scan: the plain one is told so.
    def plain(picks, xs, carry, shift):
        def body(carry, given):
            turn, pick, x = given
            value, (carry, aux) = jax.lax.switch(pick, branches, x, carry, turn, shift)
            return jax.lax.stop_gradient(carry), (value, aux)

        return jax.lax.scan(body, carry, (jnp.arange(len(picks)), picks, xs))

    def total(staged):
        def run(x, picks=picks):
            xs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2, 2 * leaf, -leaf]), x)
            carry, (values, turns) = staged(picks, xs, jnp.zeros(()), 0.5)
            return (values * jnp.array([1.0, 2.0, 3.0, 4.0])).sum(), (carry, turns)

        return run

    def differentiated(run):
        return jax.jit(jax.value_and_grad(run, has_aux=True))

    ours = total(staged_scan(branches))
    (value, handed), grads = differentiated(ours)(x)
    (expected, expected_handed), expected_grads = differentiated(total(plain))(x)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(handed[0], expected_handed[0], rtol=1e-6)
    np.testing.assert_array_equal(handed[1], [0, 1, 2, 3])
    for name in x:
        np.testing.assert_allclose(grads[name], expected_grads[name], rtol=1e-5)
    # Without a gradient, and for several seeds side by side.
    assert float(jax.jit(ours)(x)[0]) == pytest.approx(float(value), rel=1e-6)
    several = jnp.stack([picks, picks[::-1]])
    (values, _), each = jax.jit(jax.vmap(jax.value_and_grad(ours, has_aux=True), (None, 0)))(x, several)
    assert float(values[0]) == pytest.approx(float(value), rel=1e-6) and float(values[1]) != float(values[0])
    np.testing.assert_allclose(each["a"][0], grads["a"], rtol=1e-5)


def test_every_branch_of_a_staged_scan_is_read_once():
    """Differentiating a scan reads its body again and again; with dozens of networks that was most of a run's start."""
    read = []

    def branch(x, carry, turn):
        read.append(1)
        return jnp.square(x).sum(), (carry + jnp.sin(x).sum(), ())

    def loss(x):
        carry, (values, _) = staged_scan([branch, branch])(jnp.array([0, 1]), jnp.stack([x, 2 * x]), jnp.zeros(()))
        return values.sum(), carry

    grads = jax.jit(jax.grad(loss, has_aux=True))(jnp.array([1.0, 2.0]))[0]
    np.testing.assert_allclose(grads, [10.0, 20.0])
    assert len(read) == 2
