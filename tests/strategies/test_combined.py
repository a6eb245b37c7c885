"""Combinations: which parts there are, and what is refused before anything is learnt."""

from typing import get_args

import pytest
from pydantic import ValidationError

from strategies.catalog import STRATEGIES
from strategies.combined import _NOTHING_TO_ADD, _PLUGINS, CombinedConfig, Part, with_parts


def test_every_strategy_either_has_plugins_to_combine_or_says_why_not() -> None:
    parts = {part.model_fields["name"].default for part in get_args(get_args(Part)[0])}
    assert parts == _PLUGINS.keys()
    assert parts | _NOTHING_TO_ADD.keys() == STRATEGIES.keys()
    assert not parts & _NOTHING_TO_ADD.keys()


@pytest.mark.parametrize("name", list(_PLUGINS))
def test_the_plugins_of_a_part_are_those_of_its_own_strategy(name: str) -> None:
    assert _PLUGINS[name].__module__ == STRATEGIES[name].builder.split(":")[0]


@pytest.mark.parametrize("name", list(_NOTHING_TO_ADD))
def test_a_strategy_that_adds_nothing_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValidationError, match=_NOTHING_TO_ADD[name]):
        CombinedConfig.model_validate({"parts": ["replay", name]})


def test_a_list_of_strategies_is_a_combination_of_them() -> None:
    config = CombinedConfig.model_validate(with_parts(["replay", {"name": "ewc", "strength": 5.0}]))
    assert [part.name for part in config.parts] == ["replay", "ewc"]
    assert with_parts({"name": "naive"}) == {"name": "naive"}
