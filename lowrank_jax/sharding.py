"""Sharding: where the arrays of a training state live on a mesh of devices.

Rules name kernels by their paths and say, for each axis of the *dense* kernel, over which axes of
the mesh it is split; kernels that no rule names are split by their sizes. A factor is split as the
dense axes it has: where the kernel is ``P("fsdp", "tensor")``, ``u`` is split over ``fsdp`` along
its inputs and ``vt`` over ``tensor`` along its outputs. Rank axes are never split: they are short,
and what is contracted over them would have to be summed over devices. A factor lacks some axes of
its kernel, and would be stored as often as these are split; so the mesh axes it would lose go to
the longest axis that it has, where the size divides:

    kernel P("fsdp", "tensor")  ->  u P(("fsdp", "tensor"), None),  vt P(None, ("tensor", "fsdp")).

What is split for memory alone is gathered when it is used (:func:`gathered_over`): of a kernel its
factors, and never the product, `r (m + n)` numbers of traffic where a dense kernel has `m n`.

An optimizer remembers arrays of the shape of each parameter; they live where it lives
(:func:`partition_state`). Under a mesh with automatic axes any placement computes the same
function, so all of this is a matter of memory and time.

Source of the axes' usual names and roles: Xu et al., "GSPMD: General and Scalable Parallelization
for ML Computation Graphs" (arXiv 2105.04663), section 3; fully sharded data parallelism is ZeRO
(Rajbhandari et al., SC 2020, arXiv 1910.02054).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lowrank_jax.mirrors import owners
from lowrank_jax.placement import follow
from lowrank_jax.tree import is_kernel, near_misses, path_string
from lowrank_jax.weights import FactorizedWeight

BySize = Callable[[Sequence[int], Mesh | AbstractMesh], PartitionSpec]


@dataclasses.dataclass(frozen=True)
class Partition:
    """A rule: kernels whose whole path matches are split so.

    Attributes:
      pattern: a regular expression for whole paths, such as ``r"layer_\\d+/up/kernel"``.
      spec: for the axes of the dense kernel, the mesh axes each is split over.
    """

    pattern: str
    spec: PartitionSpec


def largest_axes(shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The last axis of an array over ``tensor``, and the largest of the others over ``fsdp``.

    Where the sizes divide; arrays with fewer than two axes, and on meshes without these axes all
    arrays, are not split.

    >>> mesh = AbstractMesh((2, 4), ("fsdp", "tensor"))
    >>> tuple(largest_axes((3, 3, 16, 32), mesh)), tuple(largest_axes((6, 5), mesh))
    ((None, None, 'fsdp', 'tensor'), ('fsdp', None))
    """
    spec: list[str | None] = [None] * len(shape)
    if len(shape) < 2:
        return PartitionSpec(*spec)
    if _splits(mesh, "tensor", shape[-1]):
        spec[-1] = "tensor"
    free = [axis for axis in range(len(shape)) if spec[axis] is None]
    largest = max(free, key=lambda axis: shape[axis])
    if _splits(mesh, "fsdp", shape[largest]):
        spec[largest] = "fsdp"
    return PartitionSpec(*spec)


