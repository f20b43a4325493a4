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
from apps.pages import PAGES  # noqa: E402

HOME = st.Page("screens/home.py", title="Home", icon=":material/home:", default=True)

st.set_page_config(page_title="Probe Explorer", page_icon=str(HERE / "icon.png"), layout="wide")
st.html(f"<style>{(HERE / 'style.css').read_text('utf-8')}</style>")
warnings = session.read_url()
others = [st.Page(p.path, title=p.title, icon=p.symbol, url_path=p.name) for p in PAGES]
page = st.navigation([HOME, *others], position="top")
errors.notes(warnings)
ready = bar.draw()
if ready or page == HOME:
    with errors.boxed():
        page.run()
