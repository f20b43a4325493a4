"""Locating facts in SmolLM2 by causal tracing: noise on the subject, one clean state put back.

Meng et al. 2022 traced 1000 statements in GPT-2 XL (48 layers). Here the statements are of cities:
"The city of NAME is in the country of", those of several name tokens whose country has a
probability of at least 0.2 (of athletes and sports, 1 of 180 has). Declared before measuring: MLP
and attention outputs are restored in windows of ten layers, as published, which is a third of this
model's depth; every third layer is traced (every sixth at first), with ten draws of noise a fact;
depth is (layer + 1/2) over the number of layers. The published measure is the probability of the
answer; of the residual stream the logit difference to the likeliest other country is traced too.

probe reproduce rome_smollm2 [--quick]
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

import probe

TEMPLATE = "The city of {name} is in the country of"
CITIES = {
    " Spain": """Barcelona; Seville; Valencia; Zaragoza; Malaga; Bilbao; Granada; Salamanca;
        Toledo; Cordoba""",
    " France": """Marseille; Toulouse; Bordeaux; Strasbourg; Grenoble; Montpellier; Nantes; Lyon;
        Avignon; Dijon""",
    " Germany": """Munich; Hamburg; Stuttgart; Cologne; Frankfurt; Leipzig; Dresden; Nuremberg;
        Bremen; Heidelberg""",
    " Italy": "Milan; Naples; Turin; Florence; Venice; Bologna; Palermo; Genoa; Verona; Padua",
    " Japan": "Osaka; Kyoto; Yokohama; Nagoya; Sapporo; Hiroshima; Nagasaki; Fukuoka; Kobe; Sendai",
    " China": """Shanghai; Guangzhou; Shenzhen; Chengdu; Wuhan; Nanjing; Hangzhou; Chongqing;
        Tianjin; Xi'an""",
    " India": """Mumbai; Kolkata; Chennai; Bangalore; Hyderabad; Ahmedabad; Jaipur; Lucknow;
        Varanasi; Pune""",
    " Brazil": """Rio de Janeiro; São Paulo; Salvador; Brasília; Recife; Fortaleza; Porto Alegre;
        Curitiba; Manaus; Belo Horizonte""",
    " Canada": """Toronto; Vancouver; Montreal; Calgary; Winnipeg; Edmonton; Halifax; Saskatoon;
        Regina; Ottawa""",
    " Australia": """Melbourne; Brisbane; Adelaide; Canberra; Darwin; Hobart; Perth; Sydney; Cairns;
        Newcastle""",
    " Mexico": """Guadalajara; Monterrey; Tijuana; Acapulco; Oaxaca; Puebla; Veracruz; Mérida;
        Cancún; Querétaro""",
    " Russia": """Saint Petersburg; Novosibirsk; Vladivostok; Kazan; Volgograd; Yekaterinburg;
        Murmansk; Omsk; Samara; Irkutsk""",
    " Poland": """Krakow; Gdansk; Wroclaw; Poznan; Lodz; Lublin; Katowice; Szczecin; Warsaw;
        Bydgoszcz""",
    " Turkey": """Istanbul; Ankara; Izmir; Antalya; Bursa; Trabzon; Konya; Adana; Gaziantep;
        Diyarbakir""",
    " Egypt": "Alexandria; Giza; Luxor; Aswan; Cairo; Port Said; Suez; Ismailia; Tanta; Hurghada",
    " Argentina": """Buenos Aires; Rosario; Mendoza; La Plata; Ushuaia; Bariloche; Salta; Mar del
        Plata; Tucumán; Neuquén""",
    " Portugal": "Lisbon; Porto; Coimbra; Braga; Faro; Évora; Funchal; Aveiro; Setúbal; Guimarães",
    " Greece": """Athens; Thessaloniki; Patras; Heraklion; Sparta; Corinth; Delphi; Rhodes;
        Larissa; Volos""",
    " Nigeria": """Lagos; Abuja; Kano; Ibadan; Port Harcourt; Benin City; Enugu; Kaduna; Maiduguri;
        Jos""",
    " Pakistan": """Karachi; Lahore; Islamabad; Peshawar; Multan; Faisalabad; Quetta; Rawalpindi;
        Sialkot; Gujranwala""",
}
SOURCE = "Meng et al. 2022"
LEAST = 0.2
"""Probability of the answer that a fact must have."""
SUBJECT = ("first subject", "middle subject", "last subject")
SMALL = 1e-6
"""No effect at all, to divide by."""
STATES = ("resid_post", "mlp_out", "attn_out")

