"""module_calls: what is noted of a model's blocks, and carried out alone as by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lowrank_jax as lrj
from lowrank_jax.linen import lift
from lowrank_jax.linen.module_calls import module_calls


class Block(nn.Module):
    features: int
    stride: int = 1
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.features, (3, 3), self.stride, name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))


class Net(nn.Module):
    """Four blocks, the third of which is called twice."""

    remat: bool = False
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        block = nn.remat(Block, static_argnums=2) if self.remat else Block
        x = block(4, name="block_1")(x, train)
        x = block(8, stride=2, name="block_2")(x, train)
        third = block(8, rate=self.rate, name="block_3")
        x = third(third(x, train), train)
        x = block(8, rate=self.rate, name="block_4")(x, train)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def normal(shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


X = normal((5, 8, 8, 3))


def training(model, **options):
    """The model's forward pass in training as a function of variables and inputs."""
    return lambda variables, x: model.apply(variables, x, True, mutable=["batch_stats"], **options)


def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(1), X, False))


def variables_of(model):
    """Random numbers: to initialize a model would take longer than all else here."""
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape), leaf.dtype), shapes_of(model))


def part(variables, name):
    return {collection: tree[name] for collection, tree in variables.items()}


def value_and_gradients(apply, variables, x):
    """The value of a block, and the gradients of a projection of it."""
    rest = {"batch_stats": variables["batch_stats"]}

    def projected(params, x):
        y = apply({"params": params, **rest}, x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

    gradient = jax.jit(jax.value_and_grad(projected, (0, 1), has_aux=True))
    (_, y), gradients = gradient(variables["params"], x)
    return y, gradients


@pytest.mark.parametrize("model", [Net(), lift(Net(remat=True))], ids=["plain", "lifted_remat"])
def test_blocks_compute_what_they_compute_by_hand(model):
    variables = variables_of(model)
    calls = module_calls(training(model), r"block_\d", variables, X)
    assert [call.path for call in calls] == [f"block_{i}" for i in (1, 2, 3, 3, 4)]
    assert [call.inputs[0].shape[1:] for call in calls] == [(8, 8, 3), (8, 8, 4)] + 3 * [(4, 4, 8)]
    for call, block in zip(calls[1:3], [Block(8, 2), Block(8)], strict=True):
        own = part(variables, call.path)
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, call.variables)
        assert (call.mutable, call.rngs, call.method) == (("batch_stats",), (), "__call__")
        x = normal(call.inputs[0].shape)
        expected = value_and_gradients(training_output(block), own, x)
        found = value_and_gradients(call.apply, own, x)
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def training_output(block, **options):
    return lambda variables, x: training(block, **options)(variables, x)[0]


def test_one_after_the_other_they_are_the_network():
    model = Net()
    variables = variables_of(model)
    logits, _ = jax.jit(training(model))(variables, X)
    x = X
    for call in module_calls(training(model), r"block_\d", variables, X):
        x = jax.jit(call.apply)(part(variables, call.path), x)
    (head,) = module_calls(training(model), "head", variables, X)
    found = head.apply({"params": variables["params"]["head"]}, x.mean((1, 2)))
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


