"""How each factorized kernel of a run is applied: as its factors, or composed to the dense kernel.

    factored    two products, by `u` and then by `vt`: fewer multiply-adds at low rank
    composed    the kernel `u @ vt` is formed first: one larger product, which at higher ranks is
                faster on many machines even where it costs more multiply-adds

With `forms=count` the form with fewer multiply-adds is taken, at the sizes at hand, wherever a
kernel is applied. With `forms=measure` both forms are timed once for each layer shape, when a run
begins, unless the counts leave no doubt. The times are kept for other runs (`form_cache.py`); the
forms are written to the run's folder, and a run that is continued keeps them, so its bits do not
depend on a clock.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments import state as states
from experiments.accumulation import micro_batch_size
from experiments.form_cache import FormCache, Seconds
from experiments.form_timing import time_forms
from experiments.multiply_adds import multiply_adds
from experiments.state import Plan
from lowrank_jax.applications import Application, applications

# Factored multiply-adds as a share of composed ones. Outside of these bounds the count decides
# without a measurement: below, the two small products win if they run at half the speed of the
# large one; above, the factored form has nothing to win by. Rank scale 0.111 is below at strides 1
# and 2 (0.22 and 0.44 for kernels of size 3), 0.333 in between.
_CLEARLY_FACTORED = 1 / 2
_CLEARLY_COMPOSED = 1.5


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of one kernel.

    Attributes:
      path: of the kernel in the parameters.
      form: ``"factored"`` or ``"composed"``.
      decided: ``"counted"`` or ``"measured"``.
      signature: what the kernel is applied to, see `lowrank_jax.applications`.
      factored_multiply_adds: None if there is no factored form.
      composed_multiply_adds: of the whole batch, forward.
      factored_seconds, composed_seconds: forward and backward; None if not measured.
    """

    path: str
    form: str
    decided: str
    signature: str
    factored_multiply_adds: int | None
    composed_multiply_adds: int
    factored_seconds: float | None = None
    composed_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.form not in ("factored", "composed"):
            raise ValueError(f"{self.path}: unknown form {self.form!r}")
        if self.decided not in ("counted", "measured"):
            raise ValueError(f"{self.path}: unknown decision {self.decided!r}")


