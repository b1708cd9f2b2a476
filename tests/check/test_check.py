"""`mergeflow check`: what is said of whole and of broken files."""

from __future__ import annotations

import pickle  # noqa: TID251  # to write what must not be read
import zipfile
from pathlib import Path

import numpy as np
import pytest
from check_models import FIRST, IDS, changed
from support.commands import run, run_json

from mergeflow.arch.expected import expected
from mergeflow.build.health import broken_ids, judge
from mergeflow.digest import model_digest
from mergeflow.formats.contents import Contents
from mergeflow.sources.identify import Identified
from mergeflow.sources.memo import Known
from mergeflow.tensors import DType, TensorSpec

# Reference 5.2: what A1111's weighted sum did to the ids, by multiplier. Every other multiple of 0.05 breaks none.
BROKEN = {
    0.05: (13, 21, 26, 31, 37, 42, 47, 52, 57, 62, 69, 74),
    0.10: (3, 6, 7, 9, 12, 14, 18, 23, 24, 28, 29, 36, 41, 46, 48, 51, 53, 56, 58, 61, 63, 72),
    0.35: (29, 53, 58, 63),
}
BROKEN |= {round(1 - m, 2): ids for m, ids in BROKEN.items()}


def merged_ids(m: float) -> np.ndarray:
    """int64 times a Python float is float32 in torch."""
    ids = np.arange(77).astype(np.float32)
    return ids * np.float32(1 - m) + ids * np.float32(m)


@pytest.mark.parametrize("step", range(21))
def test_position_ids_break_as_in_the_table(step: int) -> None:
    m = round(0.05 * step, 2)
    ids = merged_ids(m)
    assert broken_ids(ids.tolist()) == BROKEN.get(m, ())
    assert not broken_ids(ids.astype(np.float16).astype(float).tolist())


def test_ids_that_are_no_numbers_are_broken() -> None:
    assert broken_ids([0.0, float("nan"), 2.9, float("inf")]) == (1, 3)
    assert broken_ids([-0.5, 0.9999, 2.0]) == (1,)


def made(shapes: dict[str, tuple[int, ...]], dtypes: dict[str, DType] | None = None) -> Identified:
    """A file that is only a header."""
    chosen = dtypes or {}
    tensors = {n: TensorSpec(n, chosen.get(n, DType.F16), shape, 0) for n, shape in shapes.items()}
    digests = tuple(bytes([i % 256]) * 32 for i in range(len(tensors)))
    model = model_digest(zip(tensors, digests, strict=True))
    known = Known(model, digests, digests, (0,) * len(tensors), b"", b"", b"")
    return Identified(Path("made.safetensors"), Contents("safetensors", (), {}), (), tensors, known)


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_complete_models_are_well(architecture: str) -> None:
    health = judge(made(dict(expected(architecture))), {})
    assert health.architecture.name == architecture
    assert health.findings == ()
    assert not any("widths" in note for note in health.notes)
    assert health.savings == {}


def test_what_complete_models_have_or_lack_is_no_finding() -> None:
    shapes = dict(expected("sd1")) | {"betas": (1000,), "model_ema.decay": (), "logvar": (1000,), "v_pred": (0,)}
    del shapes[IDS]
    shapes[FIRST] = (320, 9, 3, 3)
    health = judge(made(shapes), {})
    assert health.findings == ()
    assert health.variant == "inpainting + v-prediction"
    assert health.savings == {"counter of averages that are not there": 2}


def test_missing_foreign_and_wrong_shapes() -> None:
    shapes = dict(expected("sd1"))
    del shapes["model.diffusion_model.out.2.bias"], shapes["first_stage_model.quant_conv.bias"]
    shapes["model.diffusion_model.extra.weight"] = shapes["control_model.x"] = (4, 4)
    shapes["first_stage_model.decoder.conv_out.weight"] = (3, 128, 1, 1)
    findings = {f.kind + f.tensors[0][:5]: f for f in judge(made(shapes), {}).findings}
    assert findings["missingmodel"].text == "unet lacks 1 tensor"
    assert findings["missingfirst"].tensors == ("first_stage_model.quant_conv.bias",)
    assert set(findings["foreignmodel"].tensors) == {"control_model.x", "model.diffusion_model.extra.weight"}
    assert "3×128×1×1, should be 3×128×3×3" in findings["shapefirst"].text
    assert len(findings) == 4


