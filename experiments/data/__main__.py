"""Command: what data is on this machine, and fetching what is not.

    python -m experiments.data status [NAME] [--dir DIR] [--tfds-dir DIR]
    python -m experiments.data fetch NAME [--dir DIR] [--tfds-dir DIR]

`status` touches no network and reads no data. `fetch` loads the data set, from wherever `load`
finds it, so that it is verified and in the cache; of a set that is too large for memory it looks
whether all of it is there. Exit code 2, with one message, if it cannot.
"""

import argparse
import sys
from collections.abc import Sequence

from experiments.command_line import exit_code
from experiments.data import cache
from experiments.data.catalog import data_set, names
from experiments.data.large_image_sets import LargeImages, LargeImageSet
from experiments.data.lookup import find, find_prepared, find_release
from experiments.data.original import AtHand, Loaded
from experiments.data.places import Places, short


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data", description="Show or fetch data sets."
    )
    parser.add_argument("command", choices=("status", "fetch"))
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help=f"one of {', '.join(names())}, or files:GLOB"
    )
    parser.add_argument("--dir", help="cache and original files (LOWRANK_JAX_DATA_DIR)")
    parser.add_argument("--tfds-dir", help="prepared TFDS data (TFDS_DATA_DIR)")
    options = parser.parse_args(arguments)
    if options.command == "fetch" and options.name is None:
        parser.error(f"fetch needs a NAME: one of {', '.join(names())}")

    def run() -> None:
        if options.command == "fetch":
            print(_fetched(options.name, options.dir, options.tfds_dir))
        else:
            places = Places.of(options.dir, options.tfds_dir)
            for name in (options.name,) if options.name else names():
                print(f"{name:<14}{_status(name, places)}")

    return exit_code(run)


def _fetched(name: str, data_dir: str | None, tfds_dir: str | None) -> str:
    entry = data_set(name)
    if isinstance(entry, LargeImageSet):
        data: Loaded | LargeImages = entry.open(tfds_dir)
    else:
        data = find(entry, dir=data_dir, tfds_dir=tfds_dir)
    return "\n".join(
        (
            f"{name}: {data.summary}",
            f"  origin       {data.origin}",
            f"  fingerprint  {data.fingerprint}",
        )
    )


def _status(name: str, places: Places) -> str:
    original = data_set(name).provider
    if isinstance(original, AtHand):
        return original.origin
    folder = places.data_dir / name
    if cache.exists(folder):
        return f"cached in {short(folder)}"
    prepared = find_prepared(original, places)
    if prepared is not None:
        return f"prepared TFDS data in {short(prepared)}"
    found = find_release(original, places)
    if found is not None:
        return f"original files in {short(next(iter(found[1])).parent)}"
    if not original.releases:
        return f"not on this machine: {original.install}"
    files = original.releases[0].files
    if files[0].url is None:
        return f"your own {', '.join(file.name for file in files)} in {short(places.data_dir)}"
    return f"not on this machine: python -m experiments.data fetch {name}"


if __name__ == "__main__":
    sys.exit(main())
