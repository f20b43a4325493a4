"""The pages after Home, in their order: which question each answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: Its file in ``screens/`` and its address.
        icon: Its sign, by Google's name.
        about: What it answers; empty where one comes to it from another page only.
    """

    name: str
    icon: str
    about: str

    @property
    def path(self) -> str:
        """Its file, from here."""
        return f"screens/{self.name}.py"

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name.capitalize()

    @property
    def symbol(self) -> str:
        """Its sign, as Streamlit writes it."""
        return f":material/{self.icon}:"


PAGES = (
    Page("prompt", "notes", "How the text is cut into tokens, and what comes next"),
    Page("lens", "layers", "What the model would say if it stopped at each layer"),
    Page("attention", "grid_on", "Where every head looks, and what it moves from there"),
    Page("head", "center_focus_strong", "What one head does, what its weights say, what it is for"),
    Page("attribution", "waterfall_chart", "Which parts wrote the answer"),
    Page("patching", "healing", "Which parts the answer depends on"),
    Page("circuit", "hub", "Which edges between heads and MLPs do the work"),
    Page("features", "scatter_plot", "Which features of a dictionary fire here"),
    Page("feature", "adjust", ""),
    Page("steer", "explore", "What a direction makes it say, and at what cost"),
    Page("vectors", "arrow_outward", "Whether a task is one vector"),
)
