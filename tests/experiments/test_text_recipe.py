"""The recipes of text against NumPy: both decays and their places, Nesterov momentum, Adam,
clipping, and the inverse square root."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from configs import translation
from experiments import arguments, recipe

PLAIN, FROBENIUS = 0.3, 0.2
PRODUCTS = (lrj.Product("q", "k", dimension_numbers=(((-1,), (-1,)), ((-2,), (-2,)))),)
RATIO = 0.4
Leaves = dict[str, np.ndarray]


def settled(argument: str) -> Any:
    return arguments.settle(translation.get_config(f"rank_scale=0.5,{argument}"))


def parameters() -> Leaves:
    """A factorized kernel (u, vt), queries and keys (features, heads, head size), and a bias."""
    rng = np.random.default_rng(0)
    shapes = {"u": (5, 2), "vt": (2, 4), "q": (6, 3, 2), "k": (6, 3, 2), "bias": (4,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def tree(leaves: Leaves) -> Any:
    others = {name: jnp.asarray(leaves[name]) for name in ("q", "k", "bias")}
    return others | {"kernel": lrj.LowRank(jnp.asarray(leaves["u"]), jnp.asarray(leaves["vt"]))}


def leaves_of(params: Any) -> Leaves:
    found = {name: params[name] for name in ("q", "k", "bias")}
    found |= {"u": params["kernel"].u, "vt": params["kernel"].vt}
    return {name: np.asarray(value) for name, value in found.items()}


def of_kernel(p: Leaves) -> Leaves:
    """The gradient of half the squared norm of the factorized kernel."""
    return {"u": p["u"] @ p["vt"] @ p["vt"].T, "vt": p["u"].T @ p["u"] @ p["vt"]}


def of_products(p: Leaves) -> Leaves:
    """The gradient of half the squared norms of queries times keys, head by head."""
    found = {"q": np.zeros_like(p["q"]), "k": np.zeros_like(p["k"])}
    for head in range(3):
        q, k = p["q"][:, head], p["k"][:, head]
        found["q"][:, head], found["k"][:, head] = q @ k.T @ k, k @ q.T @ q
    return found


def scaled(factor: float, gradient: Leaves) -> Leaves:
    return {name: factor * value for name, value in gradient.items()}


def plainly(p: Leaves, *names: str) -> Leaves:
    return {name: p[name] for name in names}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("products", [(), PRODUCTS], ids=["kernels", "products"])
@pytest.mark.parametrize("decay", ["none", "plain", "frobenius", "crs"])
def test_every_leaf_has_one_decay(decay: str, products: tuple[lrj.Product, ...]) -> None:
    config = settled(f"decay={decay},weight_decay={PLAIN},frobenius_decay={FROBENIUS}")
    p = parameters()
    expected = scaled(PLAIN, plainly(p, "bias"))
    if products:
        expected |= scaled(FROBENIUS, of_products(p))
    else:
        expected |= scaled(PLAIN, plainly(p, "q", "k"))
    factors = plainly(p, "u", "vt")
    expected |= {
        "none": scaled(0.0, factors),
        "plain": scaled(PLAIN, factors),
        "crs": scaled(PLAIN * RATIO, factors),
        "frobenius": scaled(FROBENIUS, of_kernel(p)),
    }[decay]
    tx = recipe.decay(config, RATIO, products)
    params = tree(p)
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = leaves_of(tx.update(zeros, tx.init(params), params)[0])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-12, err_msg=name)


def test_the_coefficient_of_frobenius_decay_is_that_of_weight_decay_unless_it_has_its_own() -> None:
    p = {name: value.astype(np.float32) for name, value in parameters().items()}
    params = tree(p)
    config = settled(f"recipe=adam,weight_decay={PLAIN}")
    assert config.frobenius_decay == 0
    tx = recipe.decay(config, RATIO)
    found = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
    np.testing.assert_allclose(found["kernel"].u, PLAIN * of_kernel(p)["u"], rtol=1e-5)


def gradient_at(step: int) -> Leaves:
    rng = np.random.default_rng(100 + step)
    return {name: rng.normal(size=value.shape) for name, value in parameters().items()}


def run(config: Any, steps: int) -> Leaves:
    """Some steps of the optimizer of a config, with made-up gradients."""
    params = tree(parameters())
    tx = recipe.optimizer(config, 1, RATIO, products=PRODUCTS)
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(tree(gradient_at(step)), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return leaves_of(params)


def clipped(gradient: Leaves, norm: float) -> Leaves:
    whole = np.sqrt(sum((value**2).sum() for value in gradient.values()))
    return scaled(min(1.0, norm / whole), gradient)


def summed(*parts: Leaves) -> Leaves:
    names = {name for part in parts for name in part}
    return {name: sum(part[name] for part in parts if name in part) for name in names}


def inverse_sqrt(step: int, first: float, peak: float, warmup: int) -> float:
    if step < warmup:
        return first + (peak - first) * step / warmup
    return peak * (warmup / step) ** 0.5


@pytest.mark.usefixtures("x64")
def test_the_published_optimizer() -> None:
    """As the published code writes it: a buffer that carries the learning rate, rescaled when that
    changes; Frobenius decay is clipped with the gradient, plain decay shrinks the parameters."""
    config = settled(
        f"recipe=published,weight_decay={PLAIN},frobenius_decay={FROBENIUS},warmup_steps=2"
    )
    assert (config.momentum, config.clip_norm, config.learning_rate) == (0.99, 0.1, 0.25)
    p, mu = parameters(), config.momentum
    buffer = {name: np.zeros_like(value) for name, value in p.items()}
    before = None
    for step in range(6):
        rate = inverse_sqrt(step, 0.25, 0.25, 2)
        correction = rate / (before or rate)
        whole = summed(
            gradient_at(step), scaled(FROBENIUS, of_kernel(p)), scaled(FROBENIUS, of_products(p))
        )
        g = clipped(whole, config.clip_norm)
        for name in p:
            decayed = PLAIN if name == "bias" else 0.0
            p[name] = (
                p[name] * (1 - rate * decayed)
                + mu**2 * correction * buffer[name]
                - (1 + mu) * rate * g[name]
            )
            buffer[name] = mu * correction * buffer[name] - rate * g[name]
        before = rate
    assert before < 0.25
    for name, value in run(config, 6).items():
        np.testing.assert_allclose(value, p[name], rtol=1e-6, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("position", ["decoupled", "coupled"])
@pytest.mark.parametrize(
    ("optimizer", "b2", "epsilon"), [("adam", 0.98, 1e-9), ("lamb", 0.999, 1e-6)]
)
def test_adam_and_lamb(optimizer: str, b2: float, epsilon: float, position: str) -> None:
    """As in the publications; LAMB sets the norm of each kernel's step to that of the kernel."""
    config = settled(
        f"recipe=adam,optimizer={optimizer},weight_decay={PLAIN},warmup_steps=3,"
        f"decay_position={position},clip_norm=2.0"
    )
    p = parameters()
    first = {name: np.zeros_like(value) for name, value in p.items()}
    second = {name: np.zeros_like(value) for name, value in p.items()}
    for step in range(5):
        decay = summed(
            scaled(PLAIN, of_kernel(p)),
            scaled(PLAIN, of_products(p)),
            scaled(PLAIN, {"bias": p["bias"]}),
        )
        inside = summed(gradient_at(step), decay) if position == "coupled" else gradient_at(step)
        g = clipped(inside, 2.0)
        rate = inverse_sqrt(step, 1e-6, 2e-3, 3)
        for name in p:
            first[name] = 0.9 * first[name] + 0.1 * g[name]
            second[name] = b2 * second[name] + (1 - b2) * g[name] ** 2
            direction = (first[name] / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(second[name] / (1 - b2 ** (step + 1))) + epsilon
            )
            whole = direction + (decay[name] if position == "decoupled" else 0.0)
            if optimizer == "lamb" and name in of_kernel(p):
                whole = whole * np.linalg.norm(p[name]) / np.linalg.norm(whole)
            p[name] = p[name] - rate * whole
    for name, value in run(config, 5).items():
        np.testing.assert_allclose(value, p[name], rtol=1e-6, err_msg=name)


