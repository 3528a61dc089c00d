"""The command: what it writes, what survives an interruption, what it refuses; and the README."""

from __future__ import annotations

import json

import pytest
from made_up import options, silent
from made_up import outcome as whole

from experiments.benchmark import __main__ as command
from experiments.benchmark import outcome, readme, sections, steps
from experiments.errors import RunError


def test_a_quick_section_is_written(tmp_path, capsys):
    flags = ["--quick", "--only=initialization", "--alternations=1", f"--out={tmp_path}"]
    assert command.main(flags) == 0
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert record["quick"] and list(record["sections"]) == ["initialization"]
    assert record["versions"]["jax"] and record["hardware"]["platform"] == "cpu"
    page = path.with_suffix(".md").read_text()
    assert page in capsys.readouterr().out
    assert "| ResNet-32" in page
    # A second run takes no file's place.
    assert command.main(flags) == 0
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert json.loads(path.read_text()) == record


def test_what_was_measured_survives_an_interruption(tmp_path, capsys, monkeypatch):
    def measure(options, say):
        yield {"value": 1}
        yield {"value": 2}
        raise KeyboardInterrupt

    section = sections.Section("Fake", measure, lambda record: f"value {record['value']}")
    monkeypatch.setitem(sections.SECTIONS, "data", section)
    assert command.main(["--quick", "--only=data", f"--out={tmp_path}"]) == 130
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["sections"] == {"data": {"value": 2}}
    assert "value 2" in path.with_suffix(".md").read_text()
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--only=step,dekay", "unknown section 'dekay' (did you mean 'decay'?); known are step, "),
        ("--only=,", "--only=',': expected at least one of step, "),
        ("--network=resnet21", "unknown network 'resnet21'; known are resnet20, wide_resnet32"),
        ("--network=", "--network='': expected at least one of"),
        ("--alternations=0", "--alternations=0: expected a whole number, at least 1"),
        ("--out=FILE/in/the/way", "cannot write "),
    ],
)
def test_mistakes_are_one_message(tmp_path, capsys, monkeypatch, flag, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert command.main(["--quick", flag]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("error: ")
    assert "===" not in captured.out
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def results(tmp_path, faked, with_torch):
    """A folder with two committed results."""
    (record,) = steps.measure(options(), silent)
    folder = tmp_path / readme.RESULTS
    folder.mkdir(parents=True)
    decay = {
        "updates": [
            {"decay": "plain", "share_of_step": {"median": 0.0051}},
            {"decay": "frobenius", "share_of_step": {"median": 0.0062}},
        ]
    }
    initialization = {"networks": [{"name": "ResNet-32", "seconds": 0.123}]}
    older = whole({"decay": decay, "initialization": initialization})
    newer = whole({"step": record, "data": {"multiple": {"median": 50.4}}})
    newer["date"] = "2032-01-01T00:00:00+00:00"
    (folder / "b.json").write_text(json.dumps(older))
    (folder / "a.json").write_text(json.dumps(newer))
    return tmp_path


def test_the_section_is_rendered_between_its_markers(results):
    page = results / "README.md"
    page.write_text("before\n<!-- performance -->\nold\n<!-- /performance -->\nafter\n")
    readme.rewrite(page, results)
    text = page.read_text()
    assert text.startswith("before\n<!-- performance -->\n**2032-01-01**, 2 cores of Slow")
    assert text.endswith(
        " times the images a step consumes.\n\n<!-- /performance -->\nafter\n"
    ) or ("<!-- /performance -->\nafter\n" in text)
    assert text.index("2032-01-01") < text.index("2031-02-03")
    row = next(line for line in text.splitlines() if "rank scale 0.111" in line)
    assert "| 0.60 [0.60, 0.60] | 0.20 [0.20, 0.20] | 0.30 [0.30, 0.30] |" in row
    assert "0.62 % of a step with Frobenius decay, 0.51 % with plain" in text
    assert "Spectral initialization: ResNet-32 0.12 s." in text
    assert "makes 50 times the images" in text
    assert "(experiments/results/benchmark/a.md)" in text
    assert readme.current(page) == readme.rendered(results)
    readme.rewrite(page, results)
    assert page.read_text() == text


def test_what_cannot_be_rendered_is_refused(results, tmp_path):
    page = results / "README.md"
    page.write_text("no markers")
    with pytest.raises(RunError, match="has no lines <!-- performance --> and"):
        readme.rewrite(page, results)
    with pytest.raises(RunError, match="no results in"):
        readme.rendered(tmp_path / "empty")
    quick = whole({}, quick=True)
    (results / readme.RESULTS / "c.json").write_text(json.dumps(quick))
    with pytest.raises(RunError, match=r"c\.json is of a quick trial"):
        readme.rendered(results)


def test_the_readme_shows_the_committed_results():
    assert readme.current(readme.README) == readme.rendered(readme.ROOT)


def test_pages_beside_the_committed_results_are_theirs():
    for path in (readme.ROOT / readme.RESULTS).glob("*.json"):
        picture = path.with_suffix(".png")
        page = outcome.document(
            json.loads(path.read_text()), picture.name if picture.exists() else None
        )
        assert path.with_suffix(".md").read_text() == page, path
