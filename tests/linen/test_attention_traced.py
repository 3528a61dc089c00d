"""The attention products of a linen model: which modules, which axes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import flax_heads, penalty, stacked_heads
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
    heads = stacked_heads(params["blocks"]["attention"]) + flax_heads(params["last"]["attention"])
    found = lrj.frobenius_penalty(params, products)
    np.testing.assert_allclose(found, penalty(heads, which), rtol=1e-5)


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


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.MultiHeadDotProductAttention(2, name="attention")(x)


Compiled = nn.jit(Plain)


class CompiledBlocks(nn.Module):
    """Blocks of one structure, whose trace flax keeps, by themselves and inside others."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = Compiled(name=f"block_{i}")(x)
        return nn.remat(Compiled)(name="again")(x)


def test_compiled_blocks_are_all_seen_every_time():
    shapes = shapes_of(CompiledBlocks())
    for _ in range(2):
        products = linen.attention_products(CompiledBlocks(), shapes, X)
        assert len(products) == 2 * 4
        assert {p.paths[0].split("/")[0] for p in products} == set(shapes)


@pytest.mark.parametrize("which", [("qk",), ("ov",)])
def test_a_call_of_ones_own_is_refused(which):
    class Rotary(nn.MultiHeadDotProductAttention):
        @nn.compact
        def __call__(self, x):
            dense = [nn.DenseGeneral((2, 4), name=name) for name in ("query", "key", "value")]
            query, key, value = (layer(x) for layer in dense)
            x = nn.dot_product_attention(query * jnp.arange(5)[:, None, None], key, value)
            return nn.DenseGeneral(8, axis=(-2, -1), name="out")(x)

    class Fused(nn.MultiHeadDotProductAttention):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8, name="qkv")(x)

    class Net(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            return self.layer(2, name="attention")(x)

    for layer in (Rotary, Fused):
        net = Net(layer)
        with pytest.raises(ValueError, match=rf"^attention: {layer.__name__} is .*layout="):
            linen.attention_products(net, shapes_of(net), X, which=which)


@pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")
@pytest.mark.parametrize(
    "layer",
    [
        nn.SelfAttention,
        nn.MultiHeadAttention,
        nn.remat(nn.MultiHeadDotProductAttention),
        nn.jit(linen.MultiHeadDotProductAttention),
        linen.lift(nn.MultiHeadDotProductAttention),
        type("Renamed", (linen.MultiHeadDotProductAttention,), {}),
    ],
)
def test_classes_that_run_known_code(layer):
    model = layer(2)
    assert len(linen.attention_products(model, shapes_of(model), X)) == 2


def test_keywords_may_be_shapes():
    model = nn.MultiHeadDotProductAttention(2)
    mask = jax.ShapeDtypeStruct((2, 1, 5, 5), jnp.bool_)
    products = linen.attention_products(model, shapes_of(model), inputs_q=X, mask=mask)
    assert products == linen.attention_products(model, shapes_of(model), X)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"Dense calls no nn\.MultiHeadDotProductAttention"):
        linen.attention_products(nn.Dense(3), shapes_of(nn.Dense(3)), X)
    with pytest.raises(ValueError, match="which="):
        linen.attention_products(Stack(), shapes_of(Stack()), X, which=("vo",))
    stacked = Stack(axis=1)
    with pytest.raises(ValueError, match=r"^blocks/attention/query/kernel: .* \(8, 3, 2, 4\)"):
        linen.attention_products(stacked, shapes_of(stacked), X)
