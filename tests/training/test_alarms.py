"""A training that falls apart is noticed once, and noise is not."""

import dataclasses

from vitlab.training.alarms import LossWatch


def alarms(losses):
    watch = LossWatch()
    return [i for i, loss in enumerate(losses) if watch.update(loss)]


def test_a_loss_that_loses_half_of_its_gain_is_an_alarm_once():
    falling = [6.9, 6.0, 5.0, 4.0]
    assert alarms(falling) == []
    assert alarms([*falling, 5.3]) == []  # 2.9 were gained, 1.3 lost
    assert alarms([*falling, 5.5, 5.6, 7.0]) == [4]
    assert alarms([*falling, 5.5, 4.1, 5.5]) == [4, 6]  # it had recovered


def test_noise_around_the_start_is_none():
    assert alarms([6.9, 6.5, 6.9, 6.6, 7.0]) == []


def test_what_was_seen_survives_a_restart():
    watch = LossWatch()
    for loss in (6.9, 4.0):
        watch.update(loss)
    again = LossWatch(**dataclasses.asdict(watch))
    assert again.update(6.0).startswith("divergence: train/loss is 6 after 4")
