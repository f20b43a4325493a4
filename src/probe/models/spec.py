"""What was loaded, and how: the part of a model that goes into every record."""

from typing import Literal

from pydantic import BaseModel, Field

Source = Literal["hub", "folder", "gguf", "random", "object"]


class ModelSpec(BaseModel, frozen=True):
    """Enough to load the same model again and to notice when it is not the same."""

    name: str = Field(description="What load_model was given")
    source: Source
    location: str = Field("", description="Hub id, folder or file")
    revision: str | None = Field(None, description="Hub commit")
    architecture: str = ""
    weight_hash: str = Field("", description="SHA-256 of the weights as loaded, first 16 digits")
    n_params: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    bos: bool = Field(False, description="Whether prompts begin with a special token")
    processing: Literal["none"] = Field("none", description="Weights are used as they are")
