"""Families as fixtures."""

import families
import pytest
from loaded import Family, load_family


@pytest.fixture(params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return load_family(request.param)


@pytest.fixture(params=families.CAUSAL)
def causal(request: pytest.FixtureRequest) -> Family:
    return load_family(request.param)


@pytest.fixture
def gemma2() -> Family:
    return load_family("gemma2")


@pytest.fixture
def mixtral() -> Family:
    return load_family("mixtral")


@pytest.fixture
def bert() -> Family:
    return load_family("bert")
