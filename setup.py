"""The compiled sums and kernels (mergeflow/executor/*.c); everything else is in pyproject.toml."""

import os

from setuptools import Extension, setup

# Never -ffast-math, -march or a fused multiply-add: the bytes must be the same on every machine.
FLAGS = ["/O2", "/fp:precise"] if os.name == "nt" else ["-O3", "-ffp-contract=off", "-fno-strict-aliasing"]

FOLDER = "mergeflow/executor/"
HEADERS = {"_sums": ["_values.h", "_calls.h"], "_kernels": ["_values.h", "_calls.h", "_kernel_blocks.h", "_masks.h"]}

setup(
    ext_modules=[
        Extension(
            f"mergeflow.executor.{name}",
            [f"{FOLDER}{name}.c"],
            depends=[FOLDER + header for header in headers],
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional=True,  # without a compiler it installs all the same, and torch does this work
        )
        for name, headers in HEADERS.items()
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