TOTAL = probe.Claim(
    "noise on the subject spoils the answer", published="average total effect 18.6 %",
    source=f"{SOURCE}, §2.2", mark="read", rule="report: it depends on the base probability",
)  # fmt: skip
EARLY_SITE = probe.Claim(
    "early site: at the last subject token, in middle layers",
    published="average indirect effect 8.7 % of 18.6 at layer 15 (31 % of the depth)",
    source=f"{SOURCE}, §2.2, Fig. 2a", mark="read",
    rule="≥100 facts with P ≥ 0.2; R: largest at the last subject token, at 15 to 60 % of the "
    "depth, ≥25 % of the total effect, ≥2 × any other subject position; P: the place only",
    reproduced={
        "depth of the largest": probe.between(0.15, 0.60),
        "share of the total effect": probe.at_least(0.25),
        "last subject token / other subject tokens": probe.at_least(2),
        "facts": probe.at_least(100),
    },
    partly={
        "depth of the largest": probe.between(0.15, 0.60),
        "last subject token / other subject tokens": probe.at_least(1),
    },
)  # fmt: skip
MLPS = probe.Claim(
    "MLP outputs carry it there, not attention", published="6.6 % against 1.6 %", source=SOURCE,
    mark="read", rule="largest at the last subject token, R: ratio ≥ 2; P: ≥ 1.3",
    reproduced={"MLP / attention": probe.at_least(2)},
    partly={"MLP / attention": probe.at_least(1.3)},
)  # fmt: skip
LATE_SITE = probe.Claim(
    "attention matters at the last token, in late layers", published="qualitative",
    source=f"{SOURCE}, Fig. 2c, 3", mark="read",
    rule="R: attention at the last token peaks in the last 60 % of the depth and exceeds its value "
    "at the last subject token",
    reproduced={
        "depth of the peak": probe.at_least(0.4),
        "last token / last subject token": probe.at_least(1),
    },
)  # fmt: skip


@probe.study(
    paper="Meng et al. 2022, Locating and Editing Factual Associations in GPT",
    full={"model": "smollm2", "facts": 102, "every": 3, "draws": 10},
    quick={"model": "smollm2", "facts": 4, "every": 10, "draws": 2},
)
def rome_smollm2(*, seed: int, model: str, facts: int, every: int, draws: int) -> Iterator[Any]:
    """Choose facts the model knows, then trace three kinds of states."""
    loaded = probe.load_model(model)
    yield loaded
    tasks, about = known(loaded, facts)
    how = {"subject": "{name}", "layers": list(range(0, loaded.dims.n_layers, every))}
    how |= {"draws": draws, "seed": seed, "parts": [*SUBJECT, "last"]}
    traced = {kind: trace(loaded, tasks, kind=kind, **how) for kind in STATES}
    by_logits = trace(loaded, tasks, kind="resid_post", metric="logit_diff", **how)
    yield from judged(traced, by_logits, loaded.dims.n_layers, about)
    yield shown(traced)


def known(model: probe.Model, wanted: int) -> tuple[list[probe.Task], str]:
    """The first cities of each country that the model knows well enough, by length of prompt."""
    asked = [
        {"clean": TEMPLATE.format(name=name), "answer": country, "tags": {"name": name}}
        for country, text in CITIES.items()
        for name in (" ".join(part.split()) for part in text.split(";"))
        if len(model.tokenizer.encode(f" {name}")) > 1
    ]
    encoded = probe.Task.from_pairs(asked).encode(model)
    logits = model.forward(encoded.clean, lengths=encoded.lengths, last_only=True)
    logits = logits.float().cpu()
    chance = logits.softmax(-1).gather(-1, encoded.need_answers()[:, None])
    countries = list(CITIES)
    among = logits[:, [model.tokenizer.encode(country)[0] for country in countries]]
    for row, of in zip(asked, among, strict=True):
        of[countries.index(row["answer"])] = -np.inf
        row["wrong_answer"] = countries[int(of.argmax())]
    sure = [row for row in range(len(asked)) if chance[row] >= LEAST]
    ranks: dict[int, int] = {}
    for country in CITIES:
        mine = [row for row in sure if asked[row]["answer"] == country]
        ranks |= {row: rank for rank, row in enumerate(mine)}
    kept = sorted(ranks, key=lambda row: (ranks[row], row))[:wanted]
    lengths = encoded.lengths.tolist()
    tasks = [
        probe.Task.from_pairs([asked[row] for row in kept if lengths[row] == length], name="cities")
        for length in sorted({lengths[row] for row in kept})
    ]
    about = (
        f"{len(sure)} of {len(asked)} cities of several tokens have P ≥ {LEAST}; {len(kept)} are "
        "traced"
    )
    return tasks, about


def trace(model: probe.Model, tasks: list[probe.Task], **how: Any) -> pd.DataFrame:
    """Facts of all tasks in one table; those of one length are traced together."""
    parts, seen = [], 0
    for task in tasks:
        frame = probe.run("causal_tracing", model=model, task=task, **how).frame
        parts.append(frame.assign(batch=frame["batch"] + seen))
        seen += len(task)
    return pd.concat(parts, ignore_index=True)


