"""Many texts at once: a batch of prompts continued by drawing tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.core.errors import ModelError, OptionError
from probe.core.model import Generation
from probe.models.recorded import plain_cache

if TYPE_CHECKING:
    from probe.models.bridge import BridgeModel

_WORTH_COMPACTING = 0.75


def sample(
    model: "BridgeModel",
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[Generation]:
    """Continue prompts; the options are those of ``Model.sample``.

    All rows walk in step from position 0: a row still inside its prompt is given the prompt's next
    token, one beyond it the token just drawn. So nothing is padded on the left, and positions and
    masks are those of any forward pass.
    """
    if not model.dims.causal:
        raise ModelError(f"{model.name} is an encoder and continues no text")
    if max_new_tokens < 1 or not 0 < temperature < float("inf"):
        raise OptionError(
            f"max_new_tokens={max_new_tokens}, temperature={temperature}",
            expected="at least 1 token, and a temperature above 0",
        )
    ids = [model.tokenizer.prompt(prompt, model.dims.n_ctx) for prompt in prompts]
    longest = max((len(row) for row in ids), default=0)
    if longest + max_new_tokens > model.dims.n_ctx:
        raise OptionError(
            f"{max_new_tokens} new tokens after a prompt of {longest}",
            expected=f"at most {model.dims.n_ctx} together, the model's context length",
        )
    rows = _Rows(ids, max_new_tokens, model.tokenizer.eos_id)
    generator = torch.Generator().manual_seed(seed)
    cache: Any = plain_cache()
    while rows.active:
        logits = model.run_raw(rows.step_tokens(), cache=cache).logits[:, -1].float().cpu()
        log_probs = logits.log_softmax(-1)
        drawn = _draw(log_probs / temperature, generator)
        kept = rows.take(drawn, log_probs.gather(1, drawn[:, None]).flatten())
        if kept is not None and len(kept):
            cache.batch_select_indices(kept.to(model.device))
    return [
        Generation(prompt, model.tokenizer.decode(made), tuple(made), tuple(log))
        for prompt, made, log in zip(prompts, rows.made, rows.log_probs, strict=True)
    ]


def _draw(
    logits: Float[Tensor, "batch d_vocab"], generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """One token a row by inverting the distribution function, summed in float64.

    One random number a row, where ``torch.multinomial`` draws one for every token it could draw.
    """
    reached = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    point = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) * reached[:, -1:]
    return torch.searchsorted(reached, point, right=True).flatten().clamp(max=logits.shape[1] - 1)


class _Rows:
    """How far each text is. Finished ones stay in the batch until it is worth dropping them."""

    def __init__(self, ids: list[list[int]], max_new_tokens: int, eos: int | None) -> None:
        self.ids, self.limit, self.eos = ids, max_new_tokens, eos
        self.made: list[list[int]] = [[] for _ in ids]
        self.log_probs: list[list[float]] = [[] for _ in ids]
        self.ended = [False] * len(ids)
        self.batch = list(range(len(ids)))
        self.at = 0

    @property
    def active(self) -> bool:
        return any(not self.ended[row] for row in self.batch)

    def step_tokens(self) -> Int[Tensor, "batch 1"]:
        """The token of each row at this position; a finished row repeats its last."""
        tokens = []
        for row in self.batch:
            text = self.ids[row] + self.made[row]
            tokens.append([text[min(self.at, len(text) - 1)]])
        return torch.tensor(tokens)

    def take(self, drawn: Tensor, log_probs: Tensor) -> Int[Tensor, " kept"] | None:
        """Note what was drawn; the places in the batch that go on, where some are dropped."""
        self.at += 1
        for row, token, log in zip(self.batch, drawn.tolist(), log_probs.tolist(), strict=True):
            if self.ended[row] or self.at < len(self.ids[row]):
                continue
            self.made[row].append(token)
            self.log_probs[row].append(log)
            self.ended[row] = token == self.eos or len(self.made[row]) == self.limit
        going = [place for place, row in enumerate(self.batch) if not self.ended[row]]
        if len(going) > _WORTH_COMPACTING * len(self.batch):
            return None
        self.batch = [self.batch[place] for place in going]
        return torch.tensor(going, dtype=torch.long)
