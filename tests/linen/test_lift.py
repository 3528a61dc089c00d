"""lift: unedited linen models with factorized kernels, against the same models with dense ones."""

import functools

import jax
import jax.numpy as jnp
import pytest
from closeness import assert_close
from dense_twins import factored_and_dense, random_variables
from flax import linen as nn

from lowrank_jax import linen
from lowrank_jax.initializers import factorized
from lowrank_jax.linen import lift
from lowrank_jax.ranks import FixedRank
from lowrank_jax.weights import ChannelLowRank, LowRank, SpatialLowRank

KEY = jax.random.key(0)


class Block(nn.Module):
    """Compact, with automatic names and batch statistics."""

    features: int

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        y = nn.BatchNorm(use_running_average=not train)(y)
        return x + nn.relu(y)


class CNN(nn.Module):
    """setup-style outside, compact inside, one block under remat, two methods."""

    classes: int = 3

    def setup(self):
        self.stem = nn.Conv(4, (3, 3), strides=2)
        self.blocks = [Block(4), nn.remat(Block, static_argnums=(2,))(4)]
        self.head = nn.Dense(self.classes)

    def encode(self, x, train=False):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, train)
        return x.mean((1, 2))

    def __call__(self, x, train=False):
        return self.head(self.encode(x, train))


@pytest.fixture
def cnn(float64, draw):
    """Inputs, and the CNN's variables with factorized and with the equal dense kernels."""
    x = jnp.asarray(draw.array(2, 8, 8, 3))
    variables = random_variables(draw, CNN(), x)
    factored, dense = factored_and_dense(
        draw,
        variables["params"],
        {
            "stem/kernel": draw.weight(SpatialLowRank, (3, 3, 3, 4), 2, True),
            "blocks_0/Conv_0/kernel": draw.weight(ChannelLowRank, (3, 3, 4, 4), 2, False),
            "blocks_1/Conv_0/kernel": draw.weight(SpatialLowRank, (3, 3, 4, 4), 1, False),
            "head/kernel": draw.weight(LowRank, (4, 3), 2, False),
        },
    )
    return x, variables | {"params": factored}, variables | {"params": dense}


def test_class_and_instance():
    lifted = lift(CNN)
    assert lifted is lift(CNN) is lift(lifted) and issubclass(lifted, CNN)
    assert (lifted.__name__, lifted.__module__) == (CNN.__name__, CNN.__module__)
    model = lift(CNN(classes=7))
    assert type(model) is lifted and model.classes == 7
    assert model == lift(CNN(classes=7)) and hash(model) == hash(lift(CNN(classes=7)))


def test_keyword_only_fields_and_a_hash_of_its_own():
    class Special(nn.Module, kw_only=True):
        table: dict
        width: int = 2

        def __hash__(self):
            return 7

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.width)(x)

    model = lift(Special(table={"a": 1}))
    assert hash(model) == 7 and model.table == {"a": 1}
    assert model.init_with_output(KEY, jnp.ones(3))[0].shape == (2,)


def test_dense_parameters_give_the_same_computation():
    x = jnp.ones((2, 8, 8, 3))
    variables = jax.eval_shape(CNN().init, KEY, x)

    def jaxprs(model):
        yield jax.make_jaxpr(model.init, return_shape=True)(KEY, x)
        for train in (False, True):
            apply = functools.partial(model.apply, train=train, mutable="batch_stats")
            yield jax.make_jaxpr(apply, return_shape=True)(variables, x)

    for lifted, plain in zip(jaxprs(lift(CNN())), jaxprs(CNN()), strict=True):
        assert str(lifted) == str(plain)


def test_cnn(cnn):
    x, factored, dense = cnn
    model = lift(CNN())
    expected = CNN().apply(dense, x)
    assert_close(model.apply(factored, x), expected)
    assert_close(jax.jit(model.apply)(factored, x), expected)
    assert_close(model.bind(factored)(x), expected)
    # Batch statistics follow as they would.
    assert_close(
        model.apply(factored, x, True, mutable="batch_stats"),
        CNN().apply(dense, x, True, mutable="batch_stats"),
    )


def test_other_methods(cnn):
    x, factored, dense = cnn
    model = lift(CNN())
    expected = CNN().apply(dense, x, method="encode")
    for method in ("encode", CNN.encode, lift(CNN).encode, lambda module, x: module.encode(x)):
        assert_close(model.apply(factored, x, method=method), expected)
    assert_close(model.bind(factored).encode(x), expected)


def test_intermediates_are_captured_once(cnn):
    x, factored, dense = cnn
    assert_close(
        lift(CNN()).apply(factored, x, capture_intermediates=True),
        CNN().apply(dense, x, capture_intermediates=True),
    )


