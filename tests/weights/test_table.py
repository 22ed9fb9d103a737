"""Tables are read from both sides."""

import numpy as np

from vitlab.weights.table import below, fused, linear, match, norm, positions, same

RULES = [
    *same("token", "cls"),
    *fused("blocks.{i}.qkv.", "block_{i}", ("query", "key")),
    *linear("blocks.{i}.fc", "block_{i}/fc"),
    *norm("layer{s+1}.{b}.bn", "stage_{s}/block_{b}/norm"),
]


def test_numbers_in_names_both_ways():
    theirs = ["token", "blocks.11.fc.weight", "layer2.3.bn.bias", "blocks.1.fc.weight.x"]
    found = match(RULES, theirs)
    assert {m.theirs: m.ours for m in found} == {
        ("token",): ("cls",),
        ("blocks.11.fc.weight",): ("block_11/fc/kernel",),
        ("layer2.3.bn.bias",): ("stage_1/block_3/norm/bias",),
    }
    again = match(RULES, [name for m in found for name in m.ours], ours=True)
    assert {m.ours: m.theirs for m in again} == {m.ours: m.theirs for m in found}


def test_one_array_that_is_several_needs_all_of_them():
    assert match(RULES, ["block_0/query/kernel"], ours=True) == []
    (found,) = match(RULES, ["block_0/key/kernel", "block_0/query/kernel"], ours=True)
    weight = np.arange(12.0).reshape(4, 3)
    parts = found.rule.load([weight], None)
    np.testing.assert_array_equal(parts[1], weight[2:].T)
    np.testing.assert_array_equal(found.rule.save(parts)[0], weight)


def test_parts_of_a_greater_model():
    rules = below("backbone", [*same("a", "cls"), *same("b", "batch_stats/norm/mean")])
    assert [rule.ours for rule in rules] == [("backbone/cls",), ("batch_stats/backbone/norm/mean",)]


def test_position_tables_with_registers_between():
    (rule,) = positions("pos_embed", class_position=True, registers=2)
    token, table = np.ones((1, 1, 4)), np.arange(24.0).reshape(2, 3, 4)
    (saved,) = rule.save([token, table])
    assert saved.shape == (1, 1 + 2 + 6, 4)
    assert not saved[:, 1:3].any()
    (plain,) = positions("pos_embed", class_position=True)
    loaded = plain.load([plain.save([token, table])[0]], (2, 3))
    np.testing.assert_array_equal(loaded[1], table)
