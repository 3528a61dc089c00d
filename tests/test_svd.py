"""Truncated decompositions and balanced factors against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax import LowRank, SpatialLowRank, svd
from lowrank_jax.factored_svd import factored_svd


def random(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("rank", [1, 3, 5, 20])
def test_thin_svd_keeps_the_leading_triplets(shape, rank):
    w = random(*shape)
    u, s, vt = svd.thin_svd(w, rank)
    expected = np.linalg.svd(w, compute_uv=False)[:rank]
    np.testing.assert_allclose(s, expected, rtol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), atol=1e-12)
    np.testing.assert_allclose(vt @ vt.T, np.eye(len(s)), atol=1e-12)
    error = np.linalg.norm(w - u * s @ vt)
    tail = np.linalg.svd(w, compute_uv=False)[rank:]
    assert error == pytest.approx(np.linalg.norm(tail), abs=1e-12)


def test_half_precision_is_decomposed_in_single():
    w = np.asarray(jnp.asarray(random(8, 6), jnp.bfloat16))
    assert svd.working_precision(w).dtype == np.float32
    assert svd.working_precision(random(2, 2)).dtype == np.float64
    expected = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(svd.singular_values(w), expected, rtol=1e-5)


def decaying(rows, columns, power):
    """A matrix with singular values 1, 2^-power, 3^-power, ..."""
    small = min(rows, columns)
    u = np.linalg.qr(random(rows, small))[0]
    v = np.linalg.qr(random(columns, small, seed=1))[0]
    return u * np.arange(1, small + 1.0) ** -power @ v.T


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(120, 80), (80, 120)])
def test_randomized_svd_is_close_to_the_best(shape, power):
    # The property promised: within a few percent of the best error, and the same every time.
    w = decaying(*shape, power)
    u, s, vt = svd.thin_svd(w, 10, "randomized")
    best = np.linalg.norm(np.linalg.svd(w, compute_uv=False)[10:])
    error = np.linalg.norm(w - u * s @ vt)
    assert best * (1 - 1e-9) <= error <= 1.05 * best
    np.testing.assert_allclose(u.T @ u, np.eye(10), atol=1e-10)
    for again, first in zip(svd.thin_svd(w, 10, "randomized"), (u, s, vt), strict=True):
        np.testing.assert_array_equal(again, first)


def test_randomized_svd_of_a_low_rank_matrix_is_exact():
    w = random(60, 8) @ random(8, 50, seed=1)
    u, s, vt = svd.thin_svd(w, 12, "randomized")
    np.testing.assert_allclose(u * s @ vt, w, atol=1e-10)


def test_randomized_svd_falls_back_where_nearly_all_is_wanted():
    w = random(20, 15)
    for one, two in zip(svd.thin_svd(w, 8, "randomized"), svd.thin_svd(w, 8), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
@pytest.mark.parametrize("rank", [2, 6, 8, 9, 14])
@pytest.mark.parametrize("overcomplete", ["complement", "zero"])
def test_balanced_factors(shape, rank, overcomplete):
    w = random(*shape)
    u, s, vt = svd.thin_svd(w, rank)
    noise = random(svd.noise_rows(shape[1], rank), shape[1], seed=3)
    left, right = svd.balanced_factors(u, s, vt, rank, overcomplete, noise)
    keep = len(s)
    assert left.shape == (shape[0], rank) and right.shape == (rank, shape[1])
    np.testing.assert_allclose(left @ right, u * s @ vt, atol=1e-12)
    padded = np.diag(np.pad(s, (0, rank - keep)))
    np.testing.assert_allclose(left.T @ left, padded, atol=1e-12)
    gram = right @ right.T
    np.testing.assert_allclose(gram[:keep, :keep], np.diag(s), atol=1e-12)
    if overcomplete == "zero":
        np.testing.assert_array_equal(right[keep:], 0)
        return
    # The complement: orthogonal to everything kept, at the smallest kept singular value, as far
    # as there are directions; random ones of that length beyond.
    directions = min(rank, shape[1])
    expected = np.concatenate([s, np.full(rank - keep, s[-1])])
    np.testing.assert_allclose(np.diag(gram), expected, atol=1e-12)
    np.testing.assert_allclose(
        gram[:directions, :directions], np.diag(expected[:directions]), atol=1e-12
    )


def test_a_wide_complement_takes_no_square_of_the_columns():
    # 60 000 columns: a whole basis would take 29 GB.
    w = random(2, 60_000, dtype=np.float32)
    left, right = svd.balanced_factors(*svd.thin_svd(w, 4), 4)
    np.testing.assert_allclose(left @ right, w, atol=1e-4)
    gram = right @ right.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-4 * gram.max()


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_directions_of_singular_value_zero_get_a_live_right_side(rank):
    w = random(6, 2) @ random(2, 5, seed=1)
    left, right = svd.balanced_factors(*svd.thin_svd(w, rank), rank, noise=random(1, 5))
    np.testing.assert_allclose(left @ right, w, atol=1e-12)
    np.testing.assert_array_equal(left[:, 2:], 0)
    smallest = np.linalg.svd(w, compute_uv=False)[1]
    np.testing.assert_allclose(np.linalg.norm(right[2:], axis=1) ** 2, smallest, rtol=1e-10)


def test_a_kernel_of_zeros_has_live_rows_too():
    left, right = svd.balanced_factors(*svd.thin_svd(np.zeros((4, 5)), 3), 3)
    np.testing.assert_array_equal(left, 0)
    np.testing.assert_allclose(right @ right.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("rank", [2, 5, 9])
@pytest.mark.parametrize("deep", [False, True])
def test_factored_svd_is_the_svd_of_the_product(rank, deep):
    weight = LowRank(
        u=random(3, 6, rank),
        vt=random(3, rank, 5, seed=1),
        m=random(3, rank, rank, seed=2) if deep else None,
    )
    middle = weight.m if deep else np.eye(rank)
    product = weight.u @ middle @ weight.vt
    u, s, vt = factored_svd(weight)
    assert s.shape == (3, min(rank, 5))
    expected = np.linalg.svd(product, compute_uv=False)[:, : s.shape[-1]]
    np.testing.assert_allclose(s, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(u * s[:, None] @ vt, product, atol=1e-11)
    np.testing.assert_allclose(
        np.swapaxes(u, -1, -2) @ u,
        np.broadcast_to(np.eye(s.shape[-1]), (3, *[s.shape[-1]] * 2)),
        atol=1e-12,
    )


def test_factored_svd_of_a_convolution_is_in_its_matricisation():
    weight = SpatialLowRank(u=random(1, 3, 4, 2), vt=random(5, 1, 2, 6, seed=1))
    kernel = np.einsum("xwir,hyro->hwio", weight.u, weight.vt)
    rows = kernel.transpose(1, 2, 0, 3).reshape(12, 30)
    np.testing.assert_allclose(
        factored_svd(weight)[1], np.linalg.svd(rows, compute_uv=False)[:2], rtol=1e-12
    )
