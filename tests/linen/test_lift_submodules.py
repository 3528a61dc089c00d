"""lift inside of a model: loops, attention, cells, and layers that are transformed or shared."""

import jax
import jax.numpy as jnp
import pytest
from closeness import assert_close
from dense_twins import factored_and_dense, random_variables, replace
from flax import linen as nn

from lowrank_jax.linen import lift
from lowrank_jax.weights import LowRank

KEY = jax.random.key(0)


class MLP(nn.Module):
    """A scanned residual layer."""

    depth: int = 3

    @nn.compact
    def __call__(self, x):
        def body(module, carry, _):
            return carry + jnp.tanh(nn.Dense(4)(carry)), None

        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(body, length=self.depth, **axes)(self, x, None)[0]


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2)(x)


def test_scan(float64, draw):
    x = jnp.asarray(draw.array(2, 4))
    u, m, vt = draw.array(3, 4, 2), draw.array(3, 2, 2), draw.array(3, 2, 4)
    params = random_variables(draw, MLP(), x)["params"]
    factored = replace(params, "Dense_0/kernel", LowRank(u=u, vt=vt, m=m))
    dense = replace(params, "Dense_0/kernel", u @ m @ vt)
    expected = MLP().apply({"params": dense}, x)
    assert_close(lift(MLP()).apply({"params": factored}, x), expected)
    assert_close(jax.jit(lift(MLP)().apply)({"params": factored}, x), expected)


def test_attention(float64, draw):
    x = jnp.asarray(draw.array(2, 5, 4))
    name = "MultiHeadDotProductAttention_0"
    weights = {
        f"{name}/{part}/kernel": draw.weight(LowRank, (4, 2, 2), 2, False)
        for part in ("query", "key", "value")
    }
    weights[f"{name}/out/kernel"] = draw.weight(LowRank, (2, 2, 4), 2, True, in_axes=2)
    params = random_variables(draw, Attention(), x)["params"]
    factored, dense = factored_and_dense(draw, params, weights)
    assert_close(
        lift(Attention)().apply({"params": factored}, x), Attention().apply({"params": dense}, x)
    )


def test_recurrent_cell(float64, draw):
    x = jnp.asarray(draw.array(2, 5, 4))
    model = nn.RNN(nn.GRUCell(3, param_dtype=jnp.float64))
    params = random_variables(draw, model, x)["params"]
    weights = {"cell/ir/kernel": draw.weight(LowRank, (4, 3), 2, False)}
    factored, dense = factored_and_dense(draw, params, weights)
    assert_close(lift(model).apply({"params": factored}, x), model.apply({"params": dense}, x))


def test_transformed_layers(float64, draw):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            heads = nn.vmap(nn.Dense, in_axes=None, axis_size=3, **axes)(4, name="heads")
            x = heads(nn.remat(nn.Dense)(4, name="remat")(x))
            return nn.jit(nn.Dense)(4, name="jit")(x)

    x = jnp.asarray(draw.array(2, 4))
    params = random_variables(draw, Net(), x)["params"]
    paths = ("remat/kernel", "jit/kernel")
    weights = {path: draw.weight(LowRank, (4, 4), 2, False) for path in paths}
    factored, dense = factored_and_dense(draw, params, weights)
    u, vt = draw.array(3, 4, 2), draw.array(3, 2, 4)
    factored = replace(factored, "heads/kernel", LowRank(u=u, vt=vt))
    dense = replace(dense, "heads/kernel", u @ vt)
    assert_close(lift(Net)().apply({"params": factored}, x), Net().apply({"params": dense}, x))


@pytest.mark.parametrize("style", ["compact", "setup", "field", "remat", "scan"])
def test_as_a_submodule(float64, draw, style):
    """A lifted class inside a plain model."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x), None

    class Outer(nn.Module):
        make: object
        field: object = None

        def setup(self):
            if self.field is None:
                self.net = self.make()

        def __call__(self, x):
            return (self.net if self.field is None else self.field)(x)

    class Compact(nn.Module):
        make: object

        @nn.compact
        def __call__(self, x):
            return self.make()(x)

    def model(change):
        if style == "setup":
            return Outer(lambda: change(Net)())
        if style == "field":
            return Outer(None, change(Net)())
        if style == "remat":
            return Compact(lambda: nn.remat(change(Net))())
        if style == "scan":
            axes = {"variable_broadcast": "params", "split_rngs": {"params": False}}
            return Compact(lambda: nn.scan(change(Net), length=2, **axes)())
        return Compact(lambda: change(Net)())

    x = jnp.asarray(draw.array(2, 4))
    plain, lifted = model(lambda cls: cls), model(lift)
    params = random_variables(draw, plain, x)["params"]
    assert jax.tree.structure(lifted.init(KEY, x)["params"]) == jax.tree.structure(params)
    (name,) = params
    weights = {f"{name}/Dense_0/kernel": draw.weight(LowRank, (4, 4), 2, False)}
    factored, dense = factored_and_dense(draw, params, weights)
    assert_close(lifted.apply({"params": factored}, x), plain.apply({"params": dense}, x))


def test_shared_modules_and_layers_with_a_call_of_their_own(float64, draw):
    class Scaled(nn.Dense):
        scale: float = 2.0

        @nn.compact
        def __call__(self, x):
            return self.scale * super().__call__(x)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = Scaled(4)
            return shared(jnp.tanh(shared(x)))

    x = jnp.asarray(draw.array(2, 4))
    params = random_variables(draw, Net(), x)["params"]
    weights = {"Scaled_0/kernel": draw.weight(LowRank, (4, 4), 2, False)}
    factored, dense = factored_and_dense(draw, params, weights)
    assert_close(lift(Net)().apply({"params": factored}, x), Net().apply({"params": dense}, x))
