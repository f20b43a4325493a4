"""Every family, loaded once, beside a plain twin that no adapter has touched."""

from functools import cache
from typing import Any, NamedTuple

import families
import torch
from torch import Tensor

from probe.models.bridge import BridgeModel
from probe.models.load import load_model

PROMPTS = ("t3 t4 t5 t6 t7 t8 t9 t3 t4", "t10 t11 t12", "t13 t14 t15 t16 t17 t18")
"""Ragged; the longest is longer than the sliding windows of six."""


class Family(NamedTuple):
    """A loaded model and an equal plain one, built apart from it."""

    name: str
    model: BridgeModel
    plain: Any

    def tokens(self) -> list[Tensor]:
        """Each prompt by itself, [1, pos]."""
        tokenizer = families.tokenizer()
        return [torch.tensor([tokenizer(text)["input_ids"]]) for text in PROMPTS]


@cache
def load_family(name: str) -> Family:
    """Both halves from one seed."""
    model = load_model(families.build(name), tokenizer=families.tokenizer())
    return Family(name, model, families.build(name).requires_grad_(False))
