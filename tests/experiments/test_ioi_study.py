"""The studies of indirect objects: verdicts on made-up numbers, knock-outs against brute force."""

import re
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import ioi_classes
import ioi_parts
import pytest
import torch
from ioi_parts import NAMED, PLACES, Prompts

import probe


@pytest.fixture(scope="module")
def wild() -> ModuleType:
    return import_module("ioi_wild")


@pytest.fixture(scope="module")
def heads() -> ModuleType:
    return import_module("ioi_heads")


# --- verdicts ------------------------------------------------------------------------------------


def close_to(value: float) -> Any:
    return probe.over_examples([value - 0.01, value, value + 0.01], of="prompts")


@pytest.mark.parametrize(
    ("kept", "share", "verdict"),
    [
        (0.95, 0.14, "reproduced"), (0.7, 0.14, "partly"), (1.4, 0.14, "partly"),
        (0.4, 0.14, "not reproduced"), (0.95, 0.3, "not reproduced"),
    ],
)  # fmt: skip
def test_a_circuit_must_be_faithful_and_small(
    wild: ModuleType, kept: float, share: float, verdict: str
) -> None:
    said = {"F(C) / F(M)": close_to(kept), "heads in the circuit, share": probe.exactly(share)}
    assert wild.FAITHFUL.judge(said).verdict == verdict


def test_a_gap_that_half_of_the_sets_have_is_incomplete(wild: ModuleType) -> None:
    name = "incompleteness, median of random K / F(M)"
    whole, apart = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([-1.0, 0.0, 1.0])
    few = torch.stack([whole, apart + 3, apart, apart], dim=1)
    many = torch.stack([whole, apart + 3, apart - 3, apart], dim=1)
    worst = wild.gap(few, lambda gaps: gaps.max())
    assert worst.value == pytest.approx(0.6)
    assert wild.gap(few, median).value == 0
    assert wild.gap(many, median).value == pytest.approx(0.6)
    assert wild.COMPLETE.judge({name: wild.gap(many, median)}).verdict == "not reproduced"


