"""Every error a user can meet: what happened, what was expected, what to do next."""

import difflib
from collections.abc import Iterable


class ProbeError(Exception):
    """A mistake we can explain.

    Args:
        what: What happened, with the values.
        expected: What would have been right.
        remedy: What to do next.
    """

    def __init__(self, what: str, *, expected: str = "", remedy: str = "") -> None:
        self.what, self.expected, self.remedy = what, expected, remedy
        parts = [what]
        if expected:
            parts.append(f"Expected: {expected}")
        if remedy:
            parts.append(f"Try: {remedy}")
        super().__init__("\n".join(parts))


class SiteError(ProbeError):
    """An address that names no activation of this model."""


class EditError(ProbeError):
    """An intervention that cannot be carried out as written."""


class TaskError(ProbeError):
    """Prompts that cannot be encoded as asked."""


class CorpusError(ProbeError):
    """Text that cannot be read as asked."""


class ModelError(ProbeError):
    """A model that cannot be loaded or cannot do what was asked."""


class OptionError(ProbeError):
    """An unknown method, metric, task or option, or a value out of range."""


class SizeError(ProbeError):
    """A request that would not fit in memory."""


class DictionaryError(ProbeError):
    """A dictionary, or a store of activations, that cannot be made, read or used as asked."""


class RunError(ProbeError):
    """A saved run that cannot be read, or does not reproduce."""


class ProbeWarning(UserWarning):
    """Something the reader of a number should know."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant, and list the rest.

    >>> nearest("resid_pst", ["resid_pre", "resid_post", "z"])
    'did you mean "resid_post"? Known: resid_pre, resid_post, z'
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Known: {', '.join(names) or 'none'}"
