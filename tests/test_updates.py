"""Batches that make up whole updates, at any number of ranks and accumulated batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretraining_helpers import pretraining_task

from slt_plugin.data.errors import DataError
from slt_plugin.data.updates import UpdatePlan
from slt_plugin.models.errors import OptionError
from slt_plugin.models.schedule import TrainingLength, training_length
from slt_plugin.tasks.pretraining_options import describe, update_plan


def updates_of(batches: list[np.ndarray], plan: UpdatePlan) -> list[list[np.ndarray]]:
    return [batches[first : first + plan.size] for first in range(0, len(batches), plan.size)]


@given(
    ranks=st.integers(1, 7), batches=st.integers(1, 5), more=st.integers(0, 20), items=st.integers(0, 200),
    drop_last=st.booleans(),
)  # fmt: skip
def test_updates_are_whole(ranks, batches, more, items, drop_last):
    plan = UpdatePlan(ranks, batches, ranks * batches + more, drop_last)
    order = np.random.default_rng(items).permutation(items)
    if items < ranks:
        with pytest.raises(DataError, match=f"{items} rows an epoch are fewer than the {ranks} ranks"):
            plan.split(order)
        return
    split = plan.split(order)
    joined = np.concatenate([np.zeros(0, np.int64), *split])
    whole = items // plan.rows * plan.rows
    assert np.array_equal(joined, order[: whole if drop_last else items])
    updates = updates_of(split, plan)
    assert len(updates) == plan.count(items)
    for update in updates:
        assert len(update) % ranks == 0 and min(map(len, update)) >= 1  # no rank's batch is a stand-in
        assert max(map(len, update)) - min(map(len, update)) <= 1
    for update in updates[: items // plan.rows]:
        assert len(update) == plan.size
    for update in updates[:-1]:
        assert sum(map(len, update)) == plan.rows
    if updates:
        assert sum(map(len, updates[-1])) < plan.rows + ranks


@given(
    ranks=st.integers(1, 5), batches=st.integers(1, 4), sizes=st.lists(st.integers(1, 5), max_size=40),
    one=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_batches_filled_by_frames_end_level(ranks, batches, sizes, one, seed):
    plan = UpdatePlan(ranks, batches)
    if one:  # max_tokens has room for a single row
        sizes = [1] * len(sizes)
    numbers = iter(range(1000))
    filled = [np.array([next(numbers) for _ in range(size)]) for size in sizes]
    frames = np.random.default_rng(seed).integers(1, 9, sum(sizes))
    if sum(sizes) < ranks:
        with pytest.raises(DataError, match=f"{sum(sizes)} rows an epoch are fewer than the {ranks} ranks"):
            plan.level(filled, frames)
        return
    level = plan.level(filled, frames)
    assert sorted(int(i) for batch in level for i in batch) == list(range(sum(sizes)))
    assert len(level) % ranks == 0 and min(map(len, level)) >= 1
    assert len(updates_of(level, plan)) == plan.count_batches(len(level)) >= len(filled) // plan.size
    joined = [batch for batch in level if not any(set(batch) <= set(other) for other in filled)]
    assert len(joined) < ranks
    dropped = UpdatePlan(ranks, batches, drop_last=True).level(filled, frames)
    assert len(dropped) == len(filled) // plan.size * plan.size


def test_a_row_too_many_joins_the_batch_that_stays_smallest():
    frames = np.array([8, 8, 3, 3, 6, 8, 5])
    filled = [np.array([0]), np.array([1]), np.array([2, 3]), np.array([4]), np.array([5]), np.array([6])]
    level = UpdatePlan(ranks=5).level(filled, frames)  # 5 batches and one row
    assert [batch.tolist() for batch in level] == [[0], [1], [2, 3], [4, 6], [5]]  # 12 frames, else 15 or 16


def plan_of(corpus, *, ranks, max_rows=16, max_frames=None, **options) -> UpdatePlan:
    cfg = pretraining_task(corpus, **options).cfg
    return update_plan(cfg, ranks=ranks, epoch=1, max_rows=max_rows, max_frames=max_frames, drop_last=False)


@pytest.mark.parametrize(
    ("ranks", "freq", "sizes"),
    [(1, 8, {16}), (8, 1, {16}), (8, 2, {8}), (64, 1, {2}), (128, 1, {1}), (6, 2, {10, 11}), (3, 3, {14, 15})],
)
def test_the_papers_256_clips_at_any_number_of_gpus(tmp_path, ranks, freq, sizes):
    plan = plan_of(tmp_path, ranks=ranks, clips_per_update=256, repeat_aug=2, update_freq=[freq])
    batches = plan.split(np.arange(128 * 3))
    assert {len(batch) for batch in batches} == sizes
    assert [sum(map(len, update)) * 2 for update in updates_of(batches, plan)] == [256] * 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ranks": 8, "max_rows": 8}, r"update_freq=\[N\] with N of 2, 4, 8, 16"),
        ({"ranks": 1, "max_rows": 16}, r"with N of 8, 16, 32, 64, 128"),
        ({"ranks": 6, "max_rows": 16}, r"with N of 2, 3, 4"),  # no even ones
        ({"ranks": 1, "max_rows": None, "max_frames": 16 * 64}, r"with N of 8, 16"),
        ({"ranks": 1, "max_rows": None, "max_frames": 63}, r"less than one row's 2 clips of 32 frames \(64\)"),
        ({"ranks": 200, "max_rows": 16}, "lower the number of ranks"),
        ({"ranks": 1, "max_rows": 16, "update_freq": [200]}, r"with N of 8, 16"),
    ],
)
def test_where_they_do_not_go_in_the_values_that_do_are_listed(tmp_path, options, expected):
    with pytest.raises(OptionError, match=expected):
        plan_of(tmp_path, clips_per_update=256, repeat_aug=2, **options)


@pytest.mark.parametrize(
    "options", [{"repeat_aug": 0}, {"clips_per_update": 5, "repeat_aug": 2}, {"min_duration": 3, "max_duration": 2}]
)
def test_values_that_no_training_can_have(tmp_path, options):
    with pytest.raises(OptionError, match=f"task.{next(iter(options))}="):
        pretraining_task(tmp_path, **options)


def test_without_a_number_of_clips_batches_are_as_large_as_they_may(tmp_path):
    assert plan_of(tmp_path, ranks=3, max_rows=4, update_freq=[2]).rows == 24
    assert plan_of(tmp_path, ranks=3, max_rows=4, max_frames=100).rows is None


def test_the_log_tells_what_an_update_is():
    length = TrainingLength((1234,), 0, 400)
    assert describe(UpdatePlan(8, 2, 128), 2, None, length) == (
        "256 clips an update: 8 ranks x 2 batches x 8 rows x 2 clips; 1,234 updates an epoch; 493,600 in all"
    )
    assert "6 ranks x 2 batches x 10 to 11 rows x 2 clips" in describe(UpdatePlan(6, 2, 128), 2, None, length)
    assert "8 ranks x 1 batches of at most 4,096 frames" in describe(UpdatePlan(8), 2, 4096, length)


def test_fairseqs_iterator_gives_the_ranks_whole_updates(video_corpus):
    """12 rows, 5 an update: fairseq shuffles batches, which would take updates apart."""
    task = pretraining_task(video_corpus, repeat_aug=2, clips_per_update=10, update_freq=[2], max_epoch=3)
    task.load_dataset("train", combine=True)
    dataset = task.dataset("train")
    for epoch in (1, 2):
        ranks = []
        for rank in range(2):
            iterator = task.get_batch_iterator(
                dataset, max_sentences=4, num_shards=2, shard_id=rank, epoch=epoch, seed=1,
                update_epoch_batch_itr=True, skip_remainder_batch=False,
            )  # fmt: skip
            assert iterator.next_epoch_itr(shuffle=True) is not None
            ranks.append([list(batch) for batch in iterator.ordered_batches(epoch, False, iterator.shuffle)])
        updates = [
            [row for batches in ranks for batch in batches[first : first + 2] for row in batch]
            for first in range(0, len(ranks[0]), 2)
        ]
        assert [len(update) for update in updates] == [5, 5, 2]
        assert sorted(row for update in updates for row in update) == list(range(12))
        assert not any(batch == [] for r in ranks for batch in r)


def test_a_row_for_each_rank_at_every_update(video_corpus):
    """Of 12 rows, 11 an update, the last one would leave the second rank with a stand-in that a resume has not got."""
    for options, sizes in (({"max_sentences": 11}, [12]), ({"max_tokens": 11 * 32}, None)):
        task = pretraining_task(video_corpus, clips_per_update=22 if sizes else 0, max_epoch=3, update_freq=[2])
        task.cfg.repeat_aug = 2 if sizes else 1
        task.load_dataset("train")
        iterator = task.get_batch_iterator(task.dataset("train"), num_shards=2, shard_id=1, **options)
        batches = iterator.frozen_batches
        updates = updates_of(list(batches), UpdatePlan(2, 2))
        assert all(len(update) % 2 == 0 for update in updates) and len(updates) * 3 == training_length()
        assert sizes is None or [sum(map(len, update)) for update in updates] == sizes
        assert all(len(batch) for batch in iterator.ordered_batches(1, False, False))
    with pytest.raises(DataError, match="12 rows an epoch are fewer than the 13 ranks"):
        task.get_batch_iterator(task.dataset("train"), num_shards=13, max_sentences=1)


def test_an_epoch_without_a_whole_update_is_an_error(video_corpus):
    task = pretraining_task(video_corpus, update_freq=[4])
    task.load_dataset("train")
    with pytest.raises(OptionError, match="12 rows make no whole update"):
        task.get_batch_iterator(task.dataset("train"), max_sentences=4, skip_remainder_batch=True)
