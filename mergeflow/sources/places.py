"""Where this machine keeps models: folders that files are looked for in, and the one that downloads go to.

    MERGEFLOW_MODELS      folders, parted as in PATH
    MERGEFLOW_DOWNLOADS   where downloads go; otherwise `downloads` of the configuration, or the user's cache folder
    config.toml           in the user's configuration folder: [models] with folders, webui, comfyui and downloads

and the cache of Hugging Face, where that is (HF_HUB_CACHE, HF_HOME, or its usual place). A recipe has no say in this.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from mergeflow.arch.registry import config_folder
from mergeflow.errors import Place, RecipeError, nearest

FOLDERS_VARIABLE = "MERGEFLOW_MODELS"
DOWNLOADS_VARIABLE = "MERGEFLOW_DOWNLOADS"
_KEYS = ("folders", "webui", "comfyui", "downloads")
_EXAMPLE = 'for example [models] folders = ["/data/models"], webui = "/opt/stable-diffusion-webui"'


def model_folders() -> list[Path]:
    """The folders to look for models in, in the order in which they are asked; those that are there, each once.

    Raises:
        RecipeError: the configuration file cannot be read or says what means nothing.
    """
    listed = [Path(entry).expanduser() for entry in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if entry]
    config = _configured()
    listed += [_absolute(folder) for folder in config.get("folders", [])]
    listed += [_absolute(config[tool]) / "models" for tool in ("webui", "comfyui") if tool in config]
    listed += [downloads_folder(), hub_cache()]
    return [folder for folder in dict.fromkeys(listed) if folder.is_dir()]


def downloads_folder() -> Path:
    """Where fetched files are kept, there or not."""
    if chosen := os.environ.get(DOWNLOADS_VARIABLE):
        return Path(chosen)
    if chosen := _configured().get("downloads"):
        return _absolute(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("mergeflow", appauthor=False)) / "models"


def hub_home() -> Path:
    """The folder of Hugging Face's own tools."""
    if chosen := os.environ.get("HF_HOME"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"


def hub_cache() -> Path:
    """Its cache of downloads: links in snapshots/ to blobs that are called by their sha256."""
    chosen = os.environ.get("HF_HUB_CACHE")
    return Path(chosen).expanduser() if chosen else hub_home() / "hub"


def _configured() -> dict[str, Any]:
    """The table [models] of the configuration file, checked; empty where there is no file."""
    path = config_folder() / "config.toml"
    place = Place(str(path))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"the configuration cannot be read: {error}", place=place, hint=_EXAMPLE) from None
    table = document.get("models", {})
    for name in document:
        if name != "models":
            raise RecipeError(f"the configuration has no key {name[:60]}", place=place, hint=_EXAMPLE)
    if not isinstance(table, dict):
        raise RecipeError("[models] is a table", place=place, hint=_EXAMPLE)
    for key, value in table.items():
        if key not in _KEYS:
            close = nearest(key, _KEYS)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_KEYS)}"
            raise RecipeError(f"[models] has no key {key[:60]}", place=place, hint=hint)
        texts = value if key == "folders" else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            what = "a list of folders" if key == "folders" else "the path of a folder"
            raise RecipeError(f"{key} in [models] is {what}", place=place, hint=_EXAMPLE)
    return table


def _absolute(text: str) -> Path:
    """A path of the configuration; a relative one is taken from the configuration's folder."""
    return config_folder() / Path(text).expanduser()
