"""SignDataset: batches, order, limits, determinism."""

import numpy as np
import pytest
import torch

from slt_plugin.common.errors import SltError
from slt_plugin.data.dataset import SignDataset
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row

PAD, EOS, LANG = 1, 2, 9


class CountingSource:
    """A source of (frames, 2) tensors that hold the frame number, plus noise where a generator is given."""

    channels = 2

    def num_steps(self, row):
        return row.num_frames

    def load(self, row, *, epoch=1, rng=None):
        steps = torch.arange(row.num_frames, dtype=torch.float32).unsqueeze(1).repeat(1, 2)
        return steps if rng is None else steps + torch.from_numpy(rng.normal(size=(1, 2))).float()


def encode(text: str) -> torch.Tensor:
    return torch.tensor([4 + ord(c) - ord("a") for c in text] + [EOS])


def build(lengths=(5, 3, 9, 7, 4, 8, 6), **options) -> SignDataset:
    rows = [Row(f"row-{i}", "x.npy", "abc"[: 1 + i % 3], num_frames=n) for i, n in enumerate(lengths)]
    return SignDataset(rows, CountingSource(), encode=encode, pad=PAD, eos=EOS, **options)


def test_collater_pads_and_shifts():
    dataset = build()
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["net_input"]["src_tokens"].shape == (2, 5, 2)
    assert batch["net_input"]["src_tokens"][1, 3:].abs().sum() == 0
    assert batch["net_input"]["src_lengths"].tolist() == [5, 3]
    assert batch["net_input"]["src_lengths"].dtype == torch.int64
    assert batch["target"].tolist() == [[4, EOS, PAD], [4, 5, EOS]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [[EOS, 4, PAD], [EOS, 4, 5]]
    assert batch["target_lengths"].tolist() == [2, 3] and batch["ntokens"] == 5
    assert batch["row_ids"] == ["row-0", "row-1"] and batch["texts"] == ["a", "ab"]
    assert dataset.collater([]) == {}


def test_rows_without_text_can_be_decoded():
    dataset = SignDataset([Row("a", "x", num_frames=4)], CountingSource(), encode=encode, pad=PAD, eos=EOS)
    batch = dataset.collater([dataset[0]])
    assert batch["target"] is None and batch["start_tokens"].tolist() == [EOS]


@pytest.mark.parametrize("multiple", [1, 8])
def test_every_row_is_in_exactly_one_batch(multiple):
    dataset = build(lengths=range(1, 102))
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=300, required_batch_size_multiple=multiple)
    assert sorted(i for batch in batches for i in batch) == list(range(101))
    assert all(len(b) * dataset.source_lengths[b].max() <= 300 for b in batches)


def test_batches_hold_one_start_token_each():
    languages = [LANG, LANG + 1] * 3 + [LANG]
    dataset = build(language_ids=languages)
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=4)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        sample = dataset.collater([dataset[i] for i in batch])
        assert len(set(sample["start_tokens"].tolist())) == 1
        assert (sample["net_input"]["prev_output_tokens"][:, 0] == sample["start_tokens"]).all()


def test_row_beyond_max_tokens_is_named():
    dataset = build()
    with pytest.raises(DataError, match=r"2 row\(s\) .*max_tokens=7.*row-5 \(8\), row-2 \(9\)"):
        dataset.batch_by_size(dataset.ordered_indices(), max_tokens=7)


def test_filter_by_source_and_target_length():
    dataset = build()
    kept, ignored = dataset.filter_indices_by_size(np.arange(7), (7, 3))
    assert kept.tolist() == [0, 1, 3, 4, 6] and ignored == [2, 5]
    assert "row-2 (9 steps, 4 tokens)" in dataset.limit_message(ignored, (7, 3))


def test_draws_depend_on_seed_epoch_and_row_alone():
    def draw(seed, epoch, i, training=True):
        dataset = build(training=training, seed=seed)
        dataset.set_epoch(epoch)
        return dataset[i]["source"]

    torch.testing.assert_close(draw(1, 1, 3), draw(1, 1, 3), rtol=0, atol=0)
    assert not torch.equal(draw(1, 1, 3), draw(1, 2, 3))
    assert not torch.equal(draw(1, 1, 3), draw(2, 1, 3))
    torch.testing.assert_close(draw(1, 1, 3, training=False), draw(2, 2, 3, training=False), rtol=0, atol=0)


def test_clip_slowed_down_beyond_the_limit_is_played_at_the_speed_that_fits():
    class Slowed(CountingSource):
        def load(self, row, *, epoch=1, rng=None):
            steps = super().load(row)
            return steps if rng is None else steps.repeat_interleave(2, dim=0)

    rows = [Row("a", "x", "a", num_frames=10)]
    options = {"encode": encode, "pad": PAD, "eos": EOS, "max_steps": 12}
    slowed = SignDataset(rows, Slowed(), training=True, **options)[0]["source"]
    assert len(slowed) == 12
    assert slowed[0, 0] == 0
    assert slowed[-1, 0] == 9
    assert len(SignDataset(rows, Slowed(), **options)[0]["source"]) == 10


def test_text_that_cannot_be_encoded_names_its_row():
    def refuse(text):
        raise SltError("it spells a special token")

    with pytest.raises(DataError, match="row b: it spells a special token"):
        SignDataset([Row("b", "x", "text", num_frames=1)], CountingSource(), encode=refuse, pad=PAD, eos=EOS)


def test_order_is_by_length_and_shuffled_in_training_only():
    lengths = [4] * 50
    fixed, shuffled = build(lengths), build(lengths, training=True)
    assert fixed.ordered_indices().tolist() == list(range(50))
    with_seed = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        with_seed.append(shuffled.ordered_indices().tolist())
    assert with_seed[0] == with_seed[1] != with_seed[2]
    assert not shuffled.can_reuse_epoch_itr_across_epochs and fixed.can_reuse_epoch_itr_across_epochs
