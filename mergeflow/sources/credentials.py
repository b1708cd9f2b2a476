"""Tokens for model sites, from the environment or from the files where their own tools keep them; never from a recipe.

    Hugging Face   HF_TOKEN, else the file at HF_TOKEN_PATH or `token` in the folder of its tools
    Civitai        CIVITAI_TOKEN
    any other      ~/.netrc, or the file that NETRC names: entries of that very host, `default` is not asked

What is returned goes into one header of one request and nowhere else.
"""

from __future__ import annotations

import base64
import netrc
import os
from collections.abc import Callable
from pathlib import Path

from mergeflow.events import Reporter, Warned
from mergeflow.sources.places import hub_home

HUB = "huggingface.co"
CIVITAI = "civitai.com"
ADVICE = {HUB: "HF_TOKEN, or `hf auth login`", CIVITAI: "CIVITAI_TOKEN"}
ELSEWHERE = "an entry of the host in ~/.netrc"


def authorization(host: str, report: Reporter) -> str | None:
    """The value of the header Authorization for a host; None where nothing is known."""
    token = _TOKENS[host]() if host in _TOKENS else ""
    if token and token.isprintable():
        return f"Bearer {token}"
    return _from_netrc(host, report)


def _hub_token() -> str:
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    named = os.environ.get("HF_TOKEN_PATH")
    try:
        return (Path(named).expanduser() if named else hub_home() / "token").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # as without one: a file that asks for a token says so itself


def _civitai_token() -> str:
    return os.environ.get("CIVITAI_TOKEN", "").strip()


_TOKENS: dict[str, Callable[[], str]] = {HUB: _hub_token, CIVITAI: _civitai_token}


def _from_netrc(host: str, report: Reporter) -> str | None:
    named = os.environ.get("NETRC")
    usual = Path.home() / ("_netrc" if os.name == "nt" else ".netrc")
    path = Path(named).expanduser() if named else usual
    try:
        found = netrc.netrc(path).hosts.get(host)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        report(Warned(f"{path.name} cannot be read, and no user names are taken from it"))
        return None
    if found is None or found[2] is None:
        return None
    pair = f"{found[0]}:{found[2]}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
