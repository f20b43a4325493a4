"""Direct logit attribution: which part of the model wrote the answer into the last residual?"""

import warnings
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.decompose import KINDS, Part, decompose
from probe.core.errors import ProbeWarning
from probe.core.model import Model
from probe.core.registry import method
from probe.core.result import View
from probe.core.task import Encoded

Show = Literal["layers", "heads", "parts", "neurons"]

_ELEMENTS = 2**26
"""Numbers in the parts of one batch (256 MiB in float32)."""
_TOLERANCE = 1e-3

_COLUMNS = {
    "batch": "prompt",
    "component": "the part, as kind layer.head or layer.neuron",
    "kind": "; ".join(f"{name}: {about}" for name, about in KINDS.items())
    + "; attn: a layer's heads and attention biases; norm_bias: bias of the final norm; "
    "unembed_bias: bias of the unembedding; rest: all that is not listed",
    "layer": "block, counted from 0; missing of a part that is in none",
    "head": "attention head",
    "neuron": "MLP neuron",
    "value": "what the part adds to the logit difference in nats, before any softcap; positive: "
    "towards the answer",
    "scale": "denominator of the final norm by which the part was divided",
    "total": "logit difference the model itself gives for this prompt, before any softcap",
}


def _view(options: BaseModel) -> View:
    show = options.model_dump()["show"]
    title = "direct effect on the logit difference"
    if show == "heads":
        return View(kind="heatmap", x="head", y="layer", color="value", title=title)
    return View(kind="bar", x="component", text="kind", title=title)


