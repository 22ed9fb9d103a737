import dataclasses

import pytest

from vitlab.errors import InputError
from vitlab.training.rules import match_rules

PARAMS = {"block_0": {"kernel": 0}, "head": {"kernel": 0, "bias": 0}}


@dataclasses.dataclass
class Rule:
    pattern: str


def test_the_first_match_wins_and_must_be_of_the_whole_path():
    rules = (Rule("head/b"), Rule("head/bias"), Rule("head/.*"), Rule(".*"))
    tree = match_rules(rules, PARAMS, "rules", strict=False)
    assert tree["head"]["bias"] is rules[1]
    assert tree["head"]["kernel"] is rules[2]
    assert tree["block_0"]["kernel"] is rules[3]


def test_what_is_not_covered_or_matches_nothing_is_an_error():
    with pytest.raises(InputError, match="rules: no rule covers block_0/kernel; end with"):
        match_rules((Rule("head/.*"),), PARAMS, "rules")
    with pytest.raises(InputError, match="rules: pattern 'haed/.*' matches no parameter"):
        match_rules((Rule("haed/.*"), Rule(".*")), PARAMS, "rules")
