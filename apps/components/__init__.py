"""Views drawn in the browser: each takes a plain dict and has a native twin on its page."""
