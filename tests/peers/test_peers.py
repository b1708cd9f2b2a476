"""Methods against sd-mecha and mergekit-pytorch: `make test-peers`.

The peers run in an environment of their own, which `python -m bench.peers` makes; where it is not there, these tests
are skipped. Each peer is started once, for all cases; mergeflow builds one recipe per dtype with an output per case.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from peer_cases import MERGEKIT, RANDOM, SD_MECHA, Case
from support.builds import build, write_models
from support.checkpoints import Model, Tensor, read, related, weights
from support.exact import FORMATS, doubles

from bench.peers import ROOT
from mergeflow.methods import registry

HERE = Path(__file__).parent
PYTHON = ROOT / "build" / "bench-venv" / "bin" / "python"
PEERS = {"mergekit": MERGEKIT, "sd_mecha": SD_MECHA}
CODES = ("F32", "F16", "BF16")
SHAPES = {"matrix": (64, 64), "row": (4096,), "thin": (4096, 1), "conv": (16, 16, 4, 4)}  # 4096 values each
CASES = [(peer, name) for peer, cases in PEERS.items() for name in cases]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="the peers are not installed; `make test-peers` installs them"),
]


class Job(NamedTuple):
    """One merge by a peer: its own way to say what, the folder with the models, the dtypes, masks to use, and the
    tensors, where it is not all of them."""

    call: object
    models: str
    compute: str
    dtype: str
    output: str
    masks: list[str]
    only: tuple[str, ...] = ()


def family(code: str) -> dict[str, Model]:
    rng = np.random.default_rng(11)
    base: Model = {name: weights(rng, code, shape) for name, shape in SHAPES.items()}
    models = {"o": base}
    for name in "abc":
        models[name] = {key: related(rng, t, 0.02) for key, t in base.items()}
    for name in "np":
        models[name] = {key: related(rng, t, 0.0005) for key, t in models["a"].items()}
    return models


def cases_of(peer: str, code: str) -> dict[str, Case]:
    """Those that are compared value by value; in float32 those with a peer's own masks as well."""
    compared = {name: case for name, case in PEERS[peer].items() if code in case.dtypes}
    random = {name: case for name, case in RANDOM.items() if name.startswith(peer)}
    return compared | random if code == "F32" else compared


def recipe(code: str, peer: str) -> str:
    """Each case an output, and each mask one, in its models' dtype."""
    cases = cases_of(peer, code)
    lines = ["mergeflow: 1", "sources:", *(f"  {n}: {n}.safetensors" for n in "oabcnp"), "outputs:"]
    for name, case in cases.items():
        lines.append(f"  {peer}/{name}.safetensors: {{ from: '{case.ours}', dtype: {FORMATS[code].label} }}")
        for i, mask in enumerate(case.masks):
            lines.append(f"  {peer}/{name}-{i}.safetensors: {{ from: '{mask}', dtype: {FORMATS[code].label} }}")
    return "\n".join([*lines, ""])


class Pair(NamedTuple):
    ours: Model
    theirs: Model


