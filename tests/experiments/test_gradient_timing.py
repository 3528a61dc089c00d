"""What is timed of a part of a network, against its formula; and which times count."""

from __future__ import annotations

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from experiments import gradient_timing
from experiments.benchmark import alternation
from experiments.gradient_timing import Contender, gradients, time_gradients

SHAPES = {"image": (2, 5, 4, 3), "kernel": (3, 3, 3, 6), "scale": (6,)}


def plan(batch_minor):
    in_layout = lrj.batch_minor if batch_minor else lambda function: function
    return types.SimpleNamespace(batch_minor=batch_minor, in_layout=in_layout)


def function(inputs, params, others):
    """A convolution, rows of it chosen by whole numbers; an image and a vector."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        inputs["image"], params["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    y = jnp.tanh(y * others["scale"])
    return y, y.mean((1, 2))[inputs["rows"]]


@pytest.mark.parametrize("batch_minor", [False, True])
def test_the_gradients_are_those_of_the_formula(batch_minor):
    numbers = np.random.default_rng(0)
    image, kernel, scale = (
        jnp.asarray(numbers.standard_normal(shape), jnp.float32) for shape in SHAPES.values()
    )
    rows = jnp.array([1, 0, 1])
    directions = tuple(
        jnp.asarray(numbers.standard_normal(shape), jnp.float32) for shape in ((2, 5, 4, 6), (3, 6))
    )

    def formula(image, kernel):
        inputs = {"image": image, "rows": rows}
        outputs = function(inputs, {"kernel": kernel}, {"scale": scale})
        return sum(jnp.vdot(y, d) for y, d in zip(outputs, directions, strict=True))

    expected, (of_image, of_kernel) = jax.jit(jax.value_and_grad(formula, (0, 1)))(image, kernel)

    def stored(image):
        return image.transpose(3, 1, 2, 0) if batch_minor else image

    value, found = jax.jit(gradients(function, plan(batch_minor)))(
        {"image": stored(image), "rows": rows},
        {"kernel": kernel},
        {"scale": scale},
        (stored(directions[0]), directions[1]),
    )
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert len(found) == 2  # None of the rows, none of the scale.
    np.testing.assert_allclose(found[0], stored(of_image), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], of_kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.optimized
def test_images_come_as_they_are_stored():
    """No image is copied from one layout to the other; where they come as written, some are."""

    def convolution(x, w, _):
        return jnp.tanh(
            jax.lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )

    def copies(plan, shape):
        x, w = jnp.ones(shape), jnp.ones((3, 3, 7, 7))
        compiled = jax.jit(gradients(convolution, plan)).lower(x, w, None, x).compile()
        found = re.findall(r"f32\[([\d,]*)\]\S* (?:transpose|copy)\(", compiled.as_text())
        return sum(sorted(map(int, sizes.split(","))) == sorted(shape) for sizes in found)

    assert copies(plan(batch_minor=True), (7, 6, 6, 5)) == 0
    as_written = types.SimpleNamespace(batch_minor=False, in_layout=lrj.batch_minor)
    assert copies(as_written, (5, 6, 6, 7)) > 0


def scripted(monkeypatch, **seconds):
    """Turns take the times that are said, in their order; the last one for ever."""
    scripts = iter(seconds.values())
    calls = dict.fromkeys(seconds, 0)
    names = iter(seconds)

    def timed(work):
        script, name = list(next(scripts)), next(names)
        work()  # It can be done.

        def turn():
            calls[name] += 1
            return script.pop(0) if len(script) > 1 else script[0]

        return turn

    monkeypatch.setattr(gradient_timing, "timed", timed)
    return calls


def contenders():
    leaf = jax.ShapeDtypeStruct((2,), jnp.float32)
    return {name: Contender(lambda x, w, _: x * w, leaf) for name in ("slow", "fast")}


INPUTS = jax.ShapeDtypeStruct((2,), jnp.float32)


def test_the_first_turns_do_not_count_and_of_the_others_the_median(monkeypatch):
    times = list(range(1, 11))  # Their median is 5.5.
    calls = scripted(monkeypatch, slow=[100.0, 90.0, *times[::-1]], fast=[50.0, 0.5, *times])
    found = time_gradients(contenders(), INPUTS, plan(False), print)
    assert found == {"slow": 5.5, "fast": 5.5}
    assert calls == {"slow": 12, "fast": 12}


def test_a_change_of_speed_meets_both(monkeypatch):
    """Half of the way through, everything takes three times as long: the ratio stays."""
    slow = [2.0] * 7 + [6.0] * 5
    scripted(monkeypatch, slow=slow, fast=[second / 2 for second in slow])
    found = time_gradients(contenders(), INPUTS, plan(False), print)
    assert found["slow"] == 2 * found["fast"]


def test_short_work_has_more_turns(monkeypatch):
    calls = scripted(monkeypatch, slow=[9.0, 0.008], fast=[9.0, 0.002])
    time_gradients(contenders(), INPUTS, plan(False), print)
    assert calls == {"slow": 52, "fast": 52}  # 50 in half a second, and two before.


def test_what_is_drawn(monkeypatch):
    """Of every leaf its shape and dtype; keys can be used."""
    seen = {}
    monkeypatch.setattr(alternation, "_MOST", 1)
    key = jax.eval_shape(lambda: jax.random.key(0))
    others = {"key": key, "mask": jax.ShapeDtypeStruct((3,), bool)}

    def noted(x, params, others):
        seen.update(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), others))
        noise = jax.random.normal(others["key"], x.shape, x.dtype)
        return (x + noise) * params * others["mask"]

    half = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    (seconds,) = time_gradients(
        {"one": Contender(noted, half, others)}, half, plan(False), print
    ).values()
    assert seconds > 0
    assert seen == {"key": ((), key.dtype), "mask": ((3,), jnp.dtype(bool))}
