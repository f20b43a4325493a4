"""The planner of edits: thousands of interventions for the price of what they change.

An edit at layer l and position p leaves everything before both as it was. So the unedited run is
recorded once, and each edited run (a *row*) joins at its own layer with the recorded residual
stream, from its first changed position on, attending to the recorded keys and values of the
positions before. All rows walk through the remaining layers together (a wavefront), so that each
layer's weights are read once and products are large. Only the positions and tokens a metric reads
are unembedded.

It knows no architecture. The library's own loop runs the suffix once over the prefix's cache; the
keyword arguments each block received then are used again, with more rows.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.core.edit import Edit, by_site
from probe.core.errors import EditError, OptionError, ProbeWarning, nearest
from probe.core.metric import Metric
from probe.core.model import site_shape
from probe.core.progress import Report
from probe.core.site import Site
from probe.core.task import Encoded

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

_TOKENS_PER_CHUNK = {"cpu": 2048, "cuda": 65536}
_CHUNK_OVERHEAD = 192
"""What starting one more wavefront costs, in tokens: used to merge rows of near positions."""
_LOGITS_PER_CHUNK = 2**26


@dataclass(frozen=True, eq=False)
class Row:
    """One edited run of one prompt: where in the result it goes, and where it departs."""

    cell: int
    example: int
    layer: int
    start: int
    edits: tuple[Edit, ...] = field(repr=False)


@dataclass(eq=False)
class Run:
    """The unedited run, recorded as far as rows need it."""

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    resid: list[Float[Tensor, "batch pos d_model"]]
    """Into each block, and after the last."""
    cache: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, as the library caches them."""


