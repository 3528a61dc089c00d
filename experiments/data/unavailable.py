"""The message for a data set that is not here: what was looked for, and what to do."""

from experiments.data.original import Original, Release
from experiments.data.places import Places, short


def explain(name: str, original: Original, places: Places, source: str, download: str) -> str:
    """The text of `DataUnavailable`.

    Args:
      name: the data set.
      original: its entry.
      places: where was looked.
      source: `auto`, `tfds` or `files`: places of another kind were not tried.
      download: why it was not downloaded.
    """
    skipped = f"not tried (data.source={source})"
    if original.prepared is None:
        tfds = "TFDS does not have this data set"
    else:
        found = skipped if source == "files" else "not there"
        folder = short(places.tfds_dir / original.prepared.name / "*")
        tfds = f"{folder}  ({original.prepared.formats}): {found}"
    lines = [
        f"dataset {name!r} is not on this machine and cannot be fetched.",
        "  Looked for:",
        f"    prepared TFDS data    {tfds}",
    ]
    wanted = [file for release in original.releases for file in release.files]
    if wanted:
        files = skipped if source == "tfds" else "not there"
        first, *others = (short(folder) for folder in places.file_folders(original))
        names = ", ".join(file.name for file in wanted)
        lines.append(
            f"    original files        {first}/{{{names}}}: {files} (nor in {', '.join(others)})"
        )
    if wanted and wanted[0].url is not None:
        reason = skipped if source == "tfds" else download
        lines.append(f"    download              {wanted[0].url}: {reason}")
    lines.append("  What to do (any one):")
    for number, advice in enumerate(_advice(name, original, places), start=1):
        lines.append(f"    {number}. {'or ' if number > 1 else ''}{advice}")
    return "\n".join(lines)


def _advice(name: str, original: Original, places: Places) -> list[str]:
    target = short(places.download_folder(original))
    files = original.releases[0].files if original.releases else ()
    advice = [] if original.install is None else [original.install.format(folder=target)]
    if files and files[0].url is not None:
        size = sum(file.size for file in files) / 2**20
        advice.append(
            f"on a machine with internet: python -m experiments.data fetch {name}   "
            f"({size:.0f} MB), then copy {short(places.data_dir)} here"
        )
    advice += [_put(release, target) for release in original.releases]
    advice.append(
        "choose data that needs no download: --config.data.name="
        f"{' | '.join(original.instead)} (results are then NOT comparable with {name})"
    )
    return advice


def _put(release: Release, folder: str) -> str:
    names = ", ".join(file.name for file in release.files)
    known = release.files[0].checksum if len(release.files) == 1 else None
    return f"put {names} into {folder}" + (f"   [{known}]" if known else "")
