"""Runs in the peers' environment: `python run_mergekit.py CONFIG...`; each configuration (YAML) is merged as
mergekit-pytorch does, or as mergekit-yaml where its models are folders, into `CONFIG.theirs.safetensors`."""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, SimpleLoaderCache, plan_flat_merge


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        os.chdir(path.parent)
        made = Path(f"{path.name}.mergekit")
        text = yaml.safe_load(path.read_text())
        options = MergeOptions(random_seed=0, copy_tokenizer=False, write_model_card=False)
        options.apply_global_options()
        if is_of_folders(text):
            run_merge(MergeConfiguration.model_validate(text), str(made), options)
        else:
            SimpleLoaderCache._instance = None  # which knows models by their relative paths
            config = RawPyTorchMergeConfig.model_validate(text)
            Executor(plan_flat_merge(config, str(made), False, False, options)).execute()
        (made / "model.safetensors").replace(f"{path.name}.theirs.safetensors")


def is_of_folders(config: dict[str, Any]) -> bool:
    if "slices" in config:
        return True
    return Path(config["models"][0]["model"]).is_dir()


if __name__ == "__main__":
    main()
