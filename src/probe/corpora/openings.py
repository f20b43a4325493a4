"""How texts begin that a model is asked to write: kinds of text × things they may be about."""

import itertools
import random

_ASKED = (
    "Write a short story about {}.", "Explain {} to a child.", "What is {}?",
    "Write a letter to a friend about {}.", "Give me five facts about {}.",
    "Write a short dialogue between two people about {}.", "Describe {} in detail.",
    "What are the arguments for and against {}?", "Write a news report about {}.",
    "Write a poem about {}.", "How does one learn about {}?", "Summarise the history of {}.",
    "Write a Python function that has to do with {}.", "Make a list of questions about {}.",
    "Write the first page of a novel in which {} matters.", "Give advice to someone about {}.",
    "Write an email to a colleague about {}.", "Compare {} with something else.",
    "Write a recipe or a set of instructions that involves {}.", "Why do people care about {}?",
)  # fmt: skip
_BEGUN = (
    "{} is", "The history of {}", "In this chapter we look at {}.", "When she first heard of {},",
    "There are many ways to think about {}.", "Q: What is {}?\nA:", "# {}\n\n",
    "He had never cared for {}, but", "A study of {} found that", "The trouble with {} is",
    "\"Tell me about {},\" said Anna.", "Notes on {}:\n-", "Yesterday the government said of {}",
    "def ", "import ", "Dear Mr. Brown,\n\nThank you for your letter about {}.",
)  # fmt: skip
_ABOUT = (
    "the sea", "a lighthouse", "bread", "railways", "chess", "the moon", "whales", "money", "sleep",
    "volcanoes", "a lost dog", "bees", "the Roman army", "photosynthesis", "a broken clock", "rain",
    "the city of Paris", "electric cars", "vaccines", "a farm in winter", "black holes", "gardens",
    "the French Revolution", "prime numbers", "a school play", "football", "the human heart", "ice",
    "a bank robbery", "the Amazon river", "cheese", "computers", "a long journey", "elections",
    "the violin", "earthquakes", "a grandmother", "taxes", "mountains", "the theory of evolution",
    "a haunted house", "coffee", "the stock market", "dinosaurs", "a secret letter", "bicycles",
    "climate change", "ancient Egypt", "a new job", "spiders", "the law", "a wedding", "gravity",
    "the olympic games", "a pirate ship", "dreams", "languages", "a hospital", "copper",
    "libraries",
    "the internet", "a small village", "friendship", "satellites", "a king and a queen", "snow",
    "sorting a list", "the Great Wall", "a train station", "mathematics", "a bad cold", "wolves",
    "cooking rice", "a museum", "the weather", "robots", "an argument", "the desert", "birthdays",
    "the brain", "a sailor", "maps", "oil", "the Second World War", "a magician", "glass", "radio",
)  # fmt: skip


def opening(number: int, seed: int = 0, chat: str = "{}") -> str:
    """One beginning, drawn by number and seed. Half are begun texts, half are requests.

    ``chat``: how a request is put to the model, with ``{}`` where it stands.

    >>> opening(0) == opening(0) != opening(1)
    True
    """
    draw = random.Random(f"{seed} {number}")
    about = draw.choice(_ABOUT)
    if draw.random() < 0.5:
        return chat.format(draw.choice(_ASKED).format(about))
    text = draw.choice(_BEGUN).format(about)
    return text[:1].upper() + text[1:] if not text.startswith(("def", "import")) else text


def n_openings() -> int:
    """How many different ones there are."""
    return len(list(itertools.product((*_ASKED, *_BEGUN), _ABOUT)))
