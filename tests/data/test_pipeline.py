import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress

import numpy as np
import pytest

from vitlab.data.order import epoch_order
from vitlab.data.pipeline import eval_batches, example_rng, train_batches
from vitlab.data.sources import open_source
from vitlab.errors import InputError, NoRoomError


def take(batches, count=None):
    with closing(batches):
        return list(itertools.islice(batches, count))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def joined(batches, key):
    return np.concatenate([batch[key] for batch in batches])


# Training


def test_training_runs_through_shuffled_epochs_without_a_gap(numbered, decode):
    batches = take(train_batches(numbered(10), decode, batch_size=4, seed=3), 10)
    ids, epochs = joined(batches, "id"), joined(batches, "epoch")
    np.testing.assert_array_equal(epochs, np.repeat(np.arange(4), 10))
    orders = ids.reshape(4, 10)
    np.testing.assert_array_equal(np.sort(orders), [range(10)] * 4)
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(orders, [epoch_order(3, epoch, 10) for epoch in range(4)])
    np.testing.assert_array_equal(joined(batches, "image")[:, 1, 2, 0], ids)
    np.testing.assert_array_equal(joined(batches, "label"), ids % 10)
    drawn = [example_rng(3, e, i).random() for e, i in zip(epochs, ids, strict=True)]
    np.testing.assert_array_equal(joined(batches, "draw"), np.float32(drawn))
    assert {key: (value.dtype.name, value.shape) for key, value in batches[0].items()} == {
        "image": ("uint8", (4, 2, 3, 1)),
        "label": ("int32", (4,)),
        "id": ("int32", (4,)),
        "epoch": ("int32", (4,)),
        "mask": ("bool", (4,)),
        "draw": ("float32", (4,)),
    }
    assert joined(batches, "mask").all()


def test_a_batch_may_be_larger_than_the_split(numbered, decode):
    (batch,) = take(train_batches(numbered(3), decode, batch_size=8, seed=0), 1)
    assert sorted(batch["id"][:3]) == sorted(batch["id"][3:6]) == [0, 1, 2]
    assert batch["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_draws_never_change():
    # Recorded: a run that is resumed under another NumPy has to see the same examples.
    assert example_rng(1, 2, 3).integers(0, 1000, 4).tolist() == [711, 744, 253, 356]


def test_seeds_epochs_and_examples_draw_apart():
    draws = {
        example_rng(seed, epoch, index).random()
        for seed, epoch, index in itertools.product(range(-2, 3), range(5), range(5))
    }
    assert len(draws) == 125


def test_a_repeated_example_is_drawn_anew_each_time(numbered, decode):
    batches = take(train_batches(numbered(6), decode, batch_size=6, seed=0, repeats=3), 3)
    ids, draws = joined(batches, "id"), joined(batches, "draw")
    assert sorted(ids) == sorted([*range(6)] * 3)
    assert len(set(draws)) == 18
    drawn = [
        example_rng(0, e, i).random() for e, i in zip(joined(batches, "epoch"), ids, strict=True)
    ]
    np.testing.assert_array_equal(draws, np.float32(drawn))


def test_starting_at_a_step_gives_the_rest_of_the_run(numbered, decode):
    whole = take(train_batches(numbered(10), decode, batch_size=4, seed=0), 9)
    for step in (1, 5):
        rest = train_batches(numbered(10), decode, batch_size=4, seed=0, start_step=step)
        assert_same(take(rest, 9 - step), whole[step:])


def test_processes_share_the_global_batch(numbered, decode):
    source = numbered(11)
    for make, count in ((lambda **k: train_batches(source, decode, seed=5, **k), 7),
                        (lambda **k: eval_batches(source, decode, **k), None)):  # fmt: skip
        whole = take(make(batch_size=4), count)
        halves = [take(make(batch_size=4, process_index=p, process_count=2), count) for p in (0, 1)]
        assert_same(
            [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves, strict=True)],
            whole,
        )


def test_threads_change_nothing(digits, decode):
    source = digits("train[:50]")
    plain, threaded = (
        take(train_batches(source, decode, batch_size=16, seed=0, threads=threads), 8)
        for threads in (0, 3)
    )
    assert_same(threaded, plain)


