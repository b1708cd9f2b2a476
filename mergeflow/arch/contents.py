"""What a header tells besides its architecture: averages, variants of the network, and what is no part of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

EMA = "model_ema."
FIRST = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "diffusion_model.input_blocks.0.0.weight",
    "input_blocks.0.0.weight",
    "unet.conv_in.weight",
    "conv_in.weight",
)
CHANNELS = {
    5: ("depth", "an image's depth beside the latent image"),
    8: ("pix2pix", "a second image beside the latent one"),
    9: ("inpainting", "a masked image and its mask beside the latent image"),
}
MARKERS = {
    "v_pred": ("v-prediction", "it has the marker v_pred"),
    "edm_vpred.sigma_max": ("edm-v-prediction", "it has the marker edm_vpred.sigma_max"),
    "edm_vpred.sigma_min": ("edm-v-prediction", "it has the marker edm_vpred.sigma_min"),
    "ztsnr": ("zero-terminal-snr", "it has the marker ztsnr"),
}

_JUNK = {
    "state of an optimizer": (
        r"(?:.+\.)?optimizer(?:_states?|s)?\..+",
        r"(?:.+\.)?(?:exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)",
    ),
    "progress of a training": (
        r"(?:lr_schedulers?|schedulers?|callbacks|loops|hparams\w*|hyper_parameters|param_groups)(?:\..+)?",
        r"(?:current_)?epoch|(?:global_)?step|lr|learning_rate|pytorch-lightning_version",
    ),
    "state of mixed-precision training": (r"(?:native_amp_scaling_state|grad_scaler|amp_scaler|scaler)\..+",),
    "loss network of a VAE's training": (r"(?:first_stage_model\.|vae\.)?loss\..+",),
}
_REASONS = tuple(_JUNK)
_JUNK_NAME = re.compile("|".join(f"({'|'.join(patterns)})" for patterns in _JUNK.values()), re.DOTALL)
_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_COUNTERS = ("model_ema.decay", "model_ema.num_updates")


def ema_names(names: Iterable[str]) -> Mapping[str, str]:
    """The running averages that the file keeps: each average, and the tensor that it is an average of.

    An average is called as its tensor, without the leading `model.` and without any dots. Where two tensors would give
    one name, nothing tells whose average it is, and it is left out.
    """
    names = list(names)
    averages = {name for name in names if name.startswith(EMA)}
    found: dict[str, str] = {}
    twice = set()
    for name in names if averages else ():
        if name.startswith("model."):
            average = EMA + name[len("model.") :].replace(".", "")
            if average in averages:
                if average in found:
                    twice.add(average)
                found[average] = name
    return {average: name for average, name in found.items() if average not in twice}


def variant(shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """What sets the network apart from the plain one of its architecture, and what shows it. Two empty texts: nothing.

    Several, as for an inpainting model with v-prediction, are joined by " + ". What shows only in the numbers, as the
    v-prediction of SD 2's larger models, is not told.
    """
    found: dict[str, str] = {}
    first = next((name for name in FIRST if len(shapes.get(name, ())) == 4), None)
    if first:
        channels = shapes[first][1]
        name, why = CHANNELS.get(channels, (f"{channels}-channel", "more than a latent image"))
        if channels != 4:
            found[name] = f"{first} takes {channels} channels: {why}"
    if "depth" not in found and (depth := next((n for n in shapes if n.startswith("depth_model.")), None)):
        found["depth"] = f"it has {depth}"
    for marker, (name, why) in MARKERS.items():
        if marker in shapes:
            found.setdefault(name, why)
    return " + ".join(found), "; ".join(found.values())


def junk(names: Iterable[str]) -> Mapping[str, str]:
    """The tensors that nothing needs which uses the model, each with what it is.

    Averages (model_ema.…) and schedules are no junk: what happens to them is for a recipe to say.
    """
    names = list(names)
    known = set(names)
    averages = any(name.startswith(EMA) and name not in _COUNTERS for name in names)
    found = {}
    for name in names:
        if match := _JUNK_NAME.fullmatch(name):
            found[name] = _REASONS[(match.lastindex or 1) - 1]
        elif name in _COUNTERS and not averages:
            found[name] = "counter of averages that are not there"
        elif name.startswith(_VAE) and f"first_stage_model.{name}" in known:
            found[name] = "a VAE's tensor under a name that nothing reads, beside the one that is read"
    return found
