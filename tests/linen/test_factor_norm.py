"""FactorNormConv against layers of flax in a row: values, statistics and gradients, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxprs import equations

import lowrank_jax as lrj
from lowrank_jax.applications import applications
from lowrank_jax.linen import Conv, FactorNormConv, add_factor_norms, lift
from lowrank_jax.linen.normalization import efficient_batch_norm
from lowrank_jax.weights import ChannelLowRank, SpatialLowRank

KEY = jax.random.key(0)
SHAPE, RANK = (3, 3, 4, 6), 5


def norm(train=True):
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.8, epsilon=1e-3
    )


def layer(train=True, **fields):
    fields = {"strides": (2, 1), "padding": ((1, 2), (0, 1)), "norm": norm(train)} | fields
    return FactorNormConv(SHAPE[-1], SHAPE[:2], **fields)


class InARow(nn.Module):
    """The same as three layers of flax, with strides and padding written out by kind."""

    kind: type
    train: bool

    @nn.compact
    def __call__(self, x):
        if self.kind is ChannelLowRank:
            first = nn.Conv(RANK, (3, 3), (2, 1), ((1, 2), (0, 1)), use_bias=False, name="u")
            second = nn.Conv(SHAPE[-1], (1, 1), name="vt")
        else:
            first = nn.Conv(RANK, (1, 3), (1, 1), ((0, 0), (0, 1)), use_bias=False, name="u")
            second = nn.Conv(SHAPE[-1], (3, 1), (2, 1), ((1, 2), (0, 0)), name="vt")
        return second(norm(self.train)(name="factor_norm")(first(x)))


def example(draw, kind, deep=False):
    """Inputs, and the variables of the layer and of the three layers in a row."""
    weight = jax.tree.map(jnp.asarray, draw.weight(kind, SHAPE, RANK, deep))
    vt = weight.vt if weight.m is None else jnp.einsum("rs,hwso->hwro", weight.m, weight.vt)
    normed = {"scale": draw.array(RANK), "bias": draw.array(RANK)}
    running = {"mean": draw.array(RANK), "var": draw.array(RANK) ** 2}
    bias = draw.array(SHAPE[-1])
    ours = {"kernel": weight, "bias": bias, "factor_norm": normed}
    row = {"u": {"kernel": weight.u}, "vt": {"kernel": vt, "bias": bias}, "factor_norm": normed}
    stats = {"batch_stats": {"factor_norm": running}}
    x = jnp.asarray(draw.array(3, 7, 6, SHAPE[2]))
    return x, {"params": ours, **stats}, {"params": row, **stats}


def convolutions(function, *args):
    found = equations(jax.make_jaxpr(function)(*args))
    return sum(equation.primitive.name == "conv_general_dilated" for equation in found)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", [ChannelLowRank, SpatialLowRank])
def test_against_layers_in_a_row(float64, draw, kind, deep):
    x, ours, row = example(draw, kind, deep)

    @jax.jit
    def applied(ours, row):
        return {
            train: (
                layer(train).apply(ours, x, mutable=["batch_stats"]),
                InARow(kind, train).apply(row, x, mutable=["batch_stats"]),
            )
            for train in (False, True)
        }

    before = ours["batch_stats"]["factor_norm"]["mean"]
    for train, ((found, new), (expected, new_row)) in applied(ours, row).items():
        assert found.shape == (3, 4, 5, 6)
        assert_close(found, expected)
        assert np.array_equal(new["batch_stats"]["factor_norm"]["mean"], before) != train
        jax.tree.map(assert_close, new, new_row)


@pytest.mark.parametrize("kind", [ChannelLowRank, SpatialLowRank])
def test_gradients_against_layers_in_a_row(float64, draw, kind):
    x, ours, row = example(draw, kind)
    direction = draw.array(3, 4, 5, 6)

    def gradients(model, variables):
        def loss(params, x):
            given = {**variables, "params": params}
            return jnp.sum(direction * model.apply(given, x, mutable=["batch_stats"])[0] ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x)

    found, of_x = gradients(layer(), ours)
    expected, of_x_row = gradients(InARow(kind, True), row)
    assert_close(of_x, of_x_row)
    assert_close(found["kernel"].u, expected["u"]["kernel"])
    assert_close(found["kernel"].vt, expected["vt"]["kernel"])
    assert_close(found["bias"], expected["vt"]["bias"])
    for name in ("scale", "bias"):
        assert_close(found["factor_norm"][name], expected["factor_norm"][name])


def test_without_a_norm_or_without_factors_it_is_an_ordinary_convolution(draw):
    x, ours, _ = example(draw, ChannelLowRank)
    x, kernel = x.astype(jnp.float32), ours["params"]["kernel"].dense().astype(jnp.float32)
    init = layer().init(KEY, x)
    assert jax.tree.structure(init) == jax.tree.structure({"params": {"bias": 0, "kernel": 0}})
    plain = nn.Conv(6, (3, 3), (2, 1), ((1, 2), (0, 1)))
    np.testing.assert_array_equal(init["params"]["kernel"], plain.init(KEY, x)["params"]["kernel"])
    dense = {"params": {"kernel": kernel, "bias": jnp.ones(6)}}
    np.testing.assert_array_equal(layer().apply(dense, x), plain.apply(dense, x))
    factored = {"params": {"kernel": ours["params"]["kernel"], "bias": jnp.ones(6)}}
    expected = Conv(6, (3, 3), (2, 1), ((1, 2), (0, 1))).apply(factored, x)
    np.testing.assert_array_equal(layer(norm=None).apply(factored, x), expected)


class Net(nn.Module):
    """Two of the layers, the second inside a module, and one without a norm."""

    train: bool = True
    transform: object = staticmethod(lambda cls: cls)

    @nn.compact
    def __call__(self, x):
        x = layer(self.train, name="first")(x)
        x = self.transform(Inner)(self.train, name="inner")(jnp.tanh(x))
        return Conv(3, (1, 1), name="last")(x)


class Inner(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        return layer(self.train, name="second")(x)


RULES = [
    lrj.Rule("first/kernel", lrj.FixedRank(2), ChannelLowRank),
    lrj.Rule("inner/second/kernel", lrj.FixedRank(3), SpatialLowRank),
    lrj.Rule("last/kernel", lrj.FixedRank(1), ChannelLowRank),
]
X = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)


@functools.cache
def factorized_net():
    """Variables of the net with norms, and of the dense one."""
    dense = jax.jit(Net().init)(KEY, X)
    params = lrj.factorize(dense["params"], RULES)
    table = lrj.resolve(dense["params"], RULES[:2])
    params, batch_stats = add_factor_norms(params, {}, table)
    return {"params": params, "batch_stats": batch_stats}, dense


def test_the_norms_are_those_that_flax_makes():
    variables, dense = factorized_net()
    assert set(dense) == {"params"}
    without = {"params": lrj.factorize(dense["params"], RULES)}
    # flax makes what is missing in collections that may change.
    options = {"mutable": ["params", "batch_stats"], "rngs": {"params": KEY}}
    _, made = jax.jit(lambda: Net().apply(without, X, **options))()
    assert jax.tree.structure(made["params"]) == jax.tree.structure(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, variables["params"], made["params"])
    assert jax.tree.structure(made["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    assert {path[-3:]: leaf.shape for path, leaf in flatten_dict(made["batch_stats"]).items()} == {
        ("first", "factor_norm", "mean"): (2,),
        ("first", "factor_norm", "var"): (2,),
        ("second", "factor_norm", "mean"): (3,),
        ("second", "factor_norm", "var"): (3,),
    }
    for path, leaf in flatten_dict(variables["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, float(path[-1] == "var"))
        assert leaf.dtype == jnp.float32
    # Of shapes come the same shapes.
    shapes = jax.eval_shape(lambda: dense["params"])
    abstract = add_factor_norms(
        lrj.factorize(shapes, RULES), {}, lrj.resolve(dense["params"], RULES[:2])
    )
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))
    expected = jax.eval_shape(lambda: (variables["params"], variables["batch_stats"]))
    assert jax.tree.structure(abstract) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (abstract, expected)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_statistics_that_are_there_stay():
    variables, _ = factorized_net()
    others = {"first": {"other": {"mean": jnp.ones(1)}}, "norm": {"var": jnp.ones(2)}}
    table = lrj.describe(variables["params"])
    _, stats = add_factor_norms(variables["params"], others, table)
    assert set(stats) == {"first", "inner", "last", "norm"}
    assert set(stats["first"]) == {"other", "factor_norm"}
    assert set(others["first"]) == {"other"}


def test_a_layer_that_is_born_factorized_has_its_norm():
    init = lrj.initializers.factorized(ChannelLowRank, lrj.FixedRank(2))
    found = jax.eval_shape(lambda: layer(kernel_init=init).init(KEY, X))
    assert found["params"]["factor_norm"]["scale"].shape == (2,)
    assert found["batch_stats"]["factor_norm"]["var"].shape == (2,)


def gradient(model):
    """Of everything, beside the loss and the new statistics."""

    def loss(variables, x):
        y, new = model.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), new

    return jax.value_and_grad(loss, has_aux=True)


@functools.cache
def gradient_as_it_is():
    return jax.jit(gradient(Net()))(factorized_net()[0], X)


def efficiently(*args):
    """As the experiments train: batch norm with a backward pass of its own."""
    with efficient_batch_norm():
        return gradient(Net())(*args)


TRANSFORMED = {
    "efficient_batch_norm": efficiently,
    "lift": gradient(lift(Net())),
    "lift_factored": gradient(lift(Net(), compose={"first/kernel": False})),
    "remat": gradient(Net(transform=nn.remat)),
    "batch_minor": lrj.batch_minor(gradient(Net())),
}


@pytest.mark.parametrize("around", TRANSFORMED)
def test_transformed_it_computes_the_same(around):
    found = jax.jit(TRANSFORMED[around])(factorized_net()[0], X)
    expected = gradient_as_it_is()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_kernel_is_never_composed(draw):
    """At full rank and a stride two convolutions cost more than the one of the product."""
    weight = draw.weight(ChannelLowRank, SHAPE, 6, False)
    params = {"kernel": jax.tree.map(jnp.float32, weight), "bias": jnp.zeros(6)}
    assert convolutions(layer(norm=None).apply, {"params": params}, X) == 1
    params, stats = add_factor_norms(params, {}, lrj.describe(params))
    normed = {"params": params, "batch_stats": stats}
    assert convolutions(layer(False).apply, normed, X) == 2
    # So there is nothing to decide on about it.
    variables, _ = factorized_net()
    found = applications(lambda v: Net(False).apply(v, X), variables)
    assert list(found) == ["params/last/kernel"]


def test_errors():
    variables, dense = factorized_net()
    params, stats = variables["params"], variables["batch_stats"]
    without = {"params": lrj.factorize(dense["params"], RULES)}
    with pytest.raises(ValueError, match=r"first/kernel: it is factorized.*add_factor_norms"):
        Net(False).apply(without, X)
    merged = {"params": lrj.merge(params), "batch_stats": stats}
    with pytest.raises(ValueError, match=r"first/kernel: it is dense.* cannot be merged"):
        Net(False).apply(merged, X)
    with pytest.raises(ValueError, match=r"inner/second/kernel: SpatialLowRank .* cannot be comp"):
        lift(Net(False), compose={"inner/second/kernel": True}).apply(variables, X)
    matrix = {"kernel": lrj.LowRank(u=jnp.ones((3, 3, 4, 1)), vt=jnp.ones((1, 6)), in_axes=3)}
    with pytest.raises(ValueError, match=r"kernel: LowRank .* not applied as two convolutions"):
        layer(use_bias=False).apply({"params": matrix}, X)
    with pytest.raises(ValueError, match=r"last/kernel: found a dense kernel, expected a Channel"):
        add_factor_norms(dense["params"], {}, lrj.resolve(dense["params"], RULES[2:]))
    with pytest.raises(ValueError, match=r"first/kernel: found no kernel"):
        add_factor_norms({"last": params["last"]}, {}, lrj.describe(params))
