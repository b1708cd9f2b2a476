"""The compiled sums (mergeflow/executor/_sums.c); everything else is in pyproject.toml."""

import os

from setuptools import Extension, setup

# Never -ffast-math, -march or a fused multiply-add: the bytes must be the same on every machine.
FLAGS = ["/O2", "/fp:precise"] if os.name == "nt" else ["-O3", "-ffp-contract=off", "-fno-strict-aliasing"]

setup(
    ext_modules=[
        Extension(
            "mergeflow.executor._sums",
            ["mergeflow/executor/_sums.c"],
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional=True,  # without a compiler it installs all the same, and torch does this work
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
