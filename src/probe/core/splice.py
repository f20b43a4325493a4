"""Replace an activation by a dictionary's reconstruction: an edit, as data like the others."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from probe.core.dictionary import Dictionary
from probe.core.edit import Edit, Indices
from probe.core.errors import EditError
from probe.core.reconstruction import Reconstruction
from probe.core.site import Site


def splice(
    site: Site | str | None,
    dictionary: Dictionary,
    /,
    *,
    keep_error: bool = True,
    features: Mapping[int, float] | Tensor | None = None,
    **where: Indices,
) -> Edit:
    """Replace an activation by a dictionary's reconstruction of it.

    What is encoded is the activation as it stands there, edits before it included.

    Args:
        site: Where; None for the site that the dictionary was made for.
        dictionary: A sparse autoencoder.
        keep_error: Add what the reconstruction leaves out, so that with no feature changed the
            run stays as it was (to rounding). Without it the run sees the reconstruction alone.
        features: Feature → the activation it is set to, at every position edited. Or a vector
            over all features, NaN for those left as they are encoded.
        **where: Which positions.

    Raises:
        EditError: A dictionary that does not write where it reads, features it does not have, or
            a part of the last axis.
    """
    at = _place(Site.parse(site) if isinstance(site, str) else site, dictionary)
    made = Reconstruction(dictionary, keep_error, _vector(dictionary, features))
    return Edit(at, "splice", made, where, f"splice: {dictionary.name}")


def _place(site: Site | None, dictionary: Dictionary) -> Site:
    """Where a dictionary's reconstruction belongs, refusing one that is made elsewhere.

    Raises:
        EditError: A transcoder or crosscoder; no site, or one of another width.
    """
    if dictionary.reads != dictionary.writes or len(dictionary.reads) > 1:
        raise EditError(
            f"{dictionary.name} reads {_said(dictionary.reads)} and writes "
            f"{_said(dictionary.writes)}",
            expected="a sparse autoencoder, which reconstructs what it reads",
            remedy="patch(site, dictionary.decode(dictionary.encode(x))) with x recorded",
        )
    at = site or next(iter(dictionary.reads), None)
    if at is None:
        raise EditError(
            f"{dictionary.name} does not say where it belongs",
            expected="a site",
            remedy='splice("resid_post.8", dictionary)',
        )
    return at


def _vector(
    dictionary: Dictionary, features: Mapping[int, float] | Tensor | None
) -> Float[Tensor, " feature"] | None:
    """Feature → activation as a vector, NaN for features that are not named.

    Raises:
        EditError: A feature that is not there, or a vector of another length.
    """
    if features is None:
        return None
    n = dictionary.d_sae
    if isinstance(features, Tensor):
        if features.shape != (n,):
            raise EditError(
                f"features of shape {tuple(features.shape)} were given for {dictionary.name}",
                expected=f"({n},), one number a feature",
            )
        return features
    wrong = [feature for feature in features if not 0 <= feature < n]
    if wrong:
        raise EditError(f"{dictionary.name} has no feature {wrong[0]}", expected=f"0 to {n - 1}")
    vector = torch.full((n,), torch.nan)
    for feature, value in features.items():
        vector[feature] = value
    return vector


def _said(sites: tuple[Site, ...]) -> str:
    return ", ".join(map(str, sites)) or "no site"
