"""What a user can get wrong ends in one clear line and exit code 2; nothing is overwritten."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny_runs
from tiny_main import ENTRY
from tiny_runs import contents, outcome, sigterm_at

import lowrank_jax as lrj
from experiments import describe, main, models
from experiments.command_line import exit_code
from experiments.errors import RunError
from experiments.stopping import Stopped
from experiments.tasks.classification import Network

CIFAR = "--config=configs/cifar_resnet.py"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process; returns its exit code and what it wrote to stderr."""
    monkeypatch.chdir(tiny_runs.ROOT)

    def run(*argv: str, program: Any = describe) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["program", *argv])  # ml_collections reads it as well
        code = exit_code(lambda: program.run(sys.argv))
        return code, capsys.readouterr().err

    return run


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no config given. Usage: "),
        (["--confg=x"], "Unknown command line flag 'confg'"),
        ([CIFAR, "extra"], "unexpected argument 'extra'"),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--config=configs"], "s a directory"),
        ([f"{CIFAR}:depht=20"], "unknown config argument 'depht' (did you mean 'depth'?)"),
        ([f"{CIFAR}:depth=21"], "depth 21 does not exist: depth is 6n + 2"),
        ([f"{CIFAR}:depth=abc"], "model.depth='abc': expected a whole number"),
        ([f"{CIFAR}:decay=csr"], "decay='csr': expected one of none, plain, frobenius, crs"),
        ([f"{CIFAR}:data=cifar11"], "unknown data set 'cifar11' (did you mean 'cifar10'?)"),
        ([f"{CIFAR}:protocol=published,validation=0.1"], "validation=0.1 with protocol=published"),
        (
            [f"{CIFAR}:rank_scale=0,variant=deep"],
            "only factorized matrices and convolutions have a factor in the middle",
        ),
        ([CIFAR, "--config.nokey=3"], "nokey"),
        ([CIFAR, "--config.model.nokey=3"], "nokey"),
        ([CIFAR, "--config.epochs=abc"], "--config.epochs=abc"),
        ([CIFAR, "--config.epochs"], "--config.epochs"),
        ([CIFAR, "--config.batch_size=0"], "batch_size=0: expected a whole number, at least 1"),
        ([CIFAR, "--config.weight_decay=nan"], "weight_decay=nan"),
        ([CIFAR, "--config.rank_scale=inf"], "rank_scale=inf: expected 0"),
        ([CIFAR, "--config.seed=3000000000"], "seed=3000000000: expected a whole number from 0"),
        ([CIFAR, "--config.milestones=(.5,.2)"], "milestones=(0.5, 0.2): expected ascending"),
        ([CIFAR, "--config.precision=float16"], "precision='float16': expected one of float32"),
        ([CIFAR, "--config.accumulate_steps=0"], "accumulate_steps=0: expected a whole number"),
        ([CIFAR, "--config.accumulate_steps=3"], "accumulate_steps=3 does not divide a batch of 1"),
        ([CIFAR, "--config.profile_steps=7"], "profile_steps=(7,): expected two step numbers"),
        ([f"{CIFAR}:profile_steps=1"], "'profile_steps' takes a tuple: write --config.profile_st"),
        (
            [CIFAR, "--config.model.name=foo"],
            "unknown model 'foo'; known are bert, bert_classifier",
        ),
    ],
)
def test_mistakes_on_the_command_line(flags: list[str], words: str, command: Any) -> None:
    code, errors = command(*flags)
    assert code == 2
    assert errors.count("\n") == 1, errors
    assert words in errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(arg=None):\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("def get_config(arg=None:\n", "line 1)"),
        ("import nosuchmodule\n", "line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def get_config(arg=None):\n    return {}\n", "returned a dict, not a ConfigDict"),
        ("", "get_config"),
    ],
)
def test_mistakes_in_a_config_file(text: str, words: str, command: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    code, errors = command(f"--config={path}")
    assert code == 2
    assert errors.count("\n") == 1, errors
    assert words in errors


def test_data_that_is_not_there(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network: the server's name cannot even be resolved."""

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    flags = [f"--config.data.{key}={tmp_path / key}" for key in ("dir", "tfds_dir")]
    code, errors = command(CIFAR, *flags, f"--workdir={tmp_path / 'run'}", program=main)
    assert code == 2
    assert "cifar10" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ the run itself


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("argument", "keys", "message"),
    [
        ("", {"batch_size": 2000}, "batch size 2000 with 1293 training examples"),
        ("validation=0.0001", {}, "validation split of 0.0001"),
        ("", {"task": "dancing"}, "unknown task 'dancing'; known are causal_language_model"),
        ("", {"mesh": "tensor:5"}, "mesh=.* does not fit"),
    ],
)
def test_mistakes_found_before_anything_is_written(
    argument: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        tiny_runs.train(tmp_path / "run", argument, **keys)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny")
def test_a_rule_without_a_match_lists_near_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = [models.Kernels(r"convolution/kernel", lrj.regular())]
    conv = ENTRY.factorizations["conv"]._replace(kernels=kernels)
    entry = ENTRY._replace(factorizations={"conv": conv})
    monkeypatch.setitem(models.MODELS, "tiny", entry)
    with pytest.raises(RunError, match=r"convolution/kernel.*conv/kernel"):
        tiny_runs.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("rank_scale", [0.5, 0.0])
def test_nan_in_a_kernel(
    rank_scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Network.init

    def spoiled(self: Network, key: jax.Array) -> dict[str, Any]:
        variables = init(self, key)
        kernel = variables["params"]["conv"]["kernel"]
        variables["params"]["conv"]["kernel"] = kernel.at[0, 0, 0, 0].set(jnp.nan)
        return variables

    monkeypatch.setattr(Network, "init", spoiled)
    with pytest.raises(RunError, match=r"conv/kernel"):
        tiny_runs.train(tmp_path / "run", rank_scale=rank_scale)


@pytest.mark.usefixtures("tiny")
def test_a_diverging_run_says_where(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not finite at step \d+ \(epoch \d\); not .*kernel"):
        tiny_runs.train(tmp_path / "run", learning_rate=1e30)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.usefixtures("tiny")
def test_a_state_spoiled_by_the_last_step_of_an_epoch_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step an epoch: the loss before the step is finite, the parameters after it are not."""
    with pytest.raises(RunError, match=r"the state is not finite at step 1 .*of step 0 is intact"):
        tiny_runs.train(tmp_path / "run", learning_rate=3e38, weight_decay=1e3, batch_size=1000)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["0"]


# ------------------------------------------------------------------ work folders


@pytest.fixture
def stopped(tmp_path: Path, tiny: None) -> Path:
    """A run folder of a run that was stopped after its first epoch."""
    with pytest.raises(Stopped):
        tiny_runs.train(tmp_path / "run", say=sigterm_at("compiled"))
    return tmp_path / "run"


def refused(folder: Path, message: str, argument: str = "", **keys: Any) -> None:
    before = contents(folder)
    with pytest.raises(RunError, match=message) as caught:
        tiny_runs.train(folder, argument, **keys)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", 2), ("learning_rate", 0.2), ("epochs", 3), ("batch_size", 128)),
        *(("rank_scale", 0.6), ("decay", "plain"), ("init", "regular"), ("weight_decay", 1e-3)),
        *(("augment__crop", 2), ("model__depth", 20), ("validation", 0.2), ("variant", "deep")),
        *(("precision", "bfloat16"), ("accumulate_steps", 2), ("remat", True)),
        *(("steps_per_dispatch", 2), ("milestones", (0.5, 0.6)), ("protocol", "published")),
    ],
)
def test_another_config_is_refused(key: str, value: Any, stopped_once: Path) -> None:
    refused(stopped_once, f"of another config: .*{key.replace('__', '.')} is", **{key: value})


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Path:
    """One such folder for tests that must not change it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", ENTRY)
        with pytest.raises(Stopped):
            tiny_runs.train(folder, say=sigterm_at("compiled"))
    return folder


def test_other_data_and_tables_are_refused(stopped: Path) -> None:
    for name, change, message in (
        ("data.json", lambda d: d | {"fingerprint": "0" * 64}, "a run on other data: digits"),
        ("data.json", lambda d: [d], "data.json is damaged"),
        ("config.json", lambda d: 3, "config.json is damaged"),
        ("table.json", lambda d: {}, "cannot read .*table.json"),
        (
            "table.json",
            lambda d: d | {"rows": [d["rows"][0] | {"rank": 3}]},
            "another factorization",
        ),
    ):
        path = stopped / name
        text = path.read_text()
        path.write_text(json.dumps(change(json.loads(text))))
        refused(stopped, message)
        path.write_text(text[: len(text) // 2])
        refused(stopped, name)
        path.write_text(text)


@pytest.mark.usefixtures("tiny")
def test_places_that_are_no_run_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(tmp_path, "not empty and not a run folder .*it has file")
    with pytest.raises(RunError, match="is a file: give another --workdir"):
        tiny_runs.train(file)
    with pytest.raises(RunError, match=r"cannot write .*not a directory"):
        tiny_runs.train(file / "run")
    assert file.read_text() == "mine"


# ------------------------------------------------------------------ no space left


@contextlib.contextmanager
def full_disk(names: str) -> Iterator[None]:
    """Writing to files whose path contains `names` fails as on a full disk."""
    import builtins

    real = builtins.open

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    def patched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = real(file, mode, *args, **kwargs)
        if names in str(file) and mode[0] in "wax":
            return Full(opened)
        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", patched)
        yield


@pytest.fixture(scope="module")
def reference(finished: Path) -> dict[str, Any]:
    """What the uninterrupted run computes."""
    return outcome(finished)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_no_space_for_any_file(reference: dict[str, Any], tmp_path: Path) -> None:
    """One run meets a full disk at each of its writers in turn, and is continued every time."""
    folder = tmp_path / "run"
    names = ["config.json", "data.json", "table.json", "table.txt", "metrics.jsonl", "tfevents"]
    for name in [*names, "curves.png", "nuclear_norm.png", "spectra.png", "result.json"]:
        with full_disk(name), pytest.raises(RunError, match=r"cannot write .*no space left") as e:
            tiny_runs.train(folder)
        assert "\n" not in str(e.value)
        assert not list(folder.glob("**/*.tmp")), name
    tiny_runs.train(folder)
    assert outcome(folder) == reference


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("marker", ["compiled", "step 5/10", "step 10/10"])
def test_no_space_for_a_checkpoint(
    marker: str, reference: dict[str, Any], tmp_path: Path, small_disk: Path
) -> None:
    folder, filler = small_disk / "run", small_disk / "filler"

    def fill(line: str) -> None:
        if line.startswith(marker):
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    with pytest.raises(RunError, match=r"cannot write .*no space left") as caught:
        tiny_runs.train(folder, say=fill)
    assert "\n" not in str(caught.value)
    filler.unlink()
    tiny_runs.train(folder)
    assert outcome(folder) == reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
