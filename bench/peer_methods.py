"""Runs one of the methods that are no sums with a peer, on a card: `python -m bench.peer_methods PEER METHOD FOLDER
OUTPUT`, in the peers' environment. PEER is sd-mecha or mergekit, METHOD slerp, ties or svd; FOLDER has the models
sd15-A, -B and -C.

What each is asked for is what mergeflow makes of it: slerp of A and B at 0.3; TIES of A and B over C, with a density of
0.2; A and what 16 directions hold of B - C. sd-mecha's rank is found without its random projections. mergekit has no
method for a rank, and its configuration for slerp takes two models and a base, which is one of them.
"""

import json
import os
import sys
from pathlib import Path

DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
METHODS = {"sd-mecha": ("slerp", "ties", "svd"), "mergekit": ("slerp", "ties")}


def sd_mecha(method: str, a: Path, b: Path, c: Path, output: Path) -> None:
    import sd_mecha as peer
    from sd_mecha.extensions import merge_methods

    first, second, base = (peer.model(path) for path in (a, b, c))
    if method == "slerp":
        result = merge_methods.resolve("slerp")(first, second, alpha=0.3)
    elif method == "ties":
        elected = merge_methods.resolve("ties_sum")(first - base, second - base, k=0.2, vote_sgn=True)
        result = merge_methods.resolve("add_difference")(base, elected, alpha=1.0)
    else:
        kept = merge_methods.resolve("truncate_rank")(second - base, rank=16, use_approximate_basis=False)
        result = merge_methods.resolve("add_difference")(first, kept, alpha=1.0)
    peer.merge(result, output=output, merge_device=DEVICE)


def mergekit(method: str, a: Path, b: Path, c: Path, output: Path) -> None:
    models = [str(a), str(b)]
    if method == "slerp":
        config = {
            "merge_method": "slerp",
            "base_model": models[0],
            "models": [{"model": model} for model in models],
            "parameters": {"t": 0.3},
        }
    else:
        config = {
            "merge_method": "ties",
            "base_model": str(c),
            "models": [{"model": model, "parameters": {"weight": 1.0, "density": 0.2}} for model in models],
        }
    recipe = output.with_suffix(".yaml")
    recipe.write_text(json.dumps(config))  # JSON is YAML
    command = Path(sys.executable).with_name("mergekit-pytorch")
    os.execv(command, [str(command), str(recipe), str(output), "--device", DEVICE])


def main() -> None:
    peer, method, folder, output = sys.argv[1:]
    models = [Path(folder) / f"sd15-{letter}.safetensors" for letter in "ABC"]
    {"sd-mecha": sd_mecha, "mergekit": mergekit}[peer](method, *models, Path(output))


if __name__ == "__main__":
    main()
