"""Three small parents on real data, and how well any checkpoint of their kind reads handwritten digits.

    python recipes/demo/digits.py train FOLDER     base, a and b .safetensors, in a few seconds
    python recipes/demo/digits.py table FILE...    accuracy on held-out scans

`base` has seen a few scans of all ten digits. `a` went on from it with the digits 0-4 alone and `b` with 5-9 alone, so
each has forgotten the other half. The scans are the 1,797 that come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits

Array = NDArray[np.float32]
Model = dict[str, Array]

WIDTHS = (64, 128, 64, 10)  # 8x8 pixels in, a score for each digit out
LAYERS = [f"layers.{i}" for i in range(len(WIDTHS) - 1)]
PARENTS = ("base", "a", "b")
TRAINING = "digits 1"  # in the files' metadata; raise it when anything below would train other weights


def scans() -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Two thirds of the scans to train on and one third held out: images, digits, images, digits."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    images, digits = (images[order] / 16).astype(np.float32), digits[order].astype(np.int64)
    held_out = len(digits) // 3
    return images[held_out:], digits[held_out:], images[:held_out], digits[:held_out]


def untrained() -> Model:
    rng = np.random.default_rng(1)
    model = {}
    for layer, inputs, outputs in zip(LAYERS, WIDTHS, WIDTHS[1:], strict=False):
        model[f"{layer}.weight"] = (rng.standard_normal((outputs, inputs)) * (2 / inputs) ** 0.5).astype(np.float32)
        model[f"{layer}.bias"] = np.zeros(outputs, np.float32)
    return model


def activations(model: Model, images: Array) -> list[Array]:
    """The images, then what each layer makes of them; the last are the scores."""
    values = [images]
    for layer in LAYERS:
        values.append(values[-1] @ model[f"{layer}.weight"].T + model[f"{layer}.bias"])
        if layer != LAYERS[-1]:
            np.maximum(values[-1], 0, out=values[-1])
    return values


def gradients(model: Model, images: Array, digits: NDArray[np.int64]) -> Model:
    """Of the mean cross entropy, by the chain rule from the last layer to the first."""
    values = activations(model, images)
    odds = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
    error = odds / odds.sum(axis=1, keepdims=True)
    error[np.arange(len(digits)), digits] -= 1
    error /= len(digits)
    found = {}
    for layer, below in reversed(list(zip(LAYERS, values, strict=False))):
        found[f"{layer}.weight"] = error.T @ below
        found[f"{layer}.bias"] = error.sum(axis=0)
        error = (error @ model[f"{layer}.weight"]) * (below > 0)
    return found


def trained(start: Model, images: Array, digits: NDArray[np.int64], epochs: int, rate: float) -> Model:
    """A copy of the model after some epochs of Adam (Kingma and Ba, 2014, arXiv:1412.6980) in batches of 32."""
    model = {name: tensor.copy() for name, tensor in start.items()}
    mean = {name: np.zeros_like(tensor) for name, tensor in start.items()}
    square = {name: np.zeros_like(tensor) for name, tensor in start.items()}
    rng, step = np.random.default_rng(2), 0
    for _ in range(epochs):
        order = rng.permutation(len(digits))
        for batch in (order[i : i + 32] for i in range(0, len(order), 32)):
            step += 1
            for name, slope in gradients(model, images[batch], digits[batch]).items():
                mean[name] += 0.1 * (slope - mean[name])
                square[name] += 0.001 * (slope * slope - square[name])
                size = np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8
                model[name] -= rate / (1 - 0.9**step) * mean[name] / size
    return model


def train(folder: Path) -> None:
    """Write the parents, unless they are there already."""
    files = {parent: folder / f"{parent}.safetensors" for parent in PARENTS}
    if all(complete(path) for path in files.values()):
        print(f"{folder}: {', '.join(PARENTS)} are there")
        return
    images, digits, _, _ = scans()
    low = digits < 5
    base = trained(untrained(), images[:150], digits[:150], epochs=20, rate=1e-3)
    a = trained(base, images[low], digits[low], epochs=12, rate=5e-4)
    b = trained(base, images[~low], digits[~low], epochs=12, rate=5e-4)
    folder.mkdir(parents=True, exist_ok=True)
    for path, model in zip(files.values(), (base, a, b), strict=True):
        unfinished = path.with_suffix(".part")
        save_file(model, unfinished, metadata={"training": TRAINING})
        unfinished.replace(path)
    print(f"{folder}: trained {', '.join(PARENTS)}")


def complete(path: Path) -> bool:
    """Whether the file is there, whole, and from this training."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("training") == TRAINING
    except (OSError, SafetensorError):
        return False


def accuracy(path: Path) -> tuple[float, float, float]:
    """Per cent of the held-out scans that the model reads right: of 0-4, of 5-9, of all."""
    _, _, images, digits = scans()
    model = {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}
    right = activations(model, images)[-1].argmax(axis=1) == digits
    low = digits < 5
    return 100 * float(right[low].mean()), 100 * float(right[~low].mean()), 100 * float(right.mean())


def table(paths: list[Path]) -> None:
    width = max(len(path.stem) for path in paths)
    print(f"{'% right':{width}}    0-4    5-9    all")
    for path in paths:
        print(f"{path.stem:{width}}" + "".join(f"{share:7.1f}" for share in accuracy(path)))


def main(arguments: list[str]) -> int:
    match arguments:
        case ["train", folder]:
            train(Path(folder))
        case ["table", _, *_]:
            table([Path(path) for path in arguments[1:]])
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
