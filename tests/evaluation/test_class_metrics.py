"""The numbers of each class as a file."""

import json

from vitlab.evaluation.class_metrics import write_class_metrics


def test_every_class_has_a_number_or_null(tmp_path):
    ap = {"c": 0.5, 'a "$\udcff': 1 / 3}
    names = ('a "$\udcff', "b", "c")
    write_class_metrics({"AP": ap, "F": {**ap, "b": float("nan")}}, names, tmp_path)

    def refuse(constant):
        raise AssertionError(constant)  # NaN is no JSON

    found = json.loads((tmp_path / "classes.json").read_text(), parse_constant=refuse)
    expected = {names[0]: 1 / 3, "b": None, "c": 0.5}
    assert found == {"AP": expected, "F": expected}
    assert list(found["AP"]) == list(names)
