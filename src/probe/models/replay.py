"""The planner of edits: thousands of interventions for the price of what they change.

An edit at layer l and position p leaves everything before both as it was. So the unedited run is
recorded once, and each edited run (a *row*) joins at its own layer with the recorded residual
stream, from its first changed position on, attending to the recorded keys and values of the
positions before. All rows walk through the remaining layers together (a wavefront), so that each
layer's weights are read once and products are large. Only the positions and tokens a metric reads
are unembedded.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.edit import Edit
from probe.core.errors import EditError, OptionError, ProbeWarning, nearest
from probe.core.metric import Metric
from probe.core.progress import Report
from probe.core.site import Site
from probe.core.task import Encoded
from probe.models.plan import Row, all_rows, check_edit, chunks, plan, settled
from probe.models.recorded import Received, Run, capture, record

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

_TOKENS_PER_CHUNK = {"cpu": 2048, "cuda": 65536}
_LOGITS_PER_CHUNK = 2**26
_UNRESUMABLE = (
    RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError,
)  # fmt: skip


def sweep(
    model: "BridgeModel",
    encoded: Encoded,
    edit_sets: Sequence[Sequence[Edit]],
    metric: Metric,
    *,
    base: str,
    given: Sequence[Edit] = (),
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
        given: Edits of what enters the first block, made in every run before its own: the run that
            the others are resumed from has them, so they cost nothing more.
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
    _check_entrance(given)
    kinds = {edit.site.kind for edits in edit_sets for edit in edits}
    reader = Reader(model, encoded, metric, by_head="ln_final_scale" in kinds)
    resumed = model.resumes if resume is None else resume
    if reader.from_logits or "embed" in kinds:
        resumed = False  # outside the blocks: nothing to resume
    for edit in {id(edit): edit for edits in [given, *edit_sets] for edit in edits}.values():
        check_edit(model, edit, tokens, encoded.lengths)
    sets = [settled(model, edits, resumed) for edits in edit_sets]
    run = record(model, tokens, encoded.lengths, edits=given, with_cache=resumed)
    states = partial(
        model.trace, encoded, corrupted=base == "corrupted", edits=given, quiet=True,
        batch_size=len(tokens) if given else None,
    )  # fmt: skip
    rows = plan(run, states, sets, model.dims.n_layers) if resumed else all_rows(sets, run)
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


def _check_entrance(given: Sequence[Edit]) -> None:
    entrance = Site("resid_pre", 0)
    for edit in given:
        if edit.site != entrance:
            raise EditError(
                f"an edit of {edit.site} in every run", expected=str(entrance),
                remedy="put it into each set of edits",
            )  # fmt: skip


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
            return self.model.forward(
                run.tokens, run.edits, lengths=run.lengths, last_only=True, quiet=True
            )
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
