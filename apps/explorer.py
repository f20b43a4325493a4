"""The Explorer: one model, one prompt, one question, and the pages that answer it.

Start it with `probe explore`, or `streamlit run apps/explorer.py`. The pages lie in `screens/`:
Streamlit would run a folder called `pages/` by itself at the first visit after a start, without
this file and so without the bar.
"""

import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

from apps import bar, errors, session  # noqa: E402  (the folder above must be known first)

PAGES = [
    st.Page("screens/home.py", title="Home", icon=":material/home:", default=True),
    st.Page("screens/prompt.py", title="Prompt", icon=":material/notes:", url_path="prompt"),
    st.Page("screens/lens.py", title="Lens", icon=":material/layers:", url_path="lens"),
    st.Page(
        "screens/attention.py", title="Attention", icon=":material/grid_on:", url_path="attention"
    ),
    st.Page(
        "screens/head.py", title="Head", icon=":material/center_focus_strong:", url_path="head"
    ),
    st.Page(
        "screens/attribution.py",
        title="Attribution",
        icon=":material/waterfall_chart:",
        url_path="attribution",
    ),
    st.Page(
        "screens/patching.py", title="Patching", icon=":material/healing:", url_path="patching"
    ),
    st.Page(
        "screens/features.py", title="Features", icon=":material/scatter_plot:", url_path="features"
    ),
    st.Page("screens/feature.py", title="Feature", icon=":material/adjust:", url_path="feature"),
    st.Page("screens/steer.py", title="Steer", icon=":material/explore:", url_path="steer"),
    st.Page(
        "screens/vectors.py", title="Vectors", icon=":material/arrow_outward:", url_path="vectors"
    ),
    st.Page("screens/circuit.py", title="Circuit", icon=":material/hub:", url_path="circuit"),
]

st.set_page_config(page_title="Probe Explorer", page_icon=str(HERE / "icon.png"), layout="wide")
st.html(f"<style>{(HERE / 'style.css').read_text('utf-8')}</style>")
warnings = session.read_url()
page = st.navigation(PAGES, position="top")
errors.notes(warnings)
ready = bar.draw()
if ready or page == PAGES[0]:
    with errors.boxed():
        page.run()
