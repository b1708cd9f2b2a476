"""Addresses that a file can be fetched from, each in one spelling, which recipes and locks share:

    https://host/path             any server; s3://bucket/key is a public object of S3
    hf:owner/repo/file@revision   a file of a repository on Hugging Face; without a revision it is main
    civitai:version               a model version on Civitai, by its number; model@version is read as well

Addresses of these two sites as a browser shows them are the same thing. An address must not carry a secret: recipes are
passed on.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from mergeflow.errors import Place, RecipeError
from mergeflow.recipe import later, nodes
from mergeflow.recipe.tokens import clip

WEB = ("https", "http")
SCHEMES = (*WEB, "s3", "hf", "civitai")
_HUB = ("huggingface.co", "www.huggingface.co", "hf.co")
_CIVITAI = ("civitai.com", "www.civitai.com")
_SECRETS = re.compile(
    r".*(token|secret|password|signature|credential).*|api[_-]?key|auth|sig|awsaccesskeyid|policy|key-pair-id", re.I
)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_FROM_ENVIRONMENT = "tokens are taken from the environment, such as HF_TOKEN and CIVITAI_TOKEN, or from ~/.netrc"


def scheme_of(text: str) -> str:
    """What stands before the first colon, where that makes it an address; else ''."""
    scheme, colon, _ = text.strip().partition(":")
    scheme = scheme.lower()
    return scheme if colon and scheme in SCHEMES else ""


def read_origin(text: str, node: nodes.Node) -> str:
    """An address in its one spelling.

    Raises:
        RecipeError: it is none, or it carries a secret.
    """
    text = text.strip()
    scheme = scheme_of(text)
    if not scheme:
        raise node.error(f"{clip(text)} is no address", "write https://…, hf:owner/repo/file or civitai:NUMBER")
    rest = text.partition(":")[2]
    if scheme == "hf":
        return _hub_file(rest, node)
    if scheme == "civitai":
        return _civitai(rest, node)
    return _web(text, node)


def _web(text: str, node: nodes.Node) -> str:
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    path = parts.path
    if not host or not path.strip("/"):
        raise node.error(f"{clip(text)} is no address of a file", "write it as https://host/folder/file.safetensors")
    if parts.username is not None:
        raise _unshown(node, "an address in a recipe carries no user name or password", _FROM_ENVIRONMENT)
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if _SECRETS.fullmatch(name):
            message = f"the address carries {clip(name)}=, which may be a secret, and recipes are passed on"
            raise _unshown(node, message, f"leave it out: {_FROM_ENVIRONMENT}")
    known = _known_site(host, parts, node)
    netloc = f"{f'[{host}]' if ':' in host else host}{f':{port}' if port is not None else ''}"
    return known or urlunsplit((parts.scheme.lower(), netloc, path, parts.query, ""))


def _unshown(node: nodes.Node, message: str, hint: str) -> RecipeError:
    """An error that does not repeat the text that it is about: logs are passed on as well."""
    where = node.where
    return RecipeError(message, place=Place(where.file, where.line, where.column), hint=hint)


def _known_site(host: str, parts: SplitResult, node: nodes.Node) -> str:
    """The address of a file on a site that has a spelling of its own here; '' of all others."""
    if host in _HUB and (found := re.fullmatch(r"/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/(.+)", parts.path)):
        repo, revision, file = (unquote(part) for part in found.groups())
        return _hub_file(f"{repo}/{file}@{revision}", node)
    if host in _CIVITAI:
        query = dict(parse_qsl(parts.query))
        found = re.fullmatch(r"/api/download/models/([0-9]+)", parts.path)
        if version := found[1] if found else query.get("modelVersionId"):
            return _civitai(version, node)
        if parts.path.startswith("/models/"):
            raise node.error(
                "this is the page of a model on Civitai, which has several versions",
                "choose one there: its address ends in ?modelVersionId=NUMBER",
            )
    return ""


def _hub_file(rest: str, node: nodes.Node) -> str:
    head, at, tail = rest.strip().lstrip("/").rpartition("@")
    where, revision = (head, tail) if at else (tail, "main")
    repo = "/".join(where.split("/")[:2])
    file = where[len(repo) + 1 :]
    folders = file.split("/")
    if not _REPO.fullmatch(repo) or not _REVISION.fullmatch(revision) or ".." in [*revision.split("/"), *folders]:
        raise node.error(f"hf:{clip(rest)} is no file on Hugging Face", "write hf:owner/repo/file@revision")
    if not all(folders):
        raise node.error(
            later.not_yet("a whole repository of Hugging Face (hf:)"),
            f"name a file of it, hf:{repo}/FILE; or download it, and give its folder",
        )
    return f"hf:{repo}/{file}@{revision}"


def _civitai(rest: str, node: nodes.Node) -> str:
    version = rest.strip().rpartition("@")[2]
    if not re.fullmatch(r"[0-9]{1,12}", version):
        hint = "it is the number after modelVersionId= in the address of the model's page"
        raise node.error(f"civitai:{clip(rest)} is no number of a model version", hint)
    return f"civitai:{int(version)}"


def file_name(origin: str) -> str:
    """What the file at an address is called there, as far as the address tells."""
    if origin.startswith("hf:"):
        origin = origin.rpartition("@")[0]
    elif not origin.startswith("civitai:"):
        origin = unquote(urlsplit(origin).path)
    return origin.rpartition("/")[2] or origin
