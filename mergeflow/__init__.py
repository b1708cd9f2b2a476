"""mergeflow: a build system for model merging.

    import mergeflow
    mergeflow.load("recipe.yaml").plan()
    mergeflow.load("recipe.yaml").build()
    mergeflow.merge("a + (b - c) * 0.3", a="a.safetensors", b="b.safetensors", c="c.safetensors", out="mix.safetensors")

Names are imported when they are first used: the command line must start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeflow.build.api import load, merge
    from mergeflow.build.project import Project
    from mergeflow.build.settings import BuildResult, BuiltOutput, Settings
    from mergeflow.errors import MergeflowError
    from mergeflow.methods.registry import method
    from mergeflow.plan.plans import Plan

__version__ = "0.1.0"

__all__ = [
    "BuildResult",
    "BuiltOutput",
    "MergeflowError",
    "Plan",
    "Project",
    "Settings",
    "__version__",
    "load",
    "merge",
    "method",
]

_HOME = {
    "load": "mergeflow.build.api",
    "merge": "mergeflow.build.api",
    "BuildResult": "mergeflow.build.settings",
    "BuiltOutput": "mergeflow.build.settings",
    "Project": "mergeflow.build.project",
    "Settings": "mergeflow.build.settings",
    "MergeflowError": "mergeflow.errors",
    "method": "mergeflow.methods.registry",
    "Plan": "mergeflow.plan.plans",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mergeflow' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
