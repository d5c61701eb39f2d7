"""Data of self-supervised pretraining: random clips, what they are drawn from, and which rows an epoch has."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretraining_helpers import pretraining_task
from torch.utils.data import DataLoader
from video_helpers import numbered, numbers_of, write_video

from slt_plugin.data import clips as clips_module
from slt_plugin.data.clips import ClipOptions
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.pretraining import PretrainingDataset, RandomClips
from slt_plugin.data.selection import EpochRows, within_durations
from slt_plugin.data.transforms import VideoAugment
from slt_plugin.data.video import VideoError
from slt_plugin.models.errors import OptionError

FRAMES = 80
AUGMENT = VideoAugment(randaugment_ops=2, crop=8, flip=0.5)


@pytest.fixture(scope="module")
def numbered_video(tmp_path_factory):
    """A video of 25 frames a second whose frame n shows the number n."""
    folder = tmp_path_factory.mktemp("numbered")
    write_video(folder / "a.mp4", [numbered(n) for n in range(FRAMES)])
    return folder


def dataset_of(folder, rows=None, *, num_frames=16, size=64, augment=None, rate=1, **options) -> PretrainingDataset:
    rows = rows or [Row(f"row-{i}", "a.mp4", f"text {i}", num_frames=FRAMES, fps=25.0) for i in range(6)]
    clips = RandomClips(
        folder, ClipOptions(num_frames, sampling_rate=rate, size=size, augment=augment or VideoAugment())
    )
    return PretrainingDataset([rows], clips, [clips.length(row) for row in rows], **options)


def same(a: dict, b: dict) -> bool:
    pairs = list(zip(a["clips"], b["clips"], strict=True))
    return a["id"] == b["id"] and all(torch.equal(x.frames, y.frames) and x.mask_seed == y.mask_seed for x, y in pairs)


class TestClips:
    def test_clips_of_a_row_are_decoded_once(self, numbered_video, monkeypatch):
        calls = []
        decode = clips_module.video.decode_clip
        monkeypatch.setattr(
            clips_module.video, "decode_clip", lambda *a, **k: calls.append(k["indices"]) or decode(*a, **k)
        )
        sample = dataset_of(numbered_video, copies=3, training=True)[0]
        assert len(calls) == 1 and len(calls[0]) == 48
        shown = [numbers_of(clip.frames.permute(0, 2, 3, 1)) for clip in sample["clips"]]
        for numbers in shown:
            assert numbers == list(range(numbers[0], numbers[0] + 16))
        assert [n for numbers in shown for n in numbers] == calls[0].tolist()
        assert len({numbers[0] for numbers in shown}) == 3
        assert len({clip.mask_seed for clip in sample["clips"]}) == 3

    def test_segments_and_boxes(self, numbered_video, monkeypatch):
        row = Row("part", "a.mp4", start=1.0, end=2.0, box=(0.25, 0.0, 0.75, 0.5))
        boxes = []
        decode = clips_module.video.decode_clip

        def spy(*args, **options):
            boxes.append(options["box"])
            return decode(*args, **{**options, "box": None})

        monkeypatch.setattr(clips_module.video, "decode_clip", spy)
        dataset = dataset_of(numbered_video, [row], copies=20, training=True)
        starts = set()
        for clip in dataset[0]["clips"]:
            numbers = numbers_of(clip.frames.permute(0, 2, 3, 1))
            assert min(numbers) >= 25 and max(numbers) < 50
            starts.add(numbers[0])
        assert boxes == [row.box] and min(starts) < 28 and max(starts) > 31

    def test_padding_is_cut_off(self, numbered_video):
        row = Row("short", "a.mp4", start=0.0, end=0.44)  # 11 frames of 16
        dataset = dataset_of(numbered_video, [row, Row("long", "a.mp4")], copies=1, training=True)
        assert dataset.clip_frames.tolist() == [12, 16]
        batch = dataset.collater([dataset[0], dataset[1]])
        net_input = batch["net_input"]
        assert net_input["src_tokens"].shape == (2, 16, 3, 64, 64) and net_input["src_tokens"].dtype == torch.uint8
        assert net_input["src_lengths"].tolist() == [12, 16] and batch["ntokens"] == 28
        assert not net_input["src_tokens"][0, 12:].any() and net_input["src_tokens"][0, :12].any()
        assert net_input["mask_seeds"].dtype == batch["id"].dtype == torch.int64

    def test_a_row_too_short_is_named_with_the_option(self, numbered_video):
        rows = [Row("fine", "a.mp4"), Row("tiny", "a.mp4", start=0.0, end=0.08)]
        with pytest.raises(DataError, match=r"1 of 2 rows are too short.*tiny.*task\.min_duration"):
            dataset_of(numbered_video, rows)
        lying = Row("lying", "a.mp4", start=3.12, end=4.0, fps=25.0)  # the file ends after 3.2 s
        with pytest.raises(DataError, match="row 'lying'"):
            dataset_of(numbered_video, [lying], training=True)[0]

    def test_unreadable_video_is_an_error_not_another_row(self, numbered_video):
        dataset = dataset_of(numbered_video, [Row("gone", "nothing.mp4", num_frames=80, fps=25.0)], training=True)
        with pytest.raises(VideoError, match="gone"):
            dataset[0]

    def test_one_augmentation_for_all_frames_of_a_clip(self, tmp_path):
        still = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(9, 0).repeat(9, 1)
        write_video(tmp_path / "a.mp4", [still] * 40, size=(72, 72), gop=1, bframes=0, options={"qp": "0"})
        row = Row("still", "a.mp4")
        changed = dataset_of(tmp_path, [row], augment=AUGMENT, copies=4, training=True)[0]["clips"]
        for clip in changed:
            assert clip.frames.shape == (16, 3, 64, 64)
            assert (clip.frames - clip.frames[:1]).float().abs().max() == 0
        firsts = [clip.frames[0] for clip in changed]
        assert all(not torch.equal(firsts[0], other) for other in firsts[1:])
        plain = dataset_of(tmp_path, [row], augment=AUGMENT)[0]["clips"][0].frames
        unaugmented = dataset_of(tmp_path, [row])[0]["clips"][0].frames
        assert torch.equal(plain, unaugmented)


class TestDraws:
    def test_they_depend_on_seed_epoch_row_and_copy_alone(self, numbered_video):
        first = dataset_of(numbered_video, augment=AUGMENT, copies=2, training=True)
        again = dataset_of(numbered_video, augment=AUGMENT, copies=3, training=True)
        expected = first[4]
        [again[i] for i in (0, 5, 2)]
        more = again[4]
        assert same(expected, {**more, "clips": more["clips"][:2]})
        assert expected["clips"][0].mask_seed != first[3]["clips"][0].mask_seed
        for changed in ("epoch", "seed"):
            other = dataset_of(
                numbered_video, augment=AUGMENT, copies=2, training=True, seed=2 if changed == "seed" else 1
            )
            other.set_epoch(2 if changed == "epoch" else 1)
            assert not same(expected, other[4])

    def test_a_clip_needs_nothing_of_the_others(self, numbered_video):
        clips = dataset_of(numbered_video, augment=AUGMENT).clips
        row = Row("a", "a.mp4")
        both = clips.load(row, [np.random.default_rng(i) for i in range(2)], augment=True)
        alone = clips.load(row, [np.random.default_rng(1)], augment=True)[0]
        assert torch.equal(both[1].frames, alone.frames) and both[1].mask_seed == alone.mask_seed

    @pytest.mark.parametrize("workers", [1, 2])
    def test_loader_workers_change_nothing(self, numbered_video, workers):
        dataset = dataset_of(numbered_video, augment=AUGMENT, copies=2, training=True)
        dataset.set_epoch(3)
        alone = [dataset.collater([dataset[i]]) for i in range(6)]
        loader = DataLoader(dataset, collate_fn=dataset.collater, num_workers=workers)
        for a, b in zip(alone, loader, strict=True):
            assert a["row_ids"] == b["row_ids"]
            for key, value in a["net_input"].items():
                assert torch.equal(value, b["net_input"][key])

    def test_global_generators_are_left_alone(self, numbered_video):
        torch.manual_seed(0)
        np.random.seed(0)
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        dataset = dataset_of(numbered_video, augment=AUGMENT, copies=2, training=True)
        dataset.collater([dataset[int(i)] for i in dataset.ordered_indices()])
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)

    def test_validation_has_the_same_clips_and_masks_every_time(self, numbered_video):
        valid = dataset_of(numbered_video, augment=AUGMENT, copies=3)
        before = [valid[i] for i in range(6)]
        valid.set_epoch(7)
        assert all(same(a, valid[i]) for i, a in enumerate(before))
        assert all(len(sample["clips"]) == 1 for sample in before)
        assert len({sample["clips"][0].mask_seed for sample in before}) == 6
        starts = {numbers_of(sample["clips"][0].frames[:1].permute(0, 2, 3, 1))[0] for sample in before}
        assert len(starts) > 3
        other = dataset_of(numbered_video, seed=2)
        assert other[0]["clips"][0].mask_seed != before[0]["clips"][0].mask_seed

    def test_each_time_in_an_epoch_draws_anew(self, numbered_video):
        rows = [Row("a", "a.mp4")]
        dataset = dataset_of(numbered_video, rows, copies=2, training=True, ratios=[2.0])
        assert len(dataset) == 2
        seeds = [clip.mask_seed for i in range(2) for clip in dataset[i]["clips"]]
        assert len(set(seeds)) == 4 and dataset[0]["id"] == dataset[1]["id"] == 0

    def test_no_two_purposes_share_their_draws(self, numbered_video, monkeypatch):
        """numpy fills keys up with zeros: (1, 3), (1, 3, 0) and (1, 3, 0, 0) would be one stream."""
        seen = {}
        default_rng = np.random.default_rng

        def spy(key=None):
            if isinstance(key, tuple):
                seen.setdefault(tuple(default_rng(key).integers(2**62, size=2)), set()).add(key)
            return default_rng(key)

        monkeypatch.setattr(np.random, "default_rng", spy)
        for training in (True, False):
            dataset = dataset_of(numbered_video, copies=2, training=training, ratios=[0.5])
            for epoch in range(1, 4):
                dataset.set_epoch(epoch)
                dataset.batch_by_size(dataset.ordered_indices(), max_tokens=32)
                for i in range(len(dataset)):
                    dataset[i]
        assert all(len(keys) == 1 for keys in seen.values()), [keys for keys in seen.values() if len(keys) > 1]
        assert len({key[0] for keys in seen.values() for key in keys}) == 5


class TestEpochs:
    def test_ratios(self):
        rows = EpochRows([4, 10, 3], [2.0, 0.5, 1.0], seed=1)
        parts = []
        for epoch in range(1, 40):
            numbers, times = rows.of_epoch(epoch)
            assert len(numbers) == len(rows) == 8 + 5 + 3
            counts = np.bincount(numbers, minlength=17)
            assert counts[:4].tolist() == [2] * 4 and counts[14:].tolist() == [1] * 3 and counts[4:14].max() == 1
            assert len(set(zip(numbers.tolist(), times.tolist(), strict=True))) == len(numbers)
            parts.append(tuple(numbers[(numbers >= 4) & (numbers < 14)]))
        assert len(set(parts)) > 30 and set(np.concatenate(parts)) == set(range(4, 14))
        again, _ = EpochRows([4, 10, 3], [2.0, 0.5, 1.0], seed=1).of_epoch(5)
        assert tuple(again[(again >= 4) & (again < 14)]) == parts[4]

    def test_a_fraction_of_few_rows_is_not_nothing(self):
        assert len(EpochRows([3], [0.1], seed=1)) == 1
        assert len(EpochRows([3], [1.5], seed=1)) == 5

    def test_order_is_another_permutation_each_epoch(self, numbered_video):
        dataset = dataset_of(numbered_video, training=True)
        orders = []
        for epoch in (1, 2, 1):
            dataset.set_epoch(epoch)
            orders.append(dataset.ordered_indices().tolist())
        assert sorted(orders[0]) == list(range(6)) and orders[0] == orders[2] != orders[1]
        assert dataset_of(numbered_video).ordered_indices().tolist() == list(range(6))

    def test_every_row_is_in_a_batch(self, numbered_video):
        rows = [Row(f"r{i}", "a.mp4", start=0.0, end=0.3 + i / 10) for i in range(13)]
        for training in (True, False):
            dataset = dataset_of(numbered_video, rows, copies=2, training=training)
            batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=70, required_batch_size_multiple=8)
            assert sorted(int(i) for batch in batches for i in batch) == list(range(13))
            for batch in batches:
                assert len(batch) * dataset.num_tokens_vec(batch).max() <= 70

    def test_max_tokens_below_one_row_says_what_to_give(self, numbered_video):
        dataset = dataset_of(numbered_video, copies=2, training=True)
        with pytest.raises(DataError, match=r"dataset\.max_tokens=31 is less than the 32 frames"):
            dataset.batch_by_size(dataset.ordered_indices(), max_tokens=31)


class TestDurations:
    ROWS = tuple(Row(f"r{i}", "a.mp4", start=0.0, end=0.4 * (i + 1)) for i in range(5))  # 0.4 to 2 s

    def test_what_is_left_out_is_named(self, caplog):
        with caplog.at_level(logging.WARNING):
            kept = within_durations("asl", self.ROWS, [0.4, 0.8, 1.2, 1.6, 2.0], shortest=0.5, longest=1.6)
        assert kept == [1, 2, 3]
        assert "asl: task.min_duration=0.5 leaves out 1 of 5 rows: r0 (0.40 s)" in caplog.text
        assert "asl: task.max_duration=1.6 leaves out 1 of 5 rows: r4 (2.00 s)" in caplog.text
        assert within_durations("asl", self.ROWS, [1.0] * 5, shortest=0, longest=0) == list(range(5))

    def test_nothing_left_is_an_error(self):
        with pytest.raises(DataError, match=r"leave out all 5 rows, which have 1\.00 to 1\.00 s"):
            within_durations("asl", self.ROWS, [1.0] * 5, shortest=2, longest=0)

    def test_files_to_open_are_told_before(self, numbered_video, tmp_path, caplog, monkeypatch):
        video = str(numbered_video / "a.mp4")
        segment = Row("segment", video, start=0.0, end=2.0, fps=25.0)
        write_manifest(tmp_path / "train.tsv", [segment, *[Row(f"probed-{i}", video) for i in range(3)]])
        write_manifest(tmp_path / "valid.tsv", [segment])
        logged = []
        probe = clips_module.video.probe
        monkeypatch.setattr(clips_module.video, "probe", lambda *a, **k: logged.append(caplog.text) or probe(*a, **k))
        task = pretraining_task(tmp_path)
        with caplog.at_level(logging.INFO):
            task.load_dataset("train")
            task.load_dataset("valid")
        assert len(logged) == 3
        assert "train: opening the files of 3 of 4 rows for their length; columns num_frames and fps" in logged[0]
        assert caplog.text.count("opening the files") == 1

    def test_from_the_row_else_from_the_file(self, numbered_video, tmp_path, caplog, monkeypatch):
        video = str(numbered_video / "a.mp4")
        rows = [Row("told", video, num_frames=25, fps=25.0), Row("probed", video)]
        write_manifest(tmp_path / "train.tsv", rows)
        probed = []
        probe = clips_module.video.probe
        monkeypatch.setattr(clips_module.video, "probe", lambda *a, **k: probed.append(a) or probe(*a, **k))
        task = pretraining_task(tmp_path, max_duration=2.0)
        with caplog.at_level(logging.WARNING):
            task.load_dataset("train")
        assert "max_duration=2 leaves out 1 of 2 rows: probed (3.20 s)" in caplog.text
        assert [row.id for row in task.dataset("train").rows] == ["told"] and len(probed) == 1


class TestManifests:
    @pytest.fixture
    def two(self, video_corpus, tmp_path):
        rows = [replace(row, path=str(video_corpus / row.path)) for row in read_manifest(video_corpus / "train.tsv")]
        write_manifest(tmp_path / "asl.tsv", rows[:7])
        write_manifest(tmp_path / "h2s.tsv", [replace(row, text=None) for row in rows[5:]])
        return tmp_path

    def test_several_manifests_are_one_training_set(self, two, caplog):
        task = pretraining_task(two, train_subset="asl,h2s", train_ratios="1,2", repeat_aug=2)
        with caplog.at_level(logging.INFO):
            task.load_dataset("asl,h2s", combine=True)
        dataset = task.dataset("asl,h2s")
        assert len(dataset.rows) == 14 and len(dataset) == 7 + 14 and dataset.training
        batch = dataset.collater([dataset[int(i)] for i in dataset.ordered_indices()])
        # train-5 is in both
        assert batch["row_ids"].count("asl:train-5") == 2 and batch["row_ids"].count("h2s:train-5") == 4
        assert batch["nsentences"] == 42 and "h2s: 7 rows, each 2 times an epoch" in caplog.text

    def test_ids_of_a_single_manifest_stay(self, two):
        task = pretraining_task(two, train_subset="asl")
        task.load_dataset("asl")
        assert task.dataset("asl").rows[0].id == "train-0"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"train_subset": "asl,h2s", "train_ratios": "1"}, r"give 2 number\(s\) above 0, for asl, h2s"),
            ({"train_subset": "asl", "train_ratios": "0"}, "task.train_ratios=0"),
            ({"train_subset": "asl", "train_ratios": "often"}, "task.train_ratios=often"),
            ({"train_subset": "asl,asl"}, "names of different manifests"),
            ({"train_subset": "asl,"}, "names of different manifests"),
        ],
    )
    def test_wrong_ratios_and_names(self, two, options, message):
        task = pretraining_task(two, **options)
        with pytest.raises(OptionError, match=message):
            task.load_dataset(options["train_subset"])

    def test_texts_are_read_where_the_criterion_needs_them(self, two):
        task = pretraining_task(two, train_subset="asl,h2s", repeat_aug=2)
        task.load_dataset("asl,h2s")
        assert "texts" not in task.dataset("asl,h2s").collater([task.dataset("asl,h2s")[0]])["net_input"]
        task.needs_texts = True
        with pytest.raises(DataError, match=r"h2s\.tsv.*text"):
            task.load_dataset("asl,h2s")
        task.load_dataset("asl")
        dataset = task.dataset("asl")
        texts = dataset.collater([dataset[0]])["net_input"]["texts"]
        assert texts == [dataset.rows[0].text]

    def test_missing_manifest_lists_the_others(self, two):
        with pytest.raises(DataError, match=r"train\.tsv does not exist; manifests in .*: asl, h2s"):
            pretraining_task(two).load_dataset("train")
