"""The training state: planned by shapes alone, then made.

Planning goes the way the real thing goes, under `jax.eval_shape`: dense variables, factorized
parameters, optimizer state, shardings. So the table, the counts and the memory of a run are known
before an array exists, and a checkpoint has its target. Only a rule that looks at values (`energy`)
has its ranks from arrays, those of the trained network that the run starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import mesh as meshes
from experiments import models, processes, recipe
from experiments.accumulation import micro_batch_size
from experiments.errors import RunError
from experiments.layout import is_batch_minor
from experiments.multiply_adds import multiply_adds
from lowrank_jax.linen import add_factor_norms
from lowrank_jax.sharding import partition_state

Function = TypeVar("Function", bound=Callable[..., Any])

# A ratio that is missed by more than this share of it is told.
_RATIO_TOLERANCE = 0.1


class Variables(NamedTuple):
    """What a network computes with: its parameters, and the rest (batch statistics)."""

    params: Any
    model_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
      step: optimizer steps done, a scalar.
      params: the parameters, factorized where the table says so.
      model_state: the model's other variables (batch statistics).
      opt_state: of the optimizer.
    """

    step: Any
    params: Any
    model_state: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it exists.

    Attributes:
      config: settled.
      table: what is factorized and how.
      tx: the optimizer.
      schedule: learning rate by step.
      abstract: the state, as shapes with shardings.
      rank_scale: of its kernels, where it was found for a `ratio`; otherwise None.
      mesh: of devices.
      batch_minor: whether images are stored with the batch last inside compiled functions.
      parameters, dense_parameters: of the network when it is trained, and of the ordinary dense
        network; of a pruned one, those that are not zero.
      multiply_adds, dense_multiply_adds: of one example's forward pass, in the forms in which the
        run applies its kernels; those of zeros count.
    """

    config: ConfigDict
    table: lrj.Table
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    abstract: TrainState
    rank_scale: float | None
    mesh: Mesh
    batch_minor: bool
    parameters: int
    dense_parameters: int
    multiply_adds: int
    dense_multiply_adds: int

    @property
    def ratio(self) -> float:
        """Parameters as a share of the ordinary dense network's."""
        return self.parameters / self.dense_parameters

    @property
    def missed_ratio(self) -> str | None:
        """See the function of this name."""
        return missed_ratio(self.config, self.ratio)

    def in_layout(self, function: Function) -> Function:
        """The function, computed in the layout of the run; not to be differentiated."""
        return lrj.batch_minor(function) if self.batch_minor else function


def missed_ratio(config: ConfigDict, reached: float) -> str | None:
    """A line to print where the ratio that was asked for is missed by more than a tenth."""
    asked = config.ratio
    if not asked or abs(reached - asked) <= _RATIO_TOLERANCE * asked:
        return None
    return f"asked for ratio {asked:g}, got {reached:.4f}: ranks are whole numbers, at least 1"


def plan(
    config: ConfigDict,
    network: Any,
    batches_per_epoch: int,
    table: lrj.Table | None = None,
    switched_at: int | None = None,
) -> Plan:
    """Plans a run. One with `replay` is carried out by the plan that `replaying` makes of it.

    Args:
      config: settled.
      network: has ``init(key)``, ``apply(params, model_state, inputs)``, ``example(batch_size)``,
        and ``ordinary``, the dense network that ratios are relative to.
      batches_per_epoch: steps in an epoch.
      table: what is factorized, where that is known already. By default it is resolved by shapes.
      switched_at: of a run that began dense, the step after which that was factorized.

    Raises:
      RunError: a rule does not fit the model, the mesh not the devices or the kernels, or the
        number of micro-batches not the batch.
    """
    mesh = meshes.make(config.mesh)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    dense_params, model_state = _split(variables)
    rank_scale = None
    if table is None:
        rules = recipe.rules(config, dense_params)
        found = [rule.rank.scale for rule in rules if isinstance(rule.rank, lrj.RankScale)]
        rank_scale = found[0] if config.ratio and found else None
        table = recipe.resolve(rules, dense_params)
    ordinary_params, ordinary_state = _split(
        jax.eval_shape(network.ordinary.init, jax.random.key(0))
    )
    try:
        params = lrj.factorize(dense_params, table)
    except ValueError as error:
        raise RunError(str(error)) from error
    params, model_state = normed(config, table, Variables(params, model_state))
    dense_parameters = lrj.describe(ordinary_params).parameters
    parameters = recipe.parameters_left(config, params)
    norms = {row.path: jnp.zeros(1) for row in table.rows} if config.replay else None
    ratio = parameters / dense_parameters
    products = recipe.attention_products(config, params, config.products.decay)
    tx = recipe.optimizer(config, batches_per_epoch, ratio, norms, products, switched_at)
    try:
        opt_state = jax.eval_shape(tx.init, params)
    except ValueError as error:
        raise RunError(str(error)) from error

    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=opt_state,
    )
    placed = parameter_shardings(config, mesh, params)
    everywhere = meshes.replicated(mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        TrainState(
            step=everywhere,
            params=placed,
            model_state=jax.tree.map(lambda _: everywhere, model_state),
            opt_state=partition_state(opt_state, params, placed),
        ),
    )
    return Plan(
        config=config,
        table=table,
        tx=tx,
        schedule=recipe.learning_rate(config, batches_per_epoch, switched_at),
        abstract=abstract,
        rank_scale=rank_scale,
        mesh=mesh,
        batch_minor=is_batch_minor(config.layout, mesh),
        parameters=parameters,
        dense_parameters=dense_parameters,
        multiply_adds=_multiply_adds(config, network, params, model_state),
        dense_multiply_adds=_multiply_adds(
            config, network.ordinary, ordinary_params, ordinary_state
        ),
    )


