"""Methods by name: their options are checked, and a wrong word is met with the right one."""

from collections.abc import Iterator
from typing import Annotated

import pandas as pd
import pytest
from pydantic import Field

from probe.core import registry
from probe.core.errors import OptionError
from probe.core.registry import Method, Registry, method
from probe.core.result import View

VIEW = View(kind="bar", x="layer")
COLUMNS = {"layer": "block", "value": "a number", "extra": "not always there"}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Method]]:
    """What a test registers ends with it."""
    own: Registry[Method] = Registry("method")
    monkeypatch.setattr(registry, "METHODS", own)
    yield own


def register(**how: object) -> Method:
    @method(needs="prompts", view=VIEW, columns=COLUMNS, **how)
    def depth(
        model: object,
        encoded: object,
        *,
        layers: Annotated[list[int] | None, Field(description="Blocks; none for all")] = None,
        top: Annotated[int, Field(description="How many", ge=1, le=9)] = 3,
        seed: Annotated[int, Field(description="Random seed")],
    ) -> pd.DataFrame:
        """How deep is it?

        More.
        """
        return pd.DataFrame({"layer": layers, "value": 0.5})

    return registry.METHODS.get("depth")


def test_a_function_becomes_a_method() -> None:
    found = register()
    assert found.name == "depth"
    assert found.question == "How deep is it?"
    assert found.needs == "prompts"
    assert list(registry.METHODS) == ["depth"]
    fields = found.options.model_fields
    assert list(fields) == ["layers", "top", "seed"]
    assert {name: field.description for name, field in fields.items()} == {
        "layers": "Blocks; none for all",
        "top": "How many",
        "seed": "Random seed",
    }
    assert [name for name, field in fields.items() if field.is_required()] == ["seed"]


def test_its_room_is_the_package_it_lies_in() -> None:
    assert register().room == __name__.split(".")[-2]


def test_two_methods_of_one_name() -> None:
    register()
    with pytest.raises(OptionError, match='there already is a method "depth"'):
        register()


def test_options_are_parsed_with_their_defaults() -> None:
    parsed = register().parse({"seed": "4"})
    assert parsed.model_dump() == {"layers": None, "top": 3, "seed": 4}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sead": 1}, 'depth has no option "sead"\nTry: did you mean "seed"?'),
        ({}, "depth: seed"),
        ({"seed": 1, "top": 0}, "depth: top=0: Input should be greater than or equal to 1"),
        ({"seed": 1, "top": 10}, "less than or equal to 9 (How many)"),
        ({"seed": "x"}, "depth: seed='x': Input should be a valid integer"),
        ({"seed": 1, "layers": "all"}, "depth: layers='all'"),
    ],
)
def test_options_that_cannot_be(given: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError) as error:
        register().parse(given)
    assert said in str(error.value)


def test_an_option_without_a_description_is_refused() -> None:
    with pytest.raises(OptionError, match="option top of bare has no description") as error:

        @method(needs="nothing", view=VIEW, columns=COLUMNS)
        def bare(model: object, *, top: int = 3) -> pd.DataFrame:
            """What?"""

    assert "Annotated[type, Field(description=...)]" in str(error.value)


def test_columns_are_described_in_the_frames_order() -> None:
    frame = pd.DataFrame({"value": [1.0], "layer": [0]})
    assert register().columns_of(frame) == {"value": "a number", "layer": "block"}


def test_a_column_nobody_described_is_refused() -> None:
    with pytest.raises(OptionError, match=r"depth made columns it does not describe: \['head'\]"):
        register().columns_of(pd.DataFrame({"layer": [0], "head": [1]}))


def test_a_view_may_depend_on_the_options() -> None:
    found = register()
    assert found.view_for(found.parse({"seed": 0})) is VIEW

    @method(
        needs="nothing", columns=COLUMNS, view=lambda o: View(kind="line", x="layer", title=o.title)
    )
    def titled(
        model: object, *, title: Annotated[str, Field(description="Title")] = "plain"
    ) -> pd.DataFrame:
        """What is it called?"""

    chosen = registry.METHODS.get("titled")
    assert chosen.view_for(chosen.parse({"title": "mine"})).title == "mine"


def test_a_word_that_is_not_there() -> None:
    register()
    with pytest.raises(OptionError, match='there is no method "dept"') as error:
        registry.METHODS.get("dept")
    assert 'did you mean "depth"? Known: depth' in str(error.value)
    assert "dept" not in registry.METHODS
    assert len(registry.METHODS) == 1


def test_an_empty_registry_says_that_it_is() -> None:
    with pytest.raises(OptionError, match="Known: none"):
        Registry("thing").get("x")
