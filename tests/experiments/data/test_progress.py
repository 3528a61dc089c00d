"""ProgressLines lines: how often, and what they say."""

from experiments.data import progress


def test_a_line_a_second_and_one_at_the_end(monkeypatch, capsys):
    moment = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: moment)
    shown = progress.ProgressLines("archive.zip", 40)
    for done, seconds in ((1, 0.0), (2, 0.5), (10, 1.1), (20, 2.0), (30, 2.2), (40, 2.3)):
        moment = 100.0 + seconds
        shown.show(done, f"{done} images")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "archive.zip: 1 images, 2 %",
        "archive.zip: 10 images, 25 %",
        "archive.zip: 30 images, 75 %",
        "archive.zip: 40 images, 100 %",
    ]
