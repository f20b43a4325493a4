"""Published claims that are not measured here, and why.

Each stands in the report with its published figure, so that what is missing is seen.

probe reproduce left_out
"""

from collections.abc import Iterator

import probe

MONO = "Bricken et al. 2023, Towards Monosemanticity"

ROWS = (
    (MONO, "target sparsity", "L0 under 10 or 20", "read", "advice, no claim"),
    (MONO, "automated logit prediction", "74 % against 58 %", "read", "needs a model that judges"),
    ("Elhage et al. 2022, Toy Models of Superposition", "a linear model stores the top m features",
     "qualitative", "read", "no line in the rule, which is about ReLU models"),
    ("Olsson et al. 2022", "smeared keys make two layers change earlier", "qualitative", "read",
     "no line in the rule, which is about one layer; two-layer models with them are not trained"),
    ("Meng et al. 2022", "without MLPs, low layers alone lose their effect", "qualitative, Fig. 3",
     "read", "no line in the rule; severed models are not traced"),
    ("Fact Finding, posts 1-5", "detokenisation in a single step is false", "qualitative", "read",
     "quoted only"),
)  # fmt: skip


@probe.study(paper="What the list of claims has and no study measures", full={}, quick={})
def left_out(*, seed: int) -> Iterator[object]:
    for source, claim, published, mark, reason in ROWS:
        yield probe.Claim(claim, published, source, mark, "not applied").leave_out(reason)


if __name__ == "__main__":
    left_out.main()
