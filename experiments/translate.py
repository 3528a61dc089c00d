"""Translates text with a finished run: `python -m experiments.translate RUN < german > english`

Standard input is read a sentence a line, UTF-8; each line of standard output is the translation of
the line with its number, by the network of the best epoch and the beam search of the run's config.
An empty line stays empty. Bytes that are no UTF-8 are read as U+FFFD, and a line of more tokens
than the network was trained on is cut to as many; standard error says how many lines that were.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import tasks
from experiments.command_line import exit_code
from experiments.data.raw_text import is_utf8, lines_of, text_of
from experiments.data.translation_data import source_rows
from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.tasks import vocabulary_kept
from experiments.tasks.translation import translations

USAGE = "Usage: python -m experiments.translate RUN < TEXT"


def translate(place: Path, lines: Sequence[bytes]) -> tuple[list[str], list[str]]:
    """The translations of some lines, and remarks about them.

    Raises:
      RunError: the run is not one of translation, not finished or damaged.
    """
    run = FinishedRun.read(place)
    if run.config.task != "translation":
        raise RunError(f"{place} is a run of {run.config.task}: it translates nothing")
    network = tasks.network(run.config)
    variables = run.restore_selected(run.plan(network))
    path = place / vocabulary_kept.FILE_NAME
    vocabulary = Vocabulary(_bytes_of(path))
    if vocabulary.digest != run.data.vocabulary:
        raise RunError(f"{path} is not the vocabulary that the run was trained with")
    texts = [text_of(line) for line in lines]
    most = run.config.max_length
    source, cut = source_rows(vocabulary, texts, most)
    found = translations(
        network, vocabulary, run.config.decoding, variables, source, lambda line: None
    )
    bad = sum(not is_utf8(line) for line in lines)
    remarks = [f"{bad} of {len(lines)} lines are not UTF-8"] if bad else []
    if cut:
        remarks.append(f"{cut} of {len(lines)} lines have {most} tokens or more, and were cut")
    return [line if text else "" for text, line in zip(texts, found, strict=True)], remarks


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error


def run(arguments: Sequence[str]) -> None:
    """Translates standard input."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise RunError(USAGE)
    lines = lines_of(sys.stdin.buffer.read())
    found, remarks = translate(Path(arguments[0]), lines) if lines else ([], [])
    # UTF-8, whatever the locale is.
    sys.stdout.buffer.write("".join(f"{line}\n" for line in found).encode())
    sys.stdout.buffer.flush()
    for remark in remarks:
        print(remark, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
