"""A model whose answer depends on one known direction of the residual stream, and nothing else."""

import random
from collections.abc import Sequence

import torch
from families import build, tokenizer
from jaxtyping import Float
from torch import Tensor

from probe.core.task import Encoded, Task
from probe.models.bridge import BridgeModel
from probe.models.load import load_model

WORDS = [f"t{i}" for i in range(12, 60)]
"""Half of them say yes (``t3``) and half no (``t4``), along ``ANSWER``; half are red and half blue,
along ``COLOUR``, which the model does not read."""
DIM = 32
YES, RED = set(WORDS[::2]), set(WORDS[:12] + WORDS[24:36])


def unit(seed: int) -> Float[Tensor, " dim"]:
    vector = torch.randn(DIM, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


COLOUR = unit(1)
ANSWER = unit(0) - (unit(0) @ COLOUR) * COLOUR
ANSWER = ANSWER / ANSWER.norm()


def planted(answer: Float[Tensor, " dim"] = ANSWER) -> BridgeModel:
    """Blocks write next to nothing: the answer is what the last token has along ``answer``."""
    hf = build("llama")
    generator = torch.Generator().manual_seed(2)
    for block in hf.model.layers:
        block.self_attn.o_proj.weight.data *= 0.01  # enough to be seen by the checks at load
        block.mlp.down_proj.weight.data.zero_()
    hf.model.norm.weight.data.fill_(1.0)
    noise = torch.randn(hf.model.embed_tokens.weight.shape, generator=generator)
    colour = COLOUR - (COLOUR @ answer) * answer
    for one in (answer, colour / colour.norm()):
        noise -= (noise @ one)[:, None] * one
    for word in WORDS:
        row = noise[int(word[1:])]
        row += (3 if word in YES else -3) * answer + (3 if word in RED else -3) * colour
    hf.model.embed_tokens.weight.data.copy_(noise)
    hf.lm_head.weight.data.zero_()
    hf.lm_head.weight.data[3], hf.lm_head.weight.data[4] = answer, -answer
    return load_model(hf, tokenizer=tokenizer())


def twins(model: BridgeModel, words: Sequence[str] = WORDS, seed: int = 0) -> Encoded:
    """Each word once, with a word of the other answer as its twin."""
    rng = random.Random(seed)
    pairs = []
    for word in words:
        yes = word in YES
        other = rng.choice([one for one in words if (one in YES) != yes])
        pairs.append(
            {
                "clean": f"t5 {word}", "corrupted": f"t5 {other}",
                "answer": "t3" if yes else "t4", "wrong_answer": "t4" if yes else "t3",
                "tags": {"word": word, "says": "yes" if yes else "no",
                         "colour": "red" if word in RED else "blue"},
            }
        )  # fmt: skip
    return Task.from_pairs(pairs).encode(model)


def repeated(model: BridgeModel, times: int, seed: int) -> Encoded:
    """Each word in several prompts, with a coin thrown for each word as its label."""
    rng = random.Random(seed)
    coins = {word: rng.choice(["heads", "tails"]) for word in WORDS}
    fillers = ["t5", "t6", "t7", "t8"][:times]
    return Task.from_pairs(
        [
            {"clean": f"{filler} {word}", "tags": {"word": word, "coin": coins[word]}}
            for word in WORDS
            for filler in fillers
        ]
    ).encode(model)
