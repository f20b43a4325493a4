"""Vectors: is a task that examples show one vector, where does it act, and would any other do?"""

import streamlit as st

import probe
from apps import context, errors, panels, session, vectors
from apps.components.glyphs import printable
from apps.jobs import Job
from apps.vectors import Wanted

OWN = "pairs of your own"
KINDS = {"task_vector": "Task vector (a state, set)", "function_vector": "Function vector (added)"}
EXAMPLE = "\n".join(f"{x} => {x.upper()}" for x in "one two three four five six seven".split())


def choose(model: str) -> Wanted:
    """The task and the way to its vector."""
    known = probe.icl_tasks()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        task = st.selectbox(
            "Task",
            [*known, OWN],
            format_func=lambda name: name if name == OWN else f"{name}: {known[name].about}",
            key="vectors-task",
            width=320,
        )
        kind = st.selectbox(
            "Extracted as",
            list(KINDS),
            format_func=KINDS.__getitem__,
            key="vectors-kind",
            width=250,
        )
        shots = st.number_input("Examples a prompt", 2, 20, 5, key="vectors-shots", width=150)
        n = st.number_input("Prompts", 2, 50, 6, key="vectors-n", width=110)
        least = st.number_input(
            "Least accuracy", 0.0, 1.0, 0.1, 0.1, key="vectors-least", width=140,
            help="A task the model does less well with examples is refused",
        )  # fmt: skip
    pairs: tuple[tuple[str, str], ...] = ()
    if task == OWN:
        pairs = read(st.text_area("Pairs, one a line", EXAMPLE, key="vectors-pairs", height=160))
    name = "" if task == OWN else task
    return Wanted(model, name, pairs, kind, int(shots), int(n), float(least))


def read(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs from lines ``input => output``."""
    rows = [line.split("=>", 1) for line in printable(text).splitlines() if line.strip()]
    for row in rows:
        if len(row) < 2:
            raise probe.TaskError(
                f"the line {row[0]!r} has no =>", expected="input => output, a pair a line"
            )
    return tuple((x.strip(), y.strip()) for x, y in rows)


def progress(wanted: Wanted, job: Job | None) -> None:
    """How far it is, and the one thing to do about it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if job is not None and job.active:
            st.progress(job.share, text="finding the vector, then judging it on held-out pairs")
            st.button("Cancel", key="vectors-cancel", on_click=job.stop, disabled=job.stopping)
        elif job is None or job.status != "finished":
            if st.button("Build the vector", key="vectors-build", type="primary"):
                vectors.begin(wanted)
                st.rerun()
            if job is not None and job.status == "stopped":
                st.caption("Stopped; what was found is kept.")
    if job is not None and isinstance(job.error, Exception):
        errors.show(job.error)


def found(wanted: Wanted, job: Job) -> None:
    """The vector, where it acts best, and its accuracy beside the controls."""
    vector: probe.VectorResult = job.found[0]
    st.subheader(vector.name.capitalize(), anchor=False)
    st.text(f"{vector.rule} at {vector.site}, at the prompt's last token; norm {vector.norm:.3g}")
    heads = vector.provenance.passed.get("heads")
    if heads:
        st.text("Sum of heads " + ", ".join(f"L{layer}H{head}" for layer, head in heads))
    st.caption("Right answers by layer, on dev pairs without examples; the best layer was taken")
    st.line_chart(vector.curve.set_index("layer")[["accuracy", "prob"]], height=220)
    if len(job.found) > 1:
        asked = panels.Asked(job.found[1], wanted.code)
        title = "Held-out pairs, with the vector and with controls"
        if panels.header(title, asked, evidence="intervention", key="vectors-controls"):
            panels.table(asked.result.frame, asked.result, key="vectors-rows")
        else:
            panels.table(asked.result.summary(), asked.result, key="vectors-summary")
    keep(vector, f"{wanted.task or 'own'}.safetensors")


def keep(vector: probe.VectorResult, file: str) -> None:
    """Save the vector, and steer with what was saved."""
    with st.popover("Save the vector", type="tertiary"):
        path = st.text_input("File", file, key="vectors-path")
        if st.button("Save", key="vectors-save"):
            st.text(f"Saved: {vector.save(path)}")
        if st.button("Save and steer with it", key="vectors-steer"):
            st.session_state["steer-source"] = "file"
            st.session_state["steer-file"] = str(vector.save(path))
            st.session_state["steer-strength"] = vector.strength
            st.switch_page("screens/steer.py", query_params=session.current().to_query())


def draw(wanted: Wanted, watched: bool) -> None:
    """The page as it is now; drawn again and again until the job is over."""
    job = vectors.job_of(wanted)
    progress(wanted, job)
    if job is not None and job.found:
        with errors.boxed():
            found(wanted, job)
    if watched and not (job is not None and job.active):
        st.rerun()


here, _ = context.read()
st.subheader("A task as a vector", anchor=False)
with errors.boxed():
    wanted = choose(here.state.model)
    job = vectors.job_of(wanted)
    panels.watched(job, draw, wanted)
