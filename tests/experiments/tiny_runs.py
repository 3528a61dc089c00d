"""Runs small enough to be tested as a whole: the model of `tiny_main` on digits, ten steps."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import cifar_resnet
from experiments.train import train_and_evaluate

ROOT = Path(__file__).resolve().parents[2]
ARGUMENT = "runlocal,rank_scale=0.5,batch_size=256,steps_per_dispatch=1"
FLAGS = [f"--config=configs/cifar_resnet.py:{ARGUMENT}", "--config.model.name=tiny"]


def config(argument: str = "", **keys: Any) -> ConfigDict:
    """The config of a tiny run, refined by an argument and by keys, dots written as `__`."""
    made = cifar_resnet.get_config(",".join(filter(None, [ARGUMENT, argument])))
    with made.unlocked():
        made.model.name = "tiny"
        made.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return made


def train(
    folder: Path, argument: str = "", say: Callable[[str], None] | None = None, **keys: Any
) -> Path:
    """A run in this process."""
    return train_and_evaluate(config(argument, **keys), folder, say or (lambda line: None))


def start(
    folder: Path,
    *flags: str,
    cache: Path | None = None,
    run: Sequence[str] = tuple(FLAGS),
) -> subprocess.Popen[str]:
    """A run in a process of its own, by default the tiny one."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    script = Path(__file__).with_name("tiny_main.py")
    own = [flag for flag in flags if flag.startswith(("--kill=", "--little-imagenet"))]
    others = [flag for flag in flags if flag not in own]
    return subprocess.Popen(
        [sys.executable, str(script), *own, *run, *others, f"--workdir={folder}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sigterm_at(marker: str) -> Callable[[str], None]:
    """A `say` that sends this process SIGTERM when a line begins with `marker`."""

    def say(line: str) -> None:
        if line.startswith(marker):
            os.kill(os.getpid(), signal.SIGTERM)

    return say


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run computed, without times; the same for runs with the same bits."""
    result = json.loads((folder / "result.json").read_text())
    manifest = folder / "checkpoints" / str(result["steps"]) / "manifest" / "metadata"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("examples_per_second", None)
        line.pop("diagnostics_seconds", None)
    return {
        "digest": json.loads(manifest.read_text())["digest"],
        "metrics": lines,
        **{key: result[key] for key in ("final", "best", "steps", "parameters", "data")},
    }


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
