"""The migration page: what it calls the options here are options, in the configs that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs import base, compression, tensor
from experiments.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
# Presets are known to one config alone.
CONFIG_OF = {"model": compression, "kind": tensor}


def settings() -> list[str]:
    """Every `key=value` in the table of options."""
    section = PAGE.partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    return sorted(set(re.findall(r"`([a-z_]+=[^`…]+)`", rows)))


def test_the_table_is_read() -> None:
    assert {"rank_scale=0.111", "variant=deep", "replay=RUN", "kind=tucker"} <= set(settings())


@pytest.mark.parametrize("setting", settings())
def test_options_exist(setting: str) -> None:
    CONFIG_OF.get(setting.partition("=")[0], base).get_config(setting)


def test_an_option_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(RunError, match="unknown config argument"):
        base.get_config("square=True")


def test_files_exist() -> None:
    named = set(re.findall(r"`(configs/\w+\.py)", PAGE))
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]
