"""Options that several circuit methods ask for in the same words."""

from typing import Annotated

from pydantic import Field

from probe.core.circuit import Select
from probe.methods.circuit_runs import Ablation
from probe.methods.discovery import Ranking
from probe.methods.edges import Sign
from probe.methods.patching import Direction

Directed = Annotated[
    Direction,
    Field(description="noise: corrupted into the clean run; denoise: clean into the corrupted run"),
]
Signed = Annotated[
    Sign,
    Field(
        description="support: positive where the edge upholds the clean metric; effect: the "
        "change of the metric when the edge is patched"
    ),
]
Edges = Annotated[
    list[str] | None,
    Field(description="The circuit's edges; by default what a ranking selects"),
]
Ranked = Annotated[Ranking, Field(description="What ranks the edges")]
Selected = Annotated[Select, Field(description="How edges are selected: top, signed or greedy")]
Ablated = Annotated[
    Ablation, Field(description="What is read along edges left out, as in faithfulness")
]
