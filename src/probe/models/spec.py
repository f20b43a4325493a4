"""What was loaded, and how: the part of a model that goes into every record."""

from typing import Literal

from pydantic import BaseModel, Field

Source = Literal["hub", "folder", "gguf", "bundled", "random", "object"]


class ModelSpec(BaseModel, frozen=True):
    """Enough to load the same model again and to notice when it is not the same."""

    name: str = Field(description="What load_model was given")
    source: Source
    location: str = Field(default="", description="Hub id, folder or file")
    revision: str | None = Field(default=None, description="Hub commit")
    architecture: str = ""
    weight_hash: str = Field(
        default="", description="SHA-256 of the weights as loaded, first 16 digits"
    )
    n_params: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    bos: bool = Field(default=False, description="Whether prompts begin with a special token")
    bos_asked: bool | None = Field(
        default=None, description="What the caller asked; None: tokenizer's own"
    )
    processing: Literal["none"] = Field(default="none", description="Weights are used as they are")
