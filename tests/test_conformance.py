"""What every method owes its callers, checked over the registry: new methods are found by it."""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from pydantic import BaseModel

import probe
from probe.core.errors import ProbeError
from probe.core.registry import Method
from probe.core.result import Result
from probe.core.site import AXES
from probe.core.task import Encoded
from probe.models.bridge import BridgeModel
from probe.viz.html import result_html

METHODS: dict[str, Method] = dict(probe.methods())
MODELS = ["toy", pytest.param("toy-mha", marks=pytest.mark.slow)]
ELSEWHERE = re.compile(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//|url\(|@import""", re.I)

NEEDED: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.1},
    "causal_tracing": {"subject": "{place}", "draws": 2},
    "circuit_robustness": {
        "metrics": ["logit_diff"],
        "directions": ["noise"],
        "resamples": 2,
        "size": 0.5,
    },
    "edge_patching": {"receivers": ["a1.h0<q>", "m1", "logits"]},
    "feature_activations": {"dictionary": "toy"},
    "feature_attribution": {"dictionary": "toy", "top": 4, "random": 2},
    "feature_circuit": {"dictionaries": ["toy.0", "toy.1"], "top": 3},
    "feature_effects": {"dictionary": "toy", "features": [3, 5]},
    "knockout": {"keys": "{place}"},
    "das": {"steps": 1, "layers": [1]},
    "erasure": {"rounds": 1},
    "sparse_probe": {"k": [1], "layers": [1]},
    "robustness": {"seeds": 0, "metrics": ["logit_diff", "prob"]},
}
"""Options without which a method says nothing of two prompts of ``ioi``, or says it slowly."""

LEARN = {"linear_probe", "sparse_probe", "das", "erasure"}
"""Methods that learn from all prompts, so that one alone would say something else, or nothing."""

ALONE: dict[str, dict[str, Any]] = {
    "head_effects": {"source": "own"},
    "ablation": {"ablations": ["zero"]},
    "completeness": {"size": 1.0},
    "faithfulness": {"rankings": ["random"]},
    "minimality": {"size": 1.0},
}
"""Options under which a method draws nothing from the other prompts."""

per_method = pytest.mark.parametrize("name", METHODS)


@cache
def model_of(name: str) -> BridgeModel:
    return probe.load_model(name)


@cache
def task_for(model: str) -> Encoded:
    """Two pairs with answers: enough for every ``needs``."""
    return probe.load_task("ioi", n=2).encode(model_of(model))


def ask(name: str, model: str = "toy", task: Encoded | None = None, **options: Any) -> Result:
    given = None if METHODS[name].needs == "nothing" else task or task_for(model)
    options = NEEDED.get(name, {}) | options
    return probe.run(name, model=model_of(model), task=given, **options)


@cache
def answer(name: str, model: str = "toy") -> Result:
    return ask(name, model)


def assert_same(one: pd.DataFrame, other: pd.DataFrame, **close: float) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=not close, **close)


# --- what it says of itself ----------------------------------------------------------------------


@per_method
def test_it_says_which_question_it_answers(name: str) -> None:
    about = METHODS[name].function.__doc__ or ""
    assert METHODS[name].question.endswith("?"), METHODS[name].question
    for part in ("Cost:", ">>>"):
        assert part in about, f"the docstring of {name} has no {part}"


@per_method
def test_each_option_has_a_description(name: str) -> None:
    for option, field in METHODS[name].options.model_fields.items():
        assert field.description, option
        if field.is_required():
            assert option in NEEDED.get(name, {}), f"{name} needs {option}: add it to NEEDED"


@per_method
def test_options_survive_json(name: str) -> None:
    dumped = METHODS[name].parse(NEEDED.get(name, {})).model_dump(mode="json")
    written = json.loads(json.dumps(dumped))
    assert METHODS[name].parse(written).model_dump(mode="json") == dumped


@per_method
def test_an_unknown_option_is_met_with_the_nearest(name: str) -> None:
    fields = list(METHODS[name].options.model_fields)
    with pytest.raises(probe.OptionError, match=f'{name} has no option "{fields[0]}x"') as error:
        ask(name, **{f"{fields[0]}x": 1})
    assert f'did you mean "{fields[0]}"?' in str(error.value)


# --- what it gives -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@per_method
def test_it_gives_a_tidy_described_table(name: str, model: str) -> None:
    result = answer(name, model)
    frame = result.frame
    assert len(frame) > 0
    assert frame.index.equals(pd.RangeIndex(len(frame)))
    assert list(frame.columns) == list(result.columns)
    assert all(about for about in result.columns.values())
    assert result.view.number in frame
    assert set(result.view.axes) <= set(frame.columns)
    keys = [c for c in frame if not pd.api.types.is_float_dtype(frame[c].dtype)]
    assert not frame.duplicated(keys).any(), "rows that nothing tells apart"
    if "pos" in frame and "token" in frame:
        pairs = frame[["batch", "pos", "token"]].drop_duplicates()
        assert not pairs.duplicated(["batch", "pos"]).any(), "one position, two tokens"


@pytest.mark.parametrize("model", MODELS)
@per_method
def test_numbers_are_finite_unless_the_column_says_otherwise(name: str, model: str) -> None:
    result = answer(name, model)
    for column in result.frame.select_dtypes("number"):
        values = result.frame[column].to_numpy(float, na_value=np.nan)
        assert not np.isinf(values).any(), column
        if np.isnan(values).any():
            assert "missing" in result.columns[str(column)], f"{column} does not say when"


