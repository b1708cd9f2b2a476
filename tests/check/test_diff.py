"""`mergeflow diff`: sums against numpy, states, the table, the picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from check_models import FIRST, changed
from safetensors.numpy import load_file, save_file
from support.checkpoints import any_bits, read, weights, write
from support.commands import run, run_json

from mergeflow.build import compare as module
from mergeflow.build.compare import Comparison, Sums, compare
from mergeflow.cli.picture import percent, shade, svg
from mergeflow.formats.scan import as_float
from mergeflow.sources.identify import identify
from mergeflow.sources.memo import Memo
from mergeflow.tensors import BY_CODE

SVG = "{http://www.w3.org/2000/svg}"


def compared(a: Path, b: Path, workers: int = 1) -> Comparison:
    memo = Memo(a.parent / "memo", print)
    try:
        one, other = (identify(path, memo, lambda event: None) for path in (a, b))
        return compare(one, other, workers=workers)
    finally:
        memo.close()


def test_a_model_and_itself(sd15: dict[str, Path]) -> None:
    assert "1,131 tensors, all the same" in run("diff", sd15["A"], sd15["A"]).stdout
    assert run_json("diff", sd15["A"], sd15["A"])["equal"] is True


def test_relatives(sd15: dict[str, Path]) -> None:
    document = run_json("diff", sd15["A"], sd15["B"], "--tensors", exit_code=3)
    whole, parts = document["whole"], document["components"]
    assert (whole["same"], whole["changed"], whole["added"], whole["removed"]) == (249, 882, 0, 0)
    assert parts["vae"]["same"] == 248
    assert parts["vae"]["cosine"] is None
    assert 0.99 < parts["unet"]["cosine"] < 1
    assert parts["unet"]["difference"] == pytest.approx(0.05, rel=0.1)
    blocks = [b["block"] for b in document["blocks"] if b["component"] == "unet"]
    assert blocks == [*(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12))]
    layers = [b["block"] for b in document["blocks"] if b["component"] == "clip_l"]
    assert layers == [*(f"layers.{i}" for i in range(12)), "the rest"]
    assert len(document["tensors"]) == 1131


def test_strangers_are_called_so(sd15: dict[str, Path], tmp_path: Path) -> None:
    document = run_json("diff", sd15["A"], sd15["stranger"], exit_code=3)
    (note,) = document["notes"]
    assert note.startswith("stranger.safetensors and A.safetensors share no training history (the cosine")
    assert run_json("diff", sd15["A"], sd15["B"], exit_code=3)["notes"] == []
    foreign = {n: t for n, t in load_file(sd15["stranger"]).items() if n.startswith("first_stage_model.")}
    path = changed(sd15["B"], tmp_path / "x.safetensors", lambda t: t.update(foreign))
    assert run_json("diff", sd15["A"], path, exit_code=3)["notes"] == []  # a relative with the VAE of a stranger


def test_sums_are_those_of_numpy_over_all_tensors(sd15: dict[str, Path]) -> None:
    one, other = load_file(sd15["A"]), load_file(sd15["B"])
    names = [n for n in one if n.startswith("model.") and one[n].dtype == np.float16]
    a, b = (np.concatenate([t[n].ravel() for n in names]).astype(np.float64) for t in (one, other))
    sums = compared(sd15["A"], sd15["B"], workers=2).components()["unet"].sums
    assert sums.values == a.size
    assert sums.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
    assert sums.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9)


def test_the_table_by_component_and_block(sd15: dict[str, Path], tmp_path: Path) -> None:
    def change(tensors: dict) -> None:
        tensors[FIRST] *= np.float16(1.5)
        del tensors["first_stage_model.quant_conv.bias"]
        tensors["extra.weight"] = np.ones((2, 2), np.float16)
        tensors["model.diffusion_model.out.2.bias"] = np.ones(5, np.float16)

    path = changed(sd15["A"], tmp_path / "x.safetensors", change)
    shown = run("diff", sd15["A"], path, "--tensors", exit_code=3).stdout
    lines = {line.split()[0]: line.split()[1:] for line in shown.split("\ntensors")[0].splitlines()[2:]}
    assert "1,128 same, 2 changed, 1 added, 1 removed" in shown
    assert lines["IN00"] == ["5", "1", "·", "·", "1.000000", "50%"]
    assert lines["OUT11"] == ["41", "1", "·", "·"]
    assert "(4 became 5)" in shown
    assert "clip_l" in lines
    assert "layers.0" not in lines  # nothing there differs


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_dtype_and_values_that_are_not_finite(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 100)  # several blocks
    random = np.random.default_rng(5)
    for name in "ab":
        drawn = weights(random, code, (9, 37)) if code == "F64" else any_bits(random, code, (9, 37), finite=False)
        write(tmp_path / name, {"layers.0.weight": drawn})  # squares of any bits of float64 are too large
    raw = [read(tmp_path / name)["layers.0.weight"].data for name in "ab"]
    dtype = BY_CODE[code]
    if code == "F64":
        a, b = (np.frombuffer(data, np.float64) for data in raw)
    else:
        with np.errstate(invalid="ignore"):
            a, b = (as_float(np.frombuffer(data, f"<u{dtype.size}"), dtype).astype(np.float64) for data in raw)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    (tensor,) = compared(tmp_path / "a", tmp_path / "b").tensors
    assert tensor.sums.values == finite.sum()
    assert tensor.sums.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-12)
    assert tensor.sums.relative == pytest.approx(np.sqrt(((b - a) ** 2).sum() / (a @ a)))


def test_the_same_values_in_another_dtype(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float16)
    save_file({"w": values, "n": np.arange(3)}, tmp_path / "a")
    save_file({"w": values.astype(np.float64), "n": np.arange(3)}, tmp_path / "b")
    same, changed_one = compared(tmp_path / "a", tmp_path / "b").tensors
    assert same.state == "same"
    assert (changed_one.state, changed_one.sums.cosine, changed_one.sums.relative) == ("changed", 1.0, 0.0)


def test_nothing_is_divided_by_zero() -> None:
    assert Sums().cosine is None
    assert Sums().relative is None
    assert Sums(0.0, 4.0, 0.0, 4.0, 1).relative == np.inf
    assert Sums(0.0, 0.0, 0.0, 0.0, 1).relative == 0.0
    assert percent(np.inf) == "> 1000%"
    assert shade(np.inf) == shade(1.0)


def test_the_picture_is_well_formed(sd15: dict[str, Path], tmp_path: Path) -> None:
    picture = tmp_path / "a picture.svg"
    run("diff", sd15["A"], sd15["B"], "--picture", picture, exit_code=3)
    root = ElementTree.parse(picture).getroot()
    cells = root.findall(f"{SVG}g")
    assert len(cells) == 25 + 13 + 11
    assert root.find(f"{SVG}title").text == "A.safetensors → B.safetensors"
    fills = {cell.find(f"{SVG}rect").get("fill") for cell in cells}
    assert "#e8e8e8" in fills  # the VAE is the same
    right = max(float(r.get("x", 0)) + float(r.get("width")) for r in root.iter(f"{SVG}rect"))
    assert right <= float(root.get("width"))


def test_titles_and_labels_of_the_picture_fit_their_places() -> None:
    names = f"{'長' * 60}-v1.safetensors", f"{'x' * 120}-v2.safetensors"
    blocks = {("a_component_with_a_long_name", f"controlled_convolutions.{i}"): module.Tally() for i in range(30)}
    root = ElementTree.fromstring(svg(" → ".join(names), blocks))
    assert root.find(f"{SVG}title").text == " → ".join(names)
    one, other, component, *_ = (text.text for text in root.findall(f"{SVG}text"))
    assert one.endswith("-v1.safetensors →")
    assert other.endswith("-v2.safetensors")
    assert sum(2 if c == "長" else 1 for c in one) <= 95 >= len(other)
    assert len(component) <= 11
    labels = [group.find(f"{SVG}text").text for group in root.findall(f"{SVG}g")]
    assert len(set(labels)) == 30  # the number at the end is what tells them apart
    assert max(map(len, labels)) == 10


@pytest.mark.parametrize("relative", np.geomspace(0.0005, 2, 40))
def test_what_is_written_in_a_square_can_be_read(relative: float) -> None:
    """By WCAG 2: the letters' colour is the one of the two that contrasts more, at least 4.5 to 1."""
    fill, dark = shade(relative)
    channels = np.array([int(fill[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05) if dark else (luminance + 0.05) / 0.05) >= 4.5


def test_the_picture_escapes_names() -> None:
    texts = [
        element.text for element in ElementTree.fromstring(svg("<a> & b", {("<x>", 'b"&'): module.Tally()})).iter()
    ]
    assert {"<a> & b", "<x>", 'b"&'} <= set(texts)


def test_only_svg_is_drawn(sd15: dict[str, Path], tmp_path: Path) -> None:
    assert "x.svg" in run("diff", sd15["A"], sd15["B"], "--picture", tmp_path / "x.png", exit_code=2).output
