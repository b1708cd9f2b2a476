"""Runs in the peers' environment: `python run_mergekit.py CONFIG...` in a folder; each configuration (YAML) is merged
as mergekit-pytorch does, into `CONFIG.theirs.safetensors`."""

import sys
from pathlib import Path

import yaml
from mergekit.graph import Executor
from mergekit.options import MergeOptions
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge


def main() -> None:
    for name in sys.argv[1:]:
        config = RawPyTorchMergeConfig.model_validate(yaml.safe_load(Path(name).read_text()))
        made = Path(f"{name}.mergekit")
        options = MergeOptions(random_seed=0)
        options.apply_global_options()
        Executor(plan_flat_merge(config, str(made), False, False, options)).execute()
        (made / "model.safetensors").replace(f"{name}.theirs.safetensors")


if __name__ == "__main__":
    main()
