"""PyTorch state dicts as parameter trees, the factorized layers of the paper's code included.

That code (https://github.com/microsoft/fnl_paper) stores a layer as the factors `U`, `VT` and,
where it is deep, `M` of the matrix P = U M VT. PyTorch's weights are (out, in), ours (in, out): so
each factor of ours is the transpose of one of theirs, and `u`, which touches the input first, that
of `VT`.

    linear layer, P of shape (out, in):
        u = VTᵀ,    m = Mᵀ,    vt = Uᵀ
    convolution, P with rows o kh + h and columns i kw + w:
        u[0, w, i, r] = VT[r, i kw + w],    m = Mᵀ,    vt[h, 0, r, o] = U[o kh + h, r]

Everything here takes NumPy arrays and gives NumPy arrays; PyTorch is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank_jax.tree import map_kernels
from lowrank_jax.weights import LowRank, SpatialLowRank, is_factorized

Array = np.ndarray[Any, Any]

# What PyTorch calls the leaves of a module.
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_FACTORS = {"u": "VT", "vt": "U", "m": "M"}
_NO_PARAMETER = ".num_batches_tracked"
_PREFIX = "module."  # Of every name, where the network was wrapped in a DataParallel.


def low_rank(U: Any, VT: Any, M: Any = None) -> LowRank:
    """A factorized linear layer of the paper's code.

    Args:
      U: (out, r).
      VT: (r, in).
      M: (r, r), or None.

    Returns:
      The weight whose kernel (in, out) is the transpose of ``U @ M @ VT``.

    Raises:
      ValueError: the shapes do not fit together.

    >>> weight = low_rank(U=np.ones((5, 2)), VT=np.ones((2, 3)))
    >>> weight.u.shape, weight.vt.shape, weight.shape
    ((3, 2), (2, 5), (3, 5))
    """
    U, VT, M = _factors(U, VT, M)
    return LowRank(u=VT.T, vt=U.T, m=None if M is None else M.T)


def spatial_low_rank(
    U: Any, VT: Any, M: Any = None, *, kernel_size: tuple[int, int]
) -> SpatialLowRank:
    """A factorized convolution of the paper's code.

    Args:
      U: (out * kh, r), output channel major.
      VT: (r, in * kw), input channel major.
      M: (r, r), or None.
      kernel_size: (kh, kw), which the factors alone do not tell.

    Returns:
      The weight whose HWIO kernel is that of the convolution, transposed from PyTorch's OIHW.

    Raises:
      ValueError: the shapes do not fit together, or not to the kernel size.

    >>> U, VT = np.ones((5 * 3, 2)), np.ones((2, 4 * 3))
    >>> weight = spatial_low_rank(U, VT, kernel_size=(3, 3))
    >>> weight.u.shape, weight.vt.shape, weight.shape
    ((1, 3, 4, 2), (3, 1, 2, 5), (3, 3, 4, 5))
    """
    U, VT, M = _factors(U, VT, M)
    height, width = kernel_size
    if U.shape[0] % height or VT.shape[1] % width:
        raise ValueError(
            f"U {U.shape} and VT {VT.shape} are no factors of a {height} x {width} convolution: "
            f"expected (out * {height}, r) and (r, in * {width})"
        )
    rank = U.shape[1]
    return SpatialLowRank(
        u=VT.reshape(rank, -1, width).transpose(2, 1, 0)[None],
        vt=U.reshape(-1, height, rank).transpose(1, 2, 0)[:, None],
        m=None if M is None else M.T,
    )


def from_state_dict(state: Mapping[str, Any], target: Any, modules: Mapping[str, str]) -> Any:
    """The variables of a network, from the state dict of its PyTorch twin.

    Kernels become (in, out) and HWIO, a batch norm's `weight` and `running_var` `scale` and `var`.
    PyTorch updates the running variance by an unbiased estimate and Flax by a biased one; what is
    stored is used in the same way.

    Args:
      state: NumPy arrays by name. `module.` in front of every name is left out, and so are the
        counters `num_batches_tracked`.
      target: ``{"params": ..., "batch_stats": ...}``, arrays or `jax.ShapeDtypeStruct`, with
        weights of the kinds, ranks and depths that the state dict has; see
        :func:`lowrank_jax.factorize`.
      modules: PyTorch's names of the modules by ours: ``{"block_1/conv1": "layer1.0.conv1"}``.

    Returns:
      A tree like the target, of NumPy arrays of its dtypes.

    Raises:
      ValueError: a leaf of the target is not in the state dict, or has another shape or another
        kind of numbers there; something of the state dict or of `modules` has no place in the
        target; a whole checkpoint in place of the state dict.

    >>> target = {"params": {"head": {"kernel": LowRank(u=np.ones((3, 2)), vt=np.ones((2, 5)))}}}
    >>> state = {"fc.U": np.ones((5, 2)), "fc.VT": np.ones((2, 3))}
    >>> from_state_dict(state, target, {"head": "fc"})["params"]["head"]["kernel"].dense().shape
    (3, 5)
    """
    if inner := [str(name) for name, value in state.items() if isinstance(value, Mapping)]:
        raise ValueError(
            f"found dicts under {_listed(inner)}: this is a checkpoint; give the state dict inside "
            "it, as in checkpoint['state_dict']"
        )
    if all(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.endswith(_NO_PARAMETER)}
    used: set[str] = set()
    named: set[str] = set()

    def convert(path: str, leaf: Any) -> Any:
        collection, _, rest = path.partition("/")
        module, _, name = rest.rpartition("/")
        if (collection, name) not in _LEAVES:
            raise ValueError(f"{path}: PyTorch's modules have no counterpart of this leaf")
        if module not in modules:
            raise ValueError(f"{path}: the module names have none for {module!r}")
        named.add(module)
        theirs = modules[module]

        def take(parameter: str) -> Array:
            full = f"{theirs}.{parameter}"
            if full not in state:
                there = [one for one in state if one.startswith(f"{theirs}.")]
                raise ValueError(
                    f"{path}: {full} is not in the state dict, which has "
                    f"{', '.join(there) or 'nothing'} of this module; the target has to be "
                    "factorized as the state dict is"
                )
            used.add(full)
            return np.asarray(state[full])

        if not is_factorized(leaf):
            parameter = _LEAVES[collection, name]
            array = take(parameter)
            return _fitted(
                path, f"{theirs}.{parameter}", _in_out(array) if name == "kernel" else array, leaf
            )
        if not isinstance(leaf, LowRank | SpatialLowRank):
            raise ValueError(
                f"{path} is a {type(leaf).__name__}: the factorized layers of the paper's code are "
                "LowRank and SpatialLowRank"
            )
        factors = {_FACTORS[factor]: take(_FACTORS[factor]) for factor, _ in leaf.children()}
        try:
            if isinstance(leaf, LowRank):
                weight: LowRank | SpatialLowRank = low_rank(**factors)
            else:
                height, width = leaf.shape[-4:-2]
                weight = spatial_low_rank(**factors, kernel_size=(height, width))
        except ValueError as error:
            raise ValueError(f"{path} from {theirs}: {error}") from error
        return weight.replace(
            **{
                factor: _fitted(
                    f"{path}/{factor}",
                    f"{theirs}.{_FACTORS[factor]}",
                    getattr(weight, factor),
                    wanted,
                )
                for factor, wanted in leaf.children()
            }
        )

    found = map_kernels(convert, target)
    if left := sorted(state.keys() - used):
        raise ValueError(
            f"{_listed(left)}: the target has no place for this part of the state dict; it has to "
            "be the same network, factorized as the state dict is"
        )
    if unknown := sorted(modules.keys() - named):
        raise ValueError(f"{_listed(unknown)}: there is no such module in the target")
    return found


def _factors(U: Any, VT: Any, M: Any) -> tuple[Array, Array, Array | None]:
    """The factors as arrays, whose shapes fit together."""
    U, VT, M = np.asarray(U), np.asarray(VT), None if M is None else np.asarray(M)
    fit = U.ndim == VT.ndim == 2 and U.shape[1] == VT.shape[0]
    if not fit or (M is not None and M.shape != (U.shape[1], U.shape[1])):
        middle = "" if M is None else f", M {M.shape}"
        raise ValueError(
            f"U {U.shape}{middle} and VT {VT.shape} do not fit together: expected (rows, r)"
            f"{middle and ', (r, r)'} and (r, columns)"
        )
    return U, VT, M


def _in_out(weight: Array) -> Array:
    """PyTorch's (out, in, *window) as our (*window, in, out)."""
    return weight.transpose(*range(2, weight.ndim), 1, 0) if weight.ndim >= 2 else weight


def _fitted(ours: str, theirs: str, found: Array, wanted: Any) -> Array:
    """The array in the target's dtype, if it has the target's shape and kind of numbers."""
    if found.shape != tuple(wanted.shape):
        raise ValueError(
            f"{ours} is made from {theirs} and has shape {found.shape}, expected "
            f"{tuple(wanted.shape)}: the target is another network, or of another rank"
        )
    if not np.can_cast(_numpys_own(found.dtype), _numpys_own(wanted.dtype), "same_kind"):
        raise ValueError(
            f"{ours} is made from {theirs} and has dtype {found.dtype}, expected {wanted.dtype}: "
            "convert it before, if nothing is lost by that"
        )
    return np.array(found, wanted.dtype, order="C")


def _numpys_own(dtype: Any) -> Any:
    """A dtype whose kind NumPy knows: it takes two of the small floats for different kinds."""
    return np.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
