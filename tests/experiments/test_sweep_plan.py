"""Sweeps before they start: grids, files, checks, shards."""

from __future__ import annotations

import doctest
import itertools
from pathlib import Path

import pytest
from absl import flags
from little_sweeps import CONFIG, ROOT, begin, started, sweep_file

from experiments import grid, sweep
from experiments.command_line import read_config
from experiments.describe import describe
from experiments.errors import RunError
from experiments.sweep_plan import find_sweep, plan_sweep


def test_grids_are_products_of_their_dimensions():
    assert doctest.testmod(grid).failed == 0
    small = [{"ratio": 0}] + grid.grid(ratio=[0.1, 0.05], init=["regular", "spectral"])
    found = grid.grid(seed=[1, 2], size=small, data="digits")
    assert len(found) == 2 * (1 + 4)
    assert found[:2] == [
        {"seed": 1, "ratio": 0, "data": "digits"},
        {"seed": 1, "ratio": 0.1, "init": "regular", "data": "digits"},
    ]
    assert found[-1] == {"seed": 2, "ratio": 0.05, "init": "spectral", "data": "digits"}
    with pytest.raises(ValueError, match=r"two dimensions of a grid give 'ratio': 0.1 and 0;"):
        grid.grid(ratio=0.1, network=[{"ratio": 0}])