def judged(
    traced: dict[str, pd.DataFrame], by_logits: pd.DataFrame, n_layers: int, about: str
) -> Iterator[Any]:
    """The verdicts, each resampled over facts."""
    tables = {kind: Effects(frame, n_layers) for kind, frame in traced.items()}
    stream, mlp, attention = (tables[kind] for kind in ("resid_post", "mlp_out", "attn_out"))
    logits = Effects(by_logits, n_layers)

    yield TOTAL.judge(
        {
            "average total effect": over(np.mean, stream.total),
            "probability of the answer": over(np.mean, stream.clean),
            "average total effect, logit difference": over(np.mean, logits.total),
        },
        about,
    )

    yield EARLY_SITE.judge(
        early_site(stream)
        | {"facts": probe.exactly(len(stream.table))}
        | {f"{name}, logit difference": one for name, one in early_site(logits).items()}
    )
    both = np.hstack([mlp.table, attention.table])
    width = mlp.table.shape[1]
    yield MLPS.judge(
        {
            "MLP / attention": over(
                lambda table: (
                    mlp.largest(table[:, :width], "last subject")
                    / attention.largest(table[:, width:], "last subject")
                ),
                both,
            ),
            "MLP": over(lambda table: mlp.largest(table, "last subject"), mlp.table),
            "attention": over(
                lambda table: attention.largest(table, "last subject"), attention.table
            ),
        }
    )
    yield LATE_SITE.judge(
        {
            "depth of the peak": over(
                lambda table: attention.depth(table, "last"), attention.table
            ),
            "last token / last subject token": over(
                lambda table: (
                    attention.largest(table, "last") / attention.largest(table, "last subject")
                ),
                attention.table,
            ),
        }
    )


def over(statistic: Callable[[np.ndarray], Any], table: np.ndarray) -> Any:
    """A statistic over facts, with its interval."""
    return probe.over_examples(table, statistic, of="facts")


def early_site(found: "Effects") -> dict[str, Any]:
    """Where a state put back at the last subject token does most, and how much that is."""

    def share(table: np.ndarray) -> float:
        return found.largest(table[:, 1:], "last subject") / table[:, 0].mean()

    def against_others(table: np.ndarray) -> float:
        others = max(found.largest(table, part) for part in SUBJECT[:2])
        return found.largest(table, "last subject") / max(others, SMALL)

    return {
        "depth of the largest": over(lambda table: found.depth(table, "last subject"), found.table),
        "share of the total effect": over(share, np.column_stack([found.total, found.table])),
        "last subject token / other subject tokens": over(against_others, found.table),
    }


class Effects:
    """Indirect effects as a table: a row a fact, a column each part and layer."""

    def __init__(self, frame: pd.DataFrame, n_layers: int) -> None:
        wide = frame.pivot_table(index="batch", columns=["part", "layer"], values="value")
        self.columns, self.table, self.n_layers = wide.columns, wide.to_numpy(), n_layers
        of_fact = frame.groupby("batch")[["total", "clean"]].first()
        self.total, self.clean = of_fact["total"].to_numpy(), of_fact["clean"].to_numpy()

    def mean(self, table: np.ndarray, part: str) -> dict[int, float]:
        """Mean effect by layer; of a part that some facts have not, over the others."""
        found = {}
        for place, (name, layer) in enumerate(self.columns):
            column = table[:, place]
            known = column[~np.isnan(column)]
            if name == part and len(known):
                found[layer] = known.mean()
        return found or {0: 0.0}

    def largest(self, table: np.ndarray, part: str) -> float:
        """The largest mean effect of a layer."""
        return float(max(self.mean(table, part).values()))

    def depth(self, table: np.ndarray, part: str) -> float:
        """Where that layer is, as a share of the depth."""
        means = self.mean(table, part)
        return (max(means, key=means.__getitem__) + 0.5) / self.n_layers


def shown(traced: dict[str, pd.DataFrame]) -> probe.Exhibit:
    """Mean effect by part and layer."""
    frame = pd.concat([part.assign(kind=kind) for kind, part in traced.items()])
    frame = frame.groupby(["kind", "part", "layer"], as_index=False)["value"].mean()
    columns = {
        "kind": "state restored", "part": "what the position is to the subject",
        "layer": "layer restored, the middle of the window",
        "value": "mean indirect effect, probability of the answer",
    }  # fmt: skip
    view = probe.View(kind="heatmap", x="part", y="layer", color="value", facet="kind")
    return probe.Exhibit("Indirect effects by part of the prompt", frame, columns, view)


if __name__ == "__main__":
    rome_smollm2.main()
