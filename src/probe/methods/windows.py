"""Several layers around one, changed together."""


def layers_around(layer: int, window: int, n_layers: int) -> list[int]:
    """``window`` layers with ``layer`` in the middle, as far as the model has them.

    An even window has one layer more before the middle than after it.

    >>> layers_around(1, 4, n_layers=6), layers_around(4, 3, n_layers=6)
    ([0, 1, 2], [3, 4, 5])
    """
    low = layer - window // 2
    return [one for one in range(low, low + window) if 0 <= one < n_layers]