@dataclasses.dataclass(frozen=True)
class Forms:
    """The forms of all factorized kernels of a run. It prints as a table.

    Attributes:
      rows: in the order in which the network applies them.
      shapes_measured: how many layer shapes were timed for it; the cache had the others.
      seconds: how long that took.
    """

    rows: tuple[Form, ...] = ()
    shapes_measured: int = 0
    seconds: float = 0.0

    @property
    def compose(self) -> dict[str, bool]:
        """For `lowrank_jax.linen.lift`. Kernels that are counted are left to the count at hand:
        other batches, of evaluation say, may have another one."""
        return {row.path: row.form == "composed" for row in self.rows if row.decided == "measured"}

    @property
    def summary(self) -> str:
        """One line, as in `12 factored, 6 composed (4 shapes measured in 6 s)`."""
        count = sum(row.form == "factored" for row in self.rows)
        if self.shapes_measured:
            how = f"{self.shapes_measured} shapes measured in {self.seconds:.0f} s"
        else:
            how = "by earlier measurements" if self.compose else "by count"
        return f"{count} factored, {len(self.rows) - count} composed ({how})"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Forms:
        """Reads what `as_dict` returned.

        Raises:
          ValueError: it is not such data.
        """
        try:
            rows = tuple(Form(**row) for row in data["rows"])
            return cls(rows, int(data["shapes_measured"]), float(data["seconds"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the forms of a run: {error!r}") from error

    def __str__(self) -> str:
        width = max([len(row.path) for row in self.rows], default=0)
        lines = [f"{'kernel':{width}}  form      decided   multiply-adds  factored ms  composed ms"]
        for row in self.rows:
            of_composed = "one form"
            if row.factored_multiply_adds is not None:
                of_composed = f"{row.factored_multiply_adds / row.composed_multiply_adds:.1%}"
            times = [
                f"{1e3 * seconds:11.2f}" if seconds is not None else f"{'-':>11}"
                for seconds in (row.factored_seconds, row.composed_seconds)
            ]
            lines.append(
                f"{row.path:{width}}  {row.form:8}  {row.decided:8}  {of_composed:>13}  "
                f"{'  '.join(times)}"
            )
        return "\n".join([*lines, "multiply-adds: factored as a share of composed, forward"])


def choose(
    task: Any,
    plan: Plan,
    say: Callable[[str], None],
    stored: Forms | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[Any, Plan, Forms]:
    """The task and the plan with every kernel in its form.

    Args:
      task: has a ``network`` with ``in_forms``.
      plan: of this task.
      say: where progress lines go.
      stored: the forms of a run that is continued; without them they are decided here.
      between: called before each measurement; may raise.
    """
    if stored is None:
        forms = decide(plan, task.network, say, between)
    else:
        forms = dataclasses.replace(stored, shapes_measured=0, seconds=0.0)
    if not forms.compose:
        return task, plan, forms
    task = dataclasses.replace(task, network=task.network.in_forms(forms.compose))
    return task, states.recounted(plan, task.network), forms


def decide(
    plan: Plan,
    network: Any,
    say: Callable[[str], None],
    between: Callable[[], None] = lambda: None,
) -> Forms:
    """Decides on the form of each factorized kernel, by the count or by measuring.

    Args:
      plan: of the run; ``plan.config.forms`` says how.
      network: the task's.
      say: where progress lines go.
      between: called before each measurement; may raise.
    """
    if not plan.table.rows:
        return Forms()
    began = time.perf_counter()
    params, model_state = states.abstract_variables(plan)
    found = applications(network.apply, params, model_state, network.example(local_batch(plan)))
    rows = [_counted(path, applied) for path, applied in found.items()]
    # Processes that measure for themselves may decide differently, and wait for each other forever.
    if plan.config.forms == "count" or jax.process_count() > 1:
        return Forms(tuple(rows))
    doubtful = [row.path for row in rows if _is_doubtful(row)]
    shapes = list(dict.fromkeys(one for path in doubtful for one in found[path]))
    if not shapes:
        return Forms(tuple(rows))
    layout = "batch_minor" if plan.batch_minor else "as_written"
    cache = FormCache(layout, say)
    seconds: dict[Application, Seconds] = {}
    missing = []
    for shape in shapes:
        known = cache.get(shape.signature)
        if known is None:
            missing.append(shape)
        else:
            seconds[shape] = known
    for number, shape in enumerate(missing, 1):
        between()
        seconds[shape] = time_forms(shape, plan)
        cache.put(shape.signature, seconds[shape])
        say(
            f"measured {number} of {len(missing)} layer shapes: {shape.weight.shape} of rank "
            f"{shape.weight.rank} on {shape.inputs.shape}: factored "
            f"{1e3 * seconds[shape].factored:.2f} ms, composed "
            f"{1e3 * seconds[shape].composed:.2f} ms"
        )
    rows = [
        _measured(row, [seconds[one] for one in found[row.path]]) if row.path in doubtful else row
        for row in rows
    ]
    return Forms(tuple(rows), len(missing), time.perf_counter() - began if missing else 0.0)


def local_batch(plan: Plan) -> int:
    """Examples that one device takes at once."""
    size = micro_batch_size(plan.config.batch_size, plan.config.accumulate_steps)
    parts = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    return size // parts if size % parts == 0 else size


def _counted(path: str, applied: tuple[Application, ...]) -> Form:
    def count(compose: bool) -> int:
        return sum(
            multiply_adds(functools.partial(one.apply, compose=compose), one.inputs, one.weight)
            for one in applied
        )

    composed = count(True)
    try:
        factored = count(False)
    except ValueError:  # There is no factored form.
        factored = None
    return Form(
        path=path,
        form="composed" if factored is None or factored > composed else "factored",
        decided="counted",
        signature=" + ".join(one.signature for one in applied),
        factored_multiply_adds=factored,
        composed_multiply_adds=composed,
    )


def _is_doubtful(row: Form) -> bool:
    if row.factored_multiply_adds is None:
        return False
    share = row.factored_multiply_adds / row.composed_multiply_adds
    return _CLEARLY_FACTORED <= share <= _CLEARLY_COMPOSED


def _measured(row: Form, seconds: list[Seconds]) -> Form:
    factored = sum(one.factored for one in seconds)
    composed = sum(one.composed for one in seconds)
    return dataclasses.replace(
        row,
        form="composed" if composed < factored else "factored",
        decided="measured",
        factored_seconds=factored,
        composed_seconds=composed,
    )