def test_a_component_alone_lacks_nothing() -> None:
    vae = {n: s for n, s in expected("sd1").items() if n.startswith("first_stage_model.")}
    health = judge(made(vae), {})
    assert health.findings == ()


def test_what_pruning_saves() -> None:
    shapes = dict(expected("sd1"))
    network = [n for n in shapes if n.startswith("model.")]
    shapes |= {"model_ema." + n.removeprefix("model.").replace(".", ""): shapes[n] for n in network}
    shapes["optimizer_states.0.exp_avg"] = (1000,)
    health = judge(made(shapes, dict.fromkeys(shapes, DType.F32)), {})
    assert health.findings == ()
    assert health.averages == 686
    assert health.savings["running averages (EMA)"] == 4 * 859_520_964
    assert health.savings["state of an optimizer"] == 4000
    assert health.pruned == 2 * 1_066_235_384


def test_a_file_with_nothing_wrong(sd15: dict[str, Path]) -> None:
    shown = run("check", sd15["A"]).stdout
    assert "nothing is wrong" in shown
    assert "unet    686 tensors" in shown
    assert "other widths" in shown  # the layout divides them by 16
    one, other = run_json("check", sd15["A"], sd15["B"])["files"]
    assert one["verdict"] == other["verdict"] == "ok"
    digests = [(file["components"]["vae"]["digest"], file["components"]["unet"]["digest"]) for file in (one, other)]
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]


def test_broken_position_ids(sd15: dict[str, Path], tmp_path: Path) -> None:
    def break_them(tensors: dict) -> None:
        tensors[IDS] = tensors[IDS].astype(np.float32)
        tensors[IDS][0, 29] = 28.999998

    path = changed(sd15["A"], tmp_path / "x.safetensors", break_them)
    shown = run("check", path, exit_code=3).stdout
    assert "1 of 77 position ids are broken (position 29 is stored as 28.9999981)" in shown
    (file,) = run_json("check", path, exit_code=3)["files"]
    assert file["findings"][0]["ids"] == [29]


@pytest.mark.parametrize("m", [0.05, 0.35, 0.5])
def test_ids_of_the_mergers_of_the_day(m: float, sd15: dict[str, Path], tmp_path: Path) -> None:
    def merge(tensors: dict) -> None:
        tensors[IDS] = merged_ids(m).reshape(1, 77)

    path = changed(sd15["A"], tmp_path / "x.safetensors", merge)
    (file,) = run_json("check", path, exit_code=3 if m in BROKEN else 0)["files"]
    assert [tuple(f["ids"]) for f in file["findings"]] == ([BROKEN[m]] if m in BROKEN else [])


def test_nan_and_missing_and_foreign_in_a_file(sd15: dict[str, Path], tmp_path: Path) -> None:
    def damage(tensors: dict) -> None:
        tensors[FIRST][0, 0, 0, :2] = np.nan, np.inf
        del tensors["model.diffusion_model.out.2.weight"]
        tensors["lora_unet_x.alpha"] = np.ones(1, np.float16)

    path = changed(sd15["A"], tmp_path / "x.safetensors", damage)
    shown = run("check", path, exit_code=3).stdout
    assert "3 things are wrong" in shown
    assert "2 values are NaN or infinite" in shown
    assert f"tensor  {FIRST}" in shown
    assert "unet lacks 1 tensor" in shown
    assert "lora_unet_x.alpha" in shown


class Hostile:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_pickles_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, packed = tmp_path / "plain.ckpt", tmp_path / "packed.ckpt"
    plain.write_bytes(pickle.dumps({"a": Hostile()}))
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Hostile()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    document = run_json("check", plain, packed, exit_code=5)
    assert [file["verdict"] for file in document["files"]] == ["damaged", "damaged"]
    assert "print" in document["files"][1]["why"]
    assert "cannot be read" in run("check", packed, exit_code=5).stdout
    assert "executed\n" not in capsys.readouterr().out


def test_the_worst_decides(sd15: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(sd15["A"].read_bytes()[:-1])
    absent = tmp_path / "absent.safetensors"
    assert "there is no such file" in run("check", absent, exit_code=4).stdout
    run("check", sd15["A"], absent, tmp_path / "cut.safetensors", exit_code=5)
