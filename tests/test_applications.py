"""applications: what the weights of a function are applied to, against calls written down here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lowrank_jax.applications import applications
from lowrank_jax.linen import Conv, lift
from lowrank_jax.weights import ChannelLowRank, LowRank, SpatialLowRank, conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")


def weight(kind, shape, rank, depth=2):
    template = kind.template(shape, jnp.float32, rank, depth)
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), template)


def test_a_convolution_is_noted_and_can_be_repeated():
    params = {"block": {"kernel": weight(SpatialLowRank, (3, 3, 4, 6), 2, depth=3)}}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 4)), jnp.float32)

    def function(params, x):
        return conv_general_dilated(
            x, params["block"]["kernel"], [2, 1], [(1, 1), (0, 2)], dimension_numbers=NHWC
        )

    found = applications(function, params, x)
    assert list(found) == ["block/kernel"]
    (one,) = found["block/kernel"]
    assert (one.operation, one.kind, one.inputs.shape) == (
        "conv_general_dilated",
        SpatialLowRank,
        (2, 8, 8, 4),
    )
    assert dict(one.arguments) == {
        "window_strides": (2, 1),
        "padding": ((1, 1), (0, 2)),
        "dimension_numbers": NHWC,
    }
    assert repr(one.weight) == repr(params["block"]["kernel"])
    assert hash(one) == hash(applications(function, params, x)["block/kernel"][0])
    for compose in (False, True):
        np.testing.assert_allclose(
            one.apply(x, params["block"]["kernel"], compose), function(params, x), rtol=1e-5
        )


def test_signatures_tell_applications_apart():
    def signature(kind=SpatialLowRank, rank=2, depth=2, size=8, stride=1, dtype=jnp.float32):
        params = {"w": weight(kind, (3, 3, 4, 6), rank, depth)}
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)

        def function(params, x):
            return conv_general_dilated(
                x, params["w"], (stride, stride), "SAME", dimension_numbers=NHWC
            )

        return applications(function, params, jnp.ones((2, size, size, 4), dtype))["w"][0].signature

    assert signature() == signature()
    others = [
        signature(),
        signature(kind=ChannelLowRank),
        signature(rank=3),
        signature(depth=3),
        signature(size=6),
        signature(stride=2),
        signature(dtype=jnp.bfloat16),
    ]
    assert len(set(others)) == len(others)


def test_a_flax_model_in_half_precision():
    """After promotion, through remat and a scan; what is not applied is not there."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.remat(Conv)(4, (3, 3), strides=2, dtype=jnp.bfloat16, name="conv")(x)
            return Scanned(name="scanned")(x)

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, carry, _):
                return nn.Dense(4, name="dense", dtype=jnp.bfloat16)(carry), None

            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.scan(body, length=3, **axes)(self, x, None)[0]

    x = jnp.ones((2, 8, 8, 3))
    params = Net().init(jax.random.key(0), x)["params"]
    params["conv"]["kernel"] = weight(SpatialLowRank, (3, 3, 3, 4), 2)
    params["scanned"]["dense"]["kernel"] = weight(LowRank, (3, 4, 4), 2)
    params["idle"] = {"kernel": weight(LowRank, (4, 4), 2)}
    for model in (lift(Net()), lift(Net(), compose={"conv/kernel": True})):
        found = applications(model.apply, {"params": params}, x)
        assert set(found) == {"params/conv/kernel", "params/scanned/dense/kernel"}
        (conv,) = found["params/conv/kernel"]
        (dense,) = found["params/scanned/dense/kernel"]
        assert conv.inputs.dtype == jnp.bfloat16 and conv.weight.dtype == jnp.bfloat16
        assert dense.inputs.shape == (2, 4, 4, 4) and dense.weight.shape == (4, 4)


def test_a_shared_weight_has_several():
    numbers = (((1,), (0,)), ((), ()))
    params = {"w": weight(LowRank, (4, 4), 2)}

    def function(params, x):
        w = params["w"]
        return w.dot_general(w.dot_general(x, numbers), numbers).sum() + w.dot_general(
            x[:1], numbers
        )

    found = applications(function, params, jnp.ones((5, 4)))["w"]
    assert [one.inputs.shape for one in found] == [(5, 4), (1, 4)]


def test_errors_are_those_of_the_weight():
    params = {"w": weight(SpatialLowRank, (3, 3, 2, 4), 2)}

    def function(params, x):
        return conv_general_dilated(
            x, params["w"], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2
        )

    with pytest.raises(ValueError, match="grouped"):
        applications(function, params, jnp.ones((1, 4, 4, 4)))
