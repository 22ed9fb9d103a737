from vitlab.config import hash_of
from vitlab.training.experiment import NEWER_KEYS, not_in_hash


def name(resume=None, **data):
    config = {"seed": 0, "data": {"source": "digits", **data}}
    config |= {} if resume is None else {"resume": resume}
    return hash_of(config, not_in_hash(config))


def test_runs_that_are_older_than_a_key_keep_their_names():
    keys = {key.removeprefix("data."): value for key, value in NEWER_KEYS.items()}
    assert name() == name(**keys) == hash_of({"seed": 0, "data": {"source": "digits"}})


def test_what_a_newer_key_changes_has_a_name_of_its_own():
    names = name(), name(cache="device"), name(presize=64), name(presize=128), name("runs/a")
    assert len(set(names)) == 5
