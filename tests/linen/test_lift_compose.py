"""lift(compose=...): the form in which a kernel is applied, chosen from outside, by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lowrank_jax import linen
from lowrank_jax.linen import lift
from lowrank_jax.weights import LowRank, SpatialLowRank

KERNELS = {
    "first/kernel": (SpatialLowRank, (3, 3, 3, 4)),
    "inner/middle/kernel": (SpatialLowRank, (3, 3, 4, 4)),
    "head/kernel": (LowRank, (4, 5)),
}


class Inner(nn.Module):
    layers: object

    @nn.compact
    def __call__(self, x):
        return self.layers.Conv(4, (3, 3), name="middle")(jnp.tanh(x))


class Net(nn.Module):
    """Layers of flax, or the drop-in ones; the inner module plain or transformed."""

    layers: object = nn
    transform: object = staticmethod(lambda cls: cls)
    options: object = ()

    @nn.compact
    def __call__(self, x):
        x = self.layers.Conv(4, (3, 3), name="first", **dict(self.options))(x)
        x = self.transform(Inner)(self.layers, name="inner")(x)
        return self.layers.Dense(5, name="head")(jnp.sin(x.mean((1, 2))))


@pytest.fixture
def example(float64, draw):
    """Inputs, and the parameters with factorized and with the equal dense kernels."""
    x = jnp.asarray(draw.array(2, 6, 6, 3))
    factored, dense = {"inner": {}}, {"inner": {}}
    for path, (kind, shape) in KERNELS.items():
        weight = jax.tree.map(jnp.asarray, draw.weight(kind, shape, 2, False))
        *outer, layer, _ = path.split("/")
        bias = jnp.asarray(draw.array(shape[-1]))
        for tree, kernel in ((factored, weight), (dense, jnp.asarray(draw.dense(weight)))):
            (tree[outer[0]] if outer else tree)[layer] = {"kernel": kernel, "bias": bias}
    return x, {"params": factored}, {"params": dense}


def products(model, variables, x):
    """How many convolutions and matrix products there are: (factored, composed) = 2, 1 + 1."""
    text = str(jax.make_jaxpr(model.apply)(variables, x))
    return text.count("conv_general_dilated["), text.count("dot_general[")


LAYERS = pytest.mark.parametrize("layers", [nn, linen], ids=["flax", "drop_in"])


@LAYERS
@pytest.mark.parametrize("transform", [lambda cls: cls, nn.remat, nn.jit])
def test_each_kernel_has_its_form(example, layers, transform):
    x, factored, dense = example
    model = Net(layers, transform)
    expected = Net().apply(dense, x)
    seen = set()
    for first in (False, True):
        for middle in (False, True):
            compose = {"first/kernel": first, "inner/middle/kernel": middle, "head/kernel": False}
            lifted = lift(model, compose=compose)
            np.testing.assert_allclose(lifted.apply(factored, x), expected, rtol=0, atol=1e-12)
            # Composed: one convolution, and a product for the kernel.
            composed = first + middle
            assert products(lifted, factored, x) == (4 - composed, 2 + composed)
            seen.add(type(lifted))
    assert len(seen) == 4


@LAYERS
def test_gradients(example, layers):
    x, factored, _ = example

    def gradient(compose):
        model = lift(Net(layers), compose=compose)
        return jax.grad(lambda v: jnp.sum(jnp.sin(model.apply(v, x))))(factored)

    one, other = (gradient(dict.fromkeys(KERNELS, compose)) for compose in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), one, other)


def test_a_layers_own_choice_wins(example):
    x, factored, _ = example
    model = Net(linen, options=(("compose", False),))
    lifted = lift(model, compose={"first/kernel": True})
    assert products(lifted, factored, x) == products(model, factored, x)


def test_dense_kernels_are_left_alone(example):
    x, _, dense = example
    lifted = lift(Net(), compose=dict.fromkeys(KERNELS, True))
    assert str(jax.make_jaxpr(lifted.apply)(dense, x)) == str(jax.make_jaxpr(Net().apply)(dense, x))


def test_in_a_scan(float64, draw):
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, carry, _):
                return carry + jnp.tanh(nn.Dense(4)(carry)), None

            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.scan(body, length=3, **axes)(self, x, None)[0]

    x, u, vt = (jnp.asarray(draw.array(*shape)) for shape in [(2, 4), (3, 4, 2), (3, 2, 4)])
    bias = jnp.asarray(draw.array(3, 4))

    def variables(kernel):
        return {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}}

    expected = Scanned().apply(variables(jnp.asarray(np.asarray(u) @ np.asarray(vt))), x)
    texts = []
    for compose in (False, True):
        model = lift(Scanned(), compose={"Dense_0/kernel": compose})
        found = model.apply(variables(LowRank(u=u, vt=vt)), x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        texts.append(str(jax.make_jaxpr(model.apply)(variables(LowRank(u=u, vt=vt)), x)))
    assert texts[0] != texts[1]


@pytest.mark.parametrize("lifted_inside", [False, True])
def test_paths_begin_at_the_lifted_model(example, lifted_inside):
    x, factored, _ = example

    class Outer(nn.Module):
        make: object

        @nn.compact
        def __call__(self, x):
            return self.make(name="net")(x)

    compose = {"first/kernel": True, "inner/middle/kernel": True}
    if lifted_inside:
        model = Outer(lift(Net, compose=compose))
    else:
        model = lift(Outer(Net), compose={f"net/{path}": True for path in compose})
    assert products(model, {"params": {"net": factored["params"]}}, x)[0] == 2


def test_one_class_for_one_choice():
    one = lift(Net, compose={"a/kernel": True, "b/kernel": False})
    assert one is lift(Net, compose={"b/kernel": False, "a/kernel": True}) is lift(one)
    assert one is not lift(Net) and lift(one, compose={"a/kernel": False}) is not one
    assert lift(one, compose={"a/kernel": True, "b/kernel": False}) is one
    assert lift(Net, compose={}) is lift(Net)


def test_misuse(example):
    x, factored, _ = example
    with pytest.raises(ValueError, match=r"there is no parameter at 'inner/first/kernel'"):
        lift(Net(), compose={"inner/first/kernel": True}).apply(factored, x)
    with pytest.raises(TypeError, match=r"compose of 'first/kernel' is None, expected a bool"):
        lift(Net(), compose={"first/kernel": None})

    class Sub(lift(Net)):
        pass

    with pytest.raises(TypeError, match="Sub is a subclass of a lifted class"):
        lift(Sub, compose={"first/kernel": True})
