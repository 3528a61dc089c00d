"""Run folders of networks that become low rank in training, from made-up numbers: a ResNet-18 of a
quarter of the usual width, and what the real one would write of its ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from synthetic_runs import STEPS, write_run

import lowrank_jax as lrj
from configs import cuttlefish
from experiments import files, result, run_folder, stack_profiling
from lowrank_jax.rank_selection import KeptLayers, StackTime
from lowrank_jax.table import Row

CHANNELS = {1: 16, 2: 32, 3: 64, 4: 128}  # by stage
KERNELS = [
    f"stage_{stage}_block_{block}/conv{conv}/kernel"
    for stage in CHANNELS
    for block in (1, 2)
    for conv in (1, 2)
]
ALWAYS = "width=0.25,data=fashion_small,epochs=6"
SWITCH = 4  # After this epoch.
LOSS = 0.02  # Of accuracy, at the switch.
TIMES = KeptLayers(
    tuple(
        StackTime(f"stage_{stage}", 0.004, seconds)
        for stage, seconds in zip(CHANNELS, (0.0048, 0.0025, 0.003, 0.001), strict=True)
    )
)


def full_rank(path: str) -> int:
    """Of a 3 x 3 kernel as k x k and 1 x 1 factors read it: its output channels."""
    return CHANNELS[int(path.split("_")[1])]


def stable_rank(path: str, epoch: int) -> float:
    """Falls from full rank / 2, the deeper the further."""
    depth = KERNELS.index(path) / len(KERNELS)
    return full_rank(path) / 2 * (1 - (0.3 + 0.5 * depth) * (1 - math.exp(-epoch)))


def selected_rank(path: str, epoch: int) -> int:
    return math.ceil(2 * stable_rank(path, epoch))


def write_table(folder: Path, ranks: dict[str, int], kind: Any = lrj.ChannelLowRank) -> None:
    rows = []
    for path, rank in ranks.items():
        wide = full_rank(path)
        first = path.endswith("block_1/conv1/kernel") and not path.startswith("stage_1")
        shape = (3, 3, wide // 2 if first else wide, wide)
        of_rank = lrj.ranks.parameters(kind, shape, rank, 2)
        rows.append(Row(path, kind, {}, shape, rank, 2, of_rank))
    run_folder.write_table(folder, lrj.Table(tuple(rows), 10_000))


def write_selecting(
    folder: Path,
    argument: str,
    accuracy: float,
    *,
    switch: int | None = SWITCH,
    dense: tuple[str, ...] = (),
    profiled: bool = True,
    **how: Any,
) -> Path:
    """A finished run that selects its ranks.

    Args:
      folder: to write to.
      argument: of configs/cuttlefish.py, behind `ALWAYS`.
      accuracy: in the end.
      switch: the epoch after which it becomes low rank; None: it stays dense.
      dense: kernels that stay dense beside those of the first stage, which is kept.
      profiled: whether its stacks were timed. Else it measures nothing, as Pufferfish.
      **how: see `write_run`.
    """
    candidates = [path for path in KERNELS if not path.startswith("stage_1")]
    chosen = {
        path: selected_rank(path, switch) if profiled else full_rank(path) // 4
        for path in candidates
        if switch is not None and path not in dense
    }
    remark = "12 of 12 layers have settled\n" + "\n".join(f"{p} stays dense: …" for p in dense)
    seconds = {"profiling": 40.0 * profiled, "measuring": 1.25 * profiled, "switching": 2.5}
    selection = result.Selected(
        epoch=None if switch is None else float(switch),
        step=None if switch is None else STEPS * switch,
        ranks=chosen,
        remark=remark.strip() if profiled and switch else "",
        seconds=seconds,
    )
    write_run(
        folder, f"{ALWAYS},{argument}", accuracy, configs=cuttlefish, selection=selection,
        kernels=KERNELS, **{"diagnostics": "epochs", "split": "test"} | how,
    )  # fmt: skip
    path = folder / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        epoch = line["epoch"]
        if profiled and epoch <= (switch or math.inf):
            line["selection"] = {
                "stable_rank": {path: stable_rank(path, epoch) for path in candidates},
                "selected_rank": {path: selected_rank(path, epoch) for path in candidates},
            }
        if epoch == switch:
            line["switched_test_accuracy"] = line["test_accuracy"] - LOSS
            line["switched_test_loss"] = line["test_loss"] + LOSS
        elif switch and epoch > switch:  # The dense kernels are not measured any more.
            for group in (*line.get("diagnostics", {}).values(), line.get("spectra", {})):
                for kernel in set(group) - set(chosen):
                    del group[kernel]
            for kernel, values in line.get("spectra", {}).items():
                line["spectra"][kernel] = values[: chosen[kernel]]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    write_table(folder, chosen)
    if profiled:
        stack_profiling.write(folder, TIMES)
    return folder


def write_all(root: Path, seeds: tuple[int, ...] = (1, 2)) -> None:
    """The four methods of configs/cuttlefish.py side by side."""
    for seed in seeds:
        words, more = f"seed={seed}", 0.001 * seed
        write_run(
            root / f"full{seed}", f"{ALWAYS},method=full,{words}", 0.9 + more, 464154,
            configs=cuttlefish, kernels=KERNELS, diagnostics="epochs",
        )  # fmt: skip
        write_table(root / f"full{seed}", {})
        write_run(
            root / f"si_fd{seed}", f"{ALWAYS},method=si_fd,{words}", 0.87 + more, 61_000,
            configs=cuttlefish, kernels=KERNELS, diagnostics="epochs",
        )  # fmt: skip
        ranks = {path: max(1, round(0.08 * 3 * full_rank(path))) for path in KERNELS}
        write_table(root / f"si_fd{seed}", ranks, lrj.SpatialLowRank)
        write_selecting(
            root / f"pufferfish{seed}", f"method=pufferfish,{words}", 0.88 + more,
            switch=2, profiled=False, parameters=150_000,
        )  # fmt: skip
        write_selecting(
            root / f"cuttlefish{seed}", f"method=cuttlefish,{words}", 0.89 + more,
            switch=SWITCH + (seed == 2), parameters=120_000 + seed,
            dense=("stage_2_block_1/conv1/kernel",),
        )  # fmt: skip
