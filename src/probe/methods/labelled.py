"""What is to be read: prompts as labelled examples, their groups, and their activations."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from probe.core.errors import OptionError, TaskError, nearest
from probe.core.model import Model
from probe.core.site import KINDS, Site, check_layer
from probe.core.slots import slots_of
from probe.core.task import Encoded, Prompt
from probe.core.trace import Trace
from probe.methods.spans import positions_of

SIDE = "side"
"""The label that tells clean prompts from corrupted ones."""
LABEL_ABOUT = (
    "What is read: side (clean or corrupted), or a text of each prompt's tags, like {country}; "
    "{answer} and {wrong_answer} are there too"
)
GROUPS_ABOUT = (
    "Prompts that agree in this text are never parted by a split, like {city}; by default each "
    "prompt with its twin"
)

Numbers = Float[np.ndarray, "example dim"]
Labels = Int[np.ndarray, " example"]


@dataclass(frozen=True)
class Examples:
    """What is to be read, example by example.

    Attributes:
        rows: The prompt of each example.
        corrupted: Whether it is the prompt's corrupted twin.
        labels: Its class, by number.
        classes: The name of each class.
        groups: What it must not be parted from, by number.
    """

    rows: Int[np.ndarray, " example"]
    corrupted: Bool[np.ndarray, " example"]
    labels: Labels
    classes: tuple[str, ...]
    groups: Int[np.ndarray, " example"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sides(self) -> list[str]:
        """``clean`` or ``corrupted``."""
        return ["corrupted" if flag else "clean" for flag in self.corrupted]

    def at(self, traces: Sequence[Trace], site: Site, positions: Sequence[int]) -> Numbers:
        """Each example's activation at its position, heads side by side."""
        found = []
        for row, corrupted in zip(self.rows, self.corrupted, strict=True):
            value = traces[int(corrupted)][site][row, positions[row]]
            found.append(value.float().cpu().numpy().ravel())
        return np.stack(found).astype(np.float64)


def examples(encoded: Encoded, label: str, groups: str | None) -> Examples:
    """The examples of a task under a label.

    Raises:
        TaskError: A tag that a prompt lacks, one class only, or fewer than two groups.
    """
    prompts = encoded.task.prompts
    n = len(prompts)
    sides = [False]
    if label == SIDE:
        encoded.need_corrupted()
        sides = [False, True]
        names = ["clean"] * n + ["corrupted"] * n
    else:
        names = [_filled(label, "label", row, prompt) for row, prompt in enumerate(prompts)]
    kept = (
        [prompt.clean for prompt in prompts]
        if groups is None
        else [_filled(groups, "groups", row, prompt) for row, prompt in enumerate(prompts)]
    )
    classes = sorted(set(names))
    if len(classes) < 2:
        raise TaskError(
            f"every prompt has the label {classes[0]!r}", expected="at least two classes"
        )
    if len(set(kept)) < 2:
        raise TaskError(
            f"all {n} prompts are one group ({kept[0]!r}): none is left to be judged on",
            expected="at least two groups",
        )
    return Examples(
        rows=np.tile(np.arange(n), len(sides)),
        corrupted=np.repeat(np.array(sides), n),
        labels=_numbered(names),
        classes=tuple(classes),
        groups=np.tile(_numbered(kept), len(sides)),
    )


def _filled(template: str, option: str, row: int, prompt: Prompt) -> str:
    """A text with a prompt's tags and answers put in."""
    slots = slots_of(template)
    if not slots:
        known = [f"{{{tag}}}" for tag in prompt.tags]
        raise OptionError(
            f"{option}={template!r} names no tag, so it is the same for every prompt",
            expected="side, or a text with tags" if option == "label" else "a text with tags",
            remedy=nearest(template, [*known, "{answer}"]),
        )
    words = {"answer": prompt.answer, "wrong_answer": prompt.wrong_answer} | prompt.tags
    words = {name: word for name, word in words.items() if word is not None}
    if missing := sorted(slots - set(words)):
        raise TaskError(
            f"prompt {row} has no tag {missing[0]!r}, which {option}={template!r} names",
            remedy=nearest(missing[0], sorted(words)),
        )
    return string.Formatter().vformat(template, (), words)


def _numbered(names: Sequence[str]) -> Int[np.ndarray, " name"]:
    return np.unique(np.array(names, dtype=str), return_inverse=True)[1]


# --- where ---------------------------------------------------------------------------------------


def places(encoded: Encoded, at: Sequence[int] | str) -> dict[str, list[int]]:
    """The name of each place → its position in each prompt; of a text, its last token."""
    if isinstance(at, str):
        return {f"last of {at}": [found[-1] for found in positions_of(encoded, at)]}
    return {
        str(pos): [found[0] for found in positions_of(encoded, [pos])] for pos in dict.fromkeys(at)
    }


def sites(model: Model, kind: str, layers: Sequence[int] | None) -> list[Site]:
    """The sites of a kind, one a layer; refused where it has no vector for each position."""
    if kind not in KINDS:
        raise OptionError(f'there is no site kind "{kind}"', remedy=nearest(kind, KINDS))
    if not KINDS[kind].per_layer or KINDS[kind].axes[1] != "pos":
        raise OptionError(
            f"{kind} has no vector for each layer and position",
            expected="resid_post, attn_out, mlp_out, mlp_post, z, ...",
        )
    chosen = range(model.dims.n_layers) if layers is None else layers
    found = [Site(kind, layer) for layer in dict.fromkeys(chosen)]
    for site in found:
        check_layer(site, model.dims.n_layers)
    if not found:
        raise OptionError("no layer is left to probe", remedy="name at least one layer")
    return found


def undivided(site: Site) -> Site:
    """The site, refused where its activation is parted into heads."""
    if site.head_axis is not None:
        raise OptionError(
            f"{site.kind} is parted into heads", expected="resid_post, attn_out, mlp_post, ..."
        )
    return site


def record(model: Model, encoded: Encoded, which: Sequence[Site], data: Examples) -> list[Trace]:
    """The clean run's activations, and the corrupted run's where they are examples too."""
    runs = [False, True] if data.corrupted.any() else [False]
    return [model.trace(encoded, list(which), corrupted=corrupted) for corrupted in runs]
