"""Where a fact is looked up: noise on the subject, and one clean state put back at a time."""

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from probe.core.edit import Edit, patch
from probe.core.errors import OptionError, ProbeWarning
from probe.core.metric import Metric, get_metric
from probe.core.model import Model
from probe.core.progress import progress_bar
from probe.core.registry import method
from probe.core.result import View
from probe.core.site import Site, check_layer
from probe.core.task import Encoded
from probe.core.trace import Trace
from probe.methods.spans import in_turn, positions_of
from probe.methods.windows import layers_around

State = Literal["resid_post", "mlp_out", "attn_out"]
By = Literal["part", "position", "layer"]
Part = Literal[
    "before", "first subject", "middle subject", "last subject", "next", "further", "last"
]

_WINDOWS = {"resid_post": 1, "mlp_out": 10, "attn_out": 10}
_COLUMNS = {
    "batch": "prompt",
    "layer": "layer restored, the middle of the window",
    "pos": "position restored",
    "token": "token at that position",
    "part": "what that position is to the subject",
    "value": "indirect effect: metric after restoring less metric of the noised run, mean over "
    "draws of noise",
    "sd": "standard deviation of the indirect effect over draws of noise",
    "raw": "metric after restoring, mean over draws",
    "clean": "metric of the clean run",
    "noised": "metric of the noised run, mean over draws",
    "total": "total effect: clean less noised",
}


def _view(options: BaseModel) -> View:
    by = getattr(options, "by", "part")
    if by == "layer":
        return View(kind="line", x="layer", y="value")
    x = "part" if by == "part" else "pos"
    text = "token" if by == "position" else None
    return View(kind="heatmap", x=x, y="layer", color="value", text=text)


@method(needs="answers", view=_view, columns=_COLUMNS)
def causal_tracing(
    model: Model,
    encoded: Encoded,
    *,
    subject: Annotated[
        str,
        Field(description="Text found in each prompt; {tag} for the text each prompt's tag holds"),
    ],
    kind: Annotated[State, Field(description="Which state is restored")] = "resid_post",
    window: Annotated[
        int | None,
        Field(
            ge=1, description="Layers restored together; by default 10, one for the residual stream"
        ),
    ] = None,
    by: Annotated[
        By,
        Field(
            description="part: what a position is to the subject; position; layer: all positions "
            "restored at once"
        ),
    ] = "part",
    parts: Annotated[
        list[Part] | None, Field(description="Only positions that are this to the subject")
    ] = None,
    metric: Annotated[str, Field(description="What is read at the last token")] = "prob",
    noise: Annotated[
        float, Field(ge=0, description="Standard deviation of the noise, in those of W_E")
    ] = 3.0,
    draws: Annotated[int, Field(ge=1, description="Draws of noise for each prompt")] = 10,
    seed: Annotated[int, Field(description="Random seed of the noise")] = 0,
    layers: Annotated[list[int] | None, Field(description="Only these layers")] = None,
) -> pd.DataFrame:
    """Where is what the model knows of the subject: which state, restored, brings it back?

    Gaussian noise is added to the embeddings of the subject's tokens, which spoils the answer
    (total effect); then one state, or MLP or attention outputs of a window of layers, are put back
    as they were in the clean run at one position (indirect effect). Noise and metrics are drawn
    and averaged for each prompt by itself.

    ``value``: in the metric's unit, positive where restoring brings the clean metric back; equal
    to ``total`` where it does so wholly. The noise has ``noise`` times the standard deviation of
    all entries of W_E, as scaled on entering the residual stream. ``part``: before, first, middle
    and last subject token (a subject of one token is ``last subject``), next, further, last.

    Raises:
        TaskError: A prompt in which the subject does not stand.
        OptionError: A layer that is not there; parts that no prompt has, or parts where all
            positions are restored at once.

    Stopped half-way, it averages over the draws of noise that were finished, and says so.

    Cost: for each draw one forward pass, and for each layer and position from the subject on the
    part of one that comes after both.

    Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2.

    >>> from probe.api import run
    >>> traced = run(
    ...     "causal_tracing", model="toy", task="capital_of", subject="{country}", layers=[1],
    ...     by="layer", draws=2,
    ... )
    >>> bool((abs(traced.frame["value"] - traced.frame["total"]) < 1e-5).all())
    True
    """
    chosen = get_metric(metric)
    chosen.check(encoded)
    spans = positions_of(encoded, subject)
    wanted = list(range(model.dims.n_layers)) if layers is None else list(layers)
    for layer in wanted:
        check_layer(Site(kind, layer), model.dims.n_layers)
    if not wanted:
        raise OptionError("no layer is left to restore", remedy="name at least one layer")
    places = _places(encoded, spans, by, parts)
    restore = _Restore(
        model.trace(encoded, kind), encoded, window or _WINDOWS[kind], model.dims.n_layers
    )
    cells = [(layer, pos) for layer in wanted for pos in places]
    sets = [restore.edits(kind, *cell) for cell in cells]
    clean = model.sweep(encoded, [[]], chosen, base="clean")[0].cpu()
    noises = _noises(model, encoded, spans, noise, draws, seed)
    swept = _drawn_sweeps(model, encoded, [[], *sets], chosen, noises)
    raw = dict(zip(cells, swept[:, 1:].unbind(1), strict=True))
    frame = _table(encoded, spans, raw, clean, noised=swept[:, 0])
    return frame if parts is None else frame[frame["part"].isin(parts)].reset_index(drop=True)