@method(needs="answers", view=_view, columns=_COLUMNS)
def direct_logit_attribution(
    model: Model,
    encoded: Encoded,
    *,
    show: Annotated[
        Show,
        Field(
            description="layers: attention and MLP of each layer; heads: heads alone; parts: "
            "every head and MLP; neurons: the strongest neurons and the rest"
        ),
    ] = "layers",
    against: Annotated[
        Literal["wrong_answer", "mean"] | None,
        Field(
            description="What the answer's logit is compared to: the wrong answer's, or the mean "
            "over the vocabulary; none: the wrong answer's where the prompts have one"
        ),
    ] = None,
    scale: Annotated[
        float | None,
        Field(
            description="Denominator of the final norm; none for the run's own, with which the "
            "rows add up to the model's logit difference",
            gt=0,
        ),
    ] = None,
    neurons: Annotated[
        int, Field(description="Neurons for each prompt under show=neurons", ge=1)
    ] = 20,
) -> pd.DataFrame:
    """Which parts of the model wrote the answer directly into the logits?

    The last residual stream is a sum (``core.decompose``), and with its denominator held at what
    it was in the run, the final norm is linear. So each part ``c`` adds
    ``read_out(c) · (W_U[answer] - W_U[wrong])`` to the logit difference, and the parts, the final
    norm's bias and the unembedding's bias add up to it (rounding alone is missing; compare
    ``total``). Effects through later parts are not counted.

    ``value`` is in nats, positive towards the answer. Where the model caps its logits
    (``softcap * tanh(logit / softcap)``, Gemma 2), the difference attributed is that of the logits
    before the cap, because the cap is not linear; ``total`` is taken there too.

    All tables add up to ``total`` but ``heads``, which holds the heads alone. Under ``neurons``
    the neurons with the largest absolute effect are listed for each prompt; a neuron's effect is
    its activation times ``W_out`` times the direction pulled back through the norms.

    Raises:
        TaskError: The prompts have no answers, or no wrong answers where they are asked for.
        ModelError: An encoder, or a model that does not end in norm and unembedding.
        SiteError: Neurons of a mixture of experts.

    Cost: one forward pass; two under ``neurons``.
    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits"; Wang et al.
    (2022), arXiv 2211.00593, section 3.

    >>> from probe.core.task import Task
    >>> from probe.models.load import load_model
    >>> model, pair = load_model("toy"), {"answer": " Mary", "wrong_answer": " John"}
    >>> task = Task.from_pairs([{"clean": "When Mary and John went to", **pair}])
    >>> frame = direct_logit_attribution(model, task.encode(model))
    >>> bool(abs(frame.value.sum() - frame.total[0]) < 1e-4)
    True
    """
    against = against or ("mean" if encoded.wrong_answers is None else "wrong_answer")
    dims = model.dims
    size = max(1, _ELEMENTS // (dims.d_model * dims.n_layers * (dims.n_heads + 2)))
    frames = []
    for start in range(0, len(encoded), size):
        some = encoded.rows(range(start, min(start + size, len(encoded))))
        read = _attribute(model, some, against, scale)
        frame = _strongest(model, some, read, neurons) if show == "neurons" else _by(show, read)
        frames.append(frame.assign(batch=frame["batch"] + start))
    return pd.concat(frames, ignore_index=True)


class _Read(NamedTuple):
    """What every part, and the two biases, add to the logit difference of each prompt."""

    parts: tuple[Part, ...]
    values: Float[Tensor, "part batch"]
    direction: Float[Tensor, "batch d_model"]
    scale: Float[Tensor, "batch 1"]
    total: Float[Tensor, " batch"]


def _attribute(model: Model, encoded: Encoded, against: str, scale: float | None) -> _Read:
    sums = decompose(model, encoded, (-1,))
    resid = sums.resid[:, 0]
    logits = model.unembed(resid)  # refuses a model for which none of this holds
    direction, bias = (x.to(sums.vectors) for x in _direction(model, encoded, against))
    own = sums.scale[:, 0].to(direction)
    used = own if scale is None else torch.full_like(own, scale)
    each = model.read_out(sums.vectors[:, :, 0], used)
    constant = direction @ model.read_out_bias.to(direction)
    if model.dims.softcap is None:
        total = _difference(logits.to(direction), encoded, against)
    else:  # a cap that saturates cannot be undone, so the residual itself is read out
        read = model.read_out(resid.to(direction), own)
        total = torch.einsum("bm,bm->b", read, direction) + constant + bias
    values = torch.einsum("pbm,bm->pb", each, direction)
    values = torch.cat([values, constant[None], bias[None]])
    if scale is None:
        _check_sum(model, values, total)
    names = (*sums.parts, Part("norm_bias"), Part("unembed_bias"))
    return _Read(names, values, direction, used, total)


def _check_sum(model: Model, values: Tensor, total: Tensor) -> None:
    """Say so where the parts are not all of it: an unknown part, or half precision."""
    off = (values.sum(0) - total).abs()
    worst = int((off / values.abs().sum(0)).argmax())
    if off[worst] > _TOLERANCE * values[:, worst].abs().sum():
        warnings.warn(
            f"the parts of {model.name} add up to {float(values[:, worst].sum()):.4f}, and its "
            f"logit difference is {float(total[worst]):.4f} (prompt {worst}, "
            f"{str(model.dtype).removeprefix('torch.')})",
            ProbeWarning,
            stacklevel=4,
        )


def _direction(model: Model, encoded: Encoded, against: str) -> tuple[Tensor, Tensor]:
    """What the logit difference reads from the normalised residual, and its constant."""
    W_U, b_U = model.weights.W_U, model.weights.b_U
    answers = encoded.need_answers().to(W_U.device)
    if against == "mean":
        other = W_U.mean(1, dtype=torch.promote_types(W_U.dtype, torch.float32))
        return W_U.T[answers] - other, b_U[answers] - b_U.mean()
    wrong = encoded.need_wrong_answers().to(W_U.device)
    return W_U.T[answers] - W_U.T[wrong], b_U[answers] - b_U[wrong]


def _difference(logits: Tensor, encoded: Encoded, against: str) -> Float[Tensor, " batch"]:
    answers = logits.gather(1, encoded.need_answers().to(logits.device)[:, None])[:, 0]
    if against == "mean":
        return answers - logits.mean(1)
    wrong = encoded.need_wrong_answers().to(logits.device)
    return answers - logits.gather(1, wrong[:, None])[:, 0]


def _by(show: Show, read: _Read) -> pd.DataFrame:
    """Each part by itself, the heads alone, or attention as one part of each layer."""
    parts, values = read.parts, read.values
    if show == "heads":
        kept = [i for i, part in enumerate(parts) if part.kind == "head"]
        parts, values = tuple(parts[i] for i in kept), values[kept]
    if show == "layers":
        joined = [_joined(part) for part in parts]
        parts = tuple(dict.fromkeys(joined))
        place = torch.tensor([parts.index(part) for part in joined], device=values.device)
        values = values.new_zeros(len(parts), values.shape[1]).index_add(0, place, values)
    return _table(read, [parts] * values.shape[1], values.T)


def _joined(part: Part) -> Part:
    return Part("attn", part.layer) if part.kind in ("head", "attn_bias") else part


def _strongest(model: Model, encoded: Encoded, read: _Read, number: int) -> pd.DataFrame:
    """Each prompt's strongest neurons, and what everything else adds."""
    d_mlp = model.dims.d_mlp
    effects = torch.cat(_neurons(model, encoded, read), dim=1)
    places = effects.abs().topk(min(number, effects.shape[1]), dim=1).indices
    values = effects.gather(1, places)
    rest = read.values.sum(0) - values.sum(1)
    parts = [
        (*(Part("neuron", p // d_mlp, neuron=p % d_mlp) for p in row), Part("rest"))
        for row in places.tolist()
    ]
    return _table(read, parts, torch.cat([values, rest[:, None]], dim=1))


def _neurons(model: Model, encoded: Encoded, read: _Read) -> list[Float[Tensor, "batch d_mlp"]]:
    """What each neuron of each layer adds; no neuron's vector is ever formed."""
    trace = model.trace(encoded, "mlp_post", positions=[-1])
    effects = []
    for layer in range(model.dims.n_layers):
        activations = trace["mlp_post", layer][:, 0].to(read.direction)
        W_out = model.weights.W_out(layer).to(activations)
        total = activations @ W_out + model.out_bias(layer, "mlp_out").to(activations)
        effects.append(activations * (_pulled_back(model, read, layer, total) @ W_out.T))
    return effects


def _pulled_back(
    model: Model, read: _Read, layer: int, total: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    """The direction whose product with a neuron's output is its effect on the logits.

    Writing and reading out are linear once their denominators are held, so their transpose is
    the gradient, and the same everywhere.
    """
    with torch.enable_grad():
        output = torch.zeros_like(total, requires_grad=True)
        heard = model.read_out(model.write_out(layer, "mlp_out", output, total), read.scale)
        return torch.autograd.grad((heard * read.direction).sum(), output)[0]


def _table(
    read: _Read, parts: Sequence[Sequence[Part]], values: Float[Tensor, "batch part"]
) -> pd.DataFrame:
    """Rows of each prompt's parts, in the order given."""
    batch, number = values.shape
    flat = [part for row in parts for part in row]
    columns: dict[str, object] = {
        "batch": torch.arange(batch).repeat_interleave(number).numpy(),
        "component": [str(part) for part in flat],
        "kind": [part.kind for part in flat],
    }
    for name in ("layer", "head", "neuron"):
        numbers = [getattr(part, name) for part in flat]
        if any(one is not None for one in numbers):
            whole = "Int64" if None in numbers else "int64"  # missing where a part has none
            columns[name] = pd.array(numbers, dtype=whole)
    columns["value"] = values.reshape(-1).double().cpu().numpy()
    columns["scale"] = read.scale[:, 0].repeat_interleave(number).double().cpu().numpy()
    columns["total"] = read.total.repeat_interleave(number).double().cpu().numpy()
    return pd.DataFrame(columns)