def median(gaps: Any) -> float:
    return float(sorted(gaps)[len(gaps) // 2])


def test_a_control_that_changes_too_spoils_the_adversarial_claim(wild: ModuleType) -> None:
    fall, control = "fall with IO named again, share", "change with S named again, share"
    for changed, verdict in ((0.05, "reproduced"), (0.3, "not reproduced")):
        found = wild.MISLED.judge({fall: close_to(0.6), control: close_to(changed)})
        assert found.verdict == verdict
    found = wild.MISLED.judge({fall: close_to(0.2), control: close_to(0.05)})
    assert found.verdict == "not reproduced"


@pytest.mark.parametrize(
    ("movers", "verdict"), [(2, "reproduced"), (1, "partly"), (0, "not reproduced")]
)
def test_a_name_mover_looks_at_the_receiver_and_copies(
    heads: ModuleType, movers: int, verdict: str
) -> None:
    looks, hits = torch.full((4, 2, 3), 0.1), torch.zeros(4, 2, 3, 2)
    looks[:, 0, 0] = 0.9  # looks and does not copy
    hits[:, 0, 1, 0] = 1.0  # copies and does not look
    hits[:, 0, 2, 1] = 1.0
    looks[:, 1, :movers], hits[:, 1, :movers, 0] = 0.5, 1.0
    found = {"name mover": [(1, 0)], "negative name mover": [(0, 2)]}
    said = heads.movers(looks, hits, found)
    assert said["name movers"].value == movers
    assert said["negative copy score of negative ones"].value == 1
    assert heads.MOVERS.judge(said).verdict == verdict


def test_without_inhibiting_heads_nothing_is_reproduced(heads: ModuleType) -> None:
    said = heads.inhibition(None, {"S-inhibition": []})
    assert heads.INHIBITION.judge(said).verdict == "not reproduced"


# --- prompts -------------------------------------------------------------------------------------

PAIR = probe.Prompt(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupted="When Anna and Tom went to the store, Paul gave a drink to",
    answer=" Mary", wrong_answer=" John",
    tags={"order": "ABBA", "place": "store", "object": "drink", "template": "0"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("signal", "names"),
    [("place", "John Mary John"), ("token", "John Mary Mary"), ("both", "Mary John Mary")],
)
def test_one_signal_is_inverted_and_the_other_kept(signal: str, names: str) -> None:
    twin = ioi_parts.turned(probe.Task("ioi", (PAIR,)), signal).prompts[0]
    assert re.findall("Mary|John", str(twin.corrupted)) == names.split()
    assert re.sub("Mary|John", "_", str(twin.corrupted)) == re.sub("Mary|John", "_", twin.clean)


def test_the_sentence_between_names_whom_it_should() -> None:
    other = PAIR.model_copy(update={"answer": " Kate"})
    task = probe.Task("ioi", (PAIR, other))
    count = {
        about: [
            str(ioi_parts.retold(task, about).prompts[0].clean).count(name)
            for name in ("Mary", "John", "Kate")
        ]
        for about in ("", "IO", "S", "third")
    }
    assert count == {"": [1, 2, 0], "IO": [2, 2, 0], "S": [1, 3, 0], "third": [1, 2, 1]}


# --- knock-outs on the toy model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    model = probe.load_model("toy")
    return Prompts.draw(model, 5, seed=0, means=ioi_parts.template_means(model, each=3, seed=1))


@pytest.mark.slow
def test_names_stand_where_they_are_said_to(prompts: Prompts) -> None:
    for row, prompt in enumerate(prompts.encoded.task.prompts):
        words = [word.strip() for word in prompts.encoded.str_tokens(row)]
        io, s, after, again, end = prompts.at[row].tolist()
        assert words[io] == str(prompt.answer).strip()
        assert words[s] == words[again] == str(prompt.wrong_answer).strip()
        assert (after, end) == (s + 1, len(words) - 1)
        assert s < again
    assert prompts.stands.sum(-1).eq(1).all()


@pytest.mark.slow
def test_means_are_over_prompts_of_the_template_with_other_names(prompts: Prompts) -> None:
    model = prompts.model
    task = probe.load_task("ioi", n=120, seed=1, corruption="abc").fit(model.tokenizer)
    for row, prompt in enumerate(prompts.encoded.task.prompts):
        same = [one for one in task.prompts if one.tags["template"] == prompt.tags["template"]][:3]
        texts = [str(one.corrupted) for one in same]
        assert all(len(set(re.findall("[A-Z][a-z]+", text)[-3:])) == 3 for text in texts)
        z = torch.stack([model.trace(text, ["z"])["z"][:, 0] for text in texts]).mean(0)
        torch.testing.assert_close(prompts.means[:, row, : z.shape[1]], z, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_knocking_out_is_setting_to_the_mean(prompts: Prompts) -> None:
    assert torch.equal(prompts.circuit(prompts.whole), prompts.differences())
    out = ~prompts.whole
    out[1, 2, NAMED.index("S2")] = out[0, 1, NAMED.index("END")] = True
    brute = [
        probe.patch("z.1", prompts.means[1], head=2, pos=prompts.at[:, NAMED.index("S2")]),
        probe.patch("z.0", prompts.means[0], head=1, pos=-1),
    ]
    expected = prompts.differences(brute)
    torch.testing.assert_close(prompts.differences(prompts.without(out)), expected)
    assert not torch.allclose(expected, prompts.differences())
    torch.testing.assert_close(prompts.circuit(~out), expected)
    nothing = [probe.patch(f"z.{layer}", prompts.means[layer]) for layer in range(2)]
    torch.testing.assert_close(prompts.circuit(~prompts.whole), prompts.differences(nothing))
    few = prompts.first(2)
    torch.testing.assert_close(few.differences(few.without(out)), expected[:2])


@pytest.mark.slow
def test_what_nodes_bring_sums_to_what_they_do_together(prompts: Prompts) -> None:
    nodes = prompts.whole
    nodes[0, 2] = nodes[1, :, PLACES.index("elsewhere")] = False
    brings = prompts.shares(nodes, 40)
    together = prompts.circuit(nodes).mean() - prompts.circuit(~prompts.whole).mean()
    assert float(brings.sum()) == pytest.approx(float(together), rel=0.02)
    assert brings[~nodes].abs().max() == 0


@pytest.mark.slow
def test_the_rule_keeps_few_heads_and_drops_only_what_does_little(prompts: Prompts) -> None:
    found, note = ioi_parts.find_circuit(prompts, steps=2)
    assert ioi_parts.heads_of(found) <= 1
    assert note.startswith("found on 5 other prompts")
    node = int(found.flatten().nonzero()[0])
    changes = ioi_parts.knock_out(prompts, found, node, enough=0.0)
    expected = prompts.circuit(found) - prompts.circuit(found & ~ioi_parts.one_node(found, node))
    assert torch.equal(changes[0], expected)


@pytest.mark.slow
def test_what_heads_write_is_what_they_move_from_all_tokens(prompts: Prompts) -> None:
    without_means = replace(prompts, means=torch.zeros_like(prompts.means))
    moved = probe.run(
        "attention_contribution", model=prompts.model, task=prompts.encoded.task,
        measure="logit_diff",
    ).frame  # fmt: skip
    expected = moved.groupby(["batch", "layer", "head"])["value"].sum().to_numpy()
    ours = ioi_classes.writes(without_means).flatten()
    torch.testing.assert_close(ours, torch.tensor(expected).to(ours), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_copied_name_is_among_the_first_five(prompts: Prompts) -> None:
    model, hits = prompts.model, ioi_classes.copies(prompts)
    layer, head, row = 1, 3, 2
    resid = model.trace(prompts.encoded, ["resid_post.0"])["resid_post.0"][row, prompts.at[row, 0]]
    read = model.read_in(layer, "v", resid.expand(model.dims.n_kv_heads, -1))
    z = torch.zeros(model.dims.n_heads, model.dims.d_head)
    z[head] = read[head // model.dims.heads_per_kv]
    written = model.head_outputs(layer, z).sum(0)
    for column, sign in enumerate((1, -1)):
        first = model.unembed(sign * written).topk(5).indices
        assert bool(hits[row, layer, head, column]) == (prompts.encoded.answers[row] in first)


# --- whole studies -------------------------------------------------------------------------------


def on_toy(wild: ModuleType) -> Any:
    return wild.ioi_wild.run({**wild.QUICK, "model": "toy"})


@pytest.mark.slow
def test_where_the_gate_is_shut_nothing_is_explained(wild: ModuleType) -> None:
    found = on_toy(wild)
    assert set(found.findings.frame["verdict"]) == {"not reproduced", "left out"}
    assert found.findings.frame["claim"].nunique() == 6
    assert not found.exhibits


@pytest.mark.slow
def test_the_circuit_study_runs_whole(wild: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    share = "IO over S, share of prompts"
    gate = replace(wild.BEHAVIOUR, reproduced={share: probe.at_least(0)})
    monkeypatch.setattr(wild, "BEHAVIOUR", gate)
    outcome = on_toy(wild)
    value = outcome.findings.frame.set_index("measure")["value"]
    (nodes,) = (result.frame for result in outcome.exhibits.values())
    assert value["nodes in the circuit"] == len(nodes)
    assert value["heads in the circuit"] == len(nodes[["layer", "head"]].drop_duplicates()) <= 1
    assert value["incompleteness, worst random K / F(M)"] >= value[
        "incompleteness, median of random K / F(M)"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_study_of_heads_runs_whole(heads: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ioi_classes, "LOOKS", 0.02)
    monkeypatch.setattr(ioi_classes, "COPIES", 0.0)
    monkeypatch.setattr(ioi_classes, "ACTS", -10.0)
    outcome = heads.ioi_heads.run({"model": "toy", "reference": 2, "find": 3, "n": 3})
    classes, table = (result.frame for result in outcome.exhibits.values())
    listed = {row["class"]: row.smollm2.split() for _, row in classes.iterrows()}
    for kind, rows in table.groupby("class"):
        assert rows["name"].tolist() == listed[str(kind)]
    assert listed["name mover"]
    assert listed["S-inhibition"]
    assert outcome.findings.frame["value"].notna().all()
