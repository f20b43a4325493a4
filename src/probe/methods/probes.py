"""Splits through which nothing leaks, and a regression that is tuned within them."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from probe.core.errors import ProbeWarning, TaskError
from probe.methods.labelled import Examples, Labels, Numbers

Split = Literal["groups", "prompts"]

_STRENGTHS = tuple(10.0**power for power in (-4, -3, -2, -1, 0, 1))
_MIDDLE = 1e-2
_INNER_FOLDS = 3
_STEPS = 300
_LASSO_STRENGTH = 0.1


class Fold(NamedTuple):
    """Examples to learn from and examples to be judged on."""

    train: Int[np.ndarray, " some"]
    test: Int[np.ndarray, " others"]


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


@contextlib.contextmanager
def interruptible(made: Sequence[Any], total: int, unit: str) -> Iterator[None]:
    """Inside, Ctrl-C keeps what was made, if anything was; fewer than all is said."""
    try:
        yield
    except KeyboardInterrupt:
        if not made:
            raise
    if len(made) < total:
        warnings.warn(
            f"stopped after {len(made)} of {total} {unit}; the others are missing",
            ProbeWarning,
            stacklevel=3,
        )
