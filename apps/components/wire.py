"""How a view's dict reaches the browser: a JSON head and raw cells in one message.

Streamlit sends top-level bytes as they are, so a wall of uint8 patterns costs one byte a cell;
the head is ASCII JSON, so a lone surrogate in a token cannot break the encoding.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlit.components.v2 import component as register

HERE = Path(__file__).parent


def pack(head: Mapping[str, Any], cells: bytes = b"") -> bytes:
    r"""The head's length in four bytes, the head, then the cells.

    >>> pack({"a": "\ud800"}, b"xy")
    b'\x0f\x00\x00\x00{"a": "\\ud800"}xy'
    """
    text = json.dumps(head, allow_nan=False).encode("ascii")
    return len(text).to_bytes(4, "little") + text + cells


def component(name: str) -> Any:
    """The component drawn by `<name>.js`, with the helpers and the style that all share.

    A component must be registered once, at import; the script is trusted, its data is not.
    """
    script = (HERE / "shared.js").read_text("utf-8") + (HERE / f"{name}.js").read_text("utf-8")
    return register(f"probe.{name}", js=script, css=(HERE / "shared.css").read_text("utf-8"))
