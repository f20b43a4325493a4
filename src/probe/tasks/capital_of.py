"""Capitals: recall a fact about a country."""

import random

from probe.core.task import Prompt
from probe.core.tokens import Tokenizer
from probe.tasks.registry import Options, builder
from probe.tasks.words import n_tokens, whole

CAPITALS = {
    "Algeria": "Algiers", "Austria": "Vienna", "Azerbaijan": "Baku", "Bangladesh": "Dhaka",
    "Belgium": "Brussels", "Bulgaria": "Sofia", "Canada": "Ottawa", "China": "Beijing",
    "Croatia": "Zagreb", "Cuba": "Havana", "Denmark": "Copenhagen", "Ecuador": "Quito",
    "Egypt": "Cairo", "England": "London", "Estonia": "Tallinn", "Finland": "Helsinki",
    "France": "Paris", "Georgia": "Tbilisi", "Germany": "Berlin", "Ghana": "Accra",
    "Greece": "Athens", "Hungary": "Budapest", "Iran": "Tehran", "Iraq": "Baghdad",
    "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Jordan": "Amman",
    "Kenya": "Nairobi", "Latvia": "Riga", "Lebanon": "Beirut", "Libya": "Tripoli",
    "Lithuania": "Vilnius", "Morocco": "Rabat", "Nepal": "Kathmandu", "Norway": "Oslo",
    "Pakistan": "Islamabad", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Qatar": "Doha", "Romania": "Bucharest", "Russia": "Moscow", "Scotland": "Edinburgh",
    "Senegal": "Dakar", "Serbia": "Belgrade", "Spain": "Madrid", "Sudan": "Khartoum",
    "Sweden": "Stockholm", "Syria": "Damascus", "Thailand": "Bangkok", "Tunisia": "Tunis",
    "Turkey": "Ankara", "Uganda": "Kampala", "Uruguay": "Montevideo", "Venezuela": "Caracas",
    "Vietnam": "Hanoi", "Zambia": "Lusaka", "Zimbabwe": "Harare",
}  # fmt: skip
TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is called",
    "The capital of {country} is the city of",
    "We flew to {country} and landed in its capital,",
    "The government of {country} sits in the capital,",
    "Question: What is the capital of {country}? Answer:",
)


@builder("capital_of", "the capital of a country")
def draw(rng: random.Random, tokenizer: Tokenizer | None, options: Options) -> Prompt:
    """One pair; the twin names another country of as many tokens, whose capital is wrong."""
    known = set(whole(list(CAPITALS.values()), tokenizer))
    countries = [country for country, capital in CAPITALS.items() if capital in known]
    country = rng.choice(countries)
    others = [other for other in _as_long(country, countries, tokenizer) if other != country]
    other = rng.choice(others or countries)
    number = rng.randrange(len(TEMPLATES))
    return Prompt(
        clean=TEMPLATES[number].format(country=country),
        corrupted=TEMPLATES[number].format(country=other),
        answer=f" {CAPITALS[country]}",
        wrong_answer=f" {CAPITALS[other]}",
        tags={"template": str(number), "country": country},
    )


def _as_long(country: str, countries: list[str], tokenizer: Tokenizer | None) -> list[str]:
    """Those of as many tokens; without a tokenizer, all."""
    if tokenizer is None:
        return countries
    length = n_tokens(tokenizer, country)
    return [one for one in countries if n_tokens(tokenizer, one) == length]
