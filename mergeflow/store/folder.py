"""The cache folder itself: made by the first build that writes into it, with the marks that keep others out of it."""

from __future__ import annotations

from pathlib import Path

from mergeflow.formats.parts import write_text_file

_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of mergeflow: it can be deleted at any time.
"""


def prepare(folder: Path) -> None:
    """Make the folder where it is missing. One that was there before gets no `.gitignore`: it may hold other things.

    Raises:
        OSError, ResourceError: it cannot be made or written to.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)  # another build may make it at the same moment
        write_text_file(folder / ".gitignore", "*\n")
    if not (folder / "CACHEDIR.TAG").exists():
        write_text_file(folder / "CACHEDIR.TAG", _TAG)
