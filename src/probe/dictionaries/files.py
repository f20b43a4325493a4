"""Dictionaries on disk, in SAELens' format: ``cfg.json`` and ``sae_weights.safetensors``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probe.core.errors import DictionaryError, ProbeError, SiteError, nearest
from probe.core.site import Site
from probe.dictionaries.dictionary import SparseDictionary
from probe.dictionaries.writing import write_json, write_tensors

CONFIG, WEIGHTS, TRAINING = "cfg.json", "sae_weights.safetensors", "training.json"
_FORMAT = "6.0.0"
"""The version of SAELens from which on it reads this layout of cfg.json as it is."""
SHIPPED = Path(__file__).parent / "shipped"


class _Form(NamedTuple):
    """What a name in cfg.json stands for."""

    activation: str
    reads_elsewhere: bool = False
    skip: bool = False
    layered: bool = False


_FORMS = {
    "standard": _Form("relu"),
    "gated": _Form("gated"),
    "jumprelu": _Form("jumprelu"),
    "topk": _Form("topk"),
    "transcoder": _Form("relu", True),
    "jumprelu_transcoder": _Form("jumprelu", True),
    "topk_transcoder": _Form("topk", True),
    "skip_transcoder": _Form("relu", True, True),
    "jumprelu_skip_transcoder": _Form("jumprelu", True, True),
    "topk_skip_transcoder": _Form("topk", True, True),
    "crosscoder": _Form("relu", layered=True),
    "jumprelu_crosscoder": _Form("jumprelu", layered=True),
    "topk_crosscoder": _Form("topk", layered=True),
}
"""Architecture in cfg.json → form. SAELens knows them but ``topk_*transcoder``, ``*crosscoder``."""
_NAMES = {form: name for name, form in _FORMS.items()}


def save_dictionary(dictionary: SparseDictionary, path: str | Path) -> Path:
    """Write a dictionary to a folder; each file under a temporary name first.

    ``sae_lens.SAE.load_from_disk`` opens it, except crosscoders and top-k transcoders, which
    SAELens does not know.

    Raises:
        DictionaryError: A combination there is no name for, or a folder that cannot be written.
    """
    folder, d = Path(path), dictionary
    form = _Form(d.activation, d.reads != d.writes, d.W_skip is not None, d.layered)
    if form not in _NAMES or (form.reads_elsewhere and d.centred):
        raise DictionaryError(
            f"there is no format for {d.activation} from {d.reads} to {d.writes}, "
            f"skip={form.skip}, centred={d.centred}",
            expected=f"one of {', '.join(_FORMS)}; a transcoder that is not centred",
        )
    config: dict[str, Any] = {
        "architecture": _NAMES[form], "d_in": d.d_in, "d_sae": d.d_sae,
        "dtype": str(d.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": d.centred, "normalize_activations": d.norm,
        "reshape_activations": "none",
    }  # fmt: skip
    if d.k is not None:
        config |= {"k": d.k, "rescale_acts_by_decoder_norm": False}
    if form.reads_elsewhere:
        config["d_out"] = d.d_out
    config["metadata"] = {
        **d.metadata,
        "sae_lens_version": _FORMAT,
        "training_architecture": d.architecture,
        "name": d.name,
        "reads": [str(site) for site in d.reads],
        "writes": [str(site) for site in d.writes],
        "hook_name": d.reads[0].hook_name if d.reads else None,
        "hook_name_out": d.writes[0].hook_name if d.writes else None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, d.tensors)
        write_json(folder / CONFIG, config)
    except OSError as error:
        raise DictionaryError(
            f"{folder} cannot be written: {error.strerror}", expected="a folder with room"
        ) from None
    return folder


def load_dictionary(
    name: str | Path,
    *,
    reads: Sequence[Site | str] | None = None,
    writes: Sequence[Site | str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> SparseDictionary:
    """Load a dictionary: one that comes with Probe, by name, or a folder in SAELens' format.

    Args:
        name: A shipped dictionary's name, or a folder that Probe or SAELens has saved.
        reads: The sites it encodes, where the folder names a hook that Probe has no site for.
        writes: The sites it reconstructs; by default those it encodes.
        dtype: Of the weights, whatever they are on disk.
        device: Where to put them.

    Raises:
        DictionaryError: Nothing there, damaged files, an architecture Probe does not know.
    """
    folder = _find(name)
    config, tensors = _read(folder)
    config, metadata = _modern(config)
    architecture = str(config.get("architecture", "standard"))
    if architecture not in _FORMS:
        raise DictionaryError(
            f'{folder} holds a dictionary of architecture "{architecture}"',
            remedy=nearest(architecture, _FORMS),
        )
    form = _FORMS[architecture]
    norm = str(config.get("normalize_activations") or "none")
    tensors = {key: value.to(dtype=dtype, device=device) for key, value in tensors.items()}
    if config.get("rescale_acts_by_decoder_norm"):
        tensors = _folded(tensors)
    sites = _sites(reads, metadata, "reads", "hook_name", folder)
    return SparseDictionary(
        name=str(metadata.get("name") or folder.name),
        architecture=str(metadata.get("training_architecture") or architecture),
        activation=form.activation,
        reads=sites,
        writes=_sites(writes, metadata, "writes", "hook_name_out", folder)
        if form.reads_elsewhere
        else sites,
        tensors=tensors,
        k=int(config["k"]) if form.activation == "topk" else None,
        centred=bool(config.get("apply_b_dec_to_input", True)) and not form.reads_elsewhere,
        # SAELens folds its average scaling in when it saves; load_from_disk applies none
        norm="none" if norm == "expected_average_only_in" else norm,
        metadata=metadata,
    )


def shipped() -> list[str]:
    """Names of the dictionaries that come with Probe."""
    return sorted(folder.parent.name for folder in SHIPPED.glob(f"*/{CONFIG}"))


def _find(name: str | Path) -> Path:
    if str(name) in shipped():
        return SHIPPED / str(name)
    folder = Path(name)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise DictionaryError(
            f"there is no dictionary at {str(folder)!r}",
            expected=f"a folder with {CONFIG} and {WEIGHTS}, or the name of a shipped dictionary",
            remedy=nearest(str(name), shipped()),
        )
    return folder


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (ValueError, OSError, SafetensorError) as error:
        raise DictionaryError(
            f"the dictionary in {folder} is damaged: {error}",
            expected=f"{CONFIG} of JSON, and whole safetensors",
            remedy="save or copy it again",
        ) from None
    if not isinstance(config, dict):
        raise DictionaryError(
            f"{folder / CONFIG} holds {type(config).__name__}", expected="an object"
        )
    return config, tensors


def _modern(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config, and its metadata, of old files too, which had no metadata of their own."""
    metadata = dict(config.get("metadata") or {})
    if "sae_lens_version" in metadata:
        return config, metadata
    old = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    config = {old.get(key, key): value for key, value in config.items()}
    options = config.get("activation_fn_kwargs") or {}
    if config.get("activation_fn") == "topk" and "k" in options:
        config |= {"architecture": "topk", "k": options["k"]}
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "none"
    kept = ("hook_name", "hook_name_out", "model_name", "name", "training_architecture")
    return config, {**{key: config[key] for key in kept if key in config}, **metadata}


def _folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features measured in units of a decoder row's norm, as if the rows had norm one."""
    size = tensors["W_dec"].norm(dim=-1)
    return {
        **tensors,
        "W_enc": tensors["W_enc"] * size,
        "b_enc": tensors["b_enc"] * size,
        "W_dec": tensors["W_dec"] / size[:, None],
    }


def _sites(
    given: Sequence[Site | str] | None, metadata: dict[str, Any], ours: str, theirs: str, at: Path
) -> tuple[Site, ...]:
    """Sites as given, as Probe wrote them, or from the name of a hook."""
    names = given if given is not None else metadata.get(ours) or [metadata.get(theirs)]
    try:
        return tuple(n if isinstance(n, Site) else Site.parse(n) for n in names if n is not None)
    except (SiteError, TypeError) as error:
        raise DictionaryError(
            f"{at} {ours.removesuffix('s')}s {names}, which is no site of Probe's",
            expected="one of Probe's sites" if isinstance(error, ProbeError) else "a list of sites",
            remedy=f'load_dictionary(..., {ours}=["resid_post.8"])',
        ) from None
