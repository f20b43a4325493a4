"""Paths from senders to receivers: what is sent while every other head is held as it was."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.edit import Edit, patch
from probe.core.errors import OptionError, ProbeWarning
from probe.core.metric import Metric
from probe.core.model import Model
from probe.core.progress import Report
from probe.core.site import Site, check_layer
from probe.core.task import Encoded
from probe.core.trace import Trace

_TOKENS_PER_CHUNK = 2048
_SENDERS_PER_CHUNK = 4


@dataclass(frozen=True)
class End:
    """One end of a path: a head, or a head's input, or an MLP.

    >>> End("q.9.6", "q", 9, 6).site
    Site('q.9')
    """

    name: str
    kind: str
    layer: int
    head: int | None = None

    @property
    def site(self) -> Site:
        """Where it lives, with all heads."""
        return Site(self.kind, self.layer)


@dataclass(frozen=True, eq=False)
class Paths:
    """The two runs, and what is held of them.

    Attributes:
        model: The model.
        encoded: The prompts.
        receivers: What reads what is sent; None for the final residual stream.
        base: Outputs of heads and MLPs in the run that is changed, and what receivers read.
        source: Outputs of heads and MLPs in the run the senders' outputs come from.
        corrupted: Whether the base run is the corrupted one.
        positions: Only these positions of the receivers.
        freeze_mlps: Whether MLPs are held too.
    """

    model: Model
    encoded: Encoded
    receivers: tuple[End, ...] | None
    base: Trace
    source: Trace
    corrupted: bool
    positions: tuple[int, ...] | None
    freeze_mlps: bool

    @classmethod
    def record(
        cls,
        model: Model,
        encoded: Encoded,
        receivers: tuple[End, ...] | None,
        *,
        corrupted: bool,
        positions: Sequence[int] | None,
        freeze_mlps: bool,
    ) -> "Paths":
        """Record both runs. Two forward passes."""
        if receivers is None and positions is not None:
            raise OptionError(
                f"positions={list(positions)} of the final residual stream",
                expected="positions of heads or MLPs: the metric reads the last token alone",
            )
        parts = [kind for kind in ("z", "mlp_out") if kind in model.sites]
        held = [*parts, *(end.site for end in receivers or ())]
        base = model.trace(encoded, held, corrupted=corrupted)
        source = model.trace(encoded, parts, corrupted=not corrupted)
        where = None if positions is None else tuple(positions)
        return cls(model, encoded, receivers, base, source, corrupted, where, freeze_mlps)

    def sweep(
        self, senders: Sequence[End], metric: Metric, report: Report
    ) -> Float[Tensor, "senders batch"]:
        """The metric for each sender; NaN for those not reached when stopped."""
        name = "corrupted" if self.corrupted else "clean"
        if self.receivers is None:
            held = self._held()
            sets = [[self._sent(sender), *_after(sender, held)] for sender in senders]
            values = self.model.sweep(self.encoded, sets, metric, base=name, report=report)
            return values.cpu()
        values = torch.full((len(senders), len(self.encoded)), torch.nan)
        for places in self._chunks(senders):
            chunk = [senders[place] for place in places]
            read = self.model.sweep(self.encoded, self._received(chunk), metric, base=name).cpu()
            values[places] = read.to(values)
            done = int((~values.isnan().any(1)).sum())
            if read.isnan().any() or report(done, len(senders), "senders") is False:
                break
        return values

    # --- the final residual stream: steps 2 and 3 are one ----------------------------------------

    def _held(self) -> list[Edit]:
        mlps = self.freeze_mlps and "mlp_out" in self.model.sites
        kinds = ["z", "mlp_out"] if mlps else ["z"]
        return [
            patch(Site(kind, layer), self.base[kind, layer])
            for layer in range(self.model.dims.n_layers)
            for kind in kinds
        ]

    def _sent(self, sender: End) -> Edit:
        where = {} if sender.head is None else {"head": sender.head}
        return patch(sender.site, self.source[sender.site], **where)

    # --- other receivers -------------------------------------------------------------------------

    def _chunks(self, senders: Sequence[End]) -> Iterator[list[int]]:
        """Places of senders that run together: many heads, or one MLP."""
        size = max(_SENDERS_PER_CHUNK, _TOKENS_PER_CHUNK // self.encoded.clean.numel())
        heads = [place for place, sender in enumerate(senders) if sender.head is not None]
        heads.sort(key=lambda place: senders[place].layer)
        yield from (heads[first : first + size] for first in range(0, len(heads), size))
        yield from ([place] for place, sender in enumerate(senders) if sender.head is None)

    def _received(self, senders: Sequence[End]) -> list[list[Edit]]:
        """For each sender, the edits that give the receivers what they read (step 2)."""
        edits: list[list[Edit]] = [[] for _ in senders]
        for ends in self._passes():
            live = [end for end in ends if any(_reaches(sender, end) for sender in senders)]
            if not live:
                continue
            sent = self._run(senders, live)
            for end in live:
                values = sent[end.site].unflatten(0, (len(senders), len(self.encoded)))
                for sender, value, made in zip(senders, values, edits, strict=True):
                    if _reaches(sender, end):
                        made.append(self._patch(end, value))
        return edits

    def _passes(self) -> list[list[End]]:
        """Receivers recorded in one run: all, but held MLPs must each be let go to be read."""
        ends = list(self.receivers or ())
        if not self.freeze_mlps:
            return [ends]
        alone = [[end] for end in ends if end.kind == "mlp_out"]
        return [[end for end in ends if end.kind != "mlp_out"], *alone]

    def _run(self, senders: Sequence[End], ends: Sequence[End]) -> Trace:
        """The base run once for each sender, end to end in one batch."""
        tokens = self.encoded.need_corrupted() if self.corrupted else self.encoded.clean
        n = len(senders)
        # Rows are as wide as the widest prompt; padding comes after all that is read.
        rows = tokens.repeat(n, 1)
        first, last = min(sender.layer for sender in senders), max(end.layer for end in ends)
        let_go = {end.layer for end in ends if end.kind == "mlp_out"}
        edits = [self._heads(senders, layer) for layer in range(first, last + 1)]
        if self.freeze_mlps and "mlp_out" in self.model.sites:
            edits += [
                patch(site, self.base[site].repeat(n, 1, 1))
                for site in (Site("mlp_out", layer) for layer in range(first, last + 1))
                if site.layer not in let_go and site != senders[0].site
            ]
        if senders[0].head is None:
            edits.append(self._sent(senders[0]))
        with warnings.catch_warnings():
            # Holding what has not moved changes nothing, and should not.
            warnings.simplefilter("ignore", ProbeWarning)
            return self.model.trace(
                rows, {end.site: None for end in ends}, edits=edits, batch_size=len(rows)
            )

    def _heads(self, senders: Sequence[End], layer: int) -> Edit:
        """All heads of a layer held, but for each row's own sender."""
        value = self.base["z", layer].repeat(len(senders), 1, 1, 1)
        each = value.unflatten(0, (len(senders), -1))
        for row, sender in enumerate(senders):
            if sender.head is not None and sender.layer == layer:
                each[row, :, :, sender.head] = self.source["z", layer][:, :, sender.head]
        return patch(Site("z", layer), value)

    def _patch(self, end: End, value: Float[Tensor, "batch pos ..."]) -> Edit:
        where: dict[str, int | list[int]] = {}
        if self.positions is not None:
            where["pos"] = list(self.positions)
        if end.head is not None:
            where[end.site.head_axis or "head"] = end.head
        return patch(end.site, self._from_first_difference(end.site, value), **where)

    def _from_first_difference(
        self, site: Site, value: Float[Tensor, "batch pos ..."]
    ) -> Float[Tensor, "batch pos ..."]:
        """The base run's own bits where the prompts are still equal, so that a sweep starts later.

        Products of larger batches are summed in another order and differ in the last digit.
        """
        begin = self.encoded.first_difference
        assert begin is not None  # pairs have one
        equal = torch.arange(value.shape[1]) < begin[:, None]
        return torch.where(
            equal.to(value.device).view(*equal.shape, *[1] * (value.ndim - 2)),
            self.base[site],
            value,
        )


