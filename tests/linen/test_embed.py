"""Embed against flax's: bit for bit on arrays, and on the table that a weight stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jaxprs import largest_intermediate

from lowrank_jax import linen
from lowrank_jax.initializers import factorized
from lowrank_jax.linen import lift
from lowrank_jax.ranks import FixedRank
from lowrank_jax.weights import LowRank

KEY = jax.random.key(0)
IDS = jnp.array([[0, 3, 6], [-1, -7, 3]])


@pytest.fixture
def table(draw):
    """A weight of shape (7, 4) with a middle factor and the array it stands for, in float32."""
    weight = jax.tree.map(jnp.float32, draw.weight(LowRank, (7, 4), 2, True))
    return weight, jnp.float32(draw.dense(weight))


def variables(embedding):
    return {"params": {"embedding": embedding}}


def close(found, expected, tolerance=2e-6):
    def compare(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, found, expected)


def test_arrays_give_flax_bit_for_bit(draw):
    ours, flaxs = linen.Embed(7, 4), nn.Embed(7, 4)
    query = jnp.float32(draw.array(3, 4))
    params = flaxs.init(KEY, IDS)
    jax.tree.map(np.testing.assert_array_equal, ours.init(KEY, IDS), params)
    np.testing.assert_array_equal(ours.apply(params, IDS), flaxs.apply(params, IDS))
    np.testing.assert_array_equal(
        ours.apply(params, query, method="attend"), flaxs.apply(params, query, method="attend")
    )


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("compose", [None, True, False])
def test_lookup_and_attend(table, draw, compose, dtype):
    weight, dense = table
    ours, flaxs = linen.Embed(7, 4, dtype=dtype, compose=compose), nn.Embed(7, 4, dtype=dtype)
    query = jnp.float32(draw.array(3, 4))
    tolerance = 2e-6 if dtype is None else 0.05
    for ids in (IDS, jnp.uint8(2)):
        found, expected = (m.apply(variables(e), ids) for m, e in ((ours, weight), (flaxs, dense)))
        close(found, expected, tolerance)
    found = ours.apply(variables(weight), query, method="attend")
    close(found, flaxs.apply(variables(dense), query, method="attend"), tolerance)


@pytest.mark.parametrize("compose", [None, True, False])
def test_ids_out_of_range(table, compose):
    """As flax: nan beyond the table, but the one row of a table answers to every number."""
    weight, dense = table
    model, ids = linen.Embed(7, 4, compose=compose), jnp.array([6, 7, -8])
    expected = nn.Embed(7, 4).apply(variables(dense), ids)
    assert np.isnan(expected).any(1).tolist() == [False, True, True]
    close(model.apply(variables(weight), ids), expected)
    first = weight.replace(u=weight.u[:1])
    found = linen.Embed(1, 4, compose=compose).apply(variables(first), ids)
    close(found, nn.Embed(1, 4).apply(variables(dense[:1]), ids))


def test_gradients(table, draw):
    weight, _ = table

    def loss(model, change):
        def of(weight):
            embedding = variables(change(weight))
            hidden = model.apply(embedding, IDS)
            return jnp.sum(jnp.sin(model.apply(embedding, hidden, method="attend")))

        return jax.grad(of)

    found = jax.jit(loss(linen.Embed(7, 4, compose=False), lambda w: w))(weight)
    expected = loss(nn.Embed(7, 4), lambda w: draw.dense(w, jnp.einsum))(weight)
    close(found, expected, 2e-5)


def test_the_full_table_is_made_only_where_it_is_cheaper():
    weight = LowRank(u=jnp.ones((1000, 4)), vt=jnp.ones((4, 64)))
    model = linen.Embed(1000, 64)

    def look_up(weight, count):
        return model.apply(variables(weight), jnp.zeros(count, int))

    def attend(weight, query):
        return model.apply(variables(weight), query, method="attend")

    def largest(function, *args):
        gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))))
        return max(largest_intermediate(function, *args), largest_intermediate(gradient, *args))

    assert largest(attend, weight, jnp.ones((5, 64))) < 64_000
    assert largest(lambda w: look_up(w, 10), weight) < 64_000
    # More rows than the table has: looked up in the composed table, 64 numbers to a row.
    shapes = str(jax.make_jaxpr(lambda w: look_up(w, 3000))(weight))
    assert "f32[1000,64]" in shapes and "f32[3000,4]" not in shapes


class Tied(nn.Module):
    """An unedited model: one table for tokens and logits, one for positions, remat around one."""

    layers: object = nn
    table_init: object = nn.initializers.normal(1.0)

    def setup(self):
        self.tokens = self.layers.Embed(7, 4, embedding_init=self.table_init)
        self.positions = nn.remat(self.layers.Embed)(3, 4)

    def __call__(self, ids):
        hidden = self.tokens(ids) + self.positions(jnp.arange(ids.shape[-1]))
        return self.tokens.attend(jnp.tanh(hidden))


@pytest.fixture
def tied(table, draw):
    weight, dense = table
    positions = jax.tree.map(jnp.float32, draw.weight(LowRank, (3, 4), 1, False))
    trees = (
        {"tokens": {"embedding": a}, "positions": {"embedding": b}}
        for a, b in ((weight, positions), (dense, jnp.float32(draw.dense(positions))))
    )
    return tuple({"params": tree} for tree in trees)


@pytest.mark.parametrize("model", [Tied(linen), lift(Tied()), lift(Tied(linen))])
def test_in_a_model(tied, model):
    weights, dense = tied
    expected = Tied().apply(dense, IDS)
    np.testing.assert_array_equal(model.apply(dense, IDS), expected)
    close(jax.jit(model.apply)(weights, IDS), expected)
    close(model.bind(weights)(IDS), expected)


@pytest.mark.parametrize("layers", [nn, linen])
def test_forms_in_a_lifted_model(tied, layers):
    weights, dense = tied
    counts = []
    for compose in (False, True):
        choice = {"tokens/embedding": compose, "positions/embedding": False}
        model = lift(Tied(layers), compose=choice)
        close(model.apply(weights, IDS), Tied().apply(dense, IDS))
        text = str(jax.make_jaxpr(model.apply)(weights, IDS))
        counts.append(text.count("f32[7,4] = dot_general"))
    assert counts == [0, 2]


def test_stacked_tables(draw):
    u, vt = (jnp.float32(draw.array(*shape)) for shape in [(2, 7, 3), (2, 3, 4)])
    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}

    class Net(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, ids):
            return nn.vmap(self.layer, in_axes=None, axis_size=2, **axes)(7, 4, name="e")(ids)

    weight, dense = ({"params": {"e": {"embedding": e}}} for e in (LowRank(u=u, vt=vt), u @ vt))
    expected = Net(nn.Embed).apply(dense, IDS)
    close(Net(linen.Embed).apply(weight, IDS), expected)
    close(lift(Net(nn.Embed)).apply(weight, IDS), expected)


@pytest.mark.parametrize("unedited", [False, True])
def test_born_factorized(unedited):
    init = factorized(rank=FixedRank(2))
    model = lift(Tied(nn, init)) if unedited else Tied(linen, init)
    params = jax.jit(model.init)(KEY, IDS)
    weight = params["params"]["tokens"]["embedding"]
    assert isinstance(weight, LowRank) and (weight.shape, weight.rank) == ((7, 4), 2)
    merged = {"params": {**params["params"], "tokens": {"embedding": weight.dense()}}}
    close(model.apply(params, IDS), Tied().apply(merged, IDS))


def test_partition_boxes():
    init = nn.with_partitioning(factorized(rank=FixedRank(2)), ("vocabulary", "features"))
    model = linen.Embed(7, 4, embedding_init=init)
    params = model.init(KEY, IDS)
    weight = params["params"]["embedding"]
    assert (weight.u.names, weight.vt.names) == (("vocabulary", None), (None, "features"))
    close(model.apply(params, IDS), model.apply(nn.meta.unbox(params), IDS))


@pytest.mark.parametrize("lifted", [False, True])
def test_refusals(table, lifted):
    weight, _ = table

    def net(*args, **fields):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, ids):
                return (nn if lifted else linen).Embed(*args, **fields, name="layer")(ids)

        return lift(Net()) if lifted else Net()

    nested = {"params": {"layer": {"embedding": weight}}}
    with pytest.raises(ValueError, match=r"^layer/embedding: found a LowRank .*expected \(7, 5\)"):
        net(7, 5).apply(nested, IDS)
    with pytest.raises(ValueError, match=r"^layer/embedding: .* promote_dtype of your own"):
        net(7, 4, promote_dtype=lambda *a, **k: a).apply(nested, IDS)
    with pytest.raises(ValueError, match=r"^layer/embedding: .*float32, expected integers"):
        net(7, 4).apply(nested, jnp.ones(3))


def test_stacked_tables_have_no_factored_lookup_outside_vmap():
    stacked = LowRank(u=jnp.ones((2, 7, 3)), vt=jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="no factored form for this lookup"):
        stacked.take(jnp.array([0]), compose=False)
