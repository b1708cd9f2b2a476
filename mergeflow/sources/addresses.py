"""What the addresses of a recipe mean on the wire: which request gets the file, and what the site says of it first."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from mergeflow.errors import MissingInput
from mergeflow.recipe.origins import file_name
from mergeflow.sources.search import SUFFIXES, Wanted
from mergeflow.sources.web import Web

_HUB_URL = "https://huggingface.co"
CIVITAI_URL = "https://civitai.com"
S3_URL = "https://s3.amazonaws.com"
_MOST_JSON = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')
_WINDOWS = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on a server: the address to ask, what it is called there, and what its site says of its content."""

    origin: str
    url: str
    name: str
    said: Wanted = field(default_factory=Wanted)


def remote(origin: str, web: Web) -> Remote:
    """How to get the file at an address of a recipe. Only Civitai has to be asked.

    Raises:
        MissingInput: the site does not know it.
        Interrupted: the site did not answer.
    """
    kind, _, rest = origin.partition(":")
    if kind == "hf":
        where, _, revision = rest.rpartition("@")
        owner, repo, file = where.split("/", 2)
        url = f"{_hub()}/{owner}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}"
        return Remote(origin, url, safe_name(file_name(origin)))
    if kind == "civitai":
        return _civitai(origin, rest, web)
    if kind == "s3":
        parts = urlsplit(origin)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or S3_URL
        return Remote(origin, f"{endpoint.rstrip('/')}/{parts.netloc}{quote(parts.path)}", safe_name(file_name(origin)))
    return Remote(origin, origin, safe_name(file_name(origin)))


def resolved(origin: str, on_the_way: Mapping[str, Mapping[str, str]]) -> tuple[str, Wanted]:
    """The address of this very content, and what the site says of it, by the headers of its answer: of Hugging Face,
    the commit that a branch stands for, and the sha256 of a large file."""
    headers = on_the_way.get(urlsplit(_hub()).hostname or "", {}) if origin.startswith("hf:") else {}
    commit = headers.get("x-repo-commit", "").lower()
    tag = headers.get("x-linked-etag", "").strip('"').lower()
    size = headers.get("x-linked-size", "")
    said = Wanted(
        sha256=tag if _SHA256.fullmatch(tag) else None,
        size=int(size) if re.fullmatch("[0-9]{1,18}", size) else None,
    )
    if re.fullmatch(r"[0-9a-f]{40}", commit):
        origin = f"{origin.rpartition('@')[0]}@{commit}"
    return origin, said


def _hub() -> str:
    """Hugging Face, or the mirror of it that its own tools would ask, too."""
    return (os.environ.get("HF_ENDPOINT") or _HUB_URL).rstrip("/")


def safe_name(name: str) -> str:
    """A file name as it can be used on every system; with the suffix of a model file where it had one."""
    name = _NOT_IN_NAMES.sub("_", name).strip(". ")
    stem, dot, suffix = name.rpartition(".")
    is_model = f".{suffix.lower()}" in SUFFIXES
    stem, suffix = (stem, dot + suffix) if dot and is_model else (name, "")
    stem = stem.encode(errors="replace")[:120].decode(errors="ignore").strip(". ") or "model"
    return f"{f'_{stem}' if _WINDOWS.fullmatch(stem) else stem}{suffix}"


def _civitai(origin: str, version: str, web: Web) -> Remote:
    """By the site's own description of the version: the name, size and sha256 of its main file."""
    where = f"{CIVITAI_URL}/api/v1/model-versions/{version}"
    with web.get(where) as answer:
        data = bytearray()
        for chunk in answer.body():
            data += chunk
            if len(data) > _MOST_JSON:
                break
    try:
        files = json.loads(data)["files"]
        main = next((file for file in files if file.get("primary")), files[0])
        name, hashes = str(main["name"]), main.get("hashes") or {}
        digest = str(hashes.get("SHA256", "")).lower()
        url = str(main.get("downloadUrl") or "")
        if urlsplit(url)[:2] != urlsplit(CIVITAI_URL)[:2]:  # of another site
            url = f"{CIVITAI_URL}/api/download/models/{version}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise MissingInput(f"{origin}: Civitai's description of it could not be understood") from None
    return Remote(origin, url, safe_name(name), Wanted(sha256=digest if _SHA256.fullmatch(digest) else None))