def test_one_worker_changes_nothing(digits, decode):
    source = digits("train[:50]")
    plain, worked = (
        take(train_batches(source, decode, batch_size=16, seed=0, workers=workers), 8)
        for workers in (0, 1)
    )
    assert_same(worked, plain)


def test_four_workers_change_nothing(numbered, decode):
    source = numbered(120, broken=[4])
    runs = []
    for workers in (0, 4):
        batches = train_batches(
            source, decode, batch_size=50, seed=0, start_step=3, workers=workers, on_error="skip"
        )
        runs.append((take(batches, 9), batches.broken))
    assert_same(runs[1][0], runs[0][0])
    assert runs[1][1] == runs[0][1] == {4: "4.png: not an image"}


# Evaluation


@pytest.mark.parametrize("size", [1, 7, 8, 9])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_example_once(numbered, decode, size, processes):
    source = numbered(size)
    shares = [
        take(eval_batches(source, decode, batch_size=4, process_index=p, process_count=processes))
        for p in range(processes)
    ]
    assert [len(share) for share in shares] == [-(-size // 4)] * processes
    batches = [batch for share in shares for batch in share]
    assert all(batch["image"].shape == (4 // processes, 2, 3, 1) for batch in batches)
    mask, ids = joined(batches, "mask"), joined(batches, "id")
    assert sorted(ids[mask]) == list(range(size))
    np.testing.assert_array_equal(joined(batches, "image")[mask][:, 0, 0, 0], ids[mask])
    np.testing.assert_array_equal(joined(batches, "label")[mask], ids[mask] % 10)
    for key in ("image", "label", "id", "epoch", "draw"):
        assert not joined(batches, key)[~mask].any()
    draws = [example_rng(0, 0, i).random() for i in ids[mask]]
    np.testing.assert_array_equal(joined(batches, "draw")[mask], np.float32(draws))


def test_evaluation_masks_broken_images(numbered, decode):
    batches = eval_batches(numbered(9, broken=[8]), decode, batch_size=4, on_error="skip")
    whole = take(batches)
    assert joined(whole, "mask").tolist() == [True] * 8 + [False] * 4
    assert joined(whole, "id").tolist() == [*range(9), 0, 0, 0]
    assert batches.broken == {8: "8.png: not an image"}
    assert batches.broken_report() == "1 of 9 images are broken: 8.png: not an image"


def test_fashion_mnist_is_evaluated_whole(fashion_mnist, decode):
    source = open_source(f"idx:{fashion_mnist}", "test")
    batches = take(eval_batches(source, decode, batch_size=768))
    mask = joined(batches, "mask")
    assert mask.sum() == 10_000
    assert np.bincount(joined(batches, "label")[mask]).tolist() == [1000] * 10


# Broken images


@pytest.mark.parametrize("make", [lambda *a, **k: train_batches(*a, seed=0, **k), eval_batches])
def test_a_broken_image_is_named(numbered, decode, make):
    with pytest.raises(InputError, match=r"^5\.png: not an image$"):
        take(make(numbered(300, broken=[5]), decode, batch_size=100), 3)


def test_skipping_puts_the_next_image_in_its_place(numbered, decode):
    source = numbered(300, broken=[10, 11, 299])
    batches = train_batches(source, decode, batch_size=60, seed=0, on_error="skip")
    expected = {10: 12, 11: 12, 299: 0}
    ids = joined(take(batches, 5), "id")
    order = epoch_order(0, 0, 300)
    np.testing.assert_array_equal(ids, [expected.get(i, i) for i in order])
    assert batches.broken.keys() == expected.keys()
    assert batches.broken_report().startswith("3 of 300 images are broken: ")


@pytest.mark.parametrize("make", [lambda *a, **k: train_batches(*a, seed=0, **k), eval_batches])
def test_more_than_one_percent_broken_stops(numbered, decode, make):
    # Spread out, and in one row so that there is no next readable image.
    for broken in (range(0, 300, 75), range(100, 300)):
        batches = make(numbered(300, broken), decode, batch_size=50, on_error="skip")
        with pytest.raises(
            InputError, match=r"more than 1 % .*, \d+ of 300 .*: \d+.png: not an im"
        ):
            take(batches, 12)


def test_one_broken_image_of_a_small_split_is_no_reason_to_stop(numbered, decode):
    source = numbered(5, broken=[2])
    ids = joined(
        take(train_batches(source, decode, batch_size=5, seed=0, on_error="skip"), 4), "id"
    )
    assert np.bincount(ids).tolist() == [4, 4, 0, 8, 4]
    with pytest.raises(InputError, match="2 of 5 images are broken"):
        take(train_batches(numbered(5, [1, 2]), decode, batch_size=5, seed=0, on_error="skip"), 1)


def test_an_error_in_a_worker_arrives_as_it_was(numbered, decode):
    with pytest.raises(InputError, match=r"^5\.png: not an image$"):
        take(train_batches(numbered(9, broken=[5]), decode, batch_size=9, seed=0, workers=1), 2)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_an_error(numbered, decode):
    with closing(train_batches(numbered(9), decode, batch_size=3, seed=0, workers=1)) as batches:
        next(batches)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="terminated unexpectedly with exit code -9"):
            take(batches, 1000)


# A run with one worker, whose id it prints.
WITH_A_WORKER = """
import multiprocessing, time
from vitlab.data.pipeline import train_batches
from vitlab.data.preprocess import Preprocess
from vitlab.data.sources import open_source
digits = open_source("digits", "train")
decode = Preprocess.parse("decode(channels=1)|value_range(-1,1)")
batches = train_batches(digits, decode, batch_size=4, seed=0, workers=1)
next(batches)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
time.sleep(100)
"""


def test_workers_end_with_a_run_that_is_killed():
    command = [sys.executable, "-c", WITH_A_WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())
        run.kill()
        try:
            run.communicate(timeout=20)  # until nobody can write to its output any more
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def test_closed_batches_are_at_their_end(numbered, decode):
    batches = train_batches(numbered(9), decode, batch_size=3, seed=0)
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


# Wrong settings


def test_images_of_different_sizes_are_an_error(tmp_path, write_image, decode):
    write_image(tmp_path / "a" / "x.png", size=(4, 3))
    write_image(tmp_path / "a" / "y.png", size=(5, 3))
    source = open_source(f"folder:{tmp_path}", "train")
    message = r"cannot hold image of shape \(3, [45], 3\) \(.*png\) .* add a resize or a crop"
    with pytest.raises(InputError, match=message):
        take(train_batches(source, decode, batch_size=2, seed=0), 1)


def test_images_that_nothing_decodes_are_an_error(digits):
    batches = eval_batches(digits("test"), lambda example, rng: example, batch_size=2)
    with pytest.raises(InputError, match="leaves a file's bytes as the image.* begin with decode"):
        take(batches)


def test_wrong_settings(numbered, decode):
    with pytest.raises(InputError, match="batch_size 6 does not share out evenly over 4 processes"):
        train_batches(numbered(5), decode, batch_size=6, seed=0, process_count=4)
    with pytest.raises(InputError, match="on_error 'ignore' is not known: it is 'raise' or 'skip'"):
        eval_batches(numbered(5), decode, batch_size=6, on_error="ignore")


@pytest.mark.parametrize("make", [lambda *a, **k: train_batches(*a, seed=0, **k), eval_batches])
def test_an_example_without_room_is_not_a_broken_one(numbered, decode, make):
    def preprocess(example, rng):
        if example["image"].flat[0] == 3:
            raise NoRoomError("pad_boxes(1): too many")
        return decode(example, rng)

    with pytest.raises(InputError, match=r"^3\.png: pad_boxes\(1\): too many$"):
        take(make(numbered(200), preprocess, batch_size=100, on_error="skip"), 2)


def test_a_name_that_occurs_in_the_fault_is_told_nevertheless(numbered, decode):
    source = numbered(12, broken=[10])
    source.describe = lambda index: "image" if index == 10 else str(index)
    with pytest.raises(InputError, match="^image: not an image$"):
        take(eval_batches(source, decode, batch_size=4))
