"""Attention parameters in many layouts, and their heads written out in NumPy, without the library.

Every case has biases. ``heads`` reads a case's parameters in float64 as, for each head, the kernels
``q, k, v (D, d)`` and ``o (d, D)`` and the biases ``b_q, b_k, b_v (d,)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lowrank_jax import AttentionLayout, LowRank, Projection, View, is_factorized

MODEL, HEADS, SIZE, GROUPS, LAYERS = 10, 4, 3, 2, 2
FLAX = AttentionLayout()
Head = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    params: Any
    heads: Callable[[Any], list[Head]]
    layout: AttentionLayout = FLAX


def dense(leaf: Any) -> np.ndarray:
    """A kernel in float64, composed from its factors in float64."""
    if not is_factorized(leaf):
        return np.asarray(leaf, np.float64)
    assert isinstance(leaf, LowRank)
    u, vt = np.asarray(leaf.u, np.float64), np.asarray(leaf.vt, np.float64)
    middle = np.eye(u.shape[-1]) if leaf.m is None else np.asarray(leaf.m, np.float64)
    if leaf.in_axes == 2:
        return np.einsum("...abr,...rs,...sc->...abc", u, middle, vt)
    letters = "bc" if leaf.out_axes == 2 else "b"
    return np.einsum(f"...ar,...rs,...s{letters}->...a{letters}", u, middle, vt)


class Draw:
    """Random leaves from one generator."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape).astype(np.float32)

    def projection(self, *shape: int, bias: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {"kernel": self(*shape), "bias": self(*bias)}

    def low_rank(
        self, *shape: int, rank: int = 6, in_axes: int = 1, batch: int = 0, deep: bool = False
    ) -> LowRank:
        lead, rest = shape[:batch], shape[batch:]
        return LowRank(
            u=self(*lead, *rest[:in_axes], rank),
            vt=self(*lead, rank, *rest[in_axes:]),
            m=self(*lead, rank, rank) if deep else None,
            in_axes=in_axes,
            out_axes=len(rest) - in_axes,
        )


def flax_heads(module: Any) -> list[Head]:
    """Of ``query``, ``key``, ``value`` and ``out`` as flax stores them."""
    kernels = {name: dense(module[name]["kernel"]) for name in ("query", "key", "value", "out")}
    biases = {name: dense(module[name]["bias"]) for name in ("query", "key", "value")}
    shared = kernels["query"].shape[1] // kernels["key"].shape[1]
    return [
        {
            "q": kernels["query"][:, h],
            "k": kernels["key"][:, h // shared],
            "v": kernels["value"][:, h // shared],
            "o": kernels["out"][h],
            "b_q": biases["query"][h],
            "b_k": biases["key"][h // shared],
            "b_v": biases["value"][h // shared],
        }
        for h in range(kernels["query"].shape[1])
    ]


def stacked_heads(module: Any) -> list[Head]:
    """The same of a module with an axis of layers in front."""
    layers = [
        {
            name: {key: dense(leaf)[layer] for key, leaf in projection.items()}
            for name, projection in module.items()
        }
        for layer in range(dense(module["query"]["kernel"]).shape[0])
    ]
    return [head for one in layers for head in flax_heads(one)]


def penalty(heads: list[Head], which: tuple[str, ...] = ("qk", "ov")) -> float:
    """Half the sum of the squared norms of the heads' products."""
    total = 0.0
    for head in heads:
        if "qk" in which:
            total += 0.5 * np.sum((head["q"] @ head["k"].T) ** 2)
        if "ov" in which:
            total += 0.5 * np.sum((head["v"] @ head["o"]) ** 2)
    return float(total)


def module(draw: Draw, kernel: Callable[..., Any], groups: int = HEADS) -> dict[str, Any]:
    shapes = {"query": HEADS, "key": groups, "value": groups}
    return {
        name: {"kernel": kernel(MODEL, heads, SIZE), "bias": draw(heads, SIZE)}
        for name, heads in shapes.items()
    } | {"out": {"kernel": draw(HEADS, SIZE, MODEL), "bias": draw(MODEL)}}


def plain() -> Case:
    draw = Draw()
    return Case({"attention": module(draw, draw)}, lambda p: flax_heads(p["attention"]))


def two_modules() -> Case:
    draw = Draw()
    params = {"a": {"self": module(draw, draw), "mlp": {"kernel": draw(4, 4)}}}
    params["a"]["cross"] = module(draw, draw)
    return Case(params, lambda p: flax_heads(p["a"]["self"]) + flax_heads(p["a"]["cross"]))


def grouped() -> Case:
    draw = Draw()
    return Case({"attention": module(draw, draw, GROUPS)}, lambda p: flax_heads(p["attention"]))


def factorized(groups: int = HEADS, deep: bool = False) -> Case:
    draw = Draw()
    params = module(draw, lambda *shape: draw.low_rank(*shape, deep=deep), groups)
    params["out"]["kernel"] = draw.low_rank(HEADS, SIZE, MODEL, in_axes=2, deep=deep)
    return Case(params, flax_heads)


def half_factorized() -> Case:
    draw = Draw()
    params = module(draw, draw)
    params["key"]["kernel"] = draw.low_rank(MODEL, HEADS, SIZE)
    params["value"]["kernel"] = draw.low_rank(MODEL, HEADS, SIZE)
    return Case(params, flax_heads)


def scanned(low_rank: bool) -> Case:
    draw = Draw()

    def kernel(*shape: int, in_axes: int = 1) -> Any:
        if low_rank:
            return draw.low_rank(LAYERS, *shape, in_axes=in_axes, batch=1)
        return draw(LAYERS, *shape)

    params = {
        name: {"kernel": kernel(MODEL, HEADS, SIZE), "bias": draw(LAYERS, HEADS, SIZE)}
        for name in ("query", "key", "value")
    } | {"out": {"kernel": kernel(HEADS, SIZE, MODEL, in_axes=2), "bias": draw(LAYERS, MODEL)}}

    return Case(params, stacked_heads)


def fused(
    shape: tuple[int, ...],
    bias: tuple[int, ...],
    part: Callable[[View, int], View],
    read: Callable[[np.ndarray, int, int], np.ndarray],
    kernel: Callable[..., Any] | None = None,
) -> Case:
    """One kernel for queries, keys and values; ``read(array, part, head)`` finds one of a head."""
    draw = Draw()
    leaf = (kernel or draw)(*shape)
    params = {
        "qkv": {"kernel": leaf, "bias": draw(*bias)},
        "out": {"kernel": draw(HEADS, SIZE, MODEL), "bias": draw(MODEL)},
    }

    def heads(params: Any) -> list[Head]:
        whole, added = (dense(params["qkv"][name]) for name in ("kernel", "bias"))
        found = []
        for h in range(HEADS):
            head = {"o": dense(params["out"]["kernel"])[h]}
            for index, name in enumerate("qkv"):
                head |= {name: read(whole, index, h), f"b_{name}": read(added, index, h)}
            found.append(head)
        return found

    sides = (
        Projection(part(View("qkv/kernel"), index), bias=part(View("qkv/bias"), index))
        for index in range(3)
    )
    return Case(params, heads, AttentionLayout(*sides))


def low_rank_2d(*shape: int) -> LowRank:
    return Draw(1).low_rank(*shape)


CASES: dict[str, Callable[[], Case]] = {
    "flax": plain,
    "two modules": two_modules,
    "grouped": grouped,
    "factorized": factorized,
    "factorized, deep": lambda: factorized(deep=True),
    "factorized, grouped": lambda: factorized(GROUPS),
    "half factorized": half_factorized,
    "scanned": lambda: scanned(False),
    "scanned, factorized": lambda: scanned(True),
    "fused (D, 3, H, d)": lambda: fused(
        (MODEL, 3, HEADS, SIZE),
        (3, HEADS, SIZE),
        lambda view, index: view.take(-3, index),
        lambda x, index, h: x[..., index, h, :],
    ),
    "fused (D, 3 H d)": lambda: fused(
        (MODEL, 3 * HEADS * SIZE),
        (3 * HEADS * SIZE,),
        lambda view, index: view.split(-1, (3, HEADS, SIZE)).take(-3, index),
        lambda x, index, h: x[..., (start := (index * HEADS + h) * SIZE) : start + SIZE],
    ),
    "fused (D, 3 H d), factorized": lambda: fused(
        (MODEL, 3 * HEADS * SIZE),
        (3 * HEADS * SIZE,),
        lambda view, index: view.split(-1, (3, HEADS, SIZE)).take(-3, index),
        lambda x, index, h: x[..., (start := (index * HEADS + h) * SIZE) : start + SIZE],
        low_rank_2d,
    ),
    "fused (D, H, 3 d)": lambda: fused(
        (MODEL, HEADS, 3 * SIZE),
        (HEADS, 3 * SIZE),
        lambda view, index: view.take(-1, (index * SIZE, (index + 1) * SIZE)),
        lambda x, index, h: x[..., h, index * SIZE : (index + 1) * SIZE],
    ),
}
