"""Which entry of the dense kernel each factor entry goes into, for every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_cases import CASES, TWO_FACTOR_CASES, Case, matrix, naive_dense

from lowrank_jax import ChannelLowRank, LowRank, SpatialLowRank
from lowrank_jax.weights.geometry import RANK, Geometry

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
two_factor_case = pytest.mark.parametrize("case", TWO_FACTOR_CASES, ids=lambda case: case.name)


@every_case
def test_dense_is_the_sum_of_the_definition(case: Case, x64):
    factors = case.factors()
    weight = case.kind(**factors, **dict(case.axes))
    np.testing.assert_allclose(weight.dense(), naive_dense(case, factors), rtol=0, atol=1e-13)


@every_case
def test_shape_rank_depth_axes(case: Case):
    weight = case.weight(dtype=np.float32)
    assert weight.shape == case.shape == tuple(weight.dense().shape)
    assert weight.ndim == len(case.shape)
    assert (weight.rank, weight.depth, weight.batch_ndim) == (case.rank, case.depth, case.batch)
    assert weight.dtype == np.float32


@every_case
def test_shape_needs_no_values(case: Case):
    weight = case.weight(dtype=np.float32)
    abstract = jax.eval_shape(lambda: weight)
    assert abstract.shape == case.shape
    assert abstract.rank == case.rank
    template = case.kind.template(case.shape, np.float32, case.rank, case.depth, **dict(case.axes))
    assert jax.tree.structure(template) == jax.tree.structure(weight)
    assert jax.tree.leaves(template) == jax.tree.leaves(abstract)


@two_factor_case
def test_matricize_is_the_product_of_the_factor_matrices(case: Case, x64):
    weight = case.weight()
    geometry = weight.geometry(**weight.axes)
    u, vt = geometry.fold(np.asarray(weight.u), np.asarray(weight.vt))
    middle = np.eye(case.rank) if weight.m is None else np.asarray(weight.m)
    dense = np.asarray(weight.dense())
    np.testing.assert_array_equal(case.kind.matricize(dense, **weight.axes), matrix(case, dense))
    np.testing.assert_allclose(u @ middle @ vt, matrix(case, dense), atol=1e-13)
    assert geometry.matrix_shape(case.shape) == matrix(case, dense).shape[-2:]


@two_factor_case
def test_unfold_undoes_fold(case: Case):
    weight = case.weight(dtype=np.float32)
    geometry = weight.geometry(**weight.axes)
    u, vt = geometry.unfold(*geometry.fold(weight.u, weight.vt), case.shape)
    np.testing.assert_array_equal(u, weight.u)
    np.testing.assert_array_equal(vt, weight.vt)


@two_factor_case
def test_factor_axes_name_the_dense_axis_of_the_same_size(case: Case):
    weight = case.weight(dtype=np.float32)
    assert set(weight.factor_axes) == set(case.factor_shapes)
    seen = set()
    for name, sources in weight.factor_axes.items():
        factor = getattr(weight, name)
        assert len(sources) == factor.ndim
        for source, size in zip(sources, factor.shape, strict=True):
            if isinstance(source, int):
                seen.add(source)
                assert size == case.shape[source]
            else:
                assert size == (case.rank if source == RANK else 1)
    assert seen == set(range(len(case.shape)))


def test_spatial_rows_are_kw_in_and_columns_kh_out():
    # The publication's matricisation, written index by index.
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    found = SpatialLowRank.matricize(kernel)
    assert found.shape == (12, 10)
    for h, w, i, o in np.ndindex(2, 3, 4, 5):
        assert found[w * 4 + i, h * 5 + o] == kernel[h, w, i, o]


def test_channel_rows_are_kh_kw_in():
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(ChannelLowRank.matricize(kernel), kernel.reshape(24, 5))


def test_the_type_decides_what_a_shape_means():
    # One and the same 4-D shape: a stack of matrices, a convolution, a multi-axis linear map.
    shape = (2, 3, 4, 6)
    assert LowRank.geometry().matrix_shape(shape) == (4, 6)
    assert LowRank.geometry(in_axes=2, out_axes=2).matrix_shape(shape) == (6, 24)
    assert SpatialLowRank.geometry().matrix_shape(shape) == (12, 12)
    assert ChannelLowRank.geometry().matrix_shape(shape) == (24, 6)


def test_impossible_axes():
    with pytest.raises(ValueError, match="at least 1"):
        LowRank.geometry(in_axes=0)
    with pytest.raises(ValueError, match="at least 3 axes"):
        LowRank.check((4, 4), in_axes=2)
    with pytest.raises(ValueError, match="height, width, in, out"):
        SpatialLowRank.check((4, 4))
    with pytest.raises(ValueError, match="ChannelLowRank"):
        ChannelLowRank.check((3, 4, 4))


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (LowRank(u=np.ones((3, 4, 2)), vt=np.ones((2, 5))), "differ in batch axes"),
        (LowRank(u=np.ones((4, 2)), vt=np.ones((3, 5))), r"expected \(4, 2\) and \(2, 5\)"),
        (LowRank(u=np.ones((4, 2)), vt=np.ones((2, 5)), m=np.ones((3, 3))), "m has shape"),
        (SpatialLowRank(u=np.ones((3, 3, 4, 2)), vt=np.ones((3, 1, 2, 5))), "do not fit"),
    ],
)
def test_factors_that_do_not_fit_say_so(weight, text):
    with pytest.raises(ValueError, match=text):
        _ = weight.shape


def test_geometry_needs_no_arrays():
    geometry = Geometry(u=(None, 1, 2, RANK), vt=(0, None, RANK, 3))
    assert geometry.factor_shapes((7, 3, 5, 8, 9), 2) == ((7, 1, 5, 8, 2), (7, 3, 1, 2, 9))
    assert geometry.dense_shape((7, 1, 5, 8, 2), (7, 3, 1, 2, 9)) == (7, 3, 5, 8, 9)


def test_dtype_is_what_the_factors_promote_to():
    weight = LowRank(u=jnp.ones((4, 2), jnp.bfloat16), vt=jnp.ones((2, 3), jnp.float32))
    assert weight.dtype == jnp.float32 == weight.dense().dtype
