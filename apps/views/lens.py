"""Layer by position: what the model would say if it stopped there, from tidy lens tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from apps.components.colours import Limits, Scale, limits, number, percent
from apps.components.glyphs import visible
from apps.components.matrix import Axis, Cell, matrix_view
from apps.context import Context
from apps.views.figures import line_figure
from apps.views.grids import grid, words


@dataclass(frozen=True)
class Quantity:
    """A number the lens can colour by.

    Attributes:
        show: What the method calls it.
        title: What the reader chooses.
        scale: The colours.
        of_target: Whether it needs a target.
    """

    show: str
    title: str
    scale: Scale
    of_target: bool = False

    @property
    def share(self) -> bool:
        """Whether it is a probability."""
        return self.show == "probability"

    def say(self, value: float) -> str:
        """One value in words."""
        if self.share:
            return percent(value)
        return number(value, 0 if self.show == "rank" else 2)


QUANTITIES = (
    Quantity("probability", "probability of the prediction", "activation"),
    Quantity("entropy", "entropy (nats)", "activation"),
    Quantity("kl", "KL to the output (nats)", "activation"),
    Quantity("rank", "rank of the target", "activation", of_target=True),
    Quantity("log_prob", "log-probability of the target (nats)", "signed", of_target=True),
)


def offered(target: str) -> dict[str, Quantity]:
    """The quantities that can be asked for."""
    return {q.show: q for q in QUANTITIES if target or not q.of_target}


def layers_shown(frame: pd.DataFrame) -> list[int]:
    """Rows of the picture: the last layer on top, as the residual stream rises."""
    return sorted(frame["layer"].unique().tolist(), reverse=True)


def lens(here: Context, frame: pd.DataFrame, quantity: Quantity) -> tuple[dict[str, Any], bytes]:
    """One quantity as colour, the predicted token written in each cell."""
    layers = layers_shown(frame)
    axes: dict[str, Sequence[int]] = {
        "layer": layers[::-1],
        "pos": range(here.first, len(here.tokens)),
    }
    values = grid(frame, axes)[::-1]
    said = np.asarray(words(frame, axes, "prediction"), dtype=object).reshape(values.shape)[::-1]
    shown = [visible(word) for word in said.flat]
    n_columns = len(here.shown)
    tips = [
        [
            f"“{shown[i]}”",
            f"{quantity.title}: {quantity.say(float(values.flat[i]))}",
            f"after layer {layers[i // n_columns]}",
            f"at {here.labels[i % n_columns]}",
        ]
        for i in range(values.size)
    ]
    ends = Limits(0.0, 1.0) if quantity.share else limits(values, quantity.scale)
    at = here.position - here.first
    return matrix_view(
        values,
        Axis("layer", [str(layer) for layer in layers]),
        Axis("position", here.labels),
        tips,
        scale=quantity.scale,
        ends=ends,
        words=shown,
        selected=Cell(layers.index(here.state.layer), at) if at >= 0 else None,
        legend=f"{quantity.title}, {'0 to 100 %' if quantity.share else ends.words()}",
        alt=f"Lens: {quantity.title} by layer and position",
    )


def through_layers(here: Context, frame: pd.DataFrame) -> go.Figure:
    """The log-probability of target and distractor after each layer."""
    lines = {
        f"“{visible(str(target))}”": (rows["layer"].tolist(), rows["value"].tolist())
        for target, rows in frame.groupby("target", sort=False)
    }
    return line_figure(lines, x="layer", y="log-probability (nats)", mark=here.state.layer)
