"""A dictionary's feature as a direction to steer by."""

from probe.core.dictionary import Dictionary
from probe.core.errors import OptionError, SiteError
from probe.core.model import Model
from probe.core.provenance import Stopwatch, of_call
from probe.core.site import check_layer
from probe.core.vector import VectorResult


def feature_vector(
    model: Model, dictionary: Dictionary, feature: int, *, strength: float = 1.0
) -> VectorResult:
    """What does one feature of a dictionary write into the residual stream?

    Its decoder row, where the dictionary writes: adding it with strength s is what the model sees
    when the feature fires s more strongly.

    Args:
        model: The model the dictionary was trained on.
        dictionary: An autoencoder or transcoder that writes at one site.
        feature: Which.
        strength: In units of the feature's activation.

    Raises:
        OptionError: A feature that is not there.
        SiteError: A dictionary that writes at several sites, or to a layer that is not there.

    Cost: none.
    """
    watch = Stopwatch()
    if len(dictionary.writes) != 1:
        raise SiteError(
            f"{dictionary.name} writes at {len(dictionary.writes)} sites",
            expected="one: a direction acts in one place",
        )
    if not 0 <= feature < dictionary.d_sae:
        raise OptionError(
            f"feature {feature} of {dictionary.name}", expected=f"0 to {dictionary.d_sae - 1}"
        )
    site = dictionary.writes[0]
    check_layer(site, model.dims.n_layers)
    record = of_call(
        model, "feature_vector", watch, dictionary=dictionary.name, feature=feature,
        strength=strength,
    )  # fmt: skip
    vector = VectorResult(
        name=f"{dictionary.name} feature {feature}",
        vector=dictionary.W_dec[feature].detach().float().cpu(),
        site=site,
        rule="add",
        where="all",
        provenance=record,
        strength=strength,
    )
    vector.check(model)
    return vector
