"""What Probe can do, by name: methods with their options, tasks, and whatever else is looked up."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

import pandas as pd
from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from probe.core.errors import OptionError, nearest
from probe.core.options import read_options
from probe.core.result import View

T = TypeVar("T")
Needs = Literal["nothing", "prompts", "answers", "pairs"]


class Registry(Generic[T]):
    """Names to things of one sort; refuses duplicates, and knows the nearest right word."""

    def __init__(self, sort: str) -> None:
        self.sort = sort
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> T:
        """Register a thing under a name that is still free."""
        if name in self._things:
            raise OptionError(f'there already is a {self.sort} "{name}"')
        self._things[name] = thing
        return thing

    def get(self, name: str) -> T:
        """The thing of that name."""
        if name not in self._things:
            raise OptionError(
                f'there is no {self.sort} "{name}"', remedy=nearest(name, sorted(self._things))
            )
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __len__(self) -> int:
        return len(self._things)


@dataclass(frozen=True)
class Method:
    """One question a method answers, and all a form, a command line or a test must know of it.

    Attributes:
        name: How it is asked for.
        function: ``(model, encoded, **options) -> DataFrame``; ``(model, **options)`` where it
            needs nothing.
        needs: What the prompts must bring: nothing (no prompts at all), prompts, answers, or
            pairs (clean and corrupted with answers).
        view: How its table is drawn, or a function of the options that says how.
        columns: Column name → meaning.
        options: A pydantic model of its keyword arguments.
        room: The room it lives in: lens, attention, causal, ...
    """

    name: str
    function: Callable[..., pd.DataFrame]
    needs: Needs
    view: View | Callable[[BaseModel], View]
    columns: Mapping[str, str]
    options: type[BaseModel]
    room: str

    @property
    def question(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    def parse(self, given: Mapping[str, Any]) -> BaseModel:
        """Check options, naming the nearest right word for a wrong one."""
        return read_options(self.options, given, self.name)

    def view_for(self, options: BaseModel) -> View:
        """The view under these options."""
        return self.view if isinstance(self.view, View) else self.view(options)

    def columns_of(self, frame: pd.DataFrame) -> dict[str, str]:
        """Descriptions of the columns this frame has, in the frame's order."""
        missing = [str(name) for name in frame.columns if name not in self.columns]
        if missing:
            raise OptionError(f"{self.name} made columns it does not describe: {missing}")
        return {str(name): self.columns[name] for name in frame.columns}


METHODS: Registry[Method] = Registry("method")


def method(
    *,
    needs: Needs,
    view: View | Callable[[Any], View],
    columns: Mapping[str, str],
    name: str | None = None,
) -> Callable[[Callable[..., pd.DataFrame]], Callable[..., pd.DataFrame]]:
    """Register a function as a method; its keyword-only arguments become its options.

    Annotate each option ``Annotated[int, Field(description=..., ge=0)] = default``.
    ``columns`` may describe more columns than one call returns.
    """

    def register(function: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        called = name or function.__name__
        METHODS.add(
            called,
            Method(
                name=called,
                function=function,
                needs=needs,
                view=view,
                columns=dict(columns),
                options=_options(called, function),
                room=function.__module__.split(".")[-2],
            ),
        )
        return function

    return register


def _options(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        annotation = parameter.annotation
        info = [a for a in get_args(annotation)[1:] if isinstance(a, FieldInfo)]
        if get_origin(annotation) is not Annotated or not info or not info[0].description:
            raise OptionError(
                f"option {parameter.name} of {name} has no description",
                expected="Annotated[type, Field(description=...)]",
            )
        required = parameter.default is inspect.Parameter.empty
        fields[parameter.name] = (annotation, ... if required else parameter.default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)
    return create_model(f"{name}_options", __config__=config, **fields)