def replaying(plan: Plan, batches_per_epoch: int, norms: Mapping[str, Any]) -> Plan:
    """The plan with an optimizer that sets these norms, ``(steps,)`` by path, after each step."""
    config = plan.config
    products = recipe.attention_products(config, plan.abstract.params, config.products.decay)
    tx = recipe.optimizer(config, batches_per_epoch, plan.ratio, norms, products)
    return dataclasses.replace(plan, tx=tx)


def resolve(config: ConfigDict, dense_params: Any) -> lrj.Table:
    """What a config factorizes in a network.

    Args:
      config: settled.
      dense_params: of the network; shapes are enough, unless the config gives an `energy`.

    Raises:
      RunError: a rule does not fit the model.
    """
    return recipe.resolve(recipe.rules(config, dense_params), dense_params)


def recounted(plan: Plan, network: Any) -> Plan:
    """The plan with the multiply-adds of a network that applies the same kernels in other forms."""
    count = _multiply_adds(plan.config, network, *abstract_variables(plan))
    return dataclasses.replace(plan, multiply_adds=count)


def abstract_variables(plan: Plan) -> Variables:
    """Parameters and model state as shapes, wherever they may live."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        Variables(plan.abstract.params, plan.abstract.model_state),
    )


def create(plan: Plan, network: Any, start: Variables | None = None) -> TrainState:
    """The state at step 0: dense variables, factorized, with a fresh optimizer.

    Args:
      plan: of the run.
      network: that it was made for.
      start: the dense variables; by default they are made from the seed.

    Raises:
      RunError: a kernel cannot be factorized.
    """
    seed = plan.config.seed
    dense_params, model_state = dense_variables(network, seed) if start is None else start
    _, factor_key = _keys(seed)
    try:
        params = dense_params
        for table, init in recipe.initializers(plan.config, plan.table):
            params = lrj.factorize(params, table, init, factor_key)
        balanced = recipe.attention_products(plan.config, params, plan.config.products.init)
        if balanced:
            params = lrj.balance_products(params, balanced)
    except ValueError as error:
        raise RunError(str(error)) from error
    params, model_state = normed(plan.config, plan.table, Variables(params, model_state))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=plan.tx.init(params),
    )
    return jax.device_put(processes.of_the_first(state), shardings(plan))


def normed(config: ConfigDict, table: lrj.Table, variables: Variables) -> Variables:
    """The variables with new norms between the factors, where the config asks for them."""
    if not config.factor_norm:
        return variables
    facts = models.find(config.model.name).rank_selection
    if facts is None or not facts.normed:
        raise RunError(f"factor_norm=True with model={config.model.name}: it has none")
    params, rest = variables
    with_norm = recipe.part(table, facts.normed)
    params, batch_stats = add_factor_norms(params, rest["batch_stats"], with_norm)
    return Variables(params, {**rest, "batch_stats": batch_stats})


def dense_variables(network: Any, seed: int) -> Variables:
    """The variables that a seed gives the dense network."""
    init_key, _ = _keys(seed)
    return _split(jax.jit(network.init)(init_key))


def _keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """For what is drawn at the start: the dense variables, and the factors."""
    init_key, factor_key = jax.random.split(jax.random.key(seed))
    return init_key, factor_key


def parameter_shardings(config: ConfigDict, mesh: Mesh, params: Any) -> Any:
    """Where the parameters of a config's model live, dense or factorized.

    Raises:
      RunError: an axis of the mesh cannot split what it should, or anything at all.
    """
    return meshes.parameter_shardings(mesh, params, models.find(config.model.name).partitions)


def shardings(plan: Plan) -> TrainState:
    """Where each leaf of the state lives."""
    return jax.tree.map(lambda leaf: leaf.sharding, plan.abstract)


def _multiply_adds(config: ConfigDict, network: Any, params: Any, model_state: Any) -> int:
    """Of one example, counted for as many as are taken at once: the choice between factors and
    kernel depends on their number."""
    size = micro_batch_size(config.batch_size, config.accumulate_steps)
    return multiply_adds(network.apply, params, model_state, network.example(size)) // size


def _split(variables: dict[str, Any]) -> Variables:
    rest = {name: value for name, value in variables.items() if name != "params"}
    return Variables(variables["params"], rest)
