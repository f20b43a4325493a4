"""What probes share: labels from tags, splits through which nothing leaks, and the probe itself."""

import string
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

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

Split = Literal["groups", "prompts"]
Numbers = Float[np.ndarray, "example dim"]
Labels = Int[np.ndarray, " example"]

_STRENGTHS = tuple(10.0**power for power in (-4, -3, -2, -1, 0, 1))
_MIDDLE = 1e-2
_INNER_FOLDS = 3
_STEPS = 300
_LASSO_STRENGTH = 0.1


class Fold(NamedTuple):
    """Examples to learn from and examples to be judged on."""

    train: Int[np.ndarray, " some"]
    test: Int[np.ndarray, " others"]


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


# --- splits --------------------------------------------------------------------------------------


def units(data: Examples, split: Split) -> Int[np.ndarray, " example"]:
    """What a split keeps together: the groups, or for ``prompts`` each example by itself."""
    return data.groups if split == "groups" else np.arange(len(data))


def folds(data: Examples, n: int, split: Split, seed: int) -> list[Fold]:
    """Each example is judged once, by a probe that has seen nothing of its group.

    ``prompts`` parts examples one by one instead, so that a group's examples may fall on both
    sides: what can be learnt by heart then passes for something read.

    Raises:
        TaskError: A class that is within one group, so that no split has it on both sides.
    """
    kept = units(data, split)
    for number, name in enumerate(data.classes):
        if len(set(kept[data.labels == number])) < 2:
            raise TaskError(
                f"the class {name!r} is within one group: it cannot be learnt and judged apart",
                expected="at least two groups for each class",
                remedy="groups= a tag that varies within a class, or more prompts",
            )
    return list(_parted(data.labels, kept, n, seed))


def _parted(labels: Labels, kept: Int[np.ndarray, " example"], n: int, seed: int) -> Iterator[Fold]:
    n = min(n, len(set(kept)), int(np.bincount(labels).max()))
    folder = StratifiedGroupKFold(n, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class in fewer groups than folds is judged in fewer folds
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, test in folder.split(np.zeros(len(labels)), labels, kept):
            yield Fold(train, test)


def control_labels(data: Examples, seed: int) -> Labels:
    """Labels dealt anew to the groups: a class for each group, as many of each as before.

    Where groups have examples of several classes, labels are dealt anew within each group. Under
    a split by groups nothing can predict them; under a split by prompts only what is learnt of
    each group by heart can.

    Source: Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks".
    """
    rng = np.random.default_rng(seed)
    labels = data.labels.copy()
    members = [np.flatnonzero(data.groups == group) for group in np.unique(data.groups)]
    if all(len(set(data.labels[rows])) == 1 for rows in members):
        dealt = rng.permutation([data.labels[rows[0]] for rows in members])
        for rows, one in zip(members, dealt, strict=True):
            labels[rows] = one
        return labels
    for rows in members:
        labels[rows] = rng.permutation(data.labels[rows])
    return labels


# --- the probe -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Probe:
    """Logistic regression in the units of the activations themselves.

    Attributes:
        weights: One row for each class; one row in all where there are two.
        bias: One number for each row.
        classes: The class numbers it knows.
    """

    weights: Float[np.ndarray, "row dim"]
    bias: Float[np.ndarray, " row"]
    classes: Int[np.ndarray, " class"]

    def predict(self, x: Numbers) -> Labels:
        """The likeliest class of each example."""
        scores = x @ self.weights.T + self.bias
        if len(self.classes) == 2:
            return self.classes[(scores[:, 0] > 0).astype(int)]
        return self.classes[scores.argmax(1)]

    def directions(self) -> Float[np.ndarray, "direction dim"]:
        """Orthonormal directions that its decision rests on: one for two classes."""
        weights = self.weights
        weights = weights - weights.mean(0) if len(self.classes) > 2 else weights
        _, sizes, rows = np.linalg.svd(weights, full_matrices=False)
        return rows[sizes > 1e-8 * sizes[0]] if sizes[0] > 0 else rows[:0]


def fit(x: Numbers, labels: Labels, kept: Int[np.ndarray, " example"], seed: int) -> Probe:
    """Logistic regression on standardised inputs; its strength chosen within these examples.

    The strength (1e-4 to 10) is the one that does best on groups held out of the training
    examples, the weakest of equals; with nothing to hold out, 0.01.
    """
    strength = _MIDDLE
    if min(len(set(kept)), int(np.bincount(labels).max())) > 1:
        right = dict.fromkeys(_STRENGTHS, 0)
        for train, test in _parted(labels, kept, _INNER_FOLDS, seed):
            prepared = _Prepared(x[train], labels[train])
            for one in _STRENGTHS:
                right[one] += int((prepared.probe(one).predict(x[test]) == labels[test]).sum())
        strength = max(_STRENGTHS, key=lambda one: right[one])
    return _Prepared(x, labels).probe(strength)


class _Prepared:
    """Training examples, standardised and turned to their own axes.

    A penalty on the squared weights does not change under rotation, and examples span no more
    axes than there are examples: so the regression is as small as it can be.
    """

    def __init__(self, x: Numbers, labels: Labels) -> None:
        self.labels = labels
        self.mean, scale = x.mean(0), x.std(0)
        self.scale = np.where(scale > 1e-10, scale, 1.0)
        standard = (x - self.mean) / self.scale
        if x.shape[1] > x.shape[0]:
            self.axes = np.linalg.svd(standard, full_matrices=False)[2]
        else:
            self.axes = np.eye(x.shape[1])
        self.x = standard @ self.axes.T

    def probe(self, strength: float) -> Probe:
        """The regression of this strength, in the units of the activations."""
        known = np.unique(self.labels)
        if len(known) == 1:
            width = len(self.mean)
            return Probe(np.zeros((1, width)), np.zeros(1), known)
        regression = LogisticRegression(C=strength, max_iter=_STEPS)
        with warnings.catch_warnings():
            # nearly converged will do: what a probe is worth is measured on other examples
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(self.x, self.labels)
        weights = (regression.coef_ @ self.axes) / self.scale
        return Probe(weights, regression.intercept_ - weights @ self.mean, known)


def lasso(x: Numbers, labels: Labels) -> Float[np.ndarray, " dim"]:
    """The largest weight, over classes, of each input in a regression with an L1 penalty."""
    regression = LogisticRegression(
        C=_LASSO_STRENGTH, l1_ratio=1.0, solver="saga", max_iter=_STEPS, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.abs(regression.fit(x, labels).coef_).max(0)


def majority(labels: Labels) -> int:
    """The commonest class: what guessing without looking would say."""
    return int(np.bincount(labels).argmax())
