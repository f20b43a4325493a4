"""Did training find the dictionary that made the data: best cosine with each true feature."""

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.errors import DictionaryError
from probe.dictionaries.moments import unit_rows


def recovery(
    found: "Dictionary | Float[Tensor, 'feature d']", true: Float[Tensor, "true d"]
) -> pd.DataFrame:
    """The largest cosine of each true feature with a found one, and which one it is.

    Signed: a row that points the other way is no recovery. The mean of ``value`` is the mean max
    cosine similarity of Sharkey et al. (2022).

    Args:
        found: A dictionary, or its decoder rows.
        true: The features that made the data, one row each.

    Returns:
        One row a true feature: ``true_feature``, ``feature``, ``value``.

    Raises:
        DictionaryError: Rows of another width.

    >>> import torch
    >>> true = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0]])
    >>> [round(x, 3) for x in recovery(torch.eye(3), true).value]
    [1.0, 0.707]
    """
    rows = unit_rows(found if isinstance(found, Tensor) else found.W_dec)
    truth = unit_rows(true)
    if rows.shape[1] != truth.shape[1]:
        raise DictionaryError(
            f"the dictionary writes {rows.shape[1]} dimensions, the true features have "
            f"{truth.shape[1]}",
            expected="the same space",
        )
    best = (truth @ rows.T).max(1)
    return pd.DataFrame(
        {"true_feature": range(len(truth)), "feature": best.indices, "value": best.values}
    )
