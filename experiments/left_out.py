"""Published claims that are not measured here, and why.

Each stands in the report with its published figure, so that what is missing is seen.

probe reproduce left_out
"""

from collections.abc import Iterator

import probe

MONO = "Bricken et al. 2023, Towards Monosemanticity"
IOI = "Wang et al. 2022"
FRONTIER = "dictionary architectures"
NO_VERDICT = (
    "measured without a verdict, on 16 prompts: experiments/ioi_smollm2.md; not yet a study"
)
NOT_IOI = "not measured on SmolLM2 yet"
DICTIONARIES = (
    "not begun: needs dictionaries of each architecture at equal L0, some with hundreds of "
    "thousands of steps; the trainers and the evaluation are there"
)

ROWS = (
    (MONO, "target sparsity", "L0 under 10 or 20", "read", "advice, no claim"),
    (MONO, "automated logit prediction", "74 % against 58 %", "read", "needs a model that judges"),
    (IOI, "the model prefers the indirect object", "3.56 nats, 99.3 %", "read", NO_VERDICT),
    (IOI, "faithfulness of the circuit", "87 % kept", "read",
     "circuits of SmolLM2 are judged by experiments/ioi_circuit_smollm2.py, without this verdict"),
    (IOI, "completeness", "greedy worst case 87 %", "read", NOT_IOI),
    (IOI, "minimality", "each node ≥ 1 %", "read", NOT_IOI),
    (IOI, "a naive circuit is as faithful, and incomplete", "gap 0.1", "read",
     "about GPT-2 small only"),
    (IOI, "name movers look at the receiver and copy it", "attention 0.59, copy score > 95 %",
     "read", NO_VERDICT),
    (IOI, "S-inhibition goes by position more than by token", "≥ 88 % against < 8 %", "read",
     NOT_IOI),
    (IOI, "backup heads: removing all name movers costs little", "5 % drop", "read", NOT_IOI),
    (IOI, "a second mention of the receiver misleads", "3.55 → 1.23", "read", NOT_IOI),
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
