"""What inference costs: parameters, multiply-adds and measured time of a run's network, as

    dense       the ordinary network that ratios are relative to
    factored    as it was trained, every kernel applied as the run applies it (`forms.json`)
    merged      every factorized weight as the dense kernel that it stands for

Timed is one call, from inputs to logits, both on one device, compiled, in the precision of the run:
for a single example and for the batch of evaluation. The three take turns (see
`benchmark/alternation.py`), so that a change of the machine's speed meets all of them.

Where training stores images batch-minor, each form is timed in whichever of the two layouts it
is faster in: on a CPU, dense networks often are in the layout as written, factored ones in the
other. Where merged and dense are the same network with other numbers in it, they are one compiled
program, and what their times differ by is noise.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import run_folder
from experiments.benchmark.alternation import Say, Turn, alternate, timed
from experiments.config_keys import can_be_merged
from experiments.multiply_adds import multiply_adds
from experiments.recipe import counted_parameters
from experiments.restored_run import RestoredRun
from experiments.result import hardware

_SECONDS = 3.0  # For the turns at one batch size, unless the fewest take longer.
_FEWEST_TURNS = 3


@dataclasses.dataclass(frozen=True)
class Latency:
    """One call of a network.

    Attributes:
      batch_size: examples in the call.
      multiply_adds: of one example; a kernel that is composed is composed once for the call.
      layout: in which it is faster, ``as_written`` or ``batch_minor``.
      turns: how many calls were timed.
      median_s: seconds of the call; ``lower_quartile_s``, ``upper_quartile_s``: their spread.
    """

    batch_size: int
    multiply_adds: int
    layout: str
    turns: int
    lower_quartile_s: float
    median_s: float
    upper_quartile_s: float


@dataclasses.dataclass(frozen=True)
class FormCost:
    """One of the three networks: its parameters, and its latency at each batch size."""

    parameters: int
    latencies: tuple[Latency, ...]


@dataclasses.dataclass(frozen=True)
class InferenceCost:
    """What inference costs on this machine. It prints as a table.

    Attributes:
      hardware: see `experiments.result.hardware`.
      precision: what products are computed in.
      merged_is_dense: whether merged and dense are one program.
      dense, factored, merged: the three networks; None where there are norms between the factors,
        which cannot be merged.
    """

    hardware: Mapping[str, Any]
    precision: str
    merged_is_dense: bool
    dense: FormCost
    factored: FormCost
    merged: FormCost | None

    def __str__(self) -> str:
        device = f"{self.hardware['cpu']}, {self.hardware['cores']} cores"
        if self.hardware["platform"] != "cpu":
            device = self.hardware["device_kind"]
        lines = [
            f"  inference on {device}, {self.precision}",
            "            parameters  batch  multiply-adds  layout       ms a call  (quartiles)",
        ]
        costs = {"dense": self.dense, "factored": self.factored}
        if self.merged is not None:
            costs["merged"] = self.merged
        for at in range(len(self.dense.latencies)):
            for form, cost in costs.items():
                one = cost.latencies[at]
                low, median, high = (
                    f"{1e3 * seconds:.4g}"
                    for seconds in (one.lower_quartile_s, one.median_s, one.upper_quartile_s)
                )
                lines.append(
                    f"  {form:8}  {cost.parameters:10,}  {one.batch_size:5}  "
                    f"{one.multiply_adds:13,}  {one.layout:11}  {median:>9}  ({low} to {high})"
                )
        if self.merged_is_dense:
            lines.append("  dense and merged are the same program: what they differ by is noise")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Contender:
    """A network with its variables on the device, and its compiled function by layout."""

    network: Any
    params: Any
    model_state: Any
    functions: Mapping[str, Callable[..., Any]]

    def turn(self, layout: str, inputs: jax.Array) -> Turn:
        function = self.functions[layout]
        return timed(lambda: jax.block_until_ready(function(self.params, self.model_state, inputs)))


def measure(restored: RestoredRun, say: Say = print) -> InferenceCost:
    """Measures the network of a finished run on the default device.

    Args:
      restored: the run and its final state.
      say: where a line goes when it takes long.

    Raises:
      RunError: `forms.json` is damaged.
    """
    config, network = restored.run.config, restored.task.network
    contenders = _contenders(restored)
    latencies: dict[str, list[Latency]] = {form: [] for form in contenders}
    for batch_size in sorted({1, config.get("eval_batch_size", config.batch_size)}):
        for form, latency in _latencies(contenders, batch_size, say).items():
            latencies[form].append(latency)
    costs = {
        form: FormCost(_count(config, form, contender.params), tuple(latencies[form]))
        for form, contender in contenders.items()
    }
    return InferenceCost(
        hardware=hardware(),
        precision=config.precision,
        merged_is_dense="merged" in costs and network.ordinary == network,
        dense=costs["dense"],
        factored=costs["factored"],
        merged=costs.get("merged"),
    )


def _count(config: ConfigDict, form: str, params: Any) -> int:
    """Of the dense network every parameter, of a pruned one those that are left."""
    if form == "dense":
        return lrj.describe(params).parameters
    return counted_parameters(config, params)


def _contenders(restored: RestoredRun) -> dict[str, _Contender]:
    network, plan, state = restored.task.network, restored.plan, restored.state
    forms = run_folder.read_forms(restored.run.folder, plan.table)
    device = jax.local_devices()[0]

    def contender(network: Any, params: Any, model_state: Any) -> _Contender:
        functions = {"as_written": jax.jit(network.apply)}
        if plan.batch_minor:
            functions["batch_minor"] = jax.jit(plan.in_layout(network.apply))
        params, model_state = jax.device_put((params, model_state), device)
        return _Contender(network, params, model_state, functions)

    in_forms = network.in_forms(forms.compose) if forms and forms.compose else network
    ordinary = jax.jit(network.ordinary.init)(jax.random.key(0))
    params = ordinary.pop("params")
    dense = contender(network.ordinary, params, ordinary)
    factored = contender(in_forms, state.params, state.model_state)
    found = {"dense": dense, "factored": factored}
    if can_be_merged(restored.run.config):
        found["merged"] = contender(network, lrj.merge(state.params), state.model_state)
        if network.ordinary == network:  # One program: compiled once.
            found["dense"] = dataclasses.replace(dense, functions=found["merged"].functions)
    return found


def _latencies(
    contenders: Mapping[str, _Contender], batch_size: int, say: Say
) -> dict[str, Latency]:
    network = next(iter(contenders.values())).network
    example = network.example(batch_size)
    inputs = network.random_inputs(jax.random.key(batch_size), batch_size)
    layouts: dict[str, str] = {}
    for form, one in contenders.items():
        same = [other for other in layouts if contenders[other].functions is one.functions]
        layouts[form] = layouts[same[0]] if same else _fastest(one, inputs)
    turns = {form: one.turn(layouts[form], inputs) for form, one in contenders.items()}
    seconds = alternate(turns, _FEWEST_TURNS, say, seconds=_SECONDS).seconds
    found = {}
    for form, one in contenders.items():
        low, median, high = statistics.quantiles(seconds[form], n=4, method="inclusive")
        count = multiply_adds(one.network.apply, one.params, one.model_state, example)
        found[form] = Latency(
            batch_size, count // batch_size, layouts[form], len(seconds[form]), low, median, high
        )
    return found


def _fastest(contender: _Contender, inputs: jax.Array) -> str:
    """The layout of the shortest call, of one in each layout."""

    def second_call(layout: str) -> float:
        turn = contender.turn(layout, inputs)
        turn()  # This one compiles.
        return turn()

    return min(contender.functions, key=second_call)