def test_a_block_accepts_weights_in_the_place_of_its_kernels():
    """In a model whose layers are flax's own; noted dense, and noted with weights."""
    model = lift(Net())
    variables = variables_of(model)
    rules = [lrj.Rule(r"block_\d/conv/kernel", lrj.FixedRank(3), lrj.ChannelLowRank)]
    template = lrj.factorize(shapes_of(model)["params"], rules)
    params = jax.tree.map(lambda leaf: normal(leaf.shape), template)
    dense = {**variables, "params": lrj.merge(params)}
    factored = {**variables, "params": params}
    x = normal((5, 8, 8, 4))
    expected = jax.jit(training_output(Block(8, 2)))(part(dense, "block_2"), x)
    for noted in (dense, factored):
        (call,) = module_calls(training(model), "block_2", noted, X)
        found = jax.jit(call.apply)(part(factored, "block_2"), x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    kernel = call.variables["params"]["conv"]["kernel"]
    assert lrj.is_factorized(kernel) and isinstance(kernel.u, jax.ShapeDtypeStruct)


def test_random_streams_are_given_again():
    model = Net(rate=0.5)
    variables = variables_of(model)
    function = training(model, rngs={"dropout": jax.random.key(3)})
    call = module_calls(function, "block_4", variables, X)[0]
    assert call.rngs == ("dropout",)
    own, x = part(variables, "block_4"), jnp.ones(call.inputs[0].shape)
    rngs = {"dropout": jax.random.key(4)}
    by_hand = jax.jit(lambda rngs: training_output(Block(8, rate=0.5), rngs=rngs)(own, x))
    found = jax.jit(lambda rngs: call.apply(own, x, rngs=rngs))(rngs)
    np.testing.assert_allclose(found, by_hand(rngs), rtol=1e-5)
    assert 0.2 < np.mean(np.asarray(found) == 0) < 0.9


class Several(nn.Module):
    """Arrays inside trees and by keyword, and another method than `__call__`."""

    def setup(self):
        self.dense = nn.Dense(4)

    def join(self, pair, scale, *, mask=None, power):
        return self.dense(pair["a"] * scale + pair["b"]) ** power * mask


class Around(nn.Module):
    @nn.compact
    def __call__(self, x):
        mask = jnp.arange(x.shape[0]) > 0
        pair = {"a": x, "b": np.float32([1.0, 2.0])}
        return Several(name="several").join(pair, 3.0, mask=mask[:, None], power=2)


def test_arguments_of_all_sorts():
    model, x = Around(), jnp.ones((5, 2))
    variables = model.init(jax.random.key(0), x)
    (call,) = module_calls(model.apply, "several", variables, x)
    assert (call.method, call.mutable) == ("join", ())
    assert [(one.shape, str(one.dtype)) for one in call.inputs] == [
        ((5, 2), "float32"),
        ((2,), "float32"),
        ((5, 1), "bool"),
    ]
    a, b, mask = jnp.full((5, 2), 2.0), jnp.array([1.0, 2.0]), jnp.ones((5, 1), bool)
    own = {"params": variables["params"]["several"]}
    dense = own["params"]["dense"]
    expected = ((a * 3 + b) @ dense["kernel"] + dense["bias"]) ** 2
    np.testing.assert_allclose(call.apply(own, a, b, mask), expected, rtol=1e-5)
    with pytest.raises(TypeError, match="expected 3 inputs, found 2"):
        call.apply(own, a, b)


def test_what_is_inside_a_call_is_a_part_of_it():
    model = Net()
    variables = shapes_of(model)

    def paths(pattern):
        return [call.path for call in module_calls(training(model), pattern, variables, X)]

    assert paths(r"block_1(/.*)?") == ["block_1"]
    assert paths(r"block_1/.*") == ["block_1/conv", "block_1/norm", "block_1/Dropout_0"]
    assert paths(".*") == [""]


def test_a_function_that_was_traced_before():
    model = Net()
    variables, evaluated = (
        variables_of(model),
        lambda variables, x: model.apply(variables, x, False),
    )
    counts = [len(module_calls(evaluated, "block_3", variables, X)) for _ in range(2)]
    assert counts == [2, 2]


def test_nothing_is_found():
    with pytest.raises(ValueError, match=r"'blok_1' matches no module .* near misses: .*block_1"):
        module_calls(training(Net()), "blok_1", shapes_of(Net()), X)


def test_same_work():
    """Of the different blocks, and of the same ones with kernels of other ranks."""

    def calls(*ranks):
        params = shapes_of(model)["params"]
        for path, rank in zip(("block_3", "block_4"), ranks, strict=False):
            rule = lrj.Rule(f"{path}/conv/kernel", lrj.FixedRank(rank), lrj.ChannelLowRank)
            params = lrj.factorize(params, [rule])
        variables = {**shapes_of(model), "params": params}
        return module_calls(training(model), r"block_[2-4]", variables, X)[-3:]

    model = lift(Net())
    second, third, _, fourth = module_calls(training(model), r"block_[2-4]", shapes_of(model), X)
    assert third.same_work(fourth) and not second.same_work(third)
    _, third, fourth = calls(3, 3)
    assert third.same_work(fourth)
    _, third, fourth = calls(3, 2)
    assert not third.same_work(fourth)
    _, third, fourth = calls(3)
    assert not third.same_work(fourth)
