"""Published claims that are not measured here, and why.

Each stands in the report with its published figure, so that what is missing is seen.

probe reproduce left_out
"""

from collections.abc import Iterator

import probe

MONO = "Bricken et al. 2023, Towards Monosemanticity"
FRONTIER = "dictionary architectures"
DICTIONARIES = (
    "not begun: needs dictionaries of each architecture at equal L0, some with hundreds of "
    "thousands of steps; the trainers and the evaluation are there"
)

ROWS = (
    (MONO, "target sparsity", "L0 under 10 or 20", "read", "advice, no claim"),
    (MONO, "automated logit prediction", "74 % against 58 %", "read", "needs a model that judges"),
    ("Fact Finding, posts 1-5", "detokenisation in a single step is false", "qualitative", "read",
     "quoted only"),
    (FRONTIER, "TopK beats ReLU with L1 at equal L0", "Gao et al. 2024, Fig. 2", "second-hand",
     DICTIONARIES),
    (FRONTIER, "dead latents", "up to 90 % without fixes, 7 % with", "second-hand", DICTIONARIES),
    (FRONTIER, "shrinkage only with L1", "γ < 1 for ReLU, ≈ 1 for Gated", "read", DICTIONARIES),
    (FRONTIER, "Gated needs half the L0 for equal fidelity", "half", "read", DICTIONARIES),
    (FRONTIER, "JumpReLU ≥ TopK ≥ Gated", "at least as good", "second-hand", DICTIONARIES),
    (FRONTIER, "BatchTopK beats TopK", "Figs 1-2", "read", DICTIONARIES),
    (FRONTIER, "Matryoshka lowers absorption and costs reconstruction", "0.05 against 0.49; 70 "
     "against 72 %", "read", DICTIONARIES),
    (FRONTIER, "a plain dictionary absorbs hierarchical features", "rates up to 0.35", "read",
     DICTIONARIES),
    (FRONTIER, "proxies mislead", "no figure", "second-hand", "report only; needs 12 dictionaries"),
)  # fmt: skip


@probe.study(paper="What the list of claims has and no study measures", full={}, quick={})
def left_out(*, seed: int) -> Iterator[object]:
    for source, claim, published, mark, reason in ROWS:
        yield probe.Claim(claim, published, source, mark, "not applied").leave_out(reason)


if __name__ == "__main__":
    left_out.main()