def partition(
    params: Any,
    mesh: Mesh | AbstractMesh,
    rules: Sequence[Partition] = (),
    otherwise: BySize = largest_axes,
) -> Any:
    """Where the parameters live: a tree like theirs of ``NamedSharding``.

    Args:
      params: arrays and factorized weights; shapes are enough.
      mesh: of devices, with any axes.
      rules: the first one whose pattern matches a kernel's whole path says how it is split.
      otherwise: from the shape of a kernel that no rule names, and the mesh, its spec.

    Raises:
      ValueError: a rule matches nothing or has more entries than a kernel axes, a mesh axis is
        unknown or named twice, or a size does not divide.

    >>> import jax.numpy as jnp
    >>> from lowrank_jax import FixedRank, Rule, factorize
    >>> params = {"up": {"kernel": jax.ShapeDtypeStruct((64, 256), jnp.float32)}}
    >>> params = factorize(params, [Rule("up/kernel", FixedRank(8))])
    >>> mesh = AbstractMesh((2, 4), ("fsdp", "tensor"))
    >>> rules = [Partition("up/kernel", PartitionSpec("fsdp", "tensor"))]
    >>> placed = partition(params, mesh, rules)["up"]["kernel"]
    >>> tuple(placed.u.spec), tuple(placed.vt.spec)
    ((('fsdp', 'tensor'), None), (None, ('tensor', 'fsdp')))
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_kernel)
    paths = [path_string(path) for path, _ in flat]
    for rule in rules:
        if not any(re.fullmatch(rule.pattern, path) for path in paths):
            raise ValueError(
                f"partition rule {rule.pattern!r} matches no kernel; "
                f"{near_misses(rule.pattern, paths)}"
            )
    placed = []
    for path, (_, kernel) in zip(paths, flat, strict=True):
        named = next((rule for rule in rules if re.fullmatch(rule.pattern, path)), None)
        spec = otherwise(kernel.shape, mesh) if named is None else named.spec
        _require_fit(path, kernel.shape, spec, mesh)
        placed.append(_placed(kernel, spec, mesh))
    return jax.tree_util.tree_unflatten(treedef, placed)


def gathered_over(axis: str, shardings: Any) -> Any:
    """The same placements, not split over one axis of the mesh.

    With fully sharded data parallelism parameters are stored in parts, and computed with whole. A
    step says so with ``jax.lax.with_sharding_constraint(params, gathered_over("fsdp", placed))``.
    Without that, the compiler is free to split the computation as the parameters are split; that is
    rarely faster, and on meshes of three axes XLA's partitioner has been seen to lose a sum on the
    way, which gave wrong gradients (openxla/xla issue 40034 looks alike).

    >>> mesh = AbstractMesh((2, 4), ("fsdp", "tensor"))
    >>> placed = NamedSharding(mesh, PartitionSpec(("fsdp", "tensor"), None))
    >>> tuple(gathered_over("fsdp", placed).spec)
    ('tensor', None)
    """

    def gathered(sharding: NamedSharding) -> NamedSharding:
        kept = (tuple(name for name in _names(entry) if name != axis) for entry in sharding.spec)
        return NamedSharding(sharding.mesh, PartitionSpec(*map(_entry, kept)))

    return jax.tree.map(gathered, shardings)


def partition_state(
    opt_state: Any, params: Any, shardings: Any, otherwise: BySize = largest_axes
) -> Any:
    """Where an optimizer's state lives: what it remembers of a parameter with that parameter.

    Args:
      opt_state: of an Optax transformation; shapes are enough.
      params: the parameters it was made for.
      shardings: theirs, as :func:`partition` gives them.
      otherwise: as for :func:`partition`, for leaves that belong to no parameter, such as step
        counts, or have another shape than it.

    Returns:
      A tree like the state's of ``NamedSharding``.

    >>> import jax.numpy as jnp, optax
    >>> params = {"kernel": jnp.ones((8, 4))}
    >>> placed = partition(params, mesh := AbstractMesh((2, 2), ("fsdp", "tensor")))
    >>> state = partition_state(optax.adam(1e-3).init(params), params, placed)
    >>> tuple(state[0].mu["kernel"].spec), tuple(state[0].count.spec)
    (('fsdp', 'tensor'), ())
    """
    of_parameters = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    mesh = next(iter(of_parameters.values()))[1].mesh
    owned = owners(opt_state, params)

    def place(path: Any, leaf: Any) -> NamedSharding:
        if path in owned:
            rest = path[len(owned[path].mirror) :]
            shape, sharding = of_parameters.get(rest, (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, otherwise(leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, opt_state)


def _placed(kernel: Any, spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> Any:
    """The shardings of one kernel: of the array, or of each factor."""
    if not isinstance(kernel, FactorizedWeight):
        return NamedSharding(mesh, spec)
    return kernel.replace(
        **{
            name: NamedSharding(mesh, _of_factor(kernel, name, factor.shape, spec, mesh))
            for name, factor in kernel.children()
        }
    )


def _of_factor(
    kernel: FactorizedWeight,
    name: str,
    shape: Sequence[int],
    of_kernel: PartitionSpec,
    mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
    """What its kernel's spec says of a factor: its own axes', and on the longest the others'."""
    dense = [_names(entry) for entry in of_kernel]
    spec = [_names(entry) for entry in follow(kernel, name, dense)]
    kept = {mesh_axis for names in spec for mesh_axis in names}
    lost = [axis for names in dense for axis in names if axis not in kept]
    from_dense = [
        axis for axis, source in enumerate(kernel.factor_axes[name]) if isinstance(source, int)
    ]
    if from_dense:
        longest = max(from_dense, key=lambda axis: shape[axis])
        for mesh_axis in lost:
            parts = math.prod(mesh.shape[one] for one in (*spec[longest], mesh_axis))
            if shape[longest] % parts == 0:
                spec[longest] = (*spec[longest], mesh_axis)
    return PartitionSpec(*(_entry(names) for names in spec))


def _require_fit(
    path: str, shape: Sequence[int], spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> None:
    """Raises ValueError unless a dense kernel can be split so."""
    named = [axis for entry in spec for axis in _names(entry)]
    if unknown := [axis for axis in named if axis not in mesh.shape]:
        raise ValueError(
            f"{path}: {spec} names the mesh axis {unknown[0]!r}; the mesh has "
            f"{', '.join(map(repr, mesh.shape))}"
        )
    if len(set(named)) < len(named):
        raise ValueError(f"{path}: {spec} names a mesh axis twice")
    if len(spec) > len(shape):
        raise ValueError(
            f"{path}: {spec} is for {len(spec)} axes, and a kernel of shape {tuple(shape)} has "
            f"{len(shape)}"
        )
    for axis, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        parts = math.prod(mesh.shape[name] for name in _names(entry))
        if size % parts:
            raise ValueError(
                f"{path}: axis {axis} of shape {tuple(shape)} cannot be split over {entry!r}, "
                f"which has {parts} devices"
            )


def _splits(mesh: Mesh | AbstractMesh, axis: str, size: int) -> bool:
    return mesh.shape.get(axis, 1) > 1 and size % mesh.shape[axis] == 0


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _entry(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Mesh axes as one entry of a spec."""
    return names[0] if len(names) == 1 else names or None
