"""The record of a run: its lines, TensorBoard's events, resuming, progress, and failing writes."""

from __future__ import annotations

import errno
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments import files, metrics
from experiments.errors import RunError
from experiments.metrics import MetricsWriter, Progress, read_metrics


def read_events(folder):
    """The events in `folder`, file by file in the order of writing, parsed from the records."""
    events = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return events


def scalars(events):
    return [
        (event.step, value.tag, round(value.simple_value, 6))
        for event in events
        for value in event.summary.value
    ]


def test_lines_are_json_with_what_was_given(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(39, 1.0, {"train_loss": jnp.float32(0.1), "train_accuracy": np.nan})
        writer.write(
            np.int64(78),
            2,
            {"learning_rate": 0.1},
            diagnostics={"frobenius_norm": {"a/kernel": jnp.float32(2), "b/kernel": 4.0}},
            spectra={"a/kernel": jnp.array([3.0, 1 / 3])},
        )
    first, second = (json.loads(text) for text in (tmp_path / "metrics.jsonl").open())
    assert first == {"step": 39, "epoch": 1.0, "train_loss": 0.100000001, "train_accuracy": None}
    assert np.float32(first["train_loss"]) == np.float32(0.1)
    assert second == {
        "step": 78,
        "epoch": 2.0,
        "learning_rate": 0.1,
        "diagnostics": {"frobenius_norm": {"a/kernel": 2.0, "b/kernel": 4.0}},
        "spectra": {"a/kernel": [3.0, 0.333333343]},
    }
    assert read_metrics(tmp_path) == [first, second]


def test_tensorboard_gets_scalars_and_means_over_kernels(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(
            5,
            0.5,
            {"learning_rate": 0.1, "train_loss": 2.0},
            diagnostics={
                "frobenius_norm": {"a": 2.0, "b": 4.0},
                "nuclear_bound": {"a": 1.0, "b": 2.0},
                "effective_learning_rate": {"a": 0.1 / 4, "b": 0.1 / 16},
            },
        )
    assert scalars(read_events(tmp_path / "tensorboard")) == [
        (5, "hyper/lr", 0.1),
        (5, "train_loss", 2.0),
        (5, "metric/FrobNorm", 3.0),
        (5, "metric/NucNorm-bound", 1.5),
        (5, "hyper/lr-eff_frobsq", round((0.1 / 4 + 0.1 / 16) / 2, 6)),
        (5, "hyper/lr-eff_frob", 0.0375),
    ]


def test_groups_are_named_where_there_are_products(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(
            5,
            0.5,
            {"learning_rate": 0.5},
            diagnostics={
                "frobenius_norm": {"up/kernel": 2.0, "down/kernel": 4.0},
                "non_orthogonality": {},
                "qk/frobenius_norm": {"encoder_0/attention": 1.0, "decoder_0/attention": 2.0},
                "qk/nuclear_bound": {"encoder_0/attention": 7.0},
                "ov/stable_rank": {"encoder_0/attention": 3.0},
                "effective_learning_rate": {"up/kernel": 0.125, "down/kernel": 0.375},
            },
        )
    assert scalars(read_events(tmp_path / "tensorboard")) == [
        (5, "hyper/lr", 0.5),
        (5, "metric/FrobNorm-Linear", 3.0),
        (5, "metric/FrobNorm-QueKey", 1.5),
        (5, "metric/NucNorm-bound-QueKey", 7.0),
        (5, "metric/StableRank-OutVal", 3.0),
        (5, "hyper/lr-eff_frobsq", 0.25),
        (5, "hyper/lr-eff_frob", 0.1875),
    ]


def test_resuming_takes_back_later_lines_and_a_torn_one(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, step / 2, {"train_loss": 1.0 / step})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b'{"step": 5, "epo')
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
        writer.write(3, 1.5, {"train_loss": 1.0 / 3})
        writer.write(4, 2.0, {"train_loss": 1.0 / 4})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    starts = [e.step for e in read_events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [0, 3]  # TensorBoard drops the first file's steps from 3 on
    with MetricsWriter(tmp_path):
        assert read_metrics(tmp_path) == []


def test_resuming_without_a_record_starts_one(tmp_path):
    with MetricsWriter(tmp_path / "new", resume_step=7) as writer:
        writer.write(8, 1, {})
    assert [line["step"] for line in read_metrics(tmp_path / "new" / "metrics.jsonl")] == [8]


@pytest.mark.parametrize("damage", ["nonsense", "[1, 2]", '{"epoch": 1.0}', ""])
def test_a_damaged_line_is_refused(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "epoch": 1.0}}\n{damage}\n{{"step": 2, "epoch": 2.0}}\n')
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"metrics.jsonl, line 2: not a metrics record"):
        MetricsWriter(tmp_path, resume_step=1)
    assert path.read_bytes() == before


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*metrics.jsonl: no such file"):
        read_metrics(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_one_clear_line(tmp_path, full):
    writer = MetricsWriter(tmp_path)
    if full == "metrics.jsonl":
        (tmp_path / full).unlink()
        (tmp_path / full).symlink_to("/dev/full")
    else:
        writer._events._writer._py_recordio_writer._writer = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(RunError, match=f"cannot write .*{full}.*: no space left on device"):
        writer.write(1, 1, {"train_loss": 1.0})


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    files.write_json(target, {"x": 1})

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"cannot write .*result.json: no space left on device"):
        files.write_json(target, {"x": 2})
    with pytest.raises(RunError, match=r"cannot write .*metrics.jsonl: no space left on device"):
        MetricsWriter(tmp_path)
    assert list(tmp_path.iterdir()) == [target]
    assert json.loads(target.read_text()) == {"x": 1}


def test_json_has_no_nan_and_keeps_python_numbers():
    value = {"a": math.inf, "b": (1, 0.07177734375), "c": np.arange(2), "d": np.float64(0.1)}
    expected = {"a": None, "b": [1, 0.07177734375], "c": [0, 1], "d": 0.1}
    assert files.plain(value) == expected
    assert files.plain(jnp.bfloat16(0.5)) == 0.5
    assert files.plain(np.array([[np.nan, 1]], np.float32)) == [[None, 1.0]]
    assert files.plain(np.zeros((0, 2), np.float32)) == []


def test_reading_json_names_the_file(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*no.json: no such file"):
        files.read_json(tmp_path / "no.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"half.json is not valid JSON"):
        files.read_json(tmp_path / "half.json")


def test_progress_counts_from_the_first_update():
    now = [100.0]
    progress = Progress(total_steps=100, clock=lambda: now[0])
    assert progress.line(0, 0.0, {}) == "step 0/100  epoch 0.0"
    now[0] = 150.0  # compilation
    progress.update(10, 1280)
    assert math.isnan(progress.seconds_left)
    now[0] = 160.0
    progress.update(30, 2560)
    assert progress.examples_per_second == 20 * 128 / 10
    assert progress.seconds_left == 70 * 10 / 20
    line = progress.line(30, 0.77, {"train_loss": 1.2345, "train_accuracy": 0.5, "test_loss": 3.0})
    assert line == (
        "step 30/100  epoch 0.8  train loss 1.234, accuracy 50.0 %  test loss 3.000  "
        "256 examples/s  0:35 left"
    )
    assert metrics.duration(3725.4) == "1:02:05"


def test_progress_tells_how_long_data_was_waited_for():
    """As a share of the last seconds, from seconds that only grow."""
    now = [0.0]
    progress = Progress(total_steps=100, clock=lambda: now[0])
    for step, waited in enumerate((1.0, 4.0, 6.0), start=1):
        now[0] += 10.0
        progress.update(step, 128, waited)
    assert progress.data_wait_share == 2.0 / 10.0
    assert "13 examples/s  waiting for data 20 % of the time" in progress.line(3, 0.1, {})
