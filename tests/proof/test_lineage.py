"""graph: what files came from, through their parents; and the page, which a real browser shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from proof_models import build, recipe, reword, say, write_model
from safetensors.numpy import load_file, save_file
from support.commands import run, run_json
from support.tiny_models import SD1
from support.tiny_models import write_model as write_tiny_model

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def family(folder: Path) -> Path:
    """child.safetensors, made of mix.safetensors (made of a, b, c) and a."""
    build(recipe(", sidecars: provenance", name="mix.safetensors"))
    Path("child.yaml").write_text(
        "mergeflow: 1\nsources: { mix: mix.safetensors, a: a.safetensors }\n"
        "outputs:\n  child.safetensors: { from: mix * 0.5 + a * 0.5 }\n"
    )
    run("build", "child.yaml")
    return folder


def test_a_file_through_its_parents(family: Path) -> None:
    lines = run("graph", "child.safetensors").stdout.splitlines()
    assert [line.split("  b3:")[0] for line in lines] == [
        "child.safetensors",
        "├─ mix.safetensors",
        "│  ├─ a.safetensors",
        "│  ├─ b.safetensors",
        "│  └─ c.safetensors",
        "└─ a.safetensors",
    ]
    assert "= 0.5·a.safetensors + 0.5·mix.safetensors" in lines[0]
    assert "= 1·a.safetensors + 0.3·b.safetensors − 0.3·c.safetensors" in lines[1]


def test_several_files_and_what_was_shown_already(family: Path) -> None:
    shown = run("graph", "child.safetensors", "mix.safetensors").stdout.splitlines()
    assert shown[-1] == "mix.safetensors, as above"
    data = run_json("graph", "child.safetensors", "mix.safetensors")
    assert data["schema"] == "mergeflow/lineage/1"
    assert {f["name"]: len(f["made_of"]) for f in data["files"]} == {
        "child.safetensors": 2, "mix.safetensors": 3, "a.safetensors": 0, "b.safetensors": 0, "c.safetensors": 0,
    }  # fmt: skip
    assert [f["name"] for f in data["files"] if f["asked"]] == ["child.safetensors", "mix.safetensors"]


def test_parents_that_are_elsewhere(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move("b.safetensors", elsewhere / "renamed.safetensors")
    shutil.copy("c.safetensors", elsewhere / "copied.safetensors")
    Path("c.safetensors").unlink()
    shown = run("graph", "child.safetensors").stdout
    assert "b  (not to be found here)" in shown  # the statement beside mix says what they were called
    assert "c  (not to be found here)" in shown
    monkeypatch.setenv("MERGEFLOW_MODELS", str(elsewhere))
    run("hash", elsewhere / "renamed.safetensors")  # so that this machine has read it before
    shown = run("graph", "child.safetensors").stdout
    assert "renamed.safetensors" in shown
    assert "c  (not to be found here)" in shown
    shown = run("graph", "child.safetensors", "--models", elsewhere).stdout
    assert "copied.safetensors" in shown
    assert "not to be found" not in shown


def test_a_vae_that_was_taken_over_makes_no_file_its_own_parent(folder: Path) -> None:
    """Only the VAE of the merged file has the digest of the source: that is not made of what the file is made of."""
    for name, factor in (("a", 1), ("b", 2)):  # the VAEs of small models are alike: b's is made another
        write_tiny_model(Path(f"{name}.safetensors"), SD1, name)
        tensors = load_file(f"{name}.safetensors")
        save_file({n: v * factor if "first_stage" in n else v for n, v in tensors.items()}, f"{name}.safetensors")
    Path("vae.yaml").write_text(
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, v: { path: b.safetensors, kind: vae } }\n"
        "outputs:\n  vae.safetensors: { from: a * 0.7 + b * 0.3, replace: { vae: v } }\n"
    )
    run("build", "vae.yaml")
    Path("b.safetensors").unlink()
    run("check", "vae.safetensors", exit_code=3)  # from now on the digest of its VAE is known on this machine
    lines = run("graph", "vae.safetensors").stdout.splitlines()
    assert len(lines) == 4
    assert "0.7·a.safetensors" in lines[0]
    assert lines[0].endswith("(and 1 other form)")
    assert lines[1].startswith("├─ a.safetensors")
    assert [line for line in lines[2:] if not line.endswith("(not to be found here)")] == []


@pytest.mark.forges
def test_a_parent_whose_graph_is_damaged_ends_there(family: Path) -> None:
    reword(Path("mix.safetensors"), say("mergeflow", "{"))
    assert "mix.safetensors  b3:" in run("graph", "child.safetensors").stdout
    assert "no graph of mergeflow's" in run("graph", "child.safetensors").stdout


def test_drawings_of_files(family: Path) -> None:
    mermaid = run("graph", "child.safetensors", "--format", "mermaid").stdout
    assert mermaid.startswith("graph LR\n")
    assert mermaid.count("-->") == 5
    dot = run("graph", "child.safetensors", "--format", "dot").stdout
    assert dot.count("->") == 5
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=dot, text=True, check=True, capture_output=True)


def test_what_options_belong_to(family: Path) -> None:
    assert "--changes is for a page" in run("graph", "child.safetensors", "--changes", exit_code=2).stderr
    assert "name some that are there" in run("graph", "--models", ".", exit_code=2).stderr


HOSTILE = """\
mergeflow: 1
name: '<script>alert(1)</script> & "quotes"'
description: '</main></style><img src="https://example.org/x.png">'
sources:
  a: a.safetensors
  'b <b>"&': b.safetensors
  'アニメ柚子': c.safetensors