def test_runs_are_named_by_their_own_arguments(tmp_path):
    path = sweep_file(
        tmp_path,
        {"weight_decay": 5e-6, "data.name": "digits", "seed": 2},
        {"flip": False},
        shared=":depth=20",
    )
    first, second = plan_sweep(path, tmp_path / "out")
    assert first.config == f"{CONFIG}:depth=20,weight_decay=5e-06,data.name=digits,seed=2"
    assert first.folder == tmp_path / "out" / "cifar_resnet-weight_decay5e-06-data.namedigits-seed2"
    assert second.name == "cifar_resnet-flipFalse-seed1"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dept": 20}, "unknown config argument 'dept' (did you mean 'depth'?)"),
        ({"decay": "frobenious"}, "decay='frobenious': expected one of"),
        ({"model.name": "resent"}, "unknown model 'resent' (did you mean 'resnet'?)"),
        ({"depth": 21}, "depth"),
        ({"data": "cifra10"}, "cifra10"),
    ],
)
def test_a_mistake_in_the_last_run_is_found_first(tmp_path, capsys, arguments, message):
    path = sweep_file(tmp_path, {"seed": 1}, arguments)
    assert started(path, tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert f"{path}, run 2 of 2, {CONFIG}:" in captured.err
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "twin", [{}, {"seed": 1, "steps_per_dispatch": 4}, {"rank_scale": 0.111, "seed": 1}]
)
def test_the_same_experiment_twice_is_refused(tmp_path, twin):
    path = sweep_file(tmp_path, {"seed": 1}, {"seed": 2}, twin)
    with pytest.raises(RunError, match="are the same experiment; leave one out") as error:
        plan_sweep(path, tmp_path)
    assert f"{CONFIG}:seed=1 and {CONFIG}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("runs = []\n", "is not a sweep: it has no function get_sweep()"),
        ("def get_sweep():\n    return []\n", "returned an empty list; expected a list of"),
        ("def get_sweep():\n    return {}\n", "returned a dict; expected a list of"),
        ("def get_sweep():\n    return ['a.py']\n", "run 1 of get_sweep() is 'a.py'; expected"),
        ("def get_sweep():\n    return [('no.py', {})]\n", "run 1 of 1, no.py: cannot read"),
        ("\ndef get_sweep():\n    return 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("def get_sweep(:\n", "SyntaxError"),
    ],
)
def test_what_is_no_sweep_is_one_message(tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "sweep.py"
    path.write_text(content)
    assert started(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(path) in error and message in error
    assert error.count("\n") == 1


def test_a_sweep_goes_by_its_path_or_its_name(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert find_sweep("compression_small") == find_sweep("configs/sweeps/compression_small.py")
    assert sweep.main(["compresion"]) == 2
    error = capsys.readouterr().err
    assert "no sweep 'compresion': no such file, and none of cifar_resnet, compression, " in error
    assert "decay_study" in error and "quickstart" not in error
    assert find_sweep("norm_replay") == find_sweep("configs/norm_replay.py")
    assert sweep.main(["quickstart"]) == 2


def test_shards_are_the_whole_sweep_and_have_nothing_in_common(tmp_path, capsys):
    path = sweep_file(tmp_path, *({"seed": seed} for seed in range(10)))
    whole = [run.name for run in plan_sweep(path, tmp_path)]
    shards = []
    for index in (1, 2, 3):
        assert started(path, tmp_path / "out", f"--shard={index}/3", "--dry-run") == 0
        lines = capsys.readouterr().out.splitlines()[:-1]
        shards.append([line.split()[1] for line in lines])
    assert sorted(itertools.chain(*shards)) == sorted(whole)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2"])
def test_a_shard_that_does_not_exist_is_refused(shard, capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main(["compression_small", f"--shard={shard}"])
    assert end.value.code == 2
    assert f"{shard!r}: expected i/n with 1 <= i <= n" in capsys.readouterr().err


def test_a_sweep_that_was_changed_is_not_taken_for_finished(tmp_path):
    out = tmp_path / "out"
    (run,) = plan_sweep(sweep_file(tmp_path, {"seed": 1}, shared=":epochs=3"), out)
    begin(run)
    assert plan_sweep(sweep_file(tmp_path, {"seed": 1}, shared=":epochs=3"), out)[0] == run
    # A longer sweep keeps the names of what is there.
    longer = plan_sweep(sweep_file(tmp_path, {"seed": 1}, {"seed": 2}, shared=":epochs=3"), out)
    assert longer[0] == run
    with pytest.raises(RunError, match="holds another run: epochs is 3 there and 5 in the sweep"):
        plan_sweep(sweep_file(tmp_path, {"seed": 1}, shared=":epochs=5"), out)
    # What a run that has begun cannot be continued with is told before the first one starts.
    forms = sweep_file(tmp_path, {"seed": 1}, shared=":epochs=3,forms=count")
    with pytest.raises(RunError, match="forms is 'measure' there and 'count' in the sweep"):
        plan_sweep(forms, out)
    (run.folder / "result.json").write_text("{}")
    plan_sweep(forms, out)


def test_arguments_of_a_sweep_are_given_to_every_run(tmp_path, capsys, monkeypatch):
    path = sweep_file(tmp_path, {"seed": 1}, {"seed": 2}, shared=":depth=8")
    first, second = plan_sweep(path, tmp_path / "out", "data=digits,epochs=3")
    assert first.config == f"{CONFIG}:depth=8,data=digits,epochs=3,seed=1"
    assert [first.name, second.name] == ["cifar_resnet-seed1", "cifar_resnet-seed2"]
    with pytest.raises(RunError, match=r"run 1 of 2, .*config argument 'seed' is given twice"):
        plan_sweep(path, tmp_path / "out", "seed=3")
    monkeypatch.chdir(tmp_path)  # A folder of its own for other arguments.
    assert sweep.main([f"{path}:data=digits,epochs=3", "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("--workdir=")[2] for line in lines] == [
        f"runs/sweeps/little-datadigits-epochs3/cifar_resnet-seed{seed}" for seed in (1, 2)
    ]


def test_a_run_may_take_the_folder_of_an_earlier_one(tmp_path, capsys, monkeypatch):
    path, out = tmp_path / "chained.py", tmp_path / "out"

    def write(*listed):
        lines = ["from experiments.grid import FolderOf", "def get_sweep():"]
        path.write_text("\n".join([*lines, f"    return {[(CONFIG, one) for one in listed]!r}"]))

    first = {"seed": 1, "record_norms": True}
    write(first, {"seed": 1, "decay": "none", "replay": grid.FolderOf(first)})
    recorded, replayed = plan_sweep(path, out)
    assert replayed.name == "cifar_resnet-seed1-decaynone-replay"
    assert replayed.config == f"{CONFIG}:seed=1,decay=none,replay={recorded.folder}"
    assert replayed.command[-1] == f"--workdir={replayed.folder}"
    assert (recorded.waits_for, replayed.waits_for) == (None, recorded.name)
    assert started(path, out, "--commands") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(f"  # after {recorded.name}") and "#" not in lines[0]
    recorded.folder.mkdir(parents=True)
    (recorded.folder / "result.json").write_text("{}")
    assert replayed.waits_for is None
    # However the folder is written, it is the same.
    begin(replayed)
    monkeypatch.chdir(tmp_path)
    assert plan_sweep(path, Path("out"))[1].name == replayed.name
    with pytest.raises(RunError, match="no commas in --out"):
        plan_sweep(path, tmp_path / "a,b")
    write({"seed": 1, "decay": "none", "replay": grid.FolderOf(first)}, first)
    with pytest.raises(RunError, match=r"run 1 of get_sweep\(\) is to come after the run with"):
        plan_sweep(path, out)


def test_what_changes_nothing_makes_no_other_experiment(tmp_path):
    """A dense network has no factors to initialize."""
    path = sweep_file(tmp_path, *grid.grid(rank_scale=0, init=["regular", "spectral"]))
    with pytest.raises(RunError, match="are the same experiment"):
        plan_sweep(path, tmp_path / "out")


def test_ratios_are_searched_for_before_the_first_run(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"run 2 of 2, .*ratio=0.001 cannot be reached"):
        plan_sweep(sweep_file(tmp_path, {"ratio": 0.5}, {"ratio": 0.001}), out)
    with pytest.raises(RunError, match=r"run 1 of 1, .*cannot be reached by pruning"):
        plan_sweep(sweep_file(tmp_path, {"method": "prune", "ratio": 0.001}), out)
    shared = ":model=projection_resnet,depth=14,width=0.0625"
    runs = plan_sweep(sweep_file(tmp_path, *grid.grid(ratio=[0.11, 0.1225]), shared=shared), out)
    missed = [run for run in runs if run.remark]
    assert 0 < len(missed) < len(runs)
    for run in missed:
        asked = float(run.config.rpartition("ratio=")[2])
        plan = describe(read_config(["test", f"--config={run.config}"], flags.FlagValues(), "")[0])
        assert abs(plan.ratio / asked - 1) > 0.1
        assert run.remark == plan.missed_ratio
    with pytest.raises(RunError, match=r"milestones=\(0.5, 0.75\): expected a number, True"):
        plan_sweep(sweep_file(tmp_path, {"milestones": (0.5, 0.75)}), out)
