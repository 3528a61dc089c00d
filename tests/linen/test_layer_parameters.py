"""The parameters of layers: made factorized, their dtypes and partition boxes, and wrong ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import linen as nn

from lowrank_jax import linen
from lowrank_jax.initializers import factorized
from lowrank_jax.ranks import FixedRank
from lowrank_jax.weights import LowRank, SpatialLowRank

KEY = jax.random.key(0)


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

    assert_close(jax.jit(apply)(params["layer"], x), by_hand(plain, x))
    found = jax.jit(jax.grad(loss(apply)))(params["layer"], x)
    expected = jax.grad(loss(by_hand))(plain, x)
    assert_close(nn.meta.unbox(found), expected)
    assert found["kernel"].u.names == ("layers", "rows", None)
    # The same parameters without boxes, in the same model.
    assert_close(apply(plain, x), by_hand(plain, x))


def test_boxes_of_dense_general_name_the_factor_axes():
    init = nn.with_partitioning(
        factorized(LowRank, FixedRank(2), in_axes=2, out_axes=1), ("a", "b", "c")
    )
    layer = linen.DenseGeneral(5, axis=(-2, -1), kernel_init=init)
    weight = layer.init(KEY, jnp.ones((2, 3, 4)))["params"]["kernel"]
    assert weight.u.names == ("a", "b", None) and weight.vt.names == (None, "c")