def _places(
    encoded: Encoded, spans: Sequence[Sequence[int]], by: By, parts: Sequence[Part] | None
) -> list[int] | list[None]:
    """Positions to restore: those that are one of these parts in some prompt; None for all."""
    if by == "layer":
        if parts is not None:
            raise OptionError(
                f"parts={parts} where all positions are restored at once",
                remedy='by="part" or by="position"',
            )
        return [None]
    lengths = encoded.lengths.tolist()
    found = [
        pos
        for pos in range(max(lengths))
        if parts is None
        or any(
            pos < length and _part(pos, span, length) in parts
            for span, length in zip(spans, lengths, strict=True)
        )
    ]
    if not found:
        raise OptionError(
            f"parts={parts}, and no prompt has a position that is one of them",
            remedy='"last subject", which every prompt has',
        )
    return found


def _drawn_sweeps(
    model: Model,
    encoded: Encoded,
    sets: Sequence[list[Edit]],
    metric: Metric,
    noises: Sequence[list[Edit]],
) -> Float[Tensor, "draws sets batch"]:
    """The metric under each noise and set of edits; of the draws that were finished, if stopped.

    Where not even the first was, of the cells it reached: the others are NaN.
    """
    swept: list[Tensor] = []
    answers: list[bool | None] = []
    with progress_bar("causal tracing") as report:

        def told(done: int, total: int, unit: str) -> bool | None:
            before, all_of_them = len(swept) * total, len(noises) * total
            answers.append(report(before + done, all_of_them, unit))
            return answers[-1]

        for noise in noises:
            found = model.sweep(encoded, sets, metric, base="clean", given=noise, report=told)
            whole = not bool(found.isnan().any())
            if whole or not swept:
                swept.append(found.cpu())
            if not whole or False in answers:
                break
    if len(swept) < len(noises):
        warnings.warn(
            f"stopped; effects are means over {len(swept)} of {len(noises)} draws of noise",
            ProbeWarning,
            stacklevel=3,
        )
    return torch.stack(swept)


