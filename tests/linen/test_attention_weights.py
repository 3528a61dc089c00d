"""Attention on factorized projections against flax's on the kernels they stand for, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import dense
from closeness import assert_close
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from lowrank_jax import Rule, factorize, linen
from lowrank_jax.initializers import factorized
from lowrank_jax.linen import lift
from lowrank_jax.ranks import FixedRank
from lowrank_jax.weights import LowRank, is_factorized

KEY = jax.random.key(0)
RULES = [
    Rule(r"(.*/)?(query|key|value)/kernel", FixedRank(3), in_axes=1, out_axes=2),
    Rule(r"(.*/)?out/kernel", FixedRank(3), in_axes=2, out_axes=1, depth=3),
]
X, Y = (jnp.asarray(np.random.default_rng(i).standard_normal((3, 5, 8)), "float32") for i in (0, 1))
MASK = nn.make_causal_mask(X[..., 0])


def merged(tree):
    """The kernels that weights or stacks of weights stand for, by NumPy."""
    return jax.tree.map(lambda x: dense(x) if is_factorized(x) else x, tree, is_leaf=is_factorized)


def factored(model, *args):
    """Random parameters with weights for all projections, and the dense ones these stand for."""
    shapes = factorize(jax.eval_shape(model.init, {"params": KEY, "dropout": KEY}, *args), RULES)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: 0.5 * random.standard_normal(leaf.shape).astype(leaf.dtype), shapes
    )
    weights = [x for x in jax.tree.leaves(shapes, is_leaf=is_factorized) if is_factorized(x)]
    assert len(weights) == 4 and {w.rank for w in weights} == {3}
    return variables, merged(variables)


def apply(model, variables, *args, **kwargs):
    return jax.jit(functools.partial(model.apply, **kwargs))(variables, *args)


@pytest.mark.parametrize(
    ("compose", "bias"), [(None, True), (None, False), (True, True), (False, True)]
)
def test_drop_in(compose, bias):
    fields = {"use_bias": bias, "dropout_rate": 0.3, "deterministic": False}
    flaxs = nn.MultiHeadDotProductAttention(2, **fields)
    ours = linen.MultiHeadDotProductAttention(2, compose=compose, **fields)
    weights, kernels = factored(flaxs, X, Y)
    options = {"mask": MASK, "rngs": {"dropout": KEY}}
    assert_close(
        apply(ours, weights, X, Y, **options), apply(flaxs, kernels, X, Y, **options), 1e-5
    )


@pytest.mark.parametrize(
    "attention", [nn.MultiHeadDotProductAttention, nn.MultiHeadAttention, nn.SelfAttention]
)
@pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")
def test_in_an_unedited_model(attention):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return attention(num_heads=2, normalize_qk=True, name="attention")(x, mask=MASK)

    weights, kernels = factored(Net(), X)
    assert_close(apply(lift(Net()), weights, X), apply(Net(), kernels, X), 1e-5)


def test_gradients():
    ours, flaxs = linen.MultiHeadDotProductAttention(2), nn.MultiHeadDotProductAttention(2)
    weights, _ = factored(flaxs, X)

    def loss(model, change):
        return lambda v: jnp.sum(jnp.sin(model.apply(change(v), X, mask=MASK)))

    def composed(variables):
        def kernel(x):
            if not is_factorized(x):
                return x
            u = x.u if x.m is None else x.u @ x.m
            return jnp.tensordot(u, x.vt, axes=1)

        return jax.tree.map(kernel, variables, is_leaf=is_factorized)

    weights = jax.tree.map(jnp.asarray, weights)
    found = jax.jit(jax.grad(loss(ours, lambda v: v)))(weights)
    expected = jax.jit(jax.grad(loss(flaxs, composed)))(weights)
    # As one vector: scores do not depend on the bias of the keys.
    assert_close(ravel_pytree(found)[0], ravel_pytree(expected)[0], 1e-5)


def test_cache():
    ours = linen.MultiHeadDotProductAttention(2, decode=True)
    weights, kernels = factored(nn.MultiHeadDotProductAttention(2), X)
    shapes = jax.eval_shape(ours.init, KEY, X)["cache"]
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    expected = apply(nn.MultiHeadDotProductAttention(2), kernels, X, mask=MASK)
    step = jax.jit(functools.partial(ours.apply, mutable="cache"))
    for i in range(3):
        found, changed = step(weights | {"cache": cache}, X[:, i : i + 1])
        cache = changed["cache"]
        assert_close(found[:, 0], expected[:, i], 1e-5)


class Block(nn.Module):
    attention: type

    @nn.compact
    def __call__(self, x, _):
        return x + self.attention(2, name="attention")(x), None


class Stack(nn.Module):
    attention: type
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(block, length=2, **axes)(self.attention, name="blocks")(x, None)[0]


@pytest.mark.parametrize("remat", [False, True])
def test_scan_and_remat(remat):
    flaxs = Stack(nn.MultiHeadDotProductAttention, remat)
    weights, kernels = factored(flaxs, X)
    assert weights["params"]["blocks"]["attention"]["out"]["kernel"].shape == (2, 2, 4, 8)
    expected = apply(flaxs, kernels, X)
    for model in (Stack(linen.MultiHeadDotProductAttention, remat), lift(flaxs)):
        assert_close(apply(model, weights, X), expected, 1e-5)


def test_vmap():
    model = linen.MultiHeadDotProductAttention(2)
    plain = nn.MultiHeadDotProductAttention(2)
    one, _ = factored(plain, X)
    weights = jax.tree.map(lambda leaf: np.stack([leaf, 0.7 * leaf]), one)
    found = jax.jit(jax.vmap(model.apply, (0, None)))(weights, X)
    for i in range(2):
        assert_close(
            found[i], apply(plain, merged(jax.tree.map(lambda x, i=i: x[i], weights)), X), 1e-5
        )


def kernels_born(model):
    params = jax.jit(model.init)(KEY, X)["params"]
    return params, {name: params[name]["kernel"] for name in ("query", "key", "value", "out")}


@pytest.mark.parametrize("unedited", [False, True])
def test_born_factorized(unedited):
    init = factorized(LowRank, FixedRank(3))
    plain = nn.MultiHeadDotProductAttention(2)
    if unedited:
        model = lift(nn.MultiHeadDotProductAttention(2, kernel_init=init))
    else:
        model = linen.MultiHeadDotProductAttention(2, kernel_init=init)
    params, kernels = kernels_born(model)
    for name, kernel in kernels.items():
        assert kernel.axes == {
            "in_axes": 2 if name == "out" else 1,
            "out_axes": 1 if name == "out" else 2,
        }
    assert_close(
        apply(model, {"params": params}, X), apply(plain, {"params": merged(params)}, X), 1e-5
    )


def test_born_factorized_in_partition_boxes():
    init = factorized(LowRank, FixedRank(3))
    model = linen.MultiHeadDotProductAttention(
        2,
        kernel_init=nn.with_partitioning(init, ("model", "heads", None)),
        out_kernel_init=nn.with_partitioning(init, ("heads", None, "model")),
    )
    params, kernels = kernels_born(model)
    assert kernels["query"].u.names == ("model", None)
    assert kernels["query"].vt.names == (None, "heads", None)
    assert kernels["out"].u.names == ("heads", None, None)
    assert kernels["out"].vt.names == (None, "model")
    unboxed = nn.meta.unbox(params)
    assert_close(apply(model, {"params": params}, X), apply(model, {"params": unboxed}, X), 1e-5)


def test_forms_of_the_projections():
    class Net(nn.Module):
        compose: bool | None = None

        @nn.compact
        def __call__(self, x):
            return linen.MultiHeadDotProductAttention(2, compose=self.compose, name="a")(x)

    weights, kernels = factored(Net(), X)
    factors = dict.fromkeys((f"a/{name}/kernel" for name in ("query", "key")), False)
    one = factors | {"a/query/kernel": True}
    texts = {}
    for name, model in {
        "factored": lift(Net(), compose=factors),
        "composed": lift(Net(), compose=one),
        "own": lift(Net(False), compose=one),
        "own without": Net(False),
    }.items():
        texts[name] = str(jax.make_jaxpr(model.apply)(weights, X))
    assert texts["factored"] != texts["composed"]
    assert_close(apply(lift(Net(), compose=one), weights, X), apply(Net(), kernels, X), 1e-5)
    assert texts["own"] == texts["own without"]


def test_errors_name_the_path():
    weights, _ = factored(nn.MultiHeadDotProductAttention(2), X)
    wide = linen.MultiHeadDotProductAttention(4)
    with pytest.raises(
        ValueError, match=r"^query/kernel: found a LowRank .* \(8, 2, 4\), expected"
    ):
        wide.apply(weights, X)

    def own(*args, **kwargs):
        raise AssertionError("never called")

    model = linen.MultiHeadDotProductAttention(2, qkv_dot_general=own)
    with pytest.raises(ValueError, match=r"^query/kernel: .* dot_general of your own"):
        model.apply(weights, X)
