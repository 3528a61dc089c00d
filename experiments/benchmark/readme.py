"""The performance section of the README, made from the committed results and nothing else.

    python -m experiments.benchmark --readme

puts it between the two markers. One part for each result, newest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import files
from experiments.benchmark import markdown
from experiments.benchmark.contenders import weights
from experiments.benchmark.outcome import machine
from experiments.errors import RunError

BEGIN, END = "<!-- performance -->\n", "<!-- /performance -->"
ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = Path("experiments/results/benchmark")
"""Below the root of the repository; the section links to the files in it."""


def rewrite(readme: Path, root: Path) -> None:
    """Renders the results below `root` into the section of `readme`.

    Raises:
      RunError: the markers are not there, a result is damaged, or the file cannot be written.
    """
    with files.writing(readme):
        text = readme.read_text(encoding="utf-8")
    before, after = _around(text, readme)
    files.write_text(readme, before + rendered(root) + after)


def current(readme: Path) -> str:
    """What stands in the section of `readme` now."""
    text = readme.read_text(encoding="utf-8")
    before, after = _around(text, readme)
    return text[len(before) : len(text) - len(after)]


def rendered(root: Path) -> str:
    """The section as the results below `root` have it."""
    paths = sorted((root / RESULTS).glob("*.json"))
    results = [(path, files.read_json(path)) for path in paths]
    if not results:
        raise RunError(f"no results in {root / RESULTS}: run the benchmark with --out={RESULTS}")
    for path, record in results:
        if record["quick"]:
            raise RunError(f"{path} is of a quick trial: take it out of the results")
    results.sort(key=lambda result: result[1]["date"], reverse=True)
    return "\n".join(_part(path, record) for path, record in results)


def _around(text: str, readme: Path) -> tuple[str, str]:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RunError(f"{readme} has no lines {BEGIN.strip()} and {END} to write between")
    return before + begin, end + after


def _part(path: Path, record: Mapping[str, Any]) -> str:
    page = RESULTS / path.with_suffix(".md").name
    heading = f"**{record['date'][:10]}**, {machine(record)} ([all figures]({page})):"
    sections = record["sections"]
    parts = [heading]
    if "step" in sections:
        parts.append(_steps(sections["step"]["networks"]))
    if sentences := _sentences(sections):
        parts.append(" ".join(sentences))
    return "\n\n".join(parts) + "\n"


def _steps(networks: list[dict[str, Any]]) -> str:
    header = [
        "network", "weights", "time / PyTorch's", "time / plain lax", "time / own dense",
        "memory / PyTorch's", "images/s",
    ]  # fmt: skip
    rows = []
    for network in networks:
        for row in network["contenders"]:
            if row["implementation"] == "ours":
                to = row["ratio_to"]
                rows.append(
                    [
                        f"{network['title']}, {network['precision']}",
                        weights(row["rank_scale"]),
                        *(markdown.estimate(to.get(k), 1, 2) for k in ("torch", "lax", "dense")),
                        markdown.number(row["memory_to_torch"], 1, 2),
                        f"{row['images_per_second']:,.0f}",
                    ]
                )
    return markdown.table(header, rows, left=2)


def _sentences(sections: Mapping[str, Any]) -> list[str]:
    found = []
    if "decay" in sections:
        shares = {
            row["decay"]: markdown.number(row["share_of_step"]["median"], 100, 2)
            for row in sections["decay"]["updates"]
        }
        found.append(
            f"The decay update alone takes {shares['frobenius']} % of a step with Frobenius decay, "
            f"{shares['plain']} % with plain decay."
        )
    if "initialization" in sections:
        times = [
            f"{row['name']} {markdown.number(row['seconds'], 1, 2)} s"
            for row in sections["initialization"]["networks"]
        ]
        found.append(f"Spectral initialization: {', '.join(times)}.")
    if "data" in sections:
        multiple = markdown.number(sections["data"]["multiple"]["median"], 1, 0)
        found.append(f"The data pipeline alone makes {multiple} times the images a step consumes.")
    return found
