"""Exporting a finished run: what is written gives the logits of the run, read anywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import lowrank_jax as lrj
from experiments import export, merging, tasks
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.restored_run import RestoredRun

pytestmark = pytest.mark.usefixtures("tiny")


def stored_images(run: Path, count: int) -> np.ndarray:
    return tasks.load(FinishedRun.read(run).config).splits["test"][0][:count]


def logits(run: Path, variables: dict, images: np.ndarray) -> np.ndarray:
    """By the model alone, with the preprocessing of 8 x 8 digits written out."""
    found = FinishedRun.read(run)
    note = json.loads(
        json.dumps(export.description(found.config, tasks.load(found.config), {}, {}))
    )
    mean, std = (np.array(note["images"][name]) for name in ("mean", "std"))
    size = note["images"]["size"]
    enlarged = images.repeat(size // 8, axis=1).repeat(size // 8, axis=2).repeat(3, axis=3)
    model = tasks.load(found.config).network.model
    x = jnp.asarray((enlarged / 255 - mean) / std, jnp.float32)
    return np.asarray(model.apply(variables, x, False))


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_files_hold_the_variables_of_the_run(finished: Path, tmp_path: Path, form: str) -> None:
    text = export.export(finished, form, tmp_path / "model")
    state = RestoredRun.read(finished).state
    params = lrj.merge(state.params) if form == "merged" else state.params
    loaded = lrj.export.load(tmp_path / "model")
    assert jax.tree.structure(loaded["params"]) == jax.tree.structure(params)
    for found, expected in zip(
        jax.tree.leaves(loaded),
        jax.tree.leaves({"params": params, **state.model_state}),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    result = json.loads((finished / "result.json").read_text())
    count = {"factored": result["parameters"], "merged": result["dense_parameters"]}[form]
    names = safetensors.numpy.load_file(tmp_path / "model")
    assert sum(x.size for name, x in names.items() if name.startswith("params/")) == count
    assert f"{count:,} parameters" in text and f"{result['final']['accuracy']:.2%}" in text


def test_the_manifest_says_what_the_model_is(finished: Path, tmp_path: Path) -> None:
    export.export(finished, "merged", tmp_path / "model")
    result = json.loads((finished / "result.json").read_text())
    note = lrj.export.read_manifest(tmp_path / "model")["metadata"]
    assert note["measured"]["accuracy"] == result["final"]["accuracy"]
    assert note["commit"] == result["commit"]
    assert note["data"]["fingerprint"] == result["data"]["fingerprint"]
    assert note["model"] == result["config"]["model"] and note["classes"] == 10


def test_the_program_gives_the_logits_of_the_network(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    text = export.export(tmp_path / "run", "program")
    folder = tmp_path / "run" / "export" / "program"
    assert str(folder) in text
    export.export(tmp_path / "run", "factored")
    variables = lrj.export.load(tmp_path / "run" / "export" / "factored.safetensors")
    images = stored_images(finished, 5)
    expected = logits(finished, variables, images)
    for count in (1, 5):
        found = lrj.export.load_program(folder)(images[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-4)
    np.save(tmp_path / "images.npy", images)
    alone = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['flax', 'lowrank_jax', 'experiments']))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", alone, folder / "predict.py", tmp_path / "images.npy"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(map(int, done.stdout.split())) == expected.argmax(-1).tolist()


def test_a_program_with_other_logits_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = lrj.export.load_program
    monkeypatch.setattr(
        lrj.export, "load_program", lambda path: lambda images: 1.01 * load(path)(images)
    )
    assert 10 * merging.TOLERANCE < 0.01
    with pytest.raises(RunError, match="its logits differ from those of the run"):
        export.export(finished, "program", tmp_path / "program")


def test_overcomplete_kernels_of_a_program_are_merged() -> None:
    def weight(rank: int) -> lrj.LowRank:  # The kernel has 6 * 4 entries, a factor 6 r or 4 r.
        return lrj.LowRank(u=jnp.ones((6, rank)), vt=jnp.ones((rank, 4)))

    params = {"wide": weight(8), "narrow": weight(2), "bias": jnp.ones(3)}
    found = export.fewest_entries(params)
    np.testing.assert_array_equal(found["wide"], np.full((6, 4), 8.0))
    assert found["narrow"] is params["narrow"] and found["bias"] is params["bias"]


def test_the_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(finished), "--format=merged", f"--out={tmp_path / 'model'}"]) == 0
    assert f'lrj.export.load("{tmp_path / "model"}")' in capsys.readouterr().out
    (tmp_path / "folder").mkdir()
    for arguments, message in [
        ([str(tmp_path / "nowhere"), "--format=merged"], "not a finished run: it does not exist"),
        ([str(tmp_path / "folder"), "--format=program"], "it has no result.json"),
        (
            [str(finished), "--format=merged", f"--out={tmp_path / 'folder'}"],
            f"cannot write {tmp_path / 'folder'}",
        ),
        (
            [str(finished), "--format=program", f"--out={tmp_path / 'model'}"],
            f"cannot write {tmp_path / 'model'}",
        ),
    ]:
        assert export.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
    for arguments in ([str(finished)], [str(finished), "--format=onnx"], []):
        with pytest.raises(SystemExit) as caught:
            export.main(arguments)
        assert caught.value.code == 2


def test_without_its_data_a_run_cannot_be_exported(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"name": "cifar10", "download": "never", "dir": str(tmp_path)}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="cifar10"):
        export.export(run, "merged")
    assert not (run / "export").exists()
