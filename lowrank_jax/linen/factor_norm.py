"""Batch norm between the two factors of a convolution: the "extra batch norm" of Pufferfish.

A factorized kernel is two layers. In the published networks for images each of them has a norm:

    y = conv(norm(conv(x, u)), vt)      in place of      y = conv(conv(x, u), vt)

where ``u`` and ``vt`` carry the strides and paddings that they carry anyway: ``u`` all of them in a
``ChannelLowRank``, each those of its own axis in a ``SpatialLowRank``. With the norm, the kernel
``u @ vt`` alone no longer says what the layer computes: it is always applied as two convolutions,
and cannot be merged. In evaluation a new norm (mean 0, variance 1) divides by
``sqrt(1 + epsilon)``; in training it changes the function at once.

Source: Wang et al., "Pufferfish", MLSys 2021 (arXiv 2103.03936), and "Cuttlefish", MLSys 2023
(arXiv 2305.02538), from their code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from lowrank_jax.linen.kernels import KernelView, flax_code, path_of
from lowrank_jax.linen.layers import Conv
from lowrank_jax.rules import is_abstract
from lowrank_jax.table import Table
from lowrank_jax.tree import kernels
from lowrank_jax.weights import is_factorized

_NAME = "factor_norm"
_MISSING = (
    errors.ScopeParamNotFoundError,
    errors.ScopeVariableNotFoundError,
    errors.ScopeCollectionNotFound,
)


class FactorNormConv(Conv):
    """:class:`Conv` with a norm between the factors of its kernel, if that is factorized.

    With a dense kernel it is ``Conv`` and has no norm. The parameters and statistics of the norm
    lie beside the kernel, under ``factor_norm``; see :func:`add_factor_norms`.

    Attributes:
      norm: makes the norm of a name, as in ``partial(nn.BatchNorm, use_running_average=False)``;
        ``None``: there is none. The other attributes are those of ``Conv``.

    Raises:
      ValueError: when called, as for ``Conv``; or if the kernel is factorized and ``compose`` is
        true, its kind is not applied as two convolutions, or the norm has no parameters or
        statistics; or if the kernel is dense and the norm has parameters.

    >>> from functools import partial
    >>> from lowrank_jax.weights import ChannelLowRank
    >>> weight = ChannelLowRank(u=jnp.ones((1, 1, 3, 1)), vt=jnp.ones((1, 1, 1, 2)))
    >>> norm = partial(nn.BatchNorm, use_running_average=False)
    >>> layer = FactorNormConv(2, (1, 1), use_bias=False, norm=norm)
    >>> params = {"kernel": weight, "factor_norm": {"scale": jnp.ones(1), "bias": jnp.ones(1)}}
    >>> x = jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1) * jnp.ones(3)
    >>> y, _ = layer.apply({"params": params}, x, mutable=["batch_stats"])
    >>> [round(float(value), 3) for value in y.ravel()]
    [0.0, 0.0, 2.0, 2.0]
    """

    norm: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, inputs: Any) -> jax.Array:
        return convolve(self, self.compose, inputs)


def convolve(layer: FactorNormConv, compose: bool | None, inputs: Any) -> jax.Array:
    """``layer(inputs)`` for a bound layer; ``compose`` as in :func:`lowrank_jax.dot_general`."""
    return flax_code(nn.Conv.__call__)(_NormedView(layer, compose), inputs)


class _NormedView(KernelView):
    """The layer as flax's code is to see it: its convolution has the norm inside."""

    @property
    def conv_general_dilated(self) -> Callable[..., jax.Array]:
        plain = super().conv_general_dilated
        return plain if self.layer.norm is None else self._normed(plain)

    def _normed(self, plain: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        layer, path = self.layer, path_of(self.layer, "kernel")

        def norm(hidden: jax.Array) -> jax.Array:
            try:
                return layer.norm(name=_NAME)(hidden)
            except _MISSING as error:
                raise ValueError(
                    "it is factorized, and the norm between its factors has no parameters or "
                    "statistics: add_factor_norms makes them"
                ) from error

        def convolution(inputs: Any, kernel: Any, *args: Any, **kwargs: Any) -> jax.Array:
            if is_factorized(kernel):
                options = {"compose": self.compose, "between": norm, **kwargs}
                try:
                    return kernel.conv_general_dilated(inputs, *args, **options)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
            if _NAME in layer.variables.get("params", {}):
                raise ValueError(
                    f"{path}: it is dense, and beside it are the parameters of a norm between "
                    "factors: a kernel with a norm inside cannot be merged"
                )
            return plain(inputs, kernel, *args, **kwargs)

        return convolution


def add_factor_norms(params: Any, batch_stats: Any, table: Table) -> tuple[Any, Any]:
    """The trees with a new batch norm between the factors of each kernel that a table names.

    Args:
      params: of a linen model, factorized; arrays or ``ShapeDtypeStruct`` (then what is new is
        abstract, too).
      batch_stats: the model's ``batch_stats``.
      table: the kernels that belong to a :class:`FactorNormConv` with a norm.

    Returns:
      Both trees as new dictionaries. Beside each kernel lies ``factor_norm`` with ``scale`` 1 and
      ``bias`` 0 ``(rank,)`` in the dtype of the kernel, and in ``batch_stats`` with ``mean`` 0 and
      ``var`` 1 in float32. A norm that was there begins anew.

    Raises:
      ValueError: the table names a kernel that is not there, or not factorized.

    >>> import lowrank_jax as lrj
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 4, 8))}}
    >>> rules = [lrj.Rule("conv/kernel", lrj.FixedRank(2), lrj.ChannelLowRank)]
    >>> params = lrj.factorize(params, rules)
    >>> params, batch_stats = add_factor_norms(params, {}, lrj.describe(params))
    >>> params["conv"]["factor_norm"]["scale"].shape, sorted(batch_stats["conv"]["factor_norm"])
    ((2,), ['mean', 'var'])
    """
    found = kernels(params)
    for row in table.rows:
        weight = found.get(row.path)
        if weight is None or not is_factorized(weight):
            there = "no kernel" if weight is None else "a dense kernel"
            raise ValueError(
                f"{row.path}: found {there}, expected a {row.kind.__name__} to put a norm inside; "
                "factorize first, by the same table"
            )
        module = row.path.split("/")[:-1]
        shape = (*weight.u.shape[: weight.batch_ndim], weight.rank)

        def leaf(value: float, dtype: Any, weight: Any = weight, shape: Any = shape) -> Any:
            abstract = jax.ShapeDtypeStruct(shape, dtype)
            return abstract if is_abstract(weight) else jnp.full(shape, value, dtype)

        learned = {"scale": leaf(1, weight.dtype), "bias": leaf(0, weight.dtype)}
        running = {"mean": leaf(0, jnp.float32), "var": leaf(1, jnp.float32)}
        params = _with_child(params, module, learned)
        batch_stats = _with_child(batch_stats, module, running)
    return params, batch_stats


def _with_child(tree: Mapping[str, Any], module: list[str], leaves: dict[str, Any]) -> Any:
    """A tree with these leaves in the norm of this module."""
    if not module:
        return {**tree, _NAME: leaves}
    first, *rest = module
    return {**tree, first: _with_child(tree.get(first, {}), rest, leaves)}
