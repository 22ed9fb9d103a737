"""What a run remembers."""

import pytest

from vitlab.training.memory import Best, Memory

TRAINING = {"step": 4, "train/loss": 1.0, "learning_rate": 0.1}
EVALUATION = {"step": 4, "test/accuracy": 0.5}
TOLD, UNTOLD = {"step": 4, "alarm": "it rises"}, {"step": 4, "alarm": "it is constant"}
BEFORE, AFTER = {"step": 2, "test/accuracy": 0.4}, {"step": 5, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("evaluated", "known"),
    [(True, [BEFORE, TRAINING, EVALUATION, TOLD, UNTOLD]), (False, [BEFORE, TRAINING, TOLD])],
)
def test_an_evaluation_that_comes_again_is_not_known(evaluated, known):
    memory = Memory([], 1, Best(""), Best(""), evaluated=evaluated, alarms=[TOLD])
    records = [BEFORE, TRAINING, EVALUATION, TOLD, UNTOLD, AFTER]
    assert [record for record in records if memory.knows(record, 4)] == known