@dataclass
class _Restore:
    """What restoring edits are made of; edits that many runs share are made once."""

    clean: Trace
    encoded: Encoded
    window: int
    n_layers: int

    def __post_init__(self) -> None:
        self._made: dict[tuple[int, int | None], Edit] = {}

    def edits(self, kind: str, layer: int, pos: int | None) -> list[Edit]:
        """The clean states of the layers around this one at one position."""
        around = layers_around(layer, self.window, self.n_layers)
        return [self._restored(Site(kind, one), pos) for one in around]

    def _restored(self, site: Site, pos: int | None) -> Edit:
        key = (site.layer or 0, pos)
        if key not in self._made:
            where = {}
            if pos is not None:
                # A shorter prompt has no such position; its row is left out of the table.
                where["pos"] = torch.minimum(
                    torch.full_like(self.encoded.lengths, pos), self.encoded.last
                )
            self._made[key] = patch(site, self.clean[site], **where)
        return self._made[key]


def _noises(
    model: Model,
    encoded: Encoded,
    spans: Sequence[Sequence[int]],
    noise: float,
    draws: int,
    seed: int,
) -> list[list[Edit]]:
    """For each draw, edits that add noise to the subject's tokens; another for each prompt."""
    embedding = model.weights.W_E
    scale = 1.0
    if "embed" in model.sites:  # some architectures multiply what they look up
        entered = model.trace(encoded.clean, "embed")["embed"]
        looked_up = embedding[encoded.clean.to(embedding.device)]
        scale = float(entered.norm() / looked_up.norm())
    sd = noise * scale * float(embedding.float().std())
    turns = in_turn(spans)
    size = (draws, len(turns), model.dims.d_model)
    drawn = torch.stack([_drawn(encoded, row, size, seed) for row in range(len(encoded))])
    made = []
    for draw in range(draws):
        edits = []
        for turn, at in enumerate(turns):
            value = sd * drawn[:, draw, turn, None]
            value[[turn >= len(span) for span in spans]] = 0.0  # its subject has fewer tokens
            edits.append(
                Edit(Site("resid_pre", 0), "add", value, {"pos": at}, f"noise, sd {sd:.3g}")
            )
        made.append(edits)
    return made


def _drawn(
    encoded: Encoded, row: int, size: tuple[int, int, int], seed: int
) -> Float[Tensor, "draws turns d_model"]:
    """A prompt's own noise, whatever prompts stand beside it."""
    draws, turns, width = size
    ids = encoded.clean[row, : int(encoded.lengths[row])].tolist()
    generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, ids)).encode()))
    return torch.stack([torch.randn(draws, width, generator=generator) for _ in range(turns)], 1)


def _table(
    encoded: Encoded,
    spans: Sequence[Sequence[int]],
    raw: dict[tuple[int, int | None], Float[Tensor, "draws batch"]],
    clean: Float[Tensor, " batch"],
    noised: Float[Tensor, "draws batch"],
) -> pd.DataFrame:
    """One row for each prompt, layer and position that was reached in every draw."""
    rows = []
    start = noised.mean(0).tolist()
    for (layer, pos), values in raw.items():
        effects = values - noised
        for batch, span in enumerate(spans):
            length = int(encoded.lengths[batch])
            if (pos is not None and pos >= length) or values[:, batch].isnan().any():
                continue
            row: dict[str, object] = {"batch": batch, "layer": layer}
            if pos is not None:
                token = encoded.str_tokens(batch)[pos]
                row |= {"pos": pos, "token": token, "part": _part(pos, span, length)}
            effect = effects[:, batch]
            rows.append(
                row
                | {
                    "value": float(effect.mean()),
                    "sd": float(effect.std()) if len(effect) > 1 else float("nan"),
                    "raw": float(values[:, batch].mean()),
                    "clean": float(clean[batch]),
                    "noised": start[batch],
                    "total": float(clean[batch]) - start[batch],
                }
            )
    return pd.DataFrame(rows)


def _part(pos: int, span: Sequence[int], length: int) -> str:
    if pos == span[-1]:
        return "last subject"
    if pos < span[0]:
        return "before"
    if pos < span[-1]:
        return "first subject" if pos == span[0] else "middle subject"
    if pos == length - 1:
        return "last"
    return "next" if pos == span[-1] + 1 else "further"
