"""Which vectors point the same way?"""

from collections.abc import Sequence

import pandas as pd

from probe.core.errors import OptionError
from probe.core.model import Model
from probe.core.provenance import Stopwatch, of_call
from probe.core.result import Result, View
from probe.core.vector import VectorResult

_COLUMNS = {
    "vector": "one vector",
    "other": "the other",
    "value": "cosine of the angle between them, -1 to 1",
}


def vector_cosines(model: Model, vectors: Sequence[VectorResult]) -> Result:
    """Which tasks have vectors that point the same way?

    Vectors found at different layers are compared as they are: the residual stream keeps its
    axes. All vectors of a model share what every prompt has; ``task vectors`` of one layer are
    easier told apart once their mean is taken off.

    Args:
        model: The model they belong to.
        vectors: At least two, of different names.

    Raises:
        OptionError: Fewer than two, names that repeat, widths that differ.

    Cost: none.

    >>> from probe.api import load_model, steering_vector
    >>> model = load_model("toy")
    >>> sides = [steering_vector(model, [a], [b], layer=0, name=a)
    ...          for a, b in (("up", "down"), ("down", "up"))]
    >>> vector_cosines(model, sides).frame.value.round(2).tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    watch, names = Stopwatch(), [vector.name for vector in vectors]
    shapes = {tuple(vector.vector.shape) for vector in vectors}
    if len(vectors) < 2 or len(set(names)) < len(names) or len(shapes) > 1:
        raise OptionError(
            f"vectors {names} of shapes {sorted(shapes)}",
            expected="at least two, of different names and equal width",
        )
    rows = [(one.name, other.name, one.cosine(other)) for one in vectors for other in vectors]
    record = of_call(model, "vector_cosines", watch, vectors=names)
    view = View(kind="heatmap", x="other", y="vector", color="value")
    return Result(pd.DataFrame(rows, columns=list(_COLUMNS)), _COLUMNS, view, record)
