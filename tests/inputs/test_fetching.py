"""Downloads from servers that cut, stall, lie and change their minds: no wrong byte gets a name, what came is kept."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import MIX, Machine, flipped, model, sha256
from server import (
    Answer,
    Server,
    chunked,
    cut,
    cut_further,
    drips,
    empty,
    good,
    hang_up,
    redirect,
    rest,
    says,
    send,
    stalls,
    until_the_end,
)

pytest.importorskip("httpx")

from mergeflow.errors import IntegrityError, MergeflowError, MissingInput, ResourceError
from mergeflow.events import silent
from mergeflow.sources import addresses, credentials
from mergeflow.sources.downloads import fetch, folder_of, kept, record_of
from mergeflow.sources.memo import Memo
from mergeflow.sources.search import Wanted
from mergeflow.sources.web import Patience

DATA = model(1, 1 << 16)
OTHER = flipped(DATA)
KNOWN = Wanted(sha256(DATA))
HALF = len(DATA) // 2
EARLY = flipped(DATA[: HALF - 9]) + DATA[HALF - 9 :]  # a model too, and another one: its first half is not DATA's
QUICK = Patience(connect=2, silence=0.3, attempts=3, pause=0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memo]:
    monkeypatch.setenv("MERGEFLOW_DOWNLOADS", str(tmp_path / "downloads"))
    memo = Memo(tmp_path / "memo", lambda message: None)
    yield memo
    memo.close()


def get(server: Server, memo: Memo, *answers: object, wanted: Wanted = KNOWN, path: str = "/x.safetensors") -> bytes:
    """What is fetched when the server answers so."""
    server.answers[path] = list(answers)  # type: ignore[arg-type]
    return fetch(server.url(path), wanted, memo, silent, QUICK).read_bytes()


def refused(server: Server, memo: Memo, kind: type[MergeflowError], *answers: object, wanted: Wanted = KNOWN) -> str:
    """The error of a download; nothing has a name afterwards."""
    with pytest.raises(kind) as caught:
        get(server, memo, *answers, wanted=wanted)
    folder = folder_of(server.url("/x.safetensors"))
    assert [p.name for p in folder.iterdir() if not p.name.startswith(".")] == []
    assert kept(server.url("/x.safetensors"), memo, silent) is None
    return caught.value.message


def ranges(server: Server) -> list[str | None]:
    return [request.headers.get("Range") for request in server.requests]


WELL = {
    "as it should be": [good(DATA)],
    "in chunks": [chunked(DATA)],
    "without a length": [until_the_end(DATA)],
    "cut, then the rest": [cut(DATA, HALF), good(DATA)],
    "cut at once, then all": [cut(DATA, 0), good(DATA)],
    "cut again and again": [cut(DATA, HALF), cut(DATA, HALF), good(DATA)],
    "chunks that are cut": [chunked(DATA, whole=False), chunked(DATA)],
    "busy": [empty(503), empty(429, Retry_After="0"), good(DATA)],
    "ranges are not known": [cut(DATA, HALF), lambda h: send(h, DATA)],
    "another version after the cut": [cut(OTHER, HALF, '"old"'), good(DATA, '"new"')],
    "another version's rest, as if it were the same": [
        cut(OTHER[::-1], HALF), rest(DATA[HALF:], HALF, len(DATA), '"two"'), good(DATA, '"two"')],
    "another rest than was asked for": [cut(DATA, HALF), rest(DATA[9:], 9, len(DATA)), good(DATA)],
    "a rest without words": [cut(DATA, HALF), lambda h: send(h, DATA[HALF:], status=206, ETag='"one"'), good(DATA)],
    "a beginning of something else, unmarked": [cut(OTHER[::-1], HALF, ""), good(DATA, "")],
    "nothing is left, it says": [
        cut(DATA, HALF), empty(416, Content_Range=f"bytes */{HALF}", ETag='"one"'), good(DATA)],
    "redirects": [redirect("/y?signature=secret"), ],
}  # fmt: skip


@pytest.mark.parametrize("answers", WELL.values(), ids=WELL)
def test_in_the_end_the_right_bytes(server: Server, memo: Memo, answers: list[object]) -> None:
    server.answers["/y"] = [good(DATA)]
    assert get(server, memo, *answers) == DATA
    record = record_of(server.url("/x.safetensors"))
    assert record is not None
    assert (record.sha256, record.size) == (sha256(DATA), len(DATA))
    folder = folder_of(server.url("/x.safetensors"))
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == ["origin.json", "x.safetensors"]
    assert "secret" not in (folder / "origin.json").read_text()


WRONG, BROKEN, NOT_FOLLOWED = "what came has the sha256", "the connection broke", "which is not followed"
NEVER = {
    "wrong bytes": (IntegrityError, [good(OTHER)], WRONG),
    "wrong bytes of another length": (IntegrityError, [good(DATA[:-8])], WRONG),
    "nothing": (IntegrityError, [empty()], WRONG),
    "more than it said": (IntegrityError, [lambda h: send(h, DATA + DATA, length=HALF)], WRONG),
    "packed": (IntegrityError, [lambda h: send(h, DATA, Content_Encoding="gzip")], "packs the file"),
    "packed twice": (IntegrityError, [lambda h: send(h, DATA, Content_Encoding="identity, gzip")], "packs the file"),
    "packed, and says nothing of it": (IntegrityError, [good(gzip.compress(DATA))], WRONG),
    "a web page that says it is the rest": (
        IntegrityError, [cut(DATA, HALF), rest(b"<html>" + DATA[HALF + 6 :], HALF, len(DATA)), good(OTHER)], WRONG),
    "more than the rest": (
        IntegrityError, [cut(DATA, HALF), says(
            f'HTTP/1.1 206 Rest\r\nETag: "one"\r\nContent-Range: bytes {HALF}-{len(DATA) - 1}/{len(DATA)}\r\n'.encode()
            + b"\r\n" + DATA[HALF:] + DATA)], "sends more bytes than it said"),
    "never more than half": (MissingInput, [cut(DATA, HALF), hang_up], "fetching again goes on there"),
    "a version of strange letters": (
        MissingInput, [cut(DATA, HALF, '"\u00e9\u00b2"'), hang_up], "fetching again goes on there"),
    "a rest for ever": (MissingInput, [cut(DATA, HALF), empty(416)], "does not go on"),
    "a rest that nobody asked for": (MissingInput, [rest(DATA, 0, len(DATA))], "does not go on"),
    "a rest of many digits": (
        MissingInput, [cut(DATA, HALF), rest(DATA[HALF:], int("9" * 4000), int("9" * 4000))], "does not go on"),
    "not there": (MissingInput, [empty(404)], "there is no such file"),
    "not for us": (MissingInput, [empty(401)], "it gives the file only to those it knows"),
    "always busy": (MissingInput, [empty(500)], "the server answers 500"),
    "busy for a superscript": (MissingInput, [empty(503, Retry_After="\u00b2")], "the server answers 503"),
    "teapot": (MissingInput, [empty(418)], "the server answers 418"),
    "no content": (MissingInput, [empty(204)], "the server answers 204"),
    "not modified": (MissingInput, [empty(304)], "the server answers 304"),
    "round and round": (MissingInput, [redirect("/x.safetensors")], "redirected more than"),
    "to nowhere": (MissingInput, [empty(302)], "the server answers 302"),
    "to a file": (MissingInput, [redirect("file:///etc/passwd")], NOT_FOLLOWED),
    "to no address": (MissingInput, [redirect("http://[")], NOT_FOLLOWED),
    "to letters that stand for others": (
        MissingInput, [says("HTTP/1.1 302 Found\r\nLocation: http://a\u2100b/x\r\n\r\n".encode())], NOT_FOLLOWED),
    "to a port there is not": (MissingInput, [redirect("http://127.0.0.1:99999/x")], NOT_FOLLOWED),
    "to data": (MissingInput, [redirect("data:application/octet-stream,x")], NOT_FOLLOWED),
    "to ftp, and to an empty screen": (
        MissingInput, [says(b"HTTP/1.1 302 Found\r\nLocation: ftp://\x1b[2Jx/\r\n\r\n")], "ftp://[2Jx/, which is not"),
    "no HTTP": (MissingInput, [says(b"SSH-2.0-OpenSSH_9.6\r\n")], BROKEN),
    "headers without end": (MissingInput, [says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000)], BROKEN),
    "two lengths": (
        MissingInput, [says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")], BROKEN),
    "less than nothing": (MissingInput, [says(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello!")], BROKEN),
    "a length of many digits": (
        MissingInput, [says(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")], BROKEN),
    "chunks of no length": (
        MissingInput, [says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + DATA)], BROKEN),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "answers", "message"), NEVER.values(), ids=NEVER)
def test_never_a_wrong_byte(
    server: Server, memo: Memo, kind: type[MergeflowError], answers: list[object], message: str
) -> None:
    said = refused(server, memo, kind, *answers)
    assert message in said
    assert said.isprintable()


UNKNOWN = {
    "nothing": ([empty()], IntegrityError, "0 bytes: the file is empty"),
    "cut in its first answer": ([until_the_end(DATA[:HALF])], MissingInput, "does not say how long the file is"),
    "a web page": ([lambda h: send(h, b"<html>", Content_Type="text/html; charset=utf-8")], MissingInput, "a web page"),
    "no model": ([good(b"something else" * 9)], IntegrityError, "bytes"),
    "shorter than its header says": ([good(DATA[:-8])], IntegrityError, "cut short"),
    "rest of another version": (
        [cut(EARLY, HALF), rest(DATA[HALF:], HALF, len(DATA), '"two"')],
        MissingInput, "does not go on"),
}  # fmt: skip


@pytest.mark.parametrize(("answers", "kind", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_without_a_hash_what_can_be_known_is_checked(
    server: Server, memo: Memo, answers: list[object], kind: type[MergeflowError], message: str
) -> None:
    assert message in refused(server, memo, kind, *answers, wanted=Wanted())


def test_without_a_hash_parts_of_one_version_are_joined_and_others_are_not(server: Server, memo: Memo) -> None:
    assert get(server, memo, cut(DATA, HALF), good(DATA), wanted=Wanted()) == DATA
    assert ranges(server) == [None, f"bytes={HALF}-"]
    assert server.requests[1].headers["If-Range"] == '"one"'
    assert get(server, memo, cut(DATA, HALF, 'W/"weak"'), good(DATA), wanted=Wanted(), path="/z.safetensors") == DATA
    assert ranges(server)[2:] == [None, None]


def test_a_rest_that_comes_in_pieces(server: Server, memo: Memo) -> None:
    more = HALF + HALF // 2
    piece = rest(DATA[HALF:more], HALF, len(DATA))
    assert get(server, memo, cut(DATA, HALF), piece, good(DATA), wanted=Wanted()) == DATA
    assert ranges(server) == [None, f"bytes={HALF}-", f"bytes={more}-"]


@pytest.mark.parametrize("wanted", [Wanted(short=sha256(OTHER)[:10]), Wanted(size=len(DATA) + 1)])
def test_other_claims_are_checked_too(server: Server, memo: Memo, wanted: Wanted) -> None:
    refused(server, memo, IntegrityError, good(DATA), wanted=wanted)


def test_a_server_that_falls_silent(server: Server, memo: Memo) -> None:
    release = threading.Event()
    try:
        assert get(server, memo, stalls(DATA, HALF, release), good(DATA)) == DATA
        assert ranges(server) == [None, f"bytes={HALF}-"]
        assert "has fallen silent" in refused_as(server, memo, "/s.safetensors", stalls(DATA, 0, release))
    finally:
        release.set()


def refused_as(server: Server, memo: Memo, path: str, answer: Answer) -> str:
    """What is said of an address that is not to be had."""
    server.answers[path] = [answer]
    with pytest.raises(MissingInput) as caught:
        fetch(server.url(path), KNOWN, memo, silent, QUICK)
    return caught.value.message


@pytest.mark.parametrize("each", [1, 50])
def test_a_server_that_drips(server: Server, memo: Memo, each: int) -> None:
    """A byte now and then is never silence, and gets further each time; it must come to an end all the same."""
    at_ease = Patience(connect=2, silence=5, attempts=2, pause=0, least=100_000, window=0.2)
    server.answers["/x.safetensors"] = [drips(DATA, each, 0.02)]
    with pytest.raises(MissingInput, match=r"sent only [0-9,]+ bytes in 0 seconds.*; [0-9.]+ K?B of it are kept"):
        fetch(server.url("/x.safetensors"), KNOWN, memo, silent, at_ease)
    assert 2 <= len(server.requests) <= 4
    server.answers["/x.safetensors"] = [good(DATA)]
    assert fetch(server.url("/x.safetensors"), KNOWN, memo, silent, at_ease).read_bytes() == DATA
    assert ranges(server)[-1] is not None, "what came is gone on from"


def test_a_server_that_hangs_up_after_each_byte(server: Server, memo: Memo) -> None:
    message = refused(server, memo, MissingInput, *[cut_further(DATA, 1) for _ in range(30)])
    assert "of it are kept" in message
    assert len(server.requests) == QUICK.attempts


def test_a_folder_that_cannot_be_locked(server: Server, memo: Memo) -> None:
    """As on a file system without locks, or one that is mounted for reading."""
    folder = folder_of(server.url("/x.safetensors"))
    (folder / ".lock").mkdir(parents=True)
    with pytest.raises(ResourceError, match="locking it"):
        get(server, memo, good(DATA))


def test_an_interrupted_download_goes_on_in_the_next_run(server: Server, memo: Memo) -> None:
    refused(server, memo, MissingInput, cut(DATA, HALF), hang_up)
    asked = len(server.requests)
    assert get(server, memo, good(DATA)) == DATA
    assert ranges(server)[asked:] == [f"bytes={HALF}-"]


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(server: Server, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "A")
    machine.recipe(
        f"mergeflow: 1\nsources: {{ a: {{ url: '{server.url('/a.safetensors')}', sha256: {sha256(DATA)} }} }}\n"
        f"outputs: {{ {MIX}: a * 1 }}\n"
    )
    release = threading.Event()
    server.answers["/a.safetensors"] = [stalls(DATA, HALF, release), good(DATA)]
    command = [sys.executable, "-m", "mergeflow", "build"]
    with subprocess.Popen(command, cwd=machine.work, env={**os.environ, **machine.env}) as process:
        part = folder_of_machine(machine, server) / ".a.safetensors.incoming"
        until = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    release.set()
    came = part.stat().st_size
    assert 0 < came <= HALF
    machine.run("build")
    assert ranges(server) == [None, f"bytes={came}-"]
    assert not part.exists()


def folder_of_machine(machine: Machine, server: Server) -> Path:
    return machine.folder / "downloads" / folder_of(server.url("/a.safetensors")).name


def test_a_partial_file_that_was_damaged_meanwhile(server: Server, memo: Memo) -> None:
    refused(server, memo, MissingInput, cut(DATA, HALF), hang_up)
    (part,) = folder_of(server.url("/x.safetensors")).glob(".*.incoming")
    part.write_bytes(bytes(HALF))
    assert get(server, memo, good(DATA)) == DATA


def test_nobody_there(server: Server, memo: Memo) -> None:
    url = server.url("/x.safetensors")
    server.shutdown()
    server.server_close()
    with pytest.raises(MissingInput, match=r"127\.0\.0\.1: cannot be reached"):
        fetch(url, KNOWN, memo, silent, QUICK)


def test_two_at_once(server: Server, memo: Memo) -> None:
    import filelock

    folder = folder_of(server.url("/x.safetensors"))
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"), pytest.raises(ResourceError, match="another mergeflow is fetching"):
        get(server, memo, good(DATA))


def test_plain_http_needs_a_hash(memo: Memo) -> None:
    with pytest.raises(IntegrityError, match="may be anything"):
        fetch("http://example.org/x.safetensors", Wanted(), memo, silent, QUICK)


def test_another_content_does_not_take_the_place_of_the_first(server: Server, memo: Memo) -> None:
    get(server, memo, good(DATA))
    get(server, memo, good(OTHER), wanted=Wanted())
    url = server.url("/x.safetensors")
    names = {p.name: p.read_bytes() for p in folder_of(url).glob("*.safetensors")}
    assert names == {"x.safetensors": DATA, f"x.{sha256(OTHER)[:10]}.safetensors": OTHER}
    path = kept(url, memo, silent)
    assert path is not None
    assert path.read_bytes() == OTHER
    path.write_bytes(DATA)
    assert kept(url, memo, silent) is None


def test_a_name_that_would_leave_the_folder() -> None:
    for name in ("../../x.ckpt", "..", "con.safetensors", "a\nb.pt", "x" * 400 + ".safetensors", "", "C:\\x.pt",
                 "\ud800.ckpt"):  # fmt: skip
        safe = addresses.safe_name(name)
        assert Path(safe).name == safe
        assert safe.strip(".")
        assert ":" not in safe
        assert len(safe.encode()) < 150


def test_a_file_without_end_does_not_fill_the_disk(server: Server, memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergeflow.sources.transfer.room", lambda folder: len(DATA))
    assert "longer than half of the free space" in refused(server, memo, ResourceError, chunked(DATA))
    assert list(folder_of(server.url("/x.safetensors")).glob(".*.incoming")) == []


# Tokens


def test_tokens_are_not_sent_to_other_hosts(
    server: Server, memo: Memo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\nmachine localhost login me password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Server() as elsewhere:
        elsewhere.answers["/y"] = [good(DATA)]
        server.answers["/near"] = [redirect(elsewhere.url("/y", "localhost"))]
        assert get(server, memo, redirect("/near")) == DATA
        assert "Authorization" not in elsewhere.requests[0].headers
        assert "Authorization" not in str(elsewhere.requests)
    sent = "Basic " + base64.b64encode(b"me:secret").decode()
    assert [request.headers.get("Authorization") for request in server.requests] == [sent, sent]
    kept_text = "".join(p.read_text(errors="ignore") for p in (tmp_path / "downloads").rglob("*") if p.is_file())
    assert "secret" not in kept_text
    assert sent not in kept_text


def test_what_a_redirect_has_before_its_host_is_not_sent(server: Server, memo: Memo) -> None:
    server.answers["/y"] = [good(DATA)]
    assert get(server, memo, redirect(server.url("/y").replace("://", "://me:secret@"))) == DATA
    assert [request.headers.get("Authorization") for request in server.requests] == [None, None]


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Server]:
    """HTTPS, with a certificate that nobody has signed: in `cert.pem` there."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    command = ["openssl", *words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with Server(context) as running:
        yield running


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here to make a certificate")
def test_https(secure: Server, server: Server, memo: Memo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(secure, memo, MissingInput, good(DATA), wanted=Wanted())
    assert "certificate is none that this machine trusts" in said
    assert secure.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert get(secure, memo, good(DATA), wanted=Wanted()) == DATA
    server.answers["/y"] = [good(DATA)]
    said = refused_as(secure, memo, "/z.safetensors", redirect(server.url("/y")))
    assert f"redirects to {server.url('/y')}, which is not followed" in said
    assert server.requests == []
    with pytest.raises(MissingInput, match="or that of another host"):  # the certificate is of 127.0.0.1
        fetch(secure.url("/x.safetensors", "localhost"), KNOWN, memo, silent, QUICK)


@pytest.mark.parametrize("proxy", ["nonsense://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(server: Server, memo: Memo, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)  # what httpx takes for SOCKS
    with pytest.raises(MissingInput, match="the proxy that this machine's environment names cannot be used"):
        fetch(server.url("/x.safetensors"), KNOWN, memo, silent, QUICK)


def test_tokens_of_the_environment_and_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert credentials.authorization("huggingface.co", silent) is None
    (tmp_path / "token").write_text("of a file\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert credentials.authorization("huggingface.co", silent) == "Bearer of a file"
    monkeypatch.setenv("HF_TOKEN", "of the environment")
    assert credentials.authorization("huggingface.co", silent) == "Bearer of the environment"
    monkeypatch.setenv("CIVITAI_TOKEN", "line\nbreak")
    assert credentials.authorization("civitai.com", silent) is None
    (tmp_path / "netrc").write_text("machine a.org login me password secret\ndefault login x password y\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert credentials.authorization("b.org", silent) is None
    assert credentials.authorization("a.org", silent) is not None


# Sites


def test_hugging_face(server: Server, memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url("/"))
    commit = "c0ffee" * 6 + "abcd"
    server.answers["/o/r/resolve/main/sub/x%20y.safetensors"] = [
        empty(302, Location="/cdn?sig=1", X_Repo_Commit=commit, X_Linked_ETag=f'"{sha256(DATA)}"',
              X_Linked_Size=str(len(DATA)))]  # fmt: skip
    server.answers["/cdn"] = [good(DATA)]
    path = fetch("hf:o/r/sub/x y.safetensors@main", Wanted(), memo, silent, QUICK)
    assert path.name == "x y.safetensors"
    record = record_of("hf:o/r/sub/x y.safetensors@main")
    assert record is not None
    assert record.resolved == f"hf:o/r/sub/x y.safetensors@{commit}"
    server.answers["/cdn"] = [good(OTHER)]
    with pytest.raises(IntegrityError, match="what its site says"):
        fetch("hf:o/r/sub/x y.safetensors@main", Wanted(), memo, silent, QUICK)
    server.answers["/o/r/resolve/main/z.safetensors"] = [
        empty(302, Location="/cdn", X_Repo_Commit="no commit", X_Linked_Size="9" * 5000)
    ]
    assert fetch("hf:o/r/z.safetensors@main", Wanted(), memo, silent, QUICK).read_bytes() == OTHER
    server.requests.clear()
    with pytest.raises(IntegrityError, match="the file there now has the sha256"):
        fetch("hf:o/r/sub/x y.safetensors@main", Wanted(sha256(OTHER)), memo, silent, QUICK)


def test_civitai(server: Server, memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "CIVITAI_URL", server.url(""))
    described = {"files": [{"name": "vae.pt"}, {"name": "the model.safetensors", "primary": True,
                 "hashes": {"SHA256": sha256(DATA).upper()}, "downloadUrl": "https://evil.example/x"}]}  # fmt: skip
    server.answers["/api/v1/model-versions/42"] = [lambda h: send(h, json.dumps(described).encode())]
    server.answers["/api/download/models/42"] = [good(DATA)]
    assert fetch("civitai:42", Wanted(), memo, silent, QUICK).name == "the model.safetensors"
    server.answers["/api/download/models/43"] = [good(OTHER)]
    server.answers["/api/v1/model-versions/43"] = server.answers["/api/v1/model-versions/42"]
    with pytest.raises(IntegrityError, match="what its site says"):
        fetch("civitai:43", Wanted(), memo, silent, QUICK)
    for odd in (b"{}", b"[" * 100_000, b'{"files": [{"name": "x", "downloadUrl": "http://["}]}', b"x" * (1 << 23)):
        server.answers["/api/v1/model-versions/44"] = [lambda h, odd=odd: send(h, odd)]
        with pytest.raises(MissingInput, match="could not be understood"):
            fetch("civitai:44", Wanted(), memo, silent, QUICK)


def test_s3(server: Server, memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url("/"))
    server.answers["/bucket/a/x.safetensors"] = [good(DATA)]
    assert fetch("s3://bucket/a/x.safetensors", KNOWN, memo, silent, QUICK).read_bytes() == DATA


# In builds


def recipe(server: Server, more: str = "") -> str:
    a, b = (server.url(f"/{name}.safetensors") for name in "ab")
    return (
        f"mergeflow: 1\nsources:\n  a: {a}\n"
        f"  b: {{ path: b.safetensors, url: '{b}'{more} }}\noutputs: {{ {MIX}: a + (b - a) * 0.5 }}\n"
    )


def test_a_build_fetches_what_is_missing_and_the_lock_is_enough_elsewhere(server: Server, tmp_path: Path) -> None:
    here, there = Machine(tmp_path / "A"), Machine(tmp_path / "B")
    server.answers = {"/a.safetensors": [good(DATA)], "/b.safetensors": [good(model(2, 1 << 16))]}
    for machine in (here, there):
        machine.recipe(recipe(server))
    assert "gets it from http://127.0.0.1" in here.run("plan", exit_code=4).stderr
    assert "gets it from http://127.0.0.1" in here.run("build", "--offline", exit_code=4).stderr
    assert server.requests == []
    here.run("build")
    here.run("lock")
    assert len(server.requests) == 2
    assert "up to date" in here.run("build").stdout
    (there.work / "recipe.lock").write_bytes((here.work / "recipe.lock").read_bytes())
    server.answers["/b.safetensors"] = [cut(OTHER, HALF), good(OTHER)]
    error = there.run("build", "--locked", exit_code=5).stderr
    assert "what came has the sha256" in error
    assert "recipe.yaml:4:" in error
    assert not (there.work / MIX).exists()
    server.answers["/b.safetensors"] = [good(model(2, 1 << 16))]
    there.run("build", "--locked")
    assert (there.work / MIX).read_bytes() == (here.work / MIX).read_bytes()


def test_a_merge_of_an_address_can_be_saved(server: Server, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "A")
    server.answers = {"/a.safetensors": [good(DATA)]}
    merge = ("merge", "a * 1", f"a={server.url('/a.safetensors')}", "-o", "x.safetensors")
    assert "gets it from http://127.0.0.1" in machine.run(*merge, "--offline", exit_code=4).stderr
    machine.run(*merge, "--save-recipe", "saved/r.yaml")
    assert server.url("/a.safetensors") in (machine.work / "saved" / "r.yaml").read_text()
    assert "x.safetensors" in machine.json("plan", "saved/r.yaml")["outputs"][0]["path"]


def test_fetch_tells_what_became_of_each_source(server: Server, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "A")
    server.answers = {"/a.safetensors": [good(DATA)]}
    machine.recipe(recipe(server))
    found = machine.json("fetch", exit_code=4)["sources"]
    assert [(s["name"], s["how"], s["exit_code"]) for s in found] == [("a", "fetched", 0), ("b", "failed", 4)]
    (machine.work / "b.safetensors").write_bytes(DATA)
    assert "2 sources: 1 here, 1 found" in machine.run("fetch").stdout
    machine.recipe(recipe(server, f", sha256: {sha256(OTHER)}"))
    assert "its sha256 is" in machine.run("fetch", exit_code=5).stderr


def test_the_lock_pins_what_a_branch_was(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url("/"))
    commit = "0" * 40
    for revision in ("main", commit):
        server.answers[f"/o/r/resolve/{revision}/x.safetensors"] = [good(DATA, X_Repo_Commit=commit)]
    machine = Machine(tmp_path / "A")
    machine.recipe(f"mergeflow: 1\nsources: {{ a: hf:o/r/x.safetensors }}\noutputs: {{ {MIX}: a * 1 }}\n")
    machine.run("build")
    machine.run("lock")
    lock = (machine.work / "recipe.lock").read_text()
    assert f"resolved: hf:o/r/x.safetensors@{commit}" in lock
    there = Machine(tmp_path / "B")
    there.recipe((machine.work / "recipe.yaml").read_text())
    (there.work / "recipe.lock").write_text(lock)
    server.requests.clear()
    there.run("build", "--locked")
    assert [request.path for request in server.requests] == [f"/o/r/resolve/{commit}/x.safetensors"]
    assert there.run("lock", "--check").stdout.startswith("recipe.lock holds")


def test_without_the_library(machine_without: Machine, server: Server) -> None:
    machine_without.recipe(recipe(server))
    error = machine_without.run("build", exit_code=4).stderr
    assert "downloading takes the package httpx" in error
    assert "mergeflow[fetch]" in error


@pytest.fixture
def machine_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    return Machine(tmp_path / "A")
