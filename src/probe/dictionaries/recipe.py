"""What a dictionary is trained as, and how: every choice that decides the finished weights."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from probe.core.errors import OptionError, nearest

TOPK_FAMILY = ("topk", "batchtopk", "matryoshka_batchtopk")
PENALISED = ("standard", "gated", "jumprelu")
ARCHITECTURES = (*PENALISED, *TOPK_FAMILY)
REVIVALS = ("none", "auxk", "resample", "ghost")


class Recipe(BaseModel):
    """Options of a training.

    Activations are first centred and scaled so that their mean squared norm is their width;
    ``sparsity`` and ``bandwidth`` are relative to that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    architecture: str = Field("batchtopk", description=f"One of {', '.join(ARCHITECTURES)}")
    d_sae: int = Field(ge=1, description="Number of features")
    n_tokens: int = Field(ge=1, description="Activations to train on, repeating the store's")
    batch_size: int = Field(4096, ge=1)
    lr: float = Field(3e-4, gt=0, description="Adam's, after warming up")
    seed: int = 0

    k: int = Field(32, ge=1, description="Of the top-k family: active features, on average")
    sparsity: float = Field(1.0, ge=0, description="Of standard and gated L1, of jumprelu L0")
    groups: tuple[int, ...] = Field((), description="Of matryoshka: nested widths, the last d_sae")
    bandwidth: float = Field(0.001, gt=0, description="Of jumprelu, as if mean squared norm were 1")

    revive: str = Field("", description=f"Dead features: {', '.join(REVIVALS)}")
    dead_after: int = Field(0, ge=0, description="Dead: not active in so many tokens")
    aux_weight: float = Field(1 / 32, ge=0, description="Of AuxK")
    resample_every: int = Field(0, ge=0, description="Tokens between resamplings, at most four")

    normalise: bool = Field(True, description="Centre and scale, folded away at the end")
    outliers: float = Field(
        10.0, ge=0, description="Leave out rows of more than so many times the median norm; 0: none"
    )
    unit_decoder: bool | None = Field(None, description="Decoder rows of norm 1; not for standard")
    skip: bool = Field(False, description="A transcoder's linear path past the features")
    lr_warm_up: float = Field(0.02, ge=0, le=1, description="Share of the training")
    lr_decay: float = Field(0.2, ge=0, le=1, description="Share at the end, down to zero")
    sparsity_warm_up: float = Field(0.1, ge=0, le=1, description="Share in which sparsity is begun")
    k_start: int = Field(0, ge=0, description="Of the top-k family: k at the start of its warm-up")
    clip: float = Field(0.0, ge=0, description="Largest norm of the gradient; 0: any")
    adam_betas: tuple[float, float] = (0.9, 0.999)
    threshold_rate: float = Field(0.01, gt=0, le=1, description="Of batch-top-k's mean threshold")

    @model_validator(mode="after")
    def _filled(self) -> "Recipe":
        def check(ok: bool, what: str, expected: str) -> None:
            if not ok:
                raise OptionError(what, expected=expected)

        if self.architecture not in ARCHITECTURES:
            raise OptionError(
                f'architecture "{self.architecture}"',
                remedy=nearest(self.architecture, ARCHITECTURES),
            )
        topk = self.architecture in TOPK_FAMILY
        revive = self.revive or ("auxk" if topk else "none")
        allowed = ("none", "auxk", "resample") if topk else ("none", "resample", "ghost")
        check(
            revive in allowed and (revive != "ghost" or self.architecture == "standard"),
            f'revive="{revive}" for {self.architecture}',
            f"one of {', '.join(allowed)}; ghost for standard alone",
        )
        check(not topk or self.k <= self.d_sae, f"k={self.k}", f"at most d_sae={self.d_sae}")
        groups = self.groups
        if self.architecture == "matryoshka_batchtopk":
            groups = groups or tuple(sorted({max(1, self.d_sae >> i) for i in range(5)}))
            rising = list(groups) == sorted(set(groups)) and groups[0] >= 1
            check(
                rising and groups[-1] == self.d_sae,
                f"groups={groups}", f"rising widths that end in d_sae={self.d_sae}",
            )  # fmt: skip
        else:
            check(not groups, f"groups={groups}", "none, except for matryoshka_batchtopk")
        filled = {
            "revive": revive,
            "groups": groups,
            "unit_decoder": self.architecture != "standard"
            if self.unit_decoder is None
            else self.unit_decoder,
            "dead_after": self.dead_after or min(10_000_000, max(1, self.n_tokens // 10)),
            "resample_every": self.resample_every or max(1, self.n_tokens // 5),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        return self

    @property
    def n_steps(self) -> int:
        """Batches."""
        return max(1, self.n_tokens // self.batch_size)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        up, down = self.lr_warm_up * self.n_steps, self.lr_decay * self.n_steps
        rise = min(1.0, (step + 1) / up) if up >= 1 else 1.0
        fall = min(1.0, (self.n_steps - step) / down) if down >= 1 else 1.0
        return self.lr * rise * fall

    def _begun(self, step: int) -> float:
        up = self.sparsity_warm_up * self.n_steps
        return min(1.0, step / up) if up >= 1 else 1.0

    def sparsity_at(self, step: int) -> float:
        """Weight of the penalty at a step."""
        return self.sparsity * self._begun(step)

    def k_at(self, step: int) -> int:
        """Active features at a step."""
        start = self.k_start or self.k
        return round(start + (self.k - start) * self._begun(step))