def sweep(
    model: "BridgeModel",
    encoded: Encoded,
    edit_sets: Sequence[Sequence[Edit]],
    metric: Metric,
    *,
    base: str,
    report: Report | None = None,
    chunk_tokens: int | None = None,
    resume: bool | None = None,
) -> Float[Tensor, "sets batch"]:
    """The metric under each set of edits; cells not reached when stopped are NaN.

    Args:
        model: The model.
        encoded: The prompts.
        edit_sets: Each is made to a run of its own.
        metric: What is read at each prompt's last token.
        base: Which prompts are edited, ``clean`` or ``corrupted``.
        report: Told how many rows are done; False from it stops the sweep.
        chunk_tokens: Tokens that move through a layer together; bounds memory.
        resume: Walk from each row's own layer and position, or run every row from its first
            token; None for whatever the check at load found right.

    Raises:
        EditError: An edit that cannot be made, before anything is run.
    """
    if base not in ("clean", "corrupted"):
        raise OptionError(f"base={base!r}", remedy=nearest(base, ("clean", "corrupted")))
    tokens = encoded.clean if base == "clean" else encoded.need_corrupted()
    kinds = {edit.site.kind for edits in edit_sets for edit in edits}
    reader = Reader(model, encoded, metric, by_head="ln_final_scale" in kinds)
    resumed = model.resumes if resume is None else resume
    if reader.from_logits or "embed" in kinds:
        resumed = False  # outside the blocks: nothing to resume
    for edit in {id(edit): edit for edits in edit_sets for edit in edits}.values():
        check_edit(model, edit, tokens, encoded.lengths)
    sets = [_settled(model, edits, resumed) for edits in edit_sets]
    run = record(model, tokens, encoded.lengths, with_cache=resumed)
    rows = plan(model, run, sets) if resumed else _all_rows(sets, run)
    unedited = reader.read(reader.ends(run), torch.arange(len(tokens)))
    values = unedited.new_full((len(sets), len(tokens)), torch.nan)
    values[:] = unedited  # rows that change nothing are never run
    for row in rows:
        values[row.cell, row.example] = torch.nan
    budget = chunk_tokens or _TOKENS_PER_CHUNK.get(model.device.type, 2048)
    if reader.from_logits:
        budget = min(budget, _LOGITS_PER_CHUNK // model.dims.d_vocab)
    done, received, begun = 0, [], None
    with interruptible(len(rows), lambda: done):
        for start, chunk in chunks(rows, tokens.shape[1], budget):
            examples = torch.tensor([row.example for row in chunk])
            if resumed:
                if start != begun:
                    received, begun = capture(model, run, start), start
                final = _walk(model, run, chunk, examples, start, received)
            else:
                final = _whole(model, run, chunk, examples, logits=reader.from_logits)
            at = (encoded.last[examples] - start).to(final.device)
            read = reader.read(final[torch.arange(len(chunk), device=final.device), at], examples)
            values[[row.cell for row in chunk], [row.example for row in chunk]] = read
            done += len(chunk)
            if report is not None and report(done, len(rows), "runs") is False:
                break
    return values


@contextlib.contextmanager
def interruptible(total: int, done: Any) -> Iterator[None]:
    """Ctrl-C inside the with-block ends it with a warning that says how far it was."""
    try:
        yield
    except KeyboardInterrupt:
        warnings.warn(
            f"stopped after {done()} of {total} edited runs; the cells not reached are missing",
            ProbeWarning,
            stacklevel=3,
        )


_UNRESUMABLE = (
    RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError,
)  # fmt: skip


def examine(model: "BridgeModel") -> dict[str, Any]:
    """Whether this architecture can be resumed: the wavefront against whole runs, on a few rows.

    Four short forward passes. What an unknown architecture may raise when its blocks are called
    one by one is not ours to foresee, so any of it means: run whole.
    """
    limit = {torch.float32: 1e-4, torch.float64: 1e-8}.get(model.dtype, 5e-2)
    width, start = min(6, model.dims.n_ctx), min(3, model.dims.n_ctx - 1)
    tokens = (torch.arange(2 * width).view(2, width) * 7 + 1) % model.dims.d_vocab
    lengths = torch.full((2,), width)
    last = model.dims.n_layers - 1
    edits = [
        Edit(Site("resid_pre", last), "scale", 0.5, {"pos": start}),
        Edit(Site("attn_out", 0), "scale", -1.0, {"pos": list(range(start, width))}),
    ]
    rows = [Row(1, 1, 0, start, (edits[1],)), Row(0, 0, last, start, (edits[0],))]
    examples = torch.tensor([row.example for row in rows])
    try:
        run = record(model, tokens, lengths)
        ours = _walk(model, run, rows, examples, start, capture(model, run, start))
        whole = _whole(model, run, rows, examples)[:, start:]
    except _UNRESUMABLE as error:
        return {"resumes": False, "why not": f"{type(error).__name__}: {error}".splitlines()[0]}
    gap = float((ours - whole).abs().max() / whole.abs().max().clamp(min=1))
    return {"resumes": gap <= limit, "resume gap": gap}


# --- planning ------------------------------------------------------------------------------------


def check_edit(model: "BridgeModel", edit: Edit, tokens: Tensor, lengths: Tensor) -> None:
    """Refuse an edit that cannot be made before anything is run."""
    shape = site_shape(model.editable(edit.site), model.dims, *tokens.shape)
    given = tuple(edit.value.shape) if isinstance(edit.value, Tensor) else ()
    if edit.rule != "project_out" and (
        len(given) > len(shape)
        or any(n not in (1, size) for n, size in zip(given[::-1], shape[::-1], strict=False))
    ):
        raise EditError(
            f"the value for {edit.site} has shape {given}",
            expected=f"{dict(zip(edit.site.axes, shape, strict=True))}, or a shape that "
            "broadcasts to it",
            remedy=f'record it from as many prompts, as long: model.trace(task, ["{edit.site}"])',
        )
    edit.positions(lengths)
    edit.apply(torch.zeros(1, *shape[1:]), lengths, torch.tensor([0]))


def _settled(model: "BridgeModel", edits: Sequence[Edit], resumed: bool) -> list[Edit]:
    """Edits in the order they are met; after one block is before the next."""
    n_layers = model.dims.n_layers
    ordered = [edit for group in by_site(edits).values() for edit in group]
    if not resumed:
        return ordered
    return [
        replace(edit, site=Site("resid_pre", edit.site.layer + 1))
        if edit.site.kind == "resid_post"
        and edit.site.layer is not None
        and edit.site.layer + 1 < n_layers
        else edit
        for edit in ordered
    ]


def plan(model: "BridgeModel", run: Run, sets: Sequence[Sequence[Edit]]) -> list[Row]:
    """A row for every set and prompt that changes anything, with where it departs."""
    changes = _Changes(model, run, [edit for edits in sets for edit in edits])
    rows = []
    for cell, edits in enumerate(sets):
        firsts = [changes.first(edit) for edit in edits]
        named = [edit.positions(run.lengths) for edit in edits]
        for example, length in enumerate(run.lengths.tolist()):
            at = [int(first[example]) for first in firsts]
            begin = next((i for i, first in enumerate(at) if first < length), None)
            if begin is None:
                continue
            kept, start = _kept(edits[begin:], at[begin:], named[begin:], example, length)
            layer = model.dims.n_layers
            if kept[0].site.kind != "resid_post":
                layer = kept[0].site.layer or 0
            rows.append(Row(cell, example, layer, start, tuple(kept)))
    return rows


def _kept(
    edits: Sequence[Edit],
    firsts: Sequence[int],
    named: Sequence[Tensor | None],
    example: int,
    length: int,
) -> tuple[list[Edit], int]:
    """Of edits from the first that changes something on: which are made, and from which position.

    One that only puts back what the unedited run has there counts too, once another has been
    made before it; but not where it names only positions that nothing has reached.
    """
    start, kept = min(firsts), []
    for edit, first, positions in zip(edits, firsts, named, strict=True):
        if first >= length and positions is not None:
            if int(positions[example].max()) < start:
                continue
            start = min(start, int(positions[example].min()))
        kept.append(edit)
    return kept, start


def _all_rows(sets: Sequence[Sequence[Edit]], run: Run) -> list[Row]:
    examples = range(len(run.tokens))
    return [
        Row(c, i, 0, 0, tuple(edits)) for c, edits in enumerate(sets) if edits for i in examples
    ]


class _Changes:
    """At which position an edit first differs from the unedited run."""

    def __init__(self, model: "BridgeModel", run: Run, edits: Sequence[Edit]) -> None:
        self.run = run
        # A value that covers every position is compared with what is there.
        sites = {edit.site for edit in edits if _spans_positions(edit, run)}
        self.trace = model.trace(run.tokens, sites=list(sites)) if sites else None
        self._known: dict[tuple[Site, int], Bool[Tensor, "batch pos"]] = {}

    def first(self, edit: Edit) -> Int[Tensor, " batch"]:
        """The first changed position of each prompt; the padded length where there is none."""
        width = self.run.tokens.shape[1]
        named = edit.positions(self.run.lengths)
        if not _spans_positions(edit, self.run):
            return (
                torch.zeros(len(self.run.tokens)).long() if named is None else named.min(1).values
            )
        differs = self._differs(edit)
        if named is None:
            return torch.where(differs.any(1), differs.long().argmax(1), width)
        return torch.where(differs.gather(1, named).any(1), named.min(1).values, width)

    def _differs(self, edit: Edit) -> Bool[Tensor, "batch pos"]:
        key = (edit.site, id(edit.value))
        if key not in self._known:
            assert self.trace is not None and isinstance(edit.value, Tensor)
            here = self.trace[edit.site]
            axis = edit.site.axes.index("query" if "query" in edit.site.axes else "pos")
            others = tuple(i for i in range(here.ndim) if i not in (0, axis))
            self._known[key] = (here != edit.value.to(here)).any(dim=others).cpu()
        return self._known[key]


def _spans_positions(edit: Edit, run: Run) -> bool:
    if edit.rule != "set" or not isinstance(edit.value, Tensor):
        return False
    axes = edit.site.axes
    axis = "query" if "query" in axes else "pos"
    if edit.value.ndim != len(axes) or axis not in axes:
        return False
    return edit.value.shape[axes.index(axis)] == run.tokens.shape[1]


def chunks(rows: Sequence[Row], width: int, budget: int) -> Iterator[tuple[int, list[Row]]]:
    """Rows that walk together: near in position, then in the order of their layers.

    >>> rows = [Row(i, 0, 0, 3 + i % 2, ()) for i in range(4)]
    >>> [(start, len(chunk)) for start, chunk in chunks(rows, width=6, budget=4)]
    [(3, 1), (3, 1), (3, 1), (3, 1)]
    """
    for start, group in _by_start(rows, width):
        group.sort(key=lambda row: (row.layer, row.cell, row.example))
        size = max(1, budget // (width - start))
        for first in range(0, len(group), size):
            yield start, group[first : first + size]


def _by_start(rows: Sequence[Row], width: int) -> list[tuple[int, list[Row]]]:
    """Group rows by first position; groups share a wavefront where that is cheaper."""
    at: dict[int, list[Row]] = {}
    for row in rows:
        at.setdefault(row.start, []).append(row)
    starts = sorted(at)
    # best[i]: cheapest way to run the rows that start at starts[i:], and where its group ends
    best: list[tuple[float, int]] = [(0.0, 0)] * (len(starts) + 1)
    for i in reversed(range(len(starts))):
        options, count = [], 0
        for j in range(i, len(starts)):
            count += len(at[starts[j]])
            cost = _CHUNK_OVERHEAD + count * (width - starts[i])
            options.append((cost + best[j + 1][0], j + 1))
        best[i] = min(options)
    groups, i = [], 0
    while i < len(starts):
        end = best[i][1]
        groups.append((starts[i], [row for s in starts[i:end] for row in at[s]]))
        i = end
    return groups


# --- running -------------------------------------------------------------------------------------


def record(
    model: "BridgeModel", tokens: Tensor, lengths: Tensor, *, with_cache: bool = True
) -> Run:
    """One forward pass that keeps the residual stream into every block, and keys and values."""
    n_layers = model.dims.n_layers
    resid: dict[Site, Tensor] = {}
    sites = [Site("resid_pre", layer) for layer in range(n_layers)]
    sites.append(Site("resid_post", n_layers - 1))

    def keep(site: Site) -> Any:
        return lambda value: resid.__setitem__(site, value)

    hooks = [(site, keep(site)) for site in sites]
    cache = plain_cache() if with_cache else None
    model.run_raw(tokens, hooks, lengths=lengths, cache=cache)
    pairs = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None else []
    return Run(tokens, lengths, [resid[site] for site in sites], pairs)


def _walk(
    model: "BridgeModel",
    run: Run,
    rows: Sequence[Row],
    examples: Tensor,
    start: int,
    received: Sequence["Received"],
) -> Float[Tensor, "rows suffix d_model"]:
    """Move rows through the layers together; each joins at its own. Returns the last residual."""
    n_layers = model.dims.n_layers
    joined = 0
    active = run.resid[0].new_empty((0, run.tokens.shape[1] - start, model.dims.d_model))
    with torch.no_grad():
        for layer in range(n_layers + 1):
            new = sum(row.layer == layer for row in rows[joined:])
            if new:
                joining = examples[joined : joined + new].to(active.device)
                active = torch.cat([active, run.resid[layer][joining, start:]])
                joined += new
            if not joined or layer == n_layers:
                continue
            args, kwargs = received[layer].for_rows(run, examples[:joined], start, active)
            hooks = _row_hooks(rows[:joined], examples[:joined], run.lengths, start, layer)
            with model.hooked(hooks, (joined, active.shape[1])):
                out = model.block(layer)(*args, **kwargs)
            active = out[0] if isinstance(out, tuple) else out
    # What is edited after the last block, of rows that ran through no block, is edited here.
    for row_index, row in enumerate(rows):
        if row.layer == n_layers:
            part = slice(row_index, row_index + 1)
            for edit in row.edits:
                active[part] = edit.apply(active[part], run.lengths, examples[part], start)
    return active


def _whole(
    model: "BridgeModel", run: Run, rows: Sequence[Row], examples: Tensor, *, logits: bool = False
) -> Float[Tensor, "rows pos last"]:
    """The fallback: every row from its first token. Returns the last residual, or the logits."""
    last = Site("resid_post", model.dims.n_layers - 1)
    final: dict[Site, Tensor] = {}
    hooks = []
    sites = {edit.site for row in rows for edit in row.edits}
    for site in sorted(sites, key=lambda site: site.order):
        hooks += _hooks_at([site], rows, examples, run.lengths, 0)
    hooks.append((last, lambda value: final.__setitem__(last, value)))
    out = model.run_raw(run.tokens[examples], hooks, lengths=run.lengths[examples])
    return out.logits if logits else final[last]


def _row_hooks(
    rows: Sequence[Row], examples: Tensor, lengths: Tensor, start: int, layer: int
) -> list[tuple[Site, Any]]:
    sites = {edit.site for row in rows for edit in row.edits if edit.site.layer == layer}
    ordered = sorted(sites, key=lambda site: site.order)
    return _hooks_at(ordered, rows, examples, lengths, start)


def _hooks_at(
    sites: Sequence[Site], rows: Sequence[Row], examples: Tensor, lengths: Tensor, start: int
) -> list[tuple[Site, Any]]:
    """Hooks that make each row's own edits and leave the other rows alone."""

    def hook_for(work: list[tuple[Edit, Tensor]]) -> Any:
        def hook(activation: Tensor) -> Tensor:
            edited = activation.clone()
            for edit, index in work:
                at = index.to(activation.device)
                edited[at] = edit.apply(edited[at], lengths, examples[index], start)
            return edited

        return hook

    hooks = []
    for site in sites:
        # Rows share edits, which are made at once: every row's first, then every row's second.
        work: dict[tuple[int, int], tuple[Edit, list[int]]] = {}
        for index, row in enumerate(rows):
            for place, edit in enumerate(edit for edit in row.edits if edit.site == site):
                work.setdefault((place, id(edit)), (edit, []))[1].append(index)
        in_order = [work[key] for key in sorted(work, key=lambda key: key[0])]
        hooks.append((site, hook_for([(e, torch.tensor(i)) for e, i in in_order])))
    return hooks


@dataclass(eq=False)
class Received:
    """What the library handed to one block beside hidden states, to be given again to more rows."""

    layer: int
    args: tuple
    kwargs: dict[str, Any]
    batch: int

    def for_rows(
        self, run: Run, examples: Tensor, start: int, hidden: Tensor
    ) -> tuple[tuple, dict[str, Any]]:
        """The same arguments for these rows, their hidden states and their share of the cache."""
        frozen = None
        if start:
            keys, values = run.cache[self.layer]
            index = examples.to(keys.device)
            frozen = _Frozen(keys[index, :, :start], values[index, :, :start])

        def again(value: Any) -> Any:
            if isinstance(value, Tensor):
                # One row serves all by broadcasting; a row for each prompt is picked by prompt.
                picks = value.ndim > 1 and value.shape[0] == self.batch > 1
                return value[examples.to(value.device)] if picks else value
            if isinstance(value, tuple):
                return tuple(again(one) for one in value)
            return frozen if _is_cache(value) else value

        args = (hidden, *(again(value) for value in self.args))
        return args, {name: again(value) for name, value in self.kwargs.items()}


class _Frozen:
    """A cache that answers with the recorded prefix and what is new, and keeps nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Prefix and new, for one layer."""
        return torch.cat([self._keys, keys], dim=2), torch.cat([self._values, values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        """Length of the prefix."""
        return self._keys.shape[2]


def capture(model: "BridgeModel", run: Run, start: int) -> list[Received]:
    """Run the suffix once over the prefix's cache and note what each block is given."""
    cache = None
    if start:
        cache = plain_cache()
        for layer, (keys, values) in enumerate(run.cache):
            cache.update(keys[:, :, :start], values[:, :, :start], layer)
    received: list[Received] = []
    handles = []

    def note(layer: int) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            received.append(Received(layer, args[1:], rest, len(hidden)))

        return hook

    try:
        for layer in range(model.dims.n_layers):
            block = model.block(layer)
            handles.append(block.register_forward_pre_hook(note(layer), with_kwargs=True))
        model.run_raw(run.tokens[:, start:], (), cache=cache)
    finally:
        for handle in handles:
            handle.remove()
    return received


def plain_cache() -> Any:
    """A cache that keeps every position, also of sliding-window layers."""
    from transformers import DynamicCache

    return DynamicCache()


def _is_cache(value: Any) -> bool:
    from transformers import Cache

    return isinstance(value, Cache)


class Reader:
    """The metric from residual streams: only the tokens it reads are unembedded.

    Where the model does not end in norm and unembedding, or ``by_head`` asks for it because an
    edit is made in that end, it is given the logits that the library made.
    """

    def __init__(
        self, model: "BridgeModel", encoded: Encoded, metric: Metric, *, by_head: bool
    ) -> None:
        metric.check(encoded)
        self.model, self.encoded, self.metric = model, encoded, metric
        self.from_logits = by_head or not model.reads_out
        self.ids = metric.token_ids(encoded)
        self.reference = None
        if metric.needs_reference:
            self.reference = model.forward(encoded.clean, lengths=encoded.lengths, last_only=True)

    def ends(self, run: Run) -> Float[Tensor, "batch last"]:
        """What is read of the unedited run."""
        if self.from_logits:
            return self.model.forward(run.tokens, lengths=run.lengths, last_only=True)
        last = (run.lengths - 1).to(self.model.device)
        return run.resid[-1][torch.arange(len(last), device=last.device), last]

    def read(
        self, ends: Float[Tensor, "rows last"], examples: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """The metric of rows that belong to these prompts, from the last residual or the logits."""
        parts = [
            self._some(ends[i : i + 256], examples[i : i + 256]) for i in range(0, len(ends), 256)
        ]
        return torch.cat(parts)

    def _some(self, resid: Tensor, examples: Tensor) -> Tensor:
        if self.from_logits:
            logits = resid
            if self.ids is not None:
                logits = resid.gather(1, self.ids[examples].to(resid.device))
        elif self.ids is not None:
            logits = self.model.unembed_some(resid, self.ids[examples].to(resid.device))
        else:
            logits = self.model.unembed(resid)
        reference = None if self.reference is None else self.reference[examples.to(resid.device)]
        return self.metric(logits, self.encoded.rows(examples.tolist()), reference)