class Made(NamedTuple):
    """Both results, by peer, dtype and case; the names of mergekit's methods."""

    names: Sequence[str]
    results: Mapping[tuple[str, str, str], Pair]
    models: Mapping[str, Mapping[str, Model]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("peers")
    jobs: dict[str, list[Job]] = {peer: [] for peer in PEERS}
    models = {code: family(code) for code in CODES}
    for code in CODES:
        write_models(folder / code, models[code])
        for peer in PEERS:
            (folder / code / peer).mkdir()
            build(folder / code, recipe(code, peer), force=True)
            for name, case in cases_of(peer, code).items():
                masks = [only_where_kept(folder / code / peer / f"{name}-{i}") for i in range(len(case.masks))]
                path = folder / code / peer / f"{name}.theirs.safetensors"
                compute = case.compute[code != "F32"]
                found = str(folder / code), compute, FORMATS[code].label, str(path), masks
                jobs[peer].append(Job(case.theirs, *found, () if name in PEERS[peer] else case.only))
    for peer, given in jobs.items():
        asked = folder / f"{peer}.json"
        asked.write_text(json.dumps([job._asdict() for job in given]))
        done = subprocess.run(
            [PYTHON, HERE / f"peer_{peer}.py", asked], capture_output=True, text=True, check=False, timeout=1200
        )
        assert done.returncode == 0, done.stderr[-3000:]
    results = {}
    for code in CODES:
        for peer in PEERS:
            where = folder / code / peer
            for name in cases_of(peer, code):
                ours, theirs = (read(where / f"{name}{side}.safetensors") for side in ("", ".theirs"))
                results[peer, code, name] = Pair(ours, theirs)
    return Made((folder / "mergekit.names").read_text().split(), results, models)


def only_where_kept(path: Path) -> str:
    """The mask that a sparse difference shows, as a file of ones and zeros."""
    from support.checkpoints import numbers, write

    found = {}
    for name, t in read(path.with_suffix(".safetensors")).items():
        found[name] = numbers("F32", (doubles(FORMATS[t.code], t.data) != 0).astype(float), t.shape)
    return str(write(path.with_suffix(".mask"), found))


def places(t: Tensor) -> np.ndarray:
    """Where values stand among all numbers of their dtype, both zeros at 0."""
    f = FORMATS[t.code]
    bits = np.frombuffer(t.data, f.unsigned).astype(np.int64)
    size = bits & ((1 << (8 * f.size - 1)) - 1)
    return np.where(bits >> (8 * f.size - 1), -size, size)


def too_far(pair: Pair, name: str, case: Case, models: Mapping[str, Model]) -> np.ndarray:
    """Which values are too many numbers of their dtype apart, and by more than what sums of operands of their size are
    rounded to, in the compute dtype of either side."""
    ours, theirs = pair.ours[name], pair.theirs[name]
    assert (ours.code, ours.shape) == (theirs.code, theirs.shape)
    f, half = FORMATS[ours.code], ours.code != "F32"
    size = np.max([np.abs(doubles(f, models[key][name].data)) for key in "oabc"], axis=0)
    unit = 2.0**-23 if half or case.compute[0] == "float32" else 2.0**-52
    near = np.abs(doubles(f, ours.data) - doubles(f, theirs.data)) <= max(case.rounding, 8 * unit) * size
    return (np.abs(places(ours) - places(theirs)) > case.steps[half]) & ~near


def as_large_as(rank: int, models: Mapping[str, Model], tensor: str) -> np.ndarray:
    """Where a fine-tune's difference is of that magnitude, if more than one value of it is."""
    found = np.zeros(models["o"][tensor].elements, np.bool_)
    base, *tuned = (doubles(FORMATS[t.code], t.data) for t in (models[name][tensor] for name in "oabc"))
    for x in tuned:
        size = np.abs(x - base)
        equal = size == np.sort(size)[-rank]
        if equal.sum() > 1:
            found |= equal
    return found


def balanced(shares: Sequence[float], models: Mapping[str, Model], tensor: str) -> np.ndarray:
    """Where the fine-tunes' differences, times these, add up to nothing."""
    base, *tuned = (doubles(FORMATS[t.code], t.data) for t in (models[name][tensor] for name in "oabc"))
    return sum(share * (x - base) for share, x in zip(shares, tuned, strict=False)) == 0


@pytest.mark.parametrize(("peer", "name", "code"), [(p, n, c) for p, n in CASES for c in PEERS[p][n].dtypes])
def test_a_method_is_the_peers(made: Made, peer: str, name: str, code: str) -> None:
    case, pair, models = PEERS[peer][name], made.results[peer, code, name], made.models[code]
    for tensor in case.only or SHAPES:
        far = too_far(pair, tensor, case, models)
        for rank in case.edges:
            far &= ~as_large_as(rank, models, tensor)
        if case.balanced:
            far &= ~balanced(case.balanced, models, tensor)
        assert not far.any(), f"{tensor}: {far.sum()} of {far.size}, the first at {np.flatnonzero(far)[:5]}"


@pytest.mark.parametrize(("peer", "name"), [(p, n) for p, n in CASES if PEERS[p][n].page])
def test_a_difference_is_explained_on_the_methods_page(peer: str, name: str) -> None:
    method, words = PEERS[peer][name].page or ("", "")
    assert words in " ".join(registry.find(method).doc.split())


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_keep_as_much_on_either_side(made: Made, name: str) -> None:
    """Of larger differences more, by as much: told from 8,192 values or more, within five standard deviations."""
    peer = name.rpartition("_")[0]
    models = made.models["F32"]
    spread = 0.15 if name.endswith("della") else 0.0
    for side in made.results[peer, "F32", name]:
        kept, large = [], []
        for tensor in RANDOM[name].only or SHAPES:
            base, tuned, found = (doubles(FORMATS["F32"], m[tensor].data) for m in (models["o"], models["a"], side))
            size = np.abs(tuned - base)
            kept.append(found != base)
            large.append(size > np.median(size))
        all_kept, all_large = np.concatenate(kept), np.concatenate(large)
        deviation = 5 * np.sqrt(0.4 * 0.6 / all_kept.size)
        assert abs(all_kept.mean() - 0.4) < deviation
        assert abs(all_kept[all_large].mean() - all_kept[~all_large].mean() - spread) < 3 * deviation


def test_each_method_of_mergekit_is_compared(made: Made) -> None:
    assert sorted({case.theirs["method"] for case in MERGEKIT.values()}) == made.names
