"""Dense, DenseGeneral and Conv against flax's layers with the dense kernel, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lowrank_jax import linen, weights
from lowrank_jax.initializers import factorized
from lowrank_jax.ranks import FixedRank
from lowrank_jax.weights import ChannelLowRank, LowRank, SpatialLowRank

KEY = jax.random.key(0)
COMPOSE = (None, True, False)


def assert_equal(found, expected, tolerance=1e-12):
    scale = max(1.0, float(np.max(np.abs(expected))))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def variables(kernel, *bias):
    return {"params": {"kernel": kernel} | ({"bias": bias[0]} if bias else {})}


def check_forward(ours, flaxs, weight, dense, x, bias, compose=COMPOSE):
    expected = flaxs.apply(variables(dense, bias), x)
    for choice in compose:
        found = ours(compose=choice).apply(variables(weight, bias), x)
        assert found.dtype == expected.dtype == jnp.float64
        assert_equal(found, expected)
    merged = ours(compose=None).apply(variables(dense, bias), x)
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 24])
def test_dense_forward(float64, draw, rank, deep):
    weight = draw.weight(LowRank, (6, 5), rank, deep)
    check_forward(
        functools.partial(linen.Dense, 5),
        nn.Dense(5),
        weight,
        draw.dense(weight),
        draw.array(2, 3, 6),
        draw.array(5),
    )


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("axis", "features"), [((-2, -1), 5), (-1, (2, 3)), ((1, 3), (2, 3))])
def test_dense_general_forward(float64, draw, axis, features, deep):
    x = draw.array(2, 4, 3, 6)
    axes = np.atleast_1d(axis)
    shape = tuple(x.shape[a] for a in axes) + tuple(np.atleast_1d(features))
    weight = draw.weight(LowRank, shape, 2, deep, in_axes=len(axes))
    check_forward(
        functools.partial(linen.DenseGeneral, features, axis=axis),
        nn.DenseGeneral(features, axis=axis),
        weight,
        draw.dense(weight),
        x,
        draw.array(*np.atleast_1d(features)),
    )


@pytest.mark.parametrize("deep", [False, True])
def test_dense_general_batch_dims(float64, draw, deep):
    u, vt = draw.array(3, 6, 2), draw.array(3, 2, 5)
    m = draw.array(3, 2, 2) if deep else None
    dense = u @ (vt if m is None else m @ vt)
    check_forward(
        functools.partial(linen.DenseGeneral, 5, axis=-1, batch_dims=(0,)),
        nn.DenseGeneral(5, axis=-1, batch_dims=(0,)),
        LowRank(u=u, vt=vt, m=m),
        dense,
        draw.array(3, 4, 6),
        draw.array(3, 5),
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", ((2, 1), (0, 1))])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
@pytest.mark.parametrize("kind", [SpatialLowRank, ChannelLowRank])
def test_conv_forward(float64, draw, kind, strides, dilation, padding):
    options = {"strides": strides, "kernel_dilation": dilation, "padding": padding}
    x, bias = draw.array(2, 8, 7, 4), draw.array(5)
    for rank, deep in [(2, False), (3, True)]:
        weight = draw.weight(kind, (3, 2, 4, 5), rank, deep)
        check_forward(
            functools.partial(linen.Conv, 5, (3, 2), **options),
            nn.Conv(5, (3, 2), **options),
            weight,
            draw.dense(weight),
            x,
            bias,
            compose=(True, False) if deep else (False,),
        )


@pytest.mark.parametrize("rank", [1, 24])
@pytest.mark.parametrize("kind", [SpatialLowRank, ChannelLowRank])
def test_conv_rank_one_overcomplete_and_dilated_input(float64, draw, kind, rank):
    weight = draw.weight(kind, (3, 3, 4, 5), rank, True)
    for options in ({}, {"input_dilation": 2, "padding": 1}):
        check_forward(
            functools.partial(linen.Conv, 5, (3, 3), **options),
            nn.Conv(5, (3, 3), **options),
            weight,
            draw.dense(weight),
            draw.array(2, 6, 5, 4),
            draw.array(5),
        )


def test_conv_input_without_and_with_many_batch_axes(float64, draw):
    weight = draw.weight(SpatialLowRank, (3, 3, 4, 5), 2, False)
    for batch in ((), (2, 3)):
        check_forward(
            functools.partial(linen.Conv, 5, (3, 3)),
            nn.Conv(5, (3, 3)),
            weight,
            draw.dense(weight),
            draw.array(*batch, 6, 6, 4),
            draw.array(5),
        )


def test_causal_convolution_with_a_matrix_kind_composes(float64, draw):
    weight = draw.weight(LowRank, (3, 4, 5), 2, True, in_axes=2)
    options = {"kernel_size": (3,), "padding": "CAUSAL", "kernel_dilation": 2}
    check_forward(
        functools.partial(linen.Conv, 5, **options),
        nn.Conv(5, **options),
        weight,
        draw.dense(weight),
        draw.array(2, 9, 4),
        draw.array(5),
        compose=(None, True),
    )


@pytest.mark.parametrize("compose", [True, False])
@pytest.mark.parametrize("kind", [LowRank, SpatialLowRank, ChannelLowRank])
def test_gradients_are_those_through_the_dense_kernel(float64, draw, kind, compose):
    if kind is LowRank:
        ours, flaxs, shape = linen.Dense(5, compose=compose), nn.Dense(5), (4, 5)
    else:
        ours = linen.Conv(5, (3, 3), strides=2, compose=compose)
        flaxs, shape = nn.Conv(5, (3, 3), strides=2), (3, 3, 4, 5)
    weight = jax.tree.map(jnp.asarray, draw.weight(kind, shape, 2, True))
    x, bias = draw.array(2, 6, 6, 4), draw.array(5)

    def loss(layer, kernel):
        return jnp.sum(jnp.sin(layer.apply(variables(kernel, bias), x)))

    found = jax.jit(jax.grad(functools.partial(loss, ours)))(weight)
    expected = jax.grad(lambda w: loss(flaxs, draw.dense(w, jnp.einsum)))(weight)
    assert type(found) is kind
    for name, value in expected.children():
        assert_equal(getattr(found, name), value)


def intermediates(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from intermediates(inner)


@pytest.mark.parametrize(
    ("layer", "weight", "x_shape", "size"),
    [
        (
            linen.Dense(48, use_bias=False),
            LowRank(u=np.ones((64, 12)), vt=np.ones((12, 48)), m=np.eye(12)),
            (2, 64),
            64 * 48,
        ),
        (
            linen.DenseGeneral((4, 12), use_bias=False),
            LowRank(u=np.ones((64, 12)), vt=np.ones((12, 4, 12)), out_axes=2),
            (2, 64),
            64 * 48,
        ),
        (
            linen.Conv(32, (3, 3), use_bias=False),
            SpatialLowRank(u=np.ones((1, 3, 32, 8)), vt=np.ones((3, 1, 8, 32)), m=np.eye(8)),
            (1, 4, 4, 32),
            32 * 32,
        ),
        (
            linen.Conv(32, (3, 3), use_bias=False),
            ChannelLowRank(u=np.ones((3, 3, 32, 8)), vt=np.ones((1, 1, 8, 32))),
            (1, 4, 4, 32),
            9 * 32 * 32,
        ),
    ],
    ids=["dense", "dense_general", "spatial", "channel"],
)
def test_the_factored_path_never_forms_a_kernel(layer, weight, x_shape, size):
    x = np.ones(x_shape, np.float32)
    weight = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weight)

    def largest(layer):
        def step(w, x):
            return jax.value_and_grad(lambda w: jnp.sum(layer.apply(variables(w), x)))(w)

        jaxpr = jax.make_jaxpr(jax.jit(step))(weight, x).jaxpr
        return max(int(np.prod(shape)) for shape in intermediates(jaxpr))

    limit = max(size, int(np.prod(x_shape)) + 1)
    factors = max(int(np.prod(f.shape)) for _, f in weight.children())
    assert largest(layer) < max(limit, factors + 1)
    assert largest(layer.clone(compose=True)) >= int(np.prod(weight.shape))


def test_dense_kernels_behave_as_in_flax():
    """The same computation, also with functions of the user's, and the same initialization."""

    def doubled(x, w, *args, **kwargs):
        return 2 * lax.dot_general(x, w, *args, **kwargs)

    x = jnp.ones((2, 6, 6, 4))
    for ours, flaxs, options in (
        (linen.Dense, nn.Dense, {"features": 3, "dot_general": doubled}),
        (linen.Dense, nn.Dense, {"features": 3, "dot_general_cls": lambda: doubled}),
        (linen.Conv, nn.Conv, {"features": 8, "kernel_size": (3, 3), "feature_group_count": 2}),
        (linen.Conv, nn.Conv, {"features": 3, "kernel_size": 3, "mask": jnp.ones((3, 4, 3))}),
        (linen.DenseGeneral, nn.DenseGeneral, {"features": (3, 2), "axis": (-2, -1)}),
    ):
        found, expected = (
            jax.make_jaxpr(layer(**options).init_with_output, return_shape=True)(KEY, x)
            for layer in (ours, flaxs)
        )
        assert str(found) == str(expected)


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "result"),
    [
        (None, jnp.float32, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.bfloat16),
        (None, jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.bfloat16, jnp.float32),
    ],
)
def test_dtypes(dtype, param_dtype, result):
    x = jnp.ones((2, 8, 8, 4))
    for ours, options, kind in (
        (linen.Dense, {"features": 3}, LowRank),
        (linen.Conv, {"features": 3, "kernel_size": (3, 3)}, SpatialLowRank),
    ):
        options["kernel_init"] = factorized(kind, FixedRank(2))
        layer = ours(**options, dtype=dtype, param_dtype=param_dtype)
        y, params = jax.eval_shape(layer.init_with_output, KEY, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(param_dtype)}
        assert y.dtype == result
        jaxpr = jax.make_jaxpr(layer.apply)(params, x).jaxpr
        applications = ("dot_general", "conv_general_dilated")
        products = [e for e in jaxpr.eqns if e.primitive.name in applications]
        assert len(products) == 2
        assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(result)}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (functools.partial(linen.Dense, 5), (4, 5)),
        (functools.partial(linen.DenseGeneral, (2, 5), axis=(-2, -1)), (8, 4, 2, 5)),
        (functools.partial(linen.Conv, 5, (3, 3)), (3, 3, 4, 5)),
    ],
)
def test_born_factorized(layer, shape):
    kind = SpatialLowRank if shape[0] == 3 else LowRank
    axes = {"in_axes": 2, "out_axes": 2} if shape[0] == 8 else {}
    layer = layer(kernel_init=factorized(kind, FixedRank(2), depth=3, **axes))
    x = jnp.ones((2, 8, 8, 4))
    params = jax.jit(layer.init)(KEY, x)
    weight = params["params"]["kernel"]
    assert isinstance(weight, kind) and weight.shape == shape and weight.depth == 3
    planned = jax.eval_shape(layer.init, KEY, x)
    assert jax.tree.structure(planned) == jax.tree.structure(params)
    assert [leaf.shape for leaf in jax.tree.leaves(planned)] == [
        leaf.shape for leaf in jax.tree.leaves(params)
    ]
    # Merged parameters fit the same layer.
    merged = {"params": {**params["params"], "kernel": weight.dense()}}
    np.testing.assert_allclose(layer.apply(params, x), layer.apply(merged, x), atol=1e-5)


