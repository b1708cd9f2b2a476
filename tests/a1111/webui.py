"""A1111's checkpoint merger as it is described in sd-merge-tools.md, section 1, over dicts of torch tensors.

Written from that description for the tests alone, in torch's own expressions: nothing here comes from mergeflow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]
SKIP = ("cond_stage_model.transformer.text_model.embeddings.position_ids",)


def to_half(tensor: torch.Tensor, enable: bool) -> torch.Tensor:
    return tensor.half() if enable and tensor.dtype == torch.float32 else tensor


def merger(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor] | None = None,
    c: Mapping[str, torch.Tensor] | None = None, m: float = 0.3, *, half: bool = False,
) -> State:  # fmt: skip
    """No interpolation without b, weighted sum without c, else add difference."""
    result = {key: tensor.clone() for key, tensor in a.items()}
    if b is None:
        return {key: to_half(tensor, half) for key, tensor in result.items()}
    second = dict(b)
    if c is not None:
        for key, t in second.items():
            if "model" in key and key not in SKIP:
                second[key] = t - c[key] if key in c else torch.zeros_like(t)

    def f(theta0: torch.Tensor, theta1: torch.Tensor) -> torch.Tensor:
        return ((1 - m) * theta0) + (m * theta1) if c is None else theta0 + (m * theta1)

    for key, x in result.items():
        if "model" not in key or key not in second or key in SKIP:
            continue
        y = second[key]
        if x.shape != y.shape and x.shape[0:1] + x.shape[2:] == y.shape[0:1] + y.shape[2:]:
            assert (x.shape[1], y.shape[1]) in ((8, 4), (9, 4))
            x[:, 0:4, :, :] = f(x[:, 0:4, :, :], y)
        else:
            x = f(x, y)
        result[key] = to_half(x, half)
    return result
