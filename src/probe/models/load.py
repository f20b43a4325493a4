"""load_model: from a name to a Model that has been checked."""

import copy
import logging
import os
import warnings
from typing import Any

import torch

from probe.core.errors import ModelError, OptionError, ProbeWarning, nearest
from probe.core.model import Dims
from probe.core.tokens import Tokenizer
from probe.models import doctor, tiny
from probe.models.bridge import BridgeModel
from probe.models.sources import Loaded, hash_weights, load
from probe.models.spec import ModelSpec

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_COPY_BELOW = 2_000_000_000
"""Parameters up to which half precision is compared with a float32 copy at load."""


def load_model(
    name: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | None = None,
    bos: bool | None = None,
    trust_remote_code: bool = False,
) -> BridgeModel:
    """Load a language model, and check that what is recorded is what it does.

    Args:
        name: ``"smollm2"``, ``"attn-only-2l"`` or another of ``probe.models()``, a hub id, a local
            folder written by ``save_pretrained``, a ``.gguf`` file, or a Hugging Face model object
            (which is taken over: use it through the returned model only).
        tokenizer: Of a model object.
        revision: Hub branch, tag or commit.
        dtype: float32, float16, bfloat16 or float64. Half precision is compared with float32.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; by default a CUDA device if there is one, else
            the CPU (MPS has given wrong numbers without an error, so it must be asked for).
        bos: Begin every prompt with the BOS token: True, False, or None for what the tokenizer
            does by itself.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: Nothing there, damaged or pickled weights, an unsupported architecture.

    Cost: loading, and about ten forward passes of a dozen tokens for the checks.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise OptionError(f'there is no dtype "{dtype}"', remedy=nearest(dtype, _DTYPES))
    where = _device(device)
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    loaded = (
        load(name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
        if isinstance(name, str)
        else _object(name, tokenizer, dtype)
    )
    layers = getattr(loaded.hf.config.get_text_config(), "num_hidden_layers", 1)
    if layers < 1:
        raise ModelError(f"{name} has {layers} layers", expected="a transformer")
    hf = loaded.hf.to(where)
    text = Tokenizer(loaded.tokenizer, bos)
    causal = "ForMaskedLM" not in type(hf).__name__
    n_params = sum(p.numel() for p in hf.parameters())
    spec = loaded.spec.model_copy(
        update={
            "architecture": type(hf).__name__,
            "weight_hash": loaded.spec.weight_hash or hash_weights(hf),
            "n_params": n_params,
            "dtype": dtype,
            "device": str(where),
            "bos": text.bos,
            "bos_asked": bos,
        }
    )
    reference = _observe(hf, spec)
    bridge = _boot(hf)
    model = BridgeModel(bridge, text, spec, _dims(bridge, hf, causal))
    model.check(reference)
    if not model.health["ok"]:
        warnings.warn(
            f"{spec.name} failed the checks of {model.health['failed']}: numbers that rest on "
            f"them are wrong; `probe doctor {spec.name}` shows by how much",
            ProbeWarning,
            stacklevel=2,
        )
    return model


def _observe(hf: Any, spec: ModelSpec) -> doctor.Reference:
    """What the plain model gives, refused where it gives nothing that could be compared."""
    exact = None
    if spec.dtype in ("float16", "bfloat16") and spec.n_params < _COPY_BELOW:
        exact = copy.deepcopy(hf).float()
    n_vocab = hf.get_input_embeddings().num_embeddings
    try:
        reference = doctor.observe(hf, n_vocab, _n_ctx(hf), exact)
    except RuntimeError as error:
        raise ModelError(
            f"{spec.name} does not run in {spec.dtype} on {spec.device}: "
            f"{str(error).splitlines()[0]}",
            expected="a dtype and a device this architecture is written for",
        ) from None
    if not all(logits.isfinite().all() for logits in reference.logits):
        raise ModelError(
            f"the logits of {spec.name} in {spec.dtype} are not finite",
            expected="weights without NaN, in a dtype that holds what they give",
            remedy='dtype="float32"' if spec.dtype != "float32" else "get the weights again",
        )
    return reference


def _object(hf: Any, tokenizer: Any, dtype: str) -> Loaded:
    from transformers import PreTrainedModel

    if not isinstance(hf, PreTrainedModel):
        raise ModelError(
            f"load_model was given a {type(hf).__name__}",
            expected="a name, a path, or a Hugging Face model",
        )
    if any(type(part).__module__.startswith("transformer_lens") for part in hf.modules()):
        raise ModelError(
            f"this {type(hf).__name__} was taken over by an earlier load_model",
            expected="a plain Hugging Face model",
            remedy="use the model that call returned, or load another copy",
        )
    if tokenizer is None:
        raise ModelError("a model object comes without tokenizer", remedy="tokenizer=...")
    hf.set_attn_implementation("eager")
    hf = hf.to(getattr(torch, dtype)).eval().requires_grad_(False)
    name = getattr(hf.config, "_name_or_path", "") or type(hf).__name__
    return Loaded(hf, tokenizer, ModelSpec(name=name, source="object"))


def _device(asked: str | None) -> torch.device:
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device).cpu()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"there is no device {asked!r} here: {str(error).splitlines()[0]}",
            expected="cpu, cuda, cuda:1, mps",
        ) from None
    return device


def _boot(hf: Any) -> Any:
    """Wrap the model.

    Tokenising is ours: the bridge changes or re-downloads a tokenizer, so it gets a stand-in.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if not getattr(hf.config, "architectures", None):
        hf.config.architectures = [type(hf).__name__]  # the bridge knows a model by this alone
    if hf.config.model_type == tiny.MODEL_TYPE:
        tiny.teach_bridge()
    quiet = logging.getLogger("transformer_lens")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        return TransformerBridge.boot_transformers(
            "model",
            hf_model=hf,
            tokenizer=_stand_in(),
            dtype=next(hf.parameters()).dtype,
        )
    except (ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"TransformerBridge cannot wrap {type(hf).__name__}: {str(error).splitlines()[0]}",
            expected="an architecture TransformerLens 3.9 has an adapter for",
        ) from None
    finally:
        quiet.setLevel(level)


def _stand_in() -> Any:
    from tokenizers import Tokenizer as Fast
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0, "a": 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Fast(models.WordLevel(words, unk_token="<eos>")), eos_token="<eos>"
    )


def _n_ctx(hf: Any) -> int:
    config = hf.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        size = getattr(config, name, None)
        if size:
            return int(size)
    return 2048


def _dims(bridge: Any, hf: Any, causal: bool) -> Dims:
    cfg, config = bridge.cfg, hf.config.get_text_config()
    if not getattr(cfg, "n_heads", 0):
        raise ModelError(f"{type(hf).__name__} has no attention heads", expected="a transformer")
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return Dims(
        n_layers=int(cfg.n_layers),
        n_heads=int(cfg.n_heads),
        n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
        d_model=int(cfg.d_model),
        d_head=int(cfg.d_head),
        d_mlp=int(cfg.d_mlp or 0),
        d_vocab=int(hf.get_input_embeddings().num_embeddings),
        n_ctx=_n_ctx(hf),
        n_experts=int(experts or 0),
        causal=causal,
        parallel="Parallel" in type(bridge.blocks[0]).__name__,
        softcap=getattr(config, "final_logit_softcapping", None),
    )
