"""The README is run: every code block as Python, or command by command in a shortened form.

A block in another language, or a command of an unknown form, is a failure: nothing is skipped.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from markdown_blocks import Block, fenced_blocks, run_python

ROOT = Path(__file__).parents[1]
README_PATH = ROOT / "README.md"
README = README_PATH.read_text(encoding="utf-8")

NOT_RUN = {"bibtex"}
"""Languages of blocks that are no code."""


BLOCKS = fenced_blocks(README_PATH)
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [
    line
    for block in BLOCKS
    if block.language == "bash"
    for line in block.text.replace("\\\n", " ").splitlines()
    if line.strip()
]
SET_UP = [command for command in COMMANDS if "pip install" in command]


def test_every_block_is_of_a_known_language():
    unknown = [block for block in BLOCKS if block.language not in {"python", "bash"} | NOT_RUN]
    assert not unknown
    # Blocks indented by four spaces would be code as well, and would escape.
    outside = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^(?:\t| {4,})\S", outside, flags=re.MULTILINE)


@pytest.mark.optimized  # As a user runs it.
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line{block.line}")
def test_python(block: Block, monkeypatch: pytest.MonkeyPatch):
    run_python(README_PATH, block, monkeypatch)


def test_set_up_commands_are_those_that_ci_runs():
    assert len(SET_UP) == 2, SET_UP
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in SET_UP:
        assert command in ci, command
        assert "--config=configs/quickstart.py" in command or command.endswith("-m pytest")


class Shell:
    """Runs the README's commands in a folder that looks like the repository, without a network."""

    # What a command gets on top, so that it takes seconds: 500 images, one epoch, a small network.
    SHORTENED = (
        "--config.epochs=1",
        "--config.validation=0.9",
        "--workdir=runs/quickstart-seed1",  # Where it goes when it is not shortened.
        "--config.model.depth=8",
        "--config.model.width=0.25",
        "--config.eval_batch_size=50",
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("configs", "experiments", "lowrank_jax"):
            (folder / name).symlink_to(ROOT / name)
        nowhere = "http://127.0.0.1:9"  # The discard port, where nothing listens.
        self.environment = {
            **os.environ,
            "LOWRANK_JAX_DATA_DIR": str(folder / "data"),
            "TFDS_DATA_DIR": str(folder / "tfds"),
            "JAX_PLATFORMS": "cpu",
            # Programs run for moments here, and compiling them well takes longer.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), nowhere),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
        }

    def start(self, command: str, *further: str, code: int = 0) -> str:
        """Runs one command, and returns what it printed (on stderr, if it is to fail)."""
        words = shlex.split(command)
        assert words[0] in ("python", ".venv/bin/python"), command
        done = subprocess.run(
            [sys.executable, *words[1:], *further],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr if code else done.stdout

    def run(self, command: str, *further: str, code: int = 0, stdin: str = "") -> str:
        """The same in this process: most of the time of short commands is starting."""
        words = [*shlex.split(command), *further]
        assert words[:2] == ["python", "-m"], command
        out, err, given = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(3))
        given.write(stdin)
        given.seek(0)
        with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as captured:
            captured.enter_context(contextlib.redirect_stdout(out))
            captured.enter_context(contextlib.redirect_stderr(err))
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", words[2:])
            patch.setattr(sys, "stdin", given)
            patch.setattr("experiments.inference_cost._SECONDS", 0.1)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            with warnings.catch_warnings(), pytest.raises(SystemExit) as done:
                # The module was imported by other tests, and is now run once more.
                warnings.simplefilter("ignore", RuntimeWarning)
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        said, complained = (_written_to(stream) for stream in (out, err))
        assert (done.value.code or 0) == code, f"{command}\n{said}\n{complained}"
        return complained if code else said


def _written_to(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the order of the README, since later commands use the runs of earlier ones."""
    # Not at the top: the blocks of Python are run where these packages are not installed, too.
    from configs import cuttlefish, distillation, pretraining
    from experiments.sweep_plan import plan_sweep

    monkeypatch.chdir(ROOT)
    shell = Shell(tmp_path)
    for command in COMMANDS:
        match shlex.split(command.rpartition("&& ")[2])[1:]:
            case ["-m", "pytest"]:
                assert command in SET_UP  # This is what is running; with installing, in .ci/run.
            case ["-m", "experiments.main", "--config=configs/quickstart.py"]:
                printed = shell.start(command.rpartition("&& ")[2], *Shell.SHORTENED)
                assert "final test accuracy" in printed and "fashion_small" in printed
                check_run_folder(tmp_path / "runs" / "quickstart-seed1")
            case ["-m", "experiments.main", config] if "start=runs/quickstart-seed1" in config:
                printed = shell.run(command, "--config.epochs=1", "--workdir=runs/compressed")
                assert re.search(r"test accuracy .* at the start, .* factorized", printed)
                result = json.loads((tmp_path / "runs/compressed/result.json").read_text())
                assert result["start"]["run"] == "runs/quickstart-seed1"
            case ["-m", "experiments.main", "--config=configs/distillation.py:runlocal"]:
                # It takes minutes; a shorter run of this kind is tested with the diagnostics.
                assert distillation.get_config("runlocal").merge
            case ["-m", "experiments.main", "--config=configs/translation.py:runlocal"]:
                folder = "runs/translation_local-runlocal-seed1"
                short = ("--config.steps=1", "--config.decoding.beam=1", f"--workdir={folder}")
                printed = shell.run(command, *short, "--config.decoding.max_length=1")
                assert "test set: sacrebleu" in printed
            case ["-m", "experiments.main", "--config=configs/pretraining.py:runlocal"]:
                folder = "runs/pretraining_local-runlocal-seed1"
                short = ("--config.steps=2", "--config.warmup_steps=1", f"--workdir={folder}")
                assert "unigram loss" in shell.run(command, *short)
            case ["-m", "experiments.main", config] if "fine_tuning.py:runlocal,start=" in config:
                short = ("--config.steps=2", "--config.warmup_steps=1", "--workdir=runs/fine_tuned")
                assert "majority accuracy" in shell.run(command, *short)
            case ["-m", "experiments.main", config] if "task=causal_language_model" in config:
                # As long as the masked one; a shorter run is tested with the tasks.
                argument = config.partition(":")[2]
                assert pretraining.get_config(argument).model.name == "gpt"
            case ["-m", "experiments.main", config] if re.search("cuttlefish.*(local|fas)", config):
                # Minutes; shorter runs of this kind are tested in test_rank_selecting_runs.
                argument = config.partition(":")[2]
                assert cuttlefish.get_config(argument).method == "cuttlefish"
            case ["-m", "experiments.main", config] if "files:" in config:
                message = shell.run(command, code=2)
                assert "no file fits this pattern" in message
            case ["-m", "experiments.translate", folder, "<", _]:
                printed = shell.run(command.partition(" <")[0], stdin="eins\n\n")
                assert len(printed.splitlines()) == 2 and printed.endswith("\n\n")
            case ["-m", "experiments.main", config]:
                # Its data is downloaded, and there is no network.
                data = re.search(r"data=(\w+)", f"{config},data=cifar10")[1]
                message = shell.run(command, code=2)
                assert message.startswith(f"DataUnavailable: dataset '{data}' is not on this")
                assert "What to do" in message
                assert not list(tmp_path.glob(f"runs/*{data}*"))
            case ["-m", "experiments.sweep", sweep] if sweep.endswith(":runlocal"):
                runs = {"norm_replay": 3, "decay_study": 12}[Path(sweep.split(":")[0]).stem]
                assert len(plan_sweep(Path(sweep.split(":")[0]), tmp_path, "runlocal")) == runs
            case ["-m", "experiments.sweep", _, "--dry-run"]:
                assert re.search(r"^(\d+) runs: \1 open$", shell.run(command), re.MULTILINE)
            case ["-m", "experiments.sweep", _, "--commands"]:
                printed = shell.run(command).splitlines()
                assert len(printed) == len(set(printed)) == 44
                assert all("-m experiments.main --config=" in line for line in printed)
            case ["-m", "experiments.sweep", _]:
                assert f"{command} --dry-run" in COMMANDS  # It takes hours.
            case ["-m", "experiments.describe", config, "--json"]:
                assert config.endswith("cifar_resnet.py:variant=deep,rank_scale=1")
                assert json.loads(shell.run(command))["parameters"] == 1431834  # As published.
            case ["-m", "experiments.describe", _]:
                assert re.search(r"\d+ factorized kernels; parameters", shell.run(command))
            case ["-m", "experiments.plan", _, mesh]:
                # What it prints takes long to compile; its own tests look at that.
                message = shell.start(command, "--config.batch_size=100", code=2)
                assert mesh == "--mesh=data:2,fsdp:4"
                assert "a batch of 100 examples cannot be split over 8 devices" in message
            case ["-m", "experiments.data", "status"]:
                assert re.search(r"^fashion_small +embedded$", shell.run(command), re.MULTILINE)
            case ["-m", "experiments.data", "fetch", name]:
                message = shell.run(command, code=2)
                assert message.startswith(f"DataUnavailable: dataset '{name}'")
            case ["-m", "experiments.evaluate", folder]:
                assert "they agree" in shell.run(command)
                assert (tmp_path / folder / "evaluation.json").is_file()
            case ["-m", "experiments.benchmark"]:
                shell.run(command, "--quick", "--only=data", "--alternations=6")
                assert list(tmp_path.glob("runs/benchmark/*.json"))
            case ["-m", "sphinx", "-W", *_]:
                assert (ROOT / "docs" / "conf.py").is_file()  # test_docs.py builds it.
            case ["-m", "experiments.export", folder, "--format=program"]:
                assert "read back and compared" in shell.run(command)
                assert (tmp_path / folder / "export" / "program" / "predict.py").is_file()
            case ["-m", "experiments.report", "runs", "--out=report"]:
                assert "fashion_small, test accuracy" in shell.run(command)
                assert (tmp_path / "report" / "report.md").is_file()
            case _:
                pytest.fail(f"the README has a command that this test cannot run: {command}")


def check_run_folder(folder: Path) -> None:
    """A finished run has what the README's table says, and nothing else."""
    section = README.partition("### What a run writes")[2].partition("\n###")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    documented = set(re.findall(r"`([^`]+)`", "".join(row.split(" | ")[0] for row in rows)))
    written = {path.name + "/" * path.is_dir() for path in folder.iterdir()}
    # `evaluate` writes the first; the others are asked for, or of other tasks and methods.
    others = {"evaluation.json", "norms.npz", "compact.safetensors"}
    others |= {"kept_layers.json", "kept_layers.txt"}
    assert written == documented - others - {"selected/", "vocabulary.model", "translations.txt"}
