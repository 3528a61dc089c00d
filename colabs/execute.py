"""Runs the notebooks of this folder from nothing and stores their outputs in them.

    python -m colabs.execute                   # all of them, from the root of the repository
    python -m colabs.execute quick_start       # one

Each runs in a fresh kernel in the folder it lies in, top to bottom, and an exception stops it. What
is stored depends on the cells alone: no times, no names of machines or folders.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).parent
TIMEOUT = 300  # Seconds for one cell.


def executed(notebook: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of running it now; the file is left alone.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an exception; its text has the cell and
        the traceback.
    """
    content = nbformat.read(notebook, as_version=4)
    client = nbclient.NotebookClient(
        content,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # One output per cell, however the prints were spread over time.
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    client.execute()
    content.metadata["language_info"] = {"name": "python"}  # Not which release ran it.
    return content


def main(names: list[str]) -> None:
    for notebook in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        content = executed(notebook)
        nbformat.write(content, notebook)
        print(notebook.name)


if __name__ == "__main__":
    main(sys.argv[1:])