@per_method
def test_axes_are_within_the_model(name: str) -> None:
    frame, dims = answer(name).frame, model_of("toy").dims
    sizes = {"layer": dims.n_layers, "head": dims.n_heads, "token_id": dims.d_vocab}
    for column in set(frame.columns) & (set(AXES) - {"scale"} | {"token_id"}):
        values = frame[column].dropna()
        assert (values.astype(int) == values).all(), column
        assert (values >= 0).all(), column
        if sizes.get(column):
            assert (values < sizes[column]).all(), column


@pytest.mark.parametrize("model", MODELS)
@per_method
def test_the_same_question_has_the_same_answer(name: str, model: str) -> None:
    assert_same(ask(name, model).frame, answer(name, model).frame)


@pytest.mark.slow  # each is asked twice more
@per_method
def test_a_seed_decides_what_is_random(name: str) -> None:
    if "seed" not in METHODS[name].options.model_fields:
        return  # nothing is: the question asked twice is above
    assert_same(ask(name, seed=3).frame, ask(name, seed=3).frame)


@per_method
def test_two_prompts_together_are_two_prompts_alone(name: str) -> None:
    if name in LEARN:
        return
    whole = ask(name, **ALONE.get(name, {})).frame
    if METHODS[name].needs == "nothing" or "batch" not in whole:
        return  # no rows of single prompts
    rows = [task_for("toy").rows([row]) for row in (0, 1)]
    parts = [ask(name, task=row, **ALONE.get(name, {})).frame for row in rows]
    together = pd.concat([part.assign(batch=row) for row, part in enumerate(parts)])
    order = [c for c in whole if not pd.api.types.is_float_dtype(whole[c].dtype)]
    one, other = (f.sort_values(order, ignore_index=True) for f in (whole, together))
    # A normalised value is divided by a mean over the prompts; the number itself is raw.
    number = "raw" if "raw" in whole else "value"
    columns = [c for c in whole if c in order or c == number]
    assert_same(one[columns], other[columns].astype(one[columns].dtypes), rtol=1e-3, atol=1e-5)


def fingerprint(model: BridgeModel) -> tuple[int, list[bytes], bytes]:
    modules = [*model.bridge.modules(), *model.bridge.original_model.modules()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    weights = [p.detach().numpy().tobytes() for p in model.bridge.original_model.parameters()]
    return hooks, weights, model.forward(torch.tensor([[3, 4, 5]])).numpy().tobytes()


@per_method
def test_the_model_is_left_as_it_was(name: str) -> None:
    before = fingerprint(model_of("toy"))
    ask(name)
    assert fingerprint(model_of("toy")) == before


# --- what can be done with it --------------------------------------------------------------------


@per_method
def test_it_can_be_drawn_and_shown_without_a_network(name: str) -> None:
    result = answer(name)
    figure = result.plot()
    assert isinstance(figure, go.Figure)
    assert len(figure.data) > 0
    fragment = result_html(result, library=False)
    assert result.provenance.run_id in fragment
    assert not ELSEWHERE.search(fragment)


def test_the_search_for_other_hosts_can_succeed() -> None:
    assert ELSEWHERE.search('<script src="https://cdn.example/x.js">')
    assert ELSEWHERE.search("<a href=//example.org>")
    assert ELSEWHERE.search("background: url(x.png)")


@per_method
def test_its_summary_has_one_row_a_cell(name: str) -> None:
    result = answer(name)
    summary = result.summary()
    assert {result.view.number, "low", "high", "n"} <= set(summary.columns)
    assert not summary.duplicated(result.view.axes).any()


@per_method
def test_it_is_saved_and_comes_back(name: str) -> None:
    result = answer(name)
    result.save()
    loaded = probe.load_result(result.id)
    assert_same(loaded.frame, result.frame)
    assert loaded.columns == result.columns
    assert loaded.view == result.view
    assert loaded.provenance == result.provenance


@per_method
def test_it_is_run_again_from_its_record(name: str) -> None:
    answer(name).save()
    again = probe.rerun(answer(name).id, model=model_of("toy"))  # tests of the api load it anew
    assert again.same, again.about
    assert again.about.startswith("reproduced")
    assert again.result.provenance.passed == answer(name).provenance.passed


# --- what its options allow ----------------------------------------------------------------------


def choices(annotation: Any) -> list[Any]:
    """The values of a Literal, wherever it stands in an annotation; both values of a bool."""
    if annotation is bool:
        return [True, False]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    inner = [value for part in get_args(annotation) for value in choices(part)]
    many = get_origin(annotation) in (list, Sequence)
    return [[value] for value in inner] if many else inner


def each_choice() -> list[tuple[str, str, Any]]:
    return [
        (name, option, value)
        for name, method in METHODS.items()
        for option, field in method.options.model_fields.items()
        for value in choices(field.annotation)
    ]


@pytest.mark.slow  # hundreds of runs
@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")
@pytest.mark.filterwarnings("ignore::probe.ProbeWarning")
@pytest.mark.parametrize(("name", "option", "value"), each_choice())
def test_each_choice_gives_a_table_or_a_reason(name: str, option: str, value: Any) -> None:
    try:
        result = ask(name, **{option: value})
    except ProbeError as error:
        assert error.expected or error.remedy, error
        return
    assert len(result.plot().data) > 0
    assert json.loads(result.provenance.model_dump_json())["passed"][option] == value


def test_choices_are_found_wherever_they_stand() -> None:
    class Options(BaseModel):
        a: Literal["x", "y"]
        b: list[Literal[1]] | None
        c: bool
        d: int

    fields = Options.model_fields
    found = [choices(field.annotation) for field in fields.values()]
    assert found == [["x", "y"], [[1]], [True, False], []]
