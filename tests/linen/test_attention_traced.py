"""The attention products of a linen model: which modules, which axes, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lowrank_jax as lrj
from lowrank_jax import linen

KEY = jax.random.key(0)
X = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)


class Block(nn.Module):
    """Attention, dropout and batch statistics; what looks like attention but is not called."""

    fields: object = ()
    layer: type = nn.MultiHeadDotProductAttention

    @nn.compact
    def __call__(self, x, train):
        assert isinstance(train, bool)
        attention = self.layer(2, dropout_rate=0.1, **dict(self.fields), name="attention")
        x = x + attention(x, deterministic=not train)
        x = nn.BatchNorm(use_running_average=not train)(nn.Dropout(0.1)(x, not train))
        return x, None


class Stack(nn.Module):
    fields: object = ()
    axis: int = 0

    @nn.compact
    def __call__(self, x, train=False):
        axes = {"params": self.axis, "batch_stats": 0}
        rngs = {"params": True, "dropout": True}
        options = {"variable_axes": axes, "split_rngs": rngs, "in_axes": nn.broadcast, "length": 3}
        x, _ = nn.scan(Block, **options)(self.fields, name="blocks")(x, train)
        return Block(self.fields, linen.MultiHeadDotProductAttention, name="last")(x, train)[0]


def shapes_of(model):
    return jax.eval_shape(model.init, KEY, X)["params"]


def random_like(shapes):
    random = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(random.standard_normal(s.shape), s.dtype), shapes)


def squared_norms(params):
    """The sums over heads and layers of ||Q_h K_h'||^2 and ||V_h O_h||^2, head by head in NumPy."""
    totals = {"qk": 0.0, "ov": 0.0}
    for name in ("blocks", "last"):
        kernels = {
            part: np.asarray(tree["kernel"], np.float64)
            for part, tree in params[name]["attention"].items()
        }
        if name == "last":
            kernels = {part: kernel[None] for part, kernel in kernels.items()}
        for layer, head in itertools.product(range(len(kernels["query"])), range(2)):
            q, k, v = (kernels[part][layer, :, head] for part in ("query", "key", "value"))
            totals["qk"] += np.sum((q @ k.T) ** 2)
            totals["ov"] += np.sum((v @ kernels["out"][layer, head]) ** 2)
    return totals


@pytest.mark.parametrize("which", [("qk", "ov"), ("ov",), ("qk",)])
def test_products_of_a_stacked_model(which):
    model, train = Stack(), True
    params = random_like(shapes_of(model))
    products = linen.attention_products(model, params, X, which=which, train=train)
    assert len(products) == 2 * len(which)
    assert {path.split("/")[0] for product in products for path in product.paths} == {
        "blocks",
        "last",
    }
    found = 2 * lrj.frobenius_penalty(params, products)
    expected = sum(squared_norms(params)[pair] for pair in which)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shapes_alone_and_weights():
    model = Stack()
    shapes = shapes_of(model)
    expected = linen.attention_products(model, shapes, X)
    rules = [lrj.Rule(r".*/(query|key)/kernel", lrj.FixedRank(2), out_axes=2)]
    assert linen.attention_products(model, lrj.factorize(shapes, rules), X) == expected
    assert linen.attention_products(linen.lift(model), shapes, jnp.ones(X.shape)) == expected


def test_only_modules_that_are_called():
    class Net(nn.Module):
        def setup(self):
            self.one = nn.MultiHeadDotProductAttention(2)
            self.two = nn.MultiHeadDotProductAttention(2, normalize_qk=True)

        def first(self, x):
            return self.one(self.one(x))

        def __call__(self, x):
            return self.two(self.first(x))

    params = shapes_of(Net())
    products = linen.attention_products(Net(), params, X, method="first")
    assert [product.paths[0] for product in products] == ["one/query/kernel", "one/value/kernel"]
    with pytest.raises(ValueError, match=r"two/(query|key)_ln normalizes queries or keys"):
        linen.attention_products(Net(), params, X)
    assert len(linen.attention_products(Net(), params, X, which=("ov",))) == 2


def turned(query, key):
    return query, key


def test_positions_refuse_queries_and_keys():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linen.MultiHeadDotProductAttention(2, positions=turned, name="rotary")(x)

    params = shapes_of(Net())
    with pytest.raises(ValueError, match=r'^rotary: positions=.*turned.*ask for which=\("ov",\)'):
        linen.attention_products(Net(), params, X)
    (product,) = linen.attention_products(Net(), params, X, which=("ov",))
    assert product.paths == ("rotary/value/kernel", "rotary/out/kernel")


def test_other_refusals():
    with pytest.raises(ValueError, match=r"Dense calls no nn\.MultiHeadDotProductAttention"):
        linen.attention_products(nn.Dense(3), shapes_of(nn.Dense(3)), X)
    with pytest.raises(ValueError, match="which="):
        linen.attention_products(Stack(), shapes_of(Stack()), X, which=("vo",))
    stacked = Stack(axis=1)
    with pytest.raises(ValueError, match=r"^blocks/attention/query/kernel: .* \(8, 3, 2, 4\)"):
        linen.attention_products(stacked, shapes_of(stacked), X)
