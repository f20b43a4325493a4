"""Circuit: which edges are enough for the answer, at every size, and what each node is worth."""

from typing import Any

import pandas as pd
import streamlit as st

import probe
from apps import context, empty, errors, jobs, library, panels, session
from apps.context import Context
from apps.jobs import Job
from apps.state import UrlState
from apps.views import circuit as views

TABLE_HEIGHT = 480


def controls(here: Context, chosen: views.Choice) -> None:
    """What ranks the edges, and how many are in."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        key = session.controlled("circuit-ranking", chosen.ranking)
        st.selectbox(
            "Edges ranked by",
            list(views.RANKINGS),
            format_func=views.RANKINGS.__getitem__,
            key=key,
            on_change=lambda: session.update(ranking=st.session_state["circuit-ranking"]),
            width=300,
        )
        key = session.controlled("circuit-size", chosen.size)
        st.select_slider(
            "Share of all edges",
            views.SIZES,
            format_func=lambda size: f"{float(size):.1%}",
            key=key,
            on_change=lambda: session.update(size=st.session_state["circuit-size"]),
            width=420,
        )


def by_hand(here: Context, chosen: views.Choice) -> None:
    """Nodes put in and taken out, whatever the ranking says."""
    nodes = list(probe.Graph.of(here.model.dims).senders[1:])
    with st.container(horizontal=True, gap="medium"):
        for field, words in (("added", "Nodes put in"), ("removed", "Nodes taken out")):
            key = session.controlled(f"circuit-{field}", list(getattr(chosen, field)))
            st.multiselect(
                words,
                nodes,
                key=key,
                placeholder="none",
                on_change=lambda f=field, k=key: session.update(
                    **{f: " ".join(st.session_state[k])}
                ),
            )


def verdict(here: Context, chosen: views.Choice, circuit: probe.Circuit, code: str) -> None:
    """Faithfulness of the circuit as it is now, and how it moved."""
    if not circuit.n_edges:
        st.caption("No edge is on a way from the input to the logits: choose a larger share.")
        return
    asked = panels.ask("faithfulness", here.state.model, here.pair, edges=circuit.edges)
    row = asked.result.frame.iloc[0]
    before = st.session_state.get("circuit-before")
    now = float(row["value"])
    moved = f"{now - before:+.1%}" if before is not None and before != now else None
    st.session_state["circuit-before"] = now
    made = panels.Asked(asked.result, f"{code}\n{chosen.code}")
    panels.header("Kept by this circuit", made, evidence="intervention", key="kept",
                  offer_table=False)  # fmt: skip
    with st.container(horizontal=True, gap="large"):
        st.metric("Faithfulness", f"{now:.1%}", moved, help=asked.result.columns["value"])
        st.metric("Logit difference", f"{row['raw']:.2f}", help=asked.result.columns["raw"])
        st.metric("Whole model", f"{row['full']:.2f}", help=asked.result.columns["full"])
        st.metric("No edge", f"{row['empty']:.2f}", help=asked.result.columns["empty"])
        st.metric("Edges", f"{circuit.n_edges} of {circuit.graph.n_edges}")


def picture(
    here: Context, chosen: views.Choice, ranked: panels.Asked, circuit: probe.Circuit
) -> None:
    """The circuit, node by node; a clicked node is selected."""
    result = views.drawn(ranked.result, circuit)
    made = panels.Asked(result, ranked.code)
    if panels.header("Its edges", made, evidence="gradient estimate", key="circuit"):
        kept = result.frame[result.frame["kept"]]
        strongest = kept.loc[kept["value"].abs().sort_values(ascending=False).index]
        panels.table(strongest, result, key="circuit-rows")
    elif circuit.n_edges:
        event = st.plotly_chart(
            result.plot(), key="circuit-figure", on_select="rerun", selection_mode="points"
        )
        node = views.picked(event.selection)
        if node and node != st.session_state.get("circuit-clicked"):
            st.session_state["circuit-clicked"] = st.session_state["circuit-node"] = node
    one_node(here, chosen, circuit)


def one_node(here: Context, chosen: views.Choice, circuit: probe.Circuit) -> None:
    """The selected node: take it out, put it back, or look at the head."""
    nodes = [name for name in circuit.nodes if name not in ("input", "logits")]
    offered = [*nodes, *(name for name in chosen.removed if name not in nodes)]
    if not offered:
        return
    if st.session_state.get("circuit-node") not in offered:
        st.session_state["circuit-node"] = offered[0]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        node = st.selectbox("Node", offered, key="circuit-node", width=160)
        out = node in chosen.removed
        st.button(
            "Put it back" if out else "Take it out",
            key="circuit-toggle",
            icon=":material/add:" if out else ":material/remove:",
            on_click=toggle,
            args=(chosen, node),
        )
        place = views.head_of(node)
        if place is not None:
            st.page_link(
                "screens/head.py",
                label=f"More of L{place[0]}H{place[1]}",
                icon=":material/arrow_forward:",
                query_params={**here.state.to_query(), "l": str(place[0]), "h": str(place[1])},
            )


def toggle(chosen: views.Choice, node: str) -> None:
    """Take a node out of the circuit, or put it back."""
    removed = [name for name in chosen.removed if name != node]
    added = [name for name in chosen.added if name != node]
    if node not in chosen.removed:
        removed.append(node)
    session.update(removed=" ".join(removed), added=" ".join(added))


# --- the curve, in the background ----------------------------------------------------------------


def curve_key(here: Context, chosen: views.Choice) -> str:
    """The code that makes the curve: what it is, in full."""
    options = {"rankings": [chosen.ranking, "random"], "select": "greedy"}
    return library.python("faithfulness", here.state.model, here.pair, options)


def begin(here: Context, chosen: views.Choice) -> None:
    """Run the circuits of every size, the small ones first."""
    loaded, question = library.load(here.state.model), here.pair

    def work(job: Job) -> bool:
        known = {float(result.frame["size"].iloc[0]) for result in job.found}
        left = [float(size) for size in views.SIZES if float(size) not in known]
        for number, size in enumerate(left):
            if job.stopping:
                return False
            options = {
                "rankings": [chosen.ranking, "random"], "sizes": [size], "select": "greedy",
            }  # fmt: skip
            job.found.append(
                library.run_heard(
                    "faithfulness", loaded, question, options, lambda *_: not job.stopping
                )
            )
            job.share = (number + 1) / len(left)
        return True

    jobs.manager().submit(curve_key(here, chosen), work)


def curve(here: Context, chosen: views.Choice, seen: UrlState, watched: bool) -> None:
    """Faithfulness over size as far as it is known."""
    job = jobs.manager().get(curve_key(here, chosen))
    results = list(job.found) if job else []
    if results:
        first = results[0]
        frame = pd.concat([result.frame for result in results], ignore_index=True)
        joined = probe.Result(frame, first.columns, first.view, first.provenance)
        asked = panels.Asked(joined, curve_key(here, chosen))
        if panels.header("Faithfulness over size", asked, evidence="intervention", key="curve"):
            panels.table(joined.summary(["ranking", "size"]), joined, key="curve-rows")
        else:
            figure = joined.plot()
            figure.update_xaxes(type="log")
            st.plotly_chart(figure, key="curve-figure")
    else:
        st.subheader("Faithfulness over size", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if job is not None and job.active:
            st.progress(job.share, text=f"{len(results)} of {len(views.SIZES)} sizes run")
            st.button("Cancel", key="curve-cancel", icon=":material/stop:", on_click=job.stop)
        elif job is None or job.status != "finished":
            label = "Go on" if results else "Run every size"
            if st.button(label, key="curve-run", icon=":material/play_arrow:"):
                begin(here, chosen)
                st.rerun()
    if job is not None and isinstance(job.error, Exception):
        errors.show(job.error)
    over = watched and not (job is not None and job.active)
    if over or session.current() != seen:
        st.rerun()


here, _ = context.read()
if not (here.state.prompt and here.state.prompt_b):
    empty.page("Write two prompts, A and B, to see which edges carry what differs between them")
elif not (here.state.target and here.state.distractor):
    empty.page("Choose a target and a distractor in the bar above: the answers of A and of B")
else:
    with errors.boxed():
        library.check_pair(here.state.model, here.pair)
        chosen = views.Choice.read(here)
        controls(here, chosen)
        by_hand(here, chosen)
        ranked: Any = panels.ask(chosen.ranking, here.state.model, here.pair)
        found = chosen.apply(probe.Circuit.from_frame(here.model, ranked.result.frame))
        verdict(here, chosen, found, ranked.code)
        picture(here, chosen, ranked, found)
        job, seen = jobs.manager().get(curve_key(here, chosen)), session.current()
        panels.watched(job, curve, here, chosen, seen)