def test_lamb_moves_what_starts_at_zero() -> None:
    """At the learning rate, like Adam; scaled to its norm, a bias would stay where it is."""
    config = settled("recipe=adam,optimizer=lamb,warmup_steps=1,clip_norm=0,weight_decay=0")
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    tx = recipe.optimizer(config, 1, RATIO)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    schedule = recipe.learning_rate(config, 1)
    moved = sum(float(schedule(step)) for step in range(3))
    np.testing.assert_allclose(params["bias"], -moved, rtol=1e-5)
    np.testing.assert_allclose(
        params["kernel"], np.prod([1 - float(schedule(step)) for step in range(3)]), rtol=1e-5
    )


def test_the_learning_rate_rises_and_falls_with_the_square_root() -> None:
    schedule = recipe.learning_rate(settled("recipe=adam"), steps_per_epoch=10)
    for step in (0, 1, 200, 399, 400, 401, 1600, 100_000):
        assert float(schedule(step)) == pytest.approx(inverse_sqrt(step, 1e-6, 2e-3, 400), rel=1e-6)
    published = recipe.learning_rate(settled("recipe=published"), steps_per_epoch=10)
    assert float(published(16_000)) == pytest.approx(0.125)


def test_the_linear_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    config = settled("recipe=adam,schedule=linear,steps=1000,learning_rate=0.5,warmup_steps=100")
    schedule = recipe.learning_rate(config, steps_per_epoch=300)
    for step in (0, 1, 50, 99, 100, 101, 550, 999, 1000):
        rising = 1e-6 + (0.5 - 1e-6) * step / 100
        expected = rising if step < 100 else 0.5 * (1000 - step) / 900
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_milestones_are_shares_of_the_steps_where_these_are_given() -> None:
    config = settled("recipe=adam,schedule=milestones,steps=1000,learning_rate=0.5")
    schedule = recipe.learning_rate(config, steps_per_epoch=300)
    found = [float(schedule(step)) for step in (0, 499, 500, 749, 750)]
    assert found == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
