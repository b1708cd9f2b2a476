"""Pickled checkpoints are read by range: a merge of three needs far less memory than one of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.builds import python

MERGE = """
import sys
from pathlib import Path
import numpy
from support.builds import build
from support.memory import watched
folder = Path(sys.argv[1])
text = "mergeflow: 1\\nsources: { a: a.ckpt, b: b.ckpt, c: c.ckpt }\\noutputs: { x.safetensors: a + (b - c) * 0.3 }\\n"
with watched() as peak:
    build(folder, text, jobs=2, memory=400 << 20)
print(peak.most - peak.before >> 20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_three_checkpoints_of_300_mb(tmp_path: Path, as_zip: bool) -> None:
    """One tensor of 200 MB and smaller ones; torch alone, where it is needed, takes 150 MB."""
    for i, name in enumerate("abc"):
        few = {f"layers.{n}.weight": torch.full((1 << 20, 5), i + n, dtype=torch.float16) for n in range(10)}
        state = {"w": torch.full((100, 1 << 20), i, dtype=torch.float16)} | few
        torch.save({"state_dict": state}, tmp_path / f"{name}.ckpt", _use_new_zipfile_serialization=as_zip)
    megabytes = int(python(MERGE, tmp_path).stdout)
    shutil.rmtree(tmp_path)  # pytest keeps folders for a while, and these are large
    assert megabytes < 280
