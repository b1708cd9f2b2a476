"""docs/keys.md: the digests, preimages and keys it prints are those that the code makes."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny_models import settings

from mergeflow import Project, digest
from mergeflow.digest import action_key
from mergeflow.plan.embed import file_preimage
from mergeflow.plan.lower import Lowering
from mergeflow.recipe import loads

PAGE = Path(__file__).resolve().parents[2] / "docs/keys.md"
UPDATE = "UPDATE_GOLDEN"
MODELS = {"a": [1, 2, 3, 4], "b": [2, 2, 2, 2], "c": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The marked blocks of the page, as the code has them."""
    folder = tmp_path_factory.mktemp("keys")
    for name, values in MODELS.items():
        save_file({"w": np.array(values, np.float16)}, folder / f"{name}.safetensors")
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    with Project(loads(recipe, "mix.yaml", folder), settings(folder)) as project:
        plan = project.plan()
        project.build()
    (output,) = plan.outputs
    tensor = Lowering(plan.facts, None).preimage(output.resolved, plan.bound.outputs[output.path][1].dtype, 0)
    whole = file_preimage(list(output.works), output.layout)
    facts = [(f.name, "b3:" + f.digests["w"].hex(), f.model) for f in plan.facts.values()]
    assert action_key(tensor) == output.works[0].key
    assert action_key(whole) == output.key
    assert load_file(folder / "out/mix.safetensors")["w"].tolist() == np.float16([1.3, 2.3, 3.3, 4.3]).tolist()
    described = re.findall(r"^    (\S.*)$", inspect.getdoc(digest) or "", re.MULTILINE)
    return {
        "digests": "".join(f"{line}\n" for line in described),
        "facts": "".join(f"{name}  w      {w}\n   model  {model}\n" for name, w, model in facts),
        "tensor": tensor,
        "key": output.works[0].key + "\n",
        "file": whole,
        "filekey": output.key + "\n",
    }


@pytest.mark.parametrize("mark", ["digests", "facts", "tensor", "key", "file", "filekey"])
def test_the_worked_example_is_true(example: Mapping[str, str], mark: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    block = re.compile(rf"(^```text {mark}\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
    if os.environ.get(UPDATE):
        page = block.sub(lambda found: found[1] + example[mark] + found[3], page, count=1)
        PAGE.write_text(page, encoding="utf-8")
    found = block.search(page)
    assert found is not None
    assert found[2] == example[mark], f"{UPDATE}=1 pytest tests/docs accepts the change"


def test_tensors_that_cancel_have_a_preimage_too(tmp_path: Path) -> None:
    save_file({"w": np.array([1, 2], np.float16)}, tmp_path / "a.safetensors")
    text = "mergeflow: 1\nsources: { a: a.safetensors }\noutputs: { zero.safetensors: a - a }\n"
    with Project(loads(text, "mix.yaml", tmp_path), settings(tmp_path)) as project:
        plan = project.plan()
    (output,) = plan.outputs
    preimage = Lowering(plan.facts, None).preimage(output.resolved, None, 0)
    assert preimage.splitlines()[-1] == "zeros 2"
    assert action_key(preimage) == output.works[0].key
