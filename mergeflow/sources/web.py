"""Requests over HTTP: redirects that lose no secrets, and errors in words. The only module that imports httpx."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit

from mergeflow.errors import IntegrityError, MergeflowError, MissingInput
from mergeflow.events import Reporter
from mergeflow.sources.credentials import ADVICE, ELSEWHERE, authorization

if TYPE_CHECKING:
    import httpx

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_LOCAL = ("localhost", "127.0.0.1", "::1")
_LOCATION = "mergeflow.location"
_DISTRUST = "CERTIFICATE_VERIFY_FAILED"  # OpenSSL's word for it


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait (seconds), and how many attempts that get no further are made. A server that sends fewer than
    `least` bytes a second, over `window` seconds, is as good as silent: one that drips would keep us for ever."""

    connect: float = 20
    silence: float = 60
    attempts: int = 5
    pause: float = 1
    least: float = 1000
    window: float = 60


class Interrupted(Exception):
    """A request that may go better next time; `after` seconds, where the server says so."""

    def __init__(self, why: str, after: float = 0) -> None:
        super().__init__(why)
        self.after = after


@dataclass(frozen=True, slots=True)
class Answer:
    """The last response, and the headers of those that led to it, by host."""

    response: httpx.Response
    url: str
    on_the_way: Mapping[str, Mapping[str, str]]
    patience: Patience

    def body(self) -> Iterator[bytes]:
        """What is sent, as it comes.

        Raises:
            Interrupted: it comes too slowly.
        """
        most = self.patience.window
        began, came = time.monotonic(), 0
        for chunk in self.response.iter_raw():
            yield chunk
            came += len(chunk)
            if time.monotonic() - began < most:
                continue
            if came < self.patience.least * most:
                raise Interrupted(f"{_server(self.url)[1]}: sent only {came:,} bytes in {most:,.0f} seconds")
            began, came = time.monotonic(), 0


class Web:
    """Close it, or use it in a with statement."""

    def __init__(self, report: Reporter, patience: Patience | None = None) -> None:
        try:
            import httpx
        except ModuleNotFoundError:
            raise not_installed("httpx") from None
        from mergeflow import __version__

        self.patience = patience or Patience()
        self._report = report
        timeout = httpx.Timeout(self.patience.silence, connect=self.patience.connect)
        agent = {"User-Agent": f"mergeflow/{__version__}", "Accept-Encoding": "identity"}
        hooks = {"response": [_put_location_aside]}
        try:
            self._client = httpx.Client(timeout=timeout, headers=agent, follow_redirects=False, event_hooks=hooks)
        except (ImportError, ValueError):  # whose words may have the password of a proxy in them
            raise MissingInput(
                "the proxy that this machine's environment names cannot be used",
                hint="see HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; a SOCKS proxy takes pip install 'httpx[socks]'",
            ) from None

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] = {}) -> Iterator[Answer]:
        """The response to a request, its body not read yet.

        Raises:
            Interrupted: no answer, or a server that is busy.
            MissingInput: it is not there, or not for us.
        """
        import httpx

        first, seen = _server(url), dict[str, Mapping[str, str]]()
        for _ in range(_MOST_REDIRECTS + 1):
            sent = {**headers, **(self._secret(url) if _server(url) == first else {})}
            try:
                request = self._client.build_request("GET", url, headers=sent)
                response = self._client.send(request, stream=True)
            except httpx.InvalidURL as error:
                raise MissingInput(f"{shown(url)[:100]}: is no address") from error
            except httpx.TransportError as error:
                if _DISTRUST in str(error):
                    raise _distrusted(url) from error
                raise Interrupted(f"{_server(url)[1]}: {_words(error)}") from error
            try:
                host = _server(url)[1]
                seen[host] = {**seen.get(host, {}), **response.headers}
                if response.status_code in _REDIRECTS and (location := response.extensions[_LOCATION]):
                    url = _next(url, location)
                    continue
                _check(response, url)
                try:
                    yield Answer(response, url, seen, self.patience)
                except httpx.TransportError as error:
                    raise Interrupted(f"{_server(url)[1]}: {_words(error)}") from error
                return
            finally:
                response.close()
        raise MissingInput(f"{shown(url)}: redirected more than {_MOST_REDIRECTS} times")

    def _secret(self, url: str) -> dict[str, str]:
        """The header with a token, for requests that nobody can listen to."""
        scheme, host, _ = _server(url)
        if scheme != "https" and host not in _LOCAL:
            return {}
        value = authorization(host, self._report)
        return {"Authorization": value} if value else {}

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _put_location_aside(response: httpx.Response) -> None:
    """httpx works out where a redirect leads even when it is not to follow it, and fails where that is no address."""
    response.extensions[_LOCATION] = response.headers.pop("location", "")


