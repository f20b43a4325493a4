"""Where a fact about an athlete can be read in SmolLM2: by layer, on athletes never probed.

Nanda et al. 2023 found that the sport of an athlete of several name tokens is looked up by early
MLPs at the last name token, and linearly readable from then on. Here the same question is put to a
model of 135 million parameters, which knows few athletes: those it gets right are kept, as many of
each sport, and probes are judged on athletes they have not seen, at the layer that is best for the
others. The published prompt has one other athlete before it; with that this model gets only three
of the least known sport right (tried; eight without), so here it has none.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

import probe

TEMPLATE = "Fact: {name} plays the sport of"
EARLY = 0.35
"""Share of the depth before which the look-up is said to be done."""
POST = "Fact Finding, post"
ATHLETES = {
    " basketball": """Michael Jordan; LeBron James; Kobe Bryant; Shaquille O'Neal; Magic Johnson;
        Larry Bird; Tim Duncan; Stephen Curry; Kevin Durant; Allen Iverson; Dirk Nowitzki; Yao Ming;
        Charles Barkley; Scottie Pippen; Dennis Rodman; Karl Malone; John Stockton; Patrick Ewing;
        Kareem Abdul-Jabbar; Wilt Chamberlain; Bill Russell; Julius Erving; Dwyane Wade;
        Carmelo Anthony; Russell Westbrook; James Harden; Kawhi Leonard; Damian Lillard; Chris Paul;
        Dwight Howard; Kevin Garnett; Paul Pierce; Ray Allen; Steve Nash; Jason Kidd; Tony Parker;
        Manu Ginobili; Pau Gasol; Vince Carter; Tracy McGrady; Reggie Miller; Clyde Drexler;
        Hakeem Olajuwon; David Robinson; Isiah Thomas; Moses Malone; Jerry West; Oscar Robertson;
        Elgin Baylor; Giannis Antetokounmpo; Nikola Jokic; Luka Doncic; Joel Embiid;
        Anthony Davis; Kyrie Irving; Klay Thompson; Draymond Green; Jimmy Butler; Jayson Tatum;
        Derrick Rose""",
    " football": """Tom Brady; Peyton Manning; Eli Manning; Joe Montana; Jerry Rice; Emmitt Smith;
        Barry Sanders; Walter Payton; Jim Brown; Lawrence Taylor; Brett Favre; Aaron Rodgers;
        Drew Brees; Patrick Mahomes; Russell Wilson; Ben Roethlisberger; Troy Aikman; Steve Young;
        Dan Marino; John Elway; Terry Bradshaw; Johnny Unitas; Roger Staubach; Joe Namath;
        Randy Moss; Terrell Owens; Marshall Faulk; LaDainian Tomlinson; Adrian Peterson;
        Marshawn Lynch; Ray Lewis; Ed Reed; Troy Polamalu; J.J. Watt; Richard Sherman;
        Darrelle Revis; Rob Gronkowski; Tony Gonzalez; Antonio Gates; Larry Fitzgerald;
        Calvin Johnson; Julio Jones; Antonio Brown; Odell Beckham; Cam Newton; Andrew Luck;
        Philip Rivers; Matt Ryan; Tony Romo; Dak Prescott; Josh Allen; Lamar Jackson; Derrick Henry;
        Saquon Barkley; Christian McCaffrey; Travis Kelce; Von Miller; Khalil Mack; Aaron Donald;
        Dick Butkus""",
    " baseball": """Babe Ruth; Jackie Robinson; Hank Aaron; Willie Mays; Mickey Mantle;
        Joe DiMaggio; Ted Williams; Lou Gehrig; Ty Cobb; Cy Young; Derek Jeter; Alex Rodriguez;
        Barry Bonds; Mark McGwire; Sammy Sosa; Ken Griffey; Roger Clemens; Nolan Ryan;
        Randy Johnson; Pedro Martinez; Mariano Rivera; David Ortiz; Manny Ramirez; Albert Pujols;
        Miguel Cabrera; Mike Trout; Bryce Harper; Clayton Kershaw; Justin Verlander; Max Scherzer;
        Ichiro Suzuki; Cal Ripken; Tony Gwynn; Wade Boggs; George Brett; Pete Rose; Johnny Bench;
        Reggie Jackson; Roberto Clemente; Sandy Koufax; Bob Gibson; Tom Seaver; Steve Carlton;
        Greg Maddux; Tom Glavine; John Smoltz; Chipper Jones; Frank Thomas; Jeff Bagwell;
        Craig Biggio; Ryan Howard; Chase Utley; Buster Posey; Madison Bumgarner; Mookie Betts;
        Aaron Judge; Giancarlo Stanton; Shohei Ohtani; Yogi Berra; Satchel Paige""",
}
TEXTS = (
    "The committee met for the third time on Tuesday, and after a long and rather bitter argument "
    "about the cost of the new bridge it agreed to ask the engineers for another plan",
    "When the rain stopped at last we walked down to the harbour, where the fishermen were already "
    "mending their nets and shouting to each other across the water about the price of cod",
    "In the second half of the century the population of the valley doubled, mostly because the "
    "railway had made it possible to sell fruit and wine in the cities of the north",
    "She opened the letter slowly, read it twice, folded it along the old creases and put it back "
    "into the drawer, and nobody in the room dared to ask her who had written it",
    "A cell keeps most of its instructions in the nucleus, from which copies are carried out into "
    "the rest of the cell, where small machines read them and build proteins one by one",
    "Although the first edition of the book sold badly, a short review in a Paris newspaper made "
    "it famous, and within two years it had been translated into eleven languages",
    "To make the soup, cut the onions into thin slices, cook them in butter over a low heat until "
    "they are golden brown, then add the stock, the wine and a little pepper",
    "The museum bought the painting in the belief that it was a copy, but when the varnish was "
    "removed last winter a date and a signature appeared in the lower left corner",
    "Most of the water that falls on these hills runs off within a day, so the farmers have built "
    "stone walls across the slopes which slow it down and hold back the soil",
    "He had been a clerk for thirty years before he discovered that he could sing, and he gave his "
    "first concert in the town hall on the evening of his sixtieth birthday",
)
CONTEXT = 5

READABLE = probe.Claim(
    "what an athlete plays can be read off linearly, on athletes never probed",
    published="86 % with five early MLPs, on athletes the model knows (Pythia 2.8B)",
    source=f"{POST} 3", mark="read",
    rule="held-out entities, chance 33 %; R: ≥ 75 %; P: ≥ 55 %",
    reproduced={"accuracy at the best layer": probe.at_least(0.75)},
    partly={"accuracy at the best layer": probe.at_least(0.55)},
)  # fmt: skip
LOOKED_UP = probe.Claim(
    "the look-up is done by early MLPs at the last name token",
    published="attention 0-1 joins the names, MLPs 2-6 of 32 look up",
    source=f"{POST}s 1 and 2", mark="read",
    rule="R: ≥ 70 % of the rise from chance comes before 35 % of the depth, and MLP outputs there "
    "tell more than attention outputs",
    reproduced={"share of the rise that is early": probe.at_least(0.7),
                "accuracy of MLP less attention outputs": probe.at_least(0.0)},
)  # fmt: skip
LOCAL = probe.Claim(
    "early layers are local",
    published="cutting the context costs early layers little, and the effect fades in by layer 10 "
    "of 32",
    source=f"{POST} 1 on post 5", mark="read",
    rule="R: cosine between states with all and with five tokens of context falls monotonically "
    "over the first third",
    reproduced={"layers of the first third at which it rises": probe.at_most(0)},
)  # fmt: skip


@probe.study(
    paper="Nanda et al. 2023, Fact Finding",
    full={"model": "smollm2", "step": 3},
    quick={"model": "smollm2", "step": 6},
)
def facts_smollm2(*, seed: int, model: str, step: int) -> Iterator[object]:
    """Keep what the model knows, probe by layer, compare states with short contexts."""
    loaded = probe.load_model(model)
    yield loaded
    layers = list(range(0, loaded.dims.n_layers, step))
    task, about = known(loaded, seed)
    found = {kind: probed(loaded, task, kind, layers, seed) for kind in KINDS}
    stream = found["resid_post"].pivot(index="batch", columns="layer", values="value")
    guess = found["resid_post"].groupby("batch")["chance"].mean()
    stream = stream.to_numpy()
    early = np.array([layer < EARLY * loaded.dims.n_layers for layer in layers])

    def rise(table: np.ndarray) -> float:
        curve, chance = table.mean(0), 1 / len(ATHLETES)
        whole = curve.max() - chance
        return (curve[early].max() - chance) / whole if whole > 0 else np.nan

    def best(table: np.ndarray) -> float:
        return table.mean(0).max()

    gap = found["mlp_out"]["value"] - found["attn_out"]["value"]
    gap = gap[found["mlp_out"]["layer"] < EARLY * loaded.dims.n_layers]
    gaps = gap.groupby(found["mlp_out"]["batch"]).mean()
    yield READABLE.judge(
        {
            "accuracy at the best layer": probe.over_examples(
                at_the_others_best(stream), of="athletes"
            ),
            "the same, chosen on the same athletes": probe.over_examples(
                stream, best, of="athletes"
            ),
            "accuracy of the commonest sport of the others": probe.over_examples(
                guess, of="athletes"
            ),
        },
        note=about,
    )
    yield LOOKED_UP.judge(
        {
            "share of the rise that is early": probe.over_examples(stream, rise, of="athletes"),
            "accuracy of MLP less attention outputs": probe.over_examples(gaps, of="athletes"),
        }
    )
    cosines = locality(loaded)
    third = np.stack(cosines["value"].groupby(cosines["batch"]).apply(np.array))
    third = third[:, : 1 + loaded.dims.n_layers // 3]
    yield LOCAL.judge(
        {
            "layers of the first third at which it rises": probe.over_examples(
                third, lambda table: (np.diff(table.mean(0)) > 0).sum(), of="texts"
            )
        }
    )
    yield probe.Exhibit(
        "Accuracy of a linear probe at the last name token, by layer",
        pd.concat([part.assign(kind=kind) for kind, part in found.items()])[
            ["batch", "layer", "kind", "value", "control", "chance"]
        ],
        {
            "batch": "athlete", "layer": "layer", "kind": "site",
            "value": "1 where the sport of a held-out athlete is right, 0 elsewhere",
            "control": "the same for sports dealt anew", "chance": "the same for the commonest",
        },
        probe.View(kind="line", x="layer", y="value", color="kind", scale="share"),
    )  # fmt: skip
    yield probe.Exhibit(
        "Cosine of states with all and with five tokens of context", cosines,
        {"batch": "text", "layer": "layer", "value": "cosine at the last token"},
        probe.View(kind="line", x="layer", y="value", scale="share"),
    )  # fmt: skip


KINDS = ("resid_post", "mlp_out", "attn_out")


def at_the_others_best(right: np.ndarray) -> np.ndarray:
    """Whether each athlete is told right at the layer that is best for all others; rows athletes.

    >>> at_the_others_best(np.array([[1, 0], [1, 0], [0, 1]]))
    array([1, 1, 0])
    """
    layers = (right.sum(0) - right).argmax(1)
    return right[np.arange(len(right)), layers]


def known(model: probe.Model, seed: int) -> tuple[probe.Task, str]:
    """Athletes of several name tokens whose sport the model prefers, as many of each sport."""
    pairs = [
        {"clean": TEMPLATE.format(name=name), "answer": sport, "tags": {"name": name}}
        for sport, text in ATHLETES.items()
        for name in (" ".join(part.split()) for part in text.split(";"))
        if len(model.tokenizer.encode(f" {name}")) > 1
    ]
    encoded = probe.Task.from_pairs(pairs).encode(model)
    logits = model.forward(encoded.clean, lengths=encoded.lengths, last_only=True)
    sports = [model.tokenizer.need_single(sport) for sport in ATHLETES]
    right = torch.tensor(sports)[logits[:, sports].argmax(1).cpu()] == encoded.need_answers()
    by_sport = {
        sport: [row for row, pair in enumerate(pairs) if pair["answer"] == sport and right[row]]
        for sport in ATHLETES
    }
    counts = {sport.strip(): len(rows) for sport, rows in by_sport.items()}
    rng, least = random.Random(seed), min(counts.values())
    kept = sorted(row for rows in by_sport.values() for row in rng.sample(rows, least))
    about = (
        f"of {len(pairs)} athletes of several name tokens the model tells the sport of "
        f"{int(right.sum())} ({', '.join(f'{sport} {n}' for sport, n in counts.items())}); "
        f"{least} of each sport are kept"
    )
    return probe.Task.from_pairs([pairs[row] for row in kept], name="athletes"), about


def probed(
    model: probe.Model, task: probe.Task, kind: str, layers: Sequence[int], seed: int
) -> pd.DataFrame:
    """The sport read at the last name token; each athlete stands in one prompt only."""
    return probe.run(
        "linear_probe", model=model, task=task, label="{answer}", groups="{name}", kind=kind,
        at="{name}", layers=list(layers), seed=seed,
    ).frame  # fmt: skip


def locality(model: probe.Model) -> pd.DataFrame:
    """Cosine, by layer, of the last token's states with all and with five tokens of context."""
    rows = []
    for batch, text in enumerate(TEXTS):
        tokens = torch.tensor([model.tokenizer.encode(text)])
        whole, part = (
            model.trace(ids, "resid_post", positions=[-1])["resid_post"].flatten(1)
            for ids in (tokens, tokens[:, -CONTEXT:])
        )
        cosine = torch.nn.functional.cosine_similarity(whole, part).tolist()
        rows += [{"batch": batch, "layer": layer, "value": one} for layer, one in enumerate(cosine)]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    facts_smollm2.main()
