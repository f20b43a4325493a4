"""Text to token ids and back: the one place where a string meets a tokenizer."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from probe.core.errors import TaskError


class Tokenizer:
    """A Hugging Face tokenizer with its BOS policy decided.

    Args:
        hf: The Hugging Face tokenizer; never changed.
        bos: True to begin every prompt with the BOS token, False to never, None to do what the
            tokenizer does by itself.
    """

    def __init__(self, hf: Any, bos: bool | None = None) -> None:
        self.hf = hf
        own = list(hf("a", return_token_type_ids=False)["input_ids"])
        bare = list(hf("a", add_special_tokens=False)["input_ids"])
        self._prefix, self._suffix = _around(own, bare)
        if bos is not None:
            token = hf.bos_token_id
            if bos and token is None:
                raise TaskError("bos=True, and this tokenizer has no BOS token", remedy="bos=None")
            self._prefix = [token] if bos else [t for t in self._prefix if t != token]

    @property
    def prefix(self) -> list[int]:
        """Special tokens put before every prompt."""
        return list(self._prefix)

    @property
    def suffix(self) -> list[int]:
        """Special tokens put after every prompt."""
        return list(self._suffix)

    @property
    def bos(self) -> bool:
        """Whether prompts begin with a special token."""
        return bool(self._prefix)

    @property
    def pad_id(self) -> int:
        """What padded positions hold; nothing ever reads it."""
        for token in (self.hf.pad_token_id, self.hf.eos_token_id, 0):
            if token is not None:
                return int(token)
        return 0

    @property
    def eos_id(self) -> int | None:
        """The token that ends generation, if there is one."""
        return self.hf.eos_token_id

    @cached_property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self.hf)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a prompt; ``special`` adds BOS and the like by the policy."""
        where = next((i for i, c in enumerate(text) if 0xD800 <= ord(c) <= 0xDFFF), None)
        if where is not None:
            raise TaskError(
                f"character {where} of the prompt is a lone surrogate (U+{ord(text[where]):04X})",
                expected="valid Unicode text",
                remedy='text.encode("utf-8", "replace").decode()',
            )
        ids = list(self.hf(text, add_special_tokens=False, verbose=False)["input_ids"])
        return self._prefix + ids + self._suffix if special else ids

    def prompt(self, text: str, n_ctx: int) -> list[int]:
        """Token ids of a prompt, refusing an empty one and one too long for the model."""
        ids = self.encode(text)
        if len(ids) == len(self._prefix) + len(self._suffix):
            raise TaskError(
                f"the prompt {text[:20]!r} has no tokens", expected="at least one token of text"
            )
        if len(ids) > n_ctx:
            raise TaskError(
                f"the prompt has {len(ids)} tokens",
                expected=f"at most {n_ctx}, the model's context length",
                remedy=f"keep the last part of the text, or split it every {n_ctx} tokens",
            )
        return ids

    def single(self, text: str) -> int | None:
        """The token id if the text, standing after other text, is exactly one known token."""
        ids = self.encode(text, special=False)
        if len(ids) != 1:
            # Some tokenizers put a space before every text; after a newline there is none to put.
            line, after = self.encode("\n", special=False), self.encode("\n" + text, special=False)
            ids = after[len(line) :] if after[: len(line)] == line else ids
        if len(ids) != 1 or ids[0] == self.hf.unk_token_id:
            return None
        return ids[0]

    def need_single(self, text: str) -> int:
        """The token id of a text that must be one token."""
        token = self.single(text)
        if token is not None:
            return token
        parts = self.strings(self.encode(text, special=False))
        spaced = text and not text.startswith(" ")
        hint = f'" {text}" with its leading space' if spaced else "another word"
        raise TaskError(
            f"the answer {text!r} is {len(parts)} tokens for this tokenizer: {parts}",
            expected="an answer of one token",
            remedy=hint,
        )

    def string(self, token: int) -> str:
        """What a token stands for; bytes that are no text by themselves are shown in hex."""
        if not 0 <= token < self.n_vocab:
            return f"<{token}>"
        raw = self.hf.convert_ids_to_tokens(token)
        if raw is None:
            return f"<{token}>"
        if token in self._special:
            return str(raw)
        if self._byte_level and all(c in _BYTE_OF for c in raw):
            data = bytes(_BYTE_OF[c] for c in raw)
            try:
                return data.decode()
            except UnicodeDecodeError:
                return "".join(f"<0x{byte:02X}>" for byte in data)
        return str(raw).replace("▁", " ")

    def strings(self, tokens: Sequence[int]) -> list[str]:
        """``string`` of each."""
        return [self.string(int(token)) for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a run of tokens."""
        return self.hf.decode(list(tokens), clean_up_tokenization_spaces=False)

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.hf.all_special_ids)

    @cached_property
    def _byte_level(self) -> bool:
        return self.hf.convert_tokens_to_ids("Ġ") not in (None, self.hf.unk_token_id)

    def is_special(self, token: int) -> bool:
        """Whether it is BOS, EOS, padding or the like."""
        return token in self._special


def _around(own: list[int], bare: list[int]) -> tuple[list[int], list[int]]:
    """Which special tokens the tokenizer puts before and after a text."""
    for start in range(len(own) - len(bare) + 1):
        if own[start : start + len(bare)] == bare:
            return own[:start], own[start + len(bare) :]
    return [], []


def _byte_table() -> dict[str, int]:
    """Byte-level BPE writes unprintable bytes as characters from 256 upwards (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTE_OF = _byte_table()