def not_installed(package: str) -> MissingInput:
    return MissingInput(
        f"downloading takes the package {package}, which is not installed",
        hint="pip install 'mergeflow[fetch]'; or get the file, and give its path",
    )


def is_open(url: str) -> bool:
    """Whether what comes from an address may have been changed on its way."""
    scheme, host, _ = _server(url)
    return scheme != "https" and host not in _LOCAL


def shown(url: str) -> str:
    """An address for messages: what stands after ? may be somebody's signature, and what is not printable may tell a
    terminal what to do."""
    return "".join(c for c in url.partition("?")[0] if c.isprintable())


def _server(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    try:
        return parts.scheme, (parts.hostname or "").lower(), parts.port
    except ValueError:
        return parts.scheme, "", None


def _next(url: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
        MissingInput: from what is encrypted to what is not, or to no address at all.
    """
    refused = MissingInput(f"{shown(url)}: redirects to {shown(location)[:100]}, which is not followed")
    try:
        to = urlsplit(urljoin(url, location))
        to.port  # noqa: B018  # raises where it is none
    except ValueError:
        raise refused from None
    may = ("https",) if urlsplit(url).scheme == "https" else ("https", "http")
    if not to.hostname or to.scheme not in may:
        raise refused
    return to._replace(netloc=to.netloc.rpartition("@")[2], fragment="").geturl()


def _check(response: httpx.Response, url: str) -> None:
    status, host = response.status_code, _server(url)[1]
    if status in (200, 206, 416):
        coding = response.headers.get("content-encoding", "identity").lower()
        if coding not in ("", "identity"):
            raise IntegrityError(
                f"{shown(url)}: the server packs the file ({shown(coding)[:20]}), which it was asked not to"
            )
        return
    if status in _BUSY:
        after = re.fullmatch("[0-9]{1,9}", response.headers.get("retry-after", ""))
        raise Interrupted(f"{host}: the server answers {status}", min(float(after[0]), 60) if after else 0)
    if status in (401, 403):
        raise _refused(url, status)
    what = "there is no such file" if status in (404, 410) else f"the server answers {status}"
    raise MissingInput(f"{shown(url)}: {what}", hint="open the address in a browser to see what is there")


def _refused(url: str, status: int) -> MergeflowError:
    host = _server(url)[1]
    return MissingInput(
        f"{shown(url)}: the server answers {status}: it gives the file only to those it knows, or not to everybody",
        hint=f"accept the model's terms on its page, and give a token: {ADVICE.get(host, ELSEWHERE)}",
    )


def _distrusted(url: str) -> MissingInput:
    return MissingInput(
        f"{shown(url)}: the server's certificate is none that this machine trusts, or that of another host",
        hint="see the address and the clock; SSL_CERT_FILE names the certificates to trust, such as a company's own",
    )


def _words(error: Exception) -> str:
    """A network's error in a few words."""
    import httpx

    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return "does not answer"
    if isinstance(error, httpx.ConnectError):
        return "cannot be reached"
    if isinstance(error, httpx.TimeoutException):
        return "has fallen silent"
    return "the connection broke"