def read_senders(model: Model, names: Sequence[str] | None) -> list[End]:
    """Senders by name, ``9.6`` or ``mlp.9``; every head by default."""
    dims = model.dims
    if names is None:
        names = [
            f"{layer}.{head}" for layer in range(dims.n_layers) for head in range(dims.n_heads)
        ]
    return [_read(model, name, "mlp_out" if name.startswith("mlp") else "z") for name in names]


def read_receivers(model: Model, names: Sequence[str]) -> tuple[End, ...] | None:
    """Receivers by name, ``q.9.6``, ``k.9.2``, ``v.9.2`` or ``mlp.9``; None for ``logits``."""
    if "logits" in names:
        if len(set(names)) > 1:
            raise OptionError(
                f"logits among other receivers: {', '.join(names)}",
                expected="logits alone, since replacing the final residual stream hides the rest",
                remedy="one run for logits and one for the others",
            )
        return None
    kinds = {"q": "q", "k": "k", "v": "v", "mlp": "mlp_out"}
    ends = []
    for name in dict.fromkeys(names):
        kind = kinds.get(name.split(".")[0])
        if kind is None:
            raise OptionError(
                f'there is no receiver "{name}"',
                expected='"q.9.6", "k.9.2", "v.9.2", "mlp.9" or "logits"',
            )
        ends.append(_read(model, name, kind))
    return tuple(ends)


def _read(model: Model, name: str, kind: str) -> End:
    parts = name.split(".")
    numbers = parts if kind == "z" else parts[1:]
    if len(numbers) != (1 if kind == "mlp_out" else 2) or not all(n.isdecimal() for n in numbers):
        raise OptionError(
            f'cannot read "{name}"',
            expected="layer.head for a sending head, like 9.6; mlp.layer for an MLP; q, k or v, "
            "layer and head for what a head reads, like q.9.6",
        )
    layer = int(numbers[0])
    check_layer(Site(kind, layer), model.dims.n_layers)
    if kind == "mlp_out":
        return End(name, kind, layer)
    head, axis = int(numbers[1]), Site(kind, layer).head_axis or "head"
    n_heads = model.dims.size(axis, batch=1, pos=1)
    if head >= n_heads:
        raise OptionError(
            f"{name} asks for {axis} {head}",
            expected=f"0 to {n_heads - 1}: {kind} has {n_heads} {axis}s",
        )
    return End(name, kind, layer, head)


def _after(sender: End, held: Sequence[Edit]) -> list[Edit]:
    """What is held downstream of a sender."""
    return [edit for edit in held if edit.site.order > sender.site.order]


def _reaches(sender: End, receiver: End) -> bool:
    """Whether the receiver comes after the sender."""
    return receiver.site.order > sender.site.order