def raises_at(path, *words):
    return pytest.raises(ValueError, match=f"^{path}: .*" + ".*".join(words))


def test_errors_name_the_path(draw):
    weight = draw.weight(LowRank, (4, 5), 2, False)
    kernel = draw.weight(SpatialLowRank, (3, 3, 4, 5), 2, False)
    x, image = jnp.ones((2, 4)), jnp.ones((2, 8, 8, 4))

    def apply(layer, kernel, x, **others):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return layer.copy(name="layer")(x)

        return Net().apply({"params": {"layer": {"kernel": kernel, **others}}}, x)

    def own(*args, **kwargs):
        raise AssertionError("never called")

    with raises_at("layer/kernel", "LowRank", r"\(4, 5\)", r"expected \(4, 6\)"):
        apply(linen.Dense(6, use_bias=False), weight, x)
    with raises_at("layer/kernel", "do not fit together"):
        apply(linen.Dense(5), LowRank(u=np.ones((4, 2)), vt=np.ones((3, 5))), x)
    with raises_at("layer/bias", "LowRank", "expected an array"):
        apply(linen.Dense(5), weight, x, bias=weight)
    with raises_at("layer/kernel", "dictionary with u, vt", "target"):
        apply(linen.Dense(5, use_bias=False), {"u": weight.u, "vt": weight.vt}, x)
    for name, value in {"dot_general": own, "dot_general_cls": own, "promote_dtype": own}.items():
        with raises_at("layer/kernel", f"{name} of your own"):
            apply(linen.Dense(5, use_bias=False, **{name: value}), weight, x)
    for name, value in {"conv_general_dilated": own, "conv_general_dilated_cls": own}.items():
        with raises_at("layer/kernel", f"{name} of your own"):
            apply(linen.Conv(5, (3, 3), use_bias=False, **{name: value}), kernel, image)
    with raises_at("layer/kernel", "a mask"):
        mask = jnp.ones((3, 3, 4, 5))
        apply(linen.Conv(5, (3, 3), use_bias=False, mask=mask), kernel, image)
    with raises_at("layer/kernel", "feature_group_count=2"):
        grouped = draw.weight(SpatialLowRank, (3, 3, 2, 6), 2, False)
        apply(linen.Conv(6, (3, 3), use_bias=False, feature_group_count=2), grouped, image)
    with raises_at("kernel", "feature_group_count=2"):
        init = factorized(SpatialLowRank, FixedRank(2))
        linen.Conv(6, (3, 3), feature_group_count=2, kernel_init=init).init(KEY, image)


