import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.transforms.resizing import (
    keys_kernel,
    matlab_matrix,
    matlab_taps,
    resize,
    resize_bytes,
    torch_matrix,
)

# From the dualsr spec, (c): the taps of PyTorch's bicubic enlargement.
TWICE = [-0.03515625, 0.26171875, 0.87890625, -0.10546875]
FOUR_TIMES = [
    [-0.06591797, 0.42626953, 0.74951172, -0.10986328],
    [-0.01025391, 0.11474609, 0.96728516, -0.07177734],
]


def test_torch_taps():
    two, four = torch_matrix(12, 2), torch_matrix(12, 4)
    # Output 2i + 0 reads from i - 2 on, output 2i + 1 its mirror from i - 1 on.
    np.testing.assert_allclose(two[10, 3:7], TWICE, atol=1e-7)
    np.testing.assert_allclose(two[11, 4:8], TWICE[::-1], atol=1e-7)
    np.testing.assert_allclose(four[20, 3:7], FOUR_TIMES[0], atol=1e-7)
    np.testing.assert_allclose(four[21, 3:7], FOUR_TIMES[1], atol=1e-7)
    np.testing.assert_allclose(four[22, 4:8], FOUR_TIMES[1][::-1], atol=1e-7)
    np.testing.assert_allclose(four[23, 4:8], FOUR_TIMES[0][::-1], atol=1e-7)
    assert np.count_nonzero(two[10]) == 4


@pytest.mark.parametrize("make", [torch_matrix, lambda n, s: matlab_matrix(n, s, True)])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlarging_keeps_constants_everywhere_and_ramps_inside(make, factor):
    matrix = make(12, factor)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    ramp = matrix @ np.arange(12, dtype=np.float32)
    wanted = (np.arange(12 * factor) + 0.5) / factor - 0.5
    inside = slice(3 * factor, -3 * factor)
    # a = -0.75 is exact on ramps at the four taps' mean only up to this much.
    np.testing.assert_allclose(ramp[inside], wanted[inside], atol=0.05 if make is torch_matrix else 1e-5)


def test_edge_taps_take_the_edge_pixel():
    """PyTorch clamps and does not renormalise: the first output of a twofold enlargement, by hand."""
    np.testing.assert_allclose(torch_matrix(8, 2)[0, :2], [sum(TWICE[:3]), TWICE[3]], atol=1e-7)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_matlab_shrinking_by_hand(factor):
    """Every weight from the kernel's definition, away from the border; rows sum to 1 at it."""
    index, weight = matlab_taps(60, factor, up=False)
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-12)
    k = 9
    centre = (k + 0.5) * factor - 0.5
    wanted = keys_kernel((np.arange(60) - centre) / factor, -0.5) / factor
    row = np.zeros(60)
    row[index[k]] = weight[k]
    np.testing.assert_allclose(row, wanted / wanted.sum(), atol=1e-12)


def test_borders_and_roundings_differ_a_little():
    image = np.random.default_rng(0).integers(0, 256, (40, 44, 3), dtype=np.uint8)
    base = resize_bytes(image, 4).astype(int)
    assert base.shape == (10, 11, 3)
    for options in (dict(border="clamp"), dict(rounded=False)):
        other = resize_bytes(image, 4, **options).astype(int)
        assert 0 < (other != base).mean() < 0.5 and abs(other - base).max() < 40
    clamped = resize_bytes(image, 4, border="clamp").astype(int)
    assert (clamped[3:-3, 3:-3] == base[3:-3, 3:-3]).all()


def test_matlab_mirrors_with_the_edge_repeated():
    index, _ = matlab_taps(8, 2, up=False)
    assert index[0].tolist() == [2, 1, 0, 0, 1, 2, 3, 4]
    index, _ = matlab_taps(8, 2, up=False, border="clamp")
    assert index[0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


def test_halves_round_up_between_the_passes():
    # The column holds 0 and 1 in turns: every mean is a half away from the border.
    image = np.tile(np.array([[0], [1]], np.uint8), (8, 16))[..., None]
    assert (resize_bytes(image, 2)[2:-2] == 1).all()


def test_device_and_host_agree_where_nothing_is_rounded():
    image = np.random.default_rng(1).uniform(0, 255, (2, 24, 20, 3)).astype(np.float32)
    rows, columns = matlab_matrix(24, 4, False), matlab_matrix(20, 4, False)
    host, device = resize(image, rows, columns), resize(jnp.asarray(image), rows, columns)
    np.testing.assert_allclose(device, host, atol=1e-3)
    rounded = resize_bytes(image[0].round().astype(np.uint8), 4, rounded=False)
    np.testing.assert_allclose(resize(image[0].round(), rows, columns).clip(0, 255), rounded, atol=0.501)


def test_what_cannot_be_resized():
    with pytest.raises(InputError, match="mirror, clamp"):
        matlab_taps(8, 2, up=False, border="wrap")