params: { m: 0.3, k: { default: 0.25, 'layer.2*': 0.75 } }
steps: { lewd: "a + ('b <b>\\"&' - 'アニメ柚子') * m" }
outputs:
  out/mix.safetensors: lewd + (a - 'b <b>"&') * k
"""


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given.get("href")))
        self.sources += [str(v) for k, v in attrs if k in ("src", "srcset", "data", "xlink:href", "action")]


def read(page: Path) -> Links:
    text = page.read_text(encoding="utf-8")
    found = Links()
    found.feed(text)
    assert found.sources == []
    assert not found.tags & {"script", "img", "link", "iframe", "object", "embed", "form"}
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    assert "url(http" not in text
    assert "@import" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
    return found


def test_the_page_of_a_recipe(folder: Path) -> None:
    build(HOSTILE)
    run("graph", "--changes", "-o", "page.html")
    page = Path("page.html")
    found = read(page)
    assert len(found.links) == 5  # three sources, a step, an output
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in text
    digest = run_json("inspect", "out/mix.safetensors")["digest"]
    for said in (digest, "4 computed, 1 copied", "0.75", "アニメ柚子", "|B − A| / |A|", "layer.2"):
        assert said in text
    assert str(folder) not in text
    assert str(folder.parent) not in text


def test_the_page_of_a_sweep(folder: Path) -> None:
    swept = recipe().replace("{ m: 0.3 }", "{ m: { sweep: [0.25, 0.5] } }").replace("mix", "mix-{m}")
    build(swept)
    run("graph", "-o", "page.html")
    assert "2 files" in Path("page.html").read_text(encoding="utf-8")
    read(Path("page.html"))


def test_the_page_of_files(family: Path) -> None:
    run("graph", "child.safetensors", "--changes", "-o", "page.html")
    assert len(read(Path("page.html")).links) == 5
    text = Path("page.html").read_text(encoding="utf-8")
    assert "2 merges of 3 models" in text
    assert text.count("How much each block differs") == 2
    assert str(family) not in text


def chromium(*arguments: object, profile: Path) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
         *map(str, arguments)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


def first_pixel(png: Path) -> tuple[int, ...]:
    """Of a PNG with 8 bits a channel, whatever the filter: nothing lies before it."""
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[24] == 8
    packed, at = b"", 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    return tuple(zlib.decompress(packed)[1:4])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_the_page(folder: Path, tmp_path: Path) -> None:
    build(HOSTILE)
    run("graph", "--changes", "-o", "page.html")
    page = Path("page.html").resolve().as_uri()
    told = chromium("--enable-logging=stderr", "--dump-dom", page, profile=tmp_path / "profile")
    assert "Refused to" not in told.stderr  # by the page's own policy, which lets nothing be fetched
    assert "ERR_" not in told.stderr.replace("ERR_NAME_NOT_RESOLVED", "")
    shown = Links()
    shown.feed(told.stdout)
    assert len(shown.links) == 5
    assert '<h1>&lt;script&gt;alert(1)&lt;/script&gt; &amp; "quotes"</h1>' in told.stdout
    for name, more, colour in (("light", [], (245, 246, 248)), ("dark", ["--force-dark-mode"], (18, 22, 29))):
        png = tmp_path / f"{name}.png"
        chromium("--window-size=900,700", f"--screenshot={png}", *more, page, profile=tmp_path / "profile")
        assert first_pixel(png) == colour


@pytest.mark.slow
def test_a_long_chain_is_drawn_in_time(folder: Path) -> None:
    for i in range(30):
        write_model(Path(f"m{i}.safetensors"), 100 + i, layers=1)
    lines = ["mergeflow: 1", "sources:", *(f"  m{i}: m{i}.safetensors" for i in range(30)), "steps:", "  s0: m0"]
    lines += [f"  s{i}: s{i - 1} * 0.9 + m{i % 30} * 0.05 + m{(i * 7) % 30} * 0.05" for i in range(1, 150)]
    Path("recipe.yaml").write_text("\n".join([*lines, "outputs:", "  long.safetensors: s149", ""]))
    run("graph", "-o", "page.html")
    assert len(read(Path("page.html")).links) == 181