def test_our_own_function_on_a_flax_layer_field(float64, draw):
    weight, x = draw.weight(LowRank, (4, 5), 2, False), draw.array(2, 4)
    function = functools.partial(weights.dot_general, compose=True)
    layer = linen.Dense(5, use_bias=False, dot_general=function)
    assert_equal(layer.apply(variables(weight), x), x @ draw.dense(weight))


class Scanned(nn.Module):
    """Three residual layers under scan and remat."""

    kernel_init: object
    metadata: dict

    @nn.compact
    def __call__(self, x):
        def body(module, carry, _):
            layer = nn.remat(linen.Dense)(4, kernel_init=module.kernel_init, name="layer")
            return carry + jnp.tanh(layer(carry)), None

        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params=self.metadata,
        )
        return scan(self, x, None)[0]


def test_scan_remat_jit_grad_and_partition_boxes(float64, draw):
    init = factorized(LowRank, FixedRank(2), depth=3)
    boxed = nn.with_partitioning(init, ("rows", "columns"))
    model = Scanned(boxed, {nn.PARTITION_NAME: "layers"})
    x = draw.array(2, 4)
    params = jax.jit(model.init)(KEY, x)["params"]
    weight = params["layer"]["kernel"]
    assert isinstance(weight, LowRank)
    assert {name: box.names for name, box in weight.children()} == {
        "u": ("layers", "rows", None),
        "vt": ("layers", None, "columns"),
        "m": ("layers", None, None),
    }
    plain = nn.meta.unbox(params)["layer"]

    def by_hand(layer, x):
        for u, vt, m, bias in zip(
            layer["kernel"].u, layer["kernel"].vt, layer["kernel"].m, layer["bias"], strict=True
        ):
            x = x + jnp.tanh(x @ u @ m @ vt + bias)
        return x

    def loss(f):
        return lambda p, x: jnp.sum(jnp.square(f(p, x)))

    def apply(p, x):
        return model.apply({"params": {"layer": p}}, x)

    assert_equal(jax.jit(apply)(params["layer"], x), by_hand(plain, x))
    found = jax.jit(jax.grad(loss(apply)))(params["layer"], x)
    expected = jax.grad(loss(by_hand))(plain, x)
    jax.tree.map(assert_equal, nn.meta.unbox(found), expected)
    assert found["kernel"].u.names == ("layers", "rows", None)
    # The same parameters without boxes, in the same model.
    assert_equal(apply(plain, x), by_hand(plain, x))


def test_boxes_of_dense_general_name_the_factor_axes():
    init = nn.with_partitioning(
        factorized(LowRank, FixedRank(2), in_axes=2, out_axes=1), ("a", "b", "c")
    )
    layer = linen.DenseGeneral(5, axis=(-2, -1), kernel_init=init)
    weight = layer.init(KEY, jnp.ones((2, 3, 4)))["params"]["kernel"]
    assert weight.u.names == ("a", "b", None) and weight.vt.names == (None, "c")