@pytest.mark.optimized  # Else the rounding of old versions is just above the tolerance.
def test_gradients(cnn, draw):
    x, factored, dense = cnn

    def loss(model, variables):
        return lambda params: jnp.sum(jnp.sin(model.apply(variables | {"params": params}, x)))

    found = jax.jit(jax.grad(loss(lift(CNN()), factored)))(factored["params"])

    def through_dense(params):
        params = jax.tree.map(
            lambda w: draw.dense(w, jnp.einsum) if hasattr(w, "vt") else w,
            params,
            is_leaf=lambda w: hasattr(w, "vt"),
        )
        return loss(CNN(), dense)(params)

    assert_close(found, jax.grad(through_dense)(factored["params"]))


def test_traced_inside_and_used_outside(cnn):
    """One jit cache, models with and without factorized kernels, in every order."""
    x, factored, dense = cnn
    expected = CNN().apply(dense, x)

    class Jitted(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.jit(CNN)(name="net")(x)

    def nested(variables):
        return {name: {"net": tree} for name, tree in variables.items()}

    for _ in range(2):
        assert_close(lift(Jitted)().apply(nested(dense), x), expected)
        assert_close(lift(Jitted)().apply(nested(factored), x), expected)
        assert_close(Jitted().apply(nested(dense), x), expected)

    @jax.jit
    def run(variables, x):
        return lift(CNN)().apply(variables, x)

    inside = []

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            inside.append(run(factored, x))
            return x

    lift(Outer)().apply({}, x)
    assert_close(inside[0], expected)
    assert_close(run(factored, x), expected)
    assert_close(run(dense, x), expected)


def test_born_factorized_in_an_unedited_model():
    class Net(nn.Module):
        kernel_init: object

        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral((2, 3), kernel_init=self.kernel_init)(x)
            return linen.Dense(2)(x)

    init = factorized(LowRank, FixedRank(2), out_axes=2)
    y, variables = lift(Net(init)).init_with_output(KEY, jnp.ones((5, 4)))
    weight = variables["params"]["DenseGeneral_0"]["kernel"]
    assert isinstance(weight, LowRank) and weight.shape == (4, 2, 3)
    assert y.shape == (5, 2, 2)


def one_layer(layer):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layer()(x)

    return Net()


class Raw(nn.Module):
    """A layer of the user's, with a parameter of its own."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (4, 5))


@pytest.mark.parametrize(
    ("layer", "name", "shape"),
    [
        (lambda: nn.Embed(4, 5, name="layer"), "embedding", (4, 2)),
        (lambda: nn.BatchNorm(True, name="layer"), "scale", (4, 5)),
        (lambda: nn.ConvTranspose(5, (3,), name="layer"), "kernel", (3, 4, 5)),
        (lambda: nn.ConvLocal(5, (3,), name="layer"), "kernel", (3, 12, 5)),
        (lambda: nn.Einsum((4, 5), "ab,bc->ac", name="layer"), "kernel", (4, 5)),
        (lambda: nn.WeightNorm(nn.Dense(5, name="layer")), "kernel", (4, 5)),
        (lambda: nn.Dense(5, name="layer"), "bias", (4, 5)),
        (lambda: nn.Dense(6, name="layer"), "kernel", (4, 5)),
        (lambda: nn.Conv(4, (3,), feature_group_count=2, name="layer"), "kernel", (3, 2, 4)),
        (lambda: nn.Conv(5, (3,), mask=jnp.ones((3, 4, 5)), name="layer"), "kernel", (3, 4, 5)),
        (lambda: nn.Dense(5, dot_general=lambda *a, **k: None, name="layer"), "kernel", (4, 5)),
        (lambda: Raw(name="layer"), "kernel", (4, 5)),
    ],
)
def test_a_weight_in_the_wrong_place_names_the_path(draw, layer, name, shape):
    weight = draw.weight(LowRank, shape, 2, False)
    x = jnp.ones((2, 3, 4), int)
    with pytest.raises(ValueError, match=rf"^layer/{name}: .*(LowRank|factorized)"):
        params = {"kernel": jnp.ones((4, 5)), name: weight}
        lift(one_layer(layer)).apply({"params": {"layer": params}}, x)


def test_misuse():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lift(CNN())(x)

    x = jnp.ones((2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"write lift\(CNN\)\(\.\.\.\)"):
        Wrong().init(KEY, x)
    with pytest.raises(ValueError, match="lift first and bind afterwards"):
        lift(CNN().bind({}))
    for other in (3, dict, lambda x: x):
        with pytest.raises(TypeError, match=r"lift takes a flax\.linen model or its class"):
            lift(other)
