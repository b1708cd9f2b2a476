"""What a model file says of itself, wherever its container has room for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergeflow.formats.torchlayout import SUFFIXES, claims_path, read_claims


def claims_of(path: Path, metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The metadata of a file; of a torch file, which has none, what lies beside it. Nobody has checked that these are
    the claims of this very file: compare its digest with the one that they state before anything is built on them."""
    if metadata or path.suffix.lower() not in SUFFIXES:
        return metadata
    return read_claims(claims_path(path)) or {}
