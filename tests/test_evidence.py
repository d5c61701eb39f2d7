"""Evidence for words: on a model of which it is known where it looks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.manifest import Row
from slt_plugin.data.pose import PoseOptions
from slt_plugin.data.sources import FeatureSource, PoseSource
from slt_plugin.data.step_times import step_times, steps_within
from slt_plugin.report.evidence import Check, explain, faithfulness
from slt_plugin.report.occlusion import Occlusion, Timeline, hide_by_holding, hide_by_mean, token_log_probabilities
from slt_plugin.report.saliency import hidden_channels, landmark_saliency, saliency_over_time
from slt_plugin.report.words import split_words, words_of_tokens

STEPS, RATE, VOCABULARY, EOS = 60, 10.0, 7, 2
TEXTS = {EOS: "", 3: "one", 4: " two", 5: " ", 6: "ree"}


def decode(tokens) -> str:
    return "".join(TEXTS[token] for token in tokens)


class Reader(torch.nn.Module):
    """Knows token ``t`` at target position u from channel 0 in its third of the source; all others count nothing.

    The source is 0 but for the steps where the token is shown, so that it is lost where those are hidden.
    """

    def __init__(self, gain: float = 4.0):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))
        self.encoder = SimpleNamespace(forward_torchscript=self.encode)

    def encode(self, net_input):
        source = net_input["src_tokens"].float()  # B x T x 3
        return {"thirds": source[:, : STEPS // 3 * 3, 0].unflatten(1, (3, -1)).amax(2)}  # B x 3

    def decoder(self, previous, encoder_out):
        logits = torch.zeros(*previous.shape, VOCABULARY)
        seen = encoder_out["thirds"] * self.gain
        targets = [3, 4, 5, 6, EOS]
        places = [0, 1, 2, 2, None]
        for u, (token, third) in enumerate(zip(targets, places, strict=True)):
            if third is not None:
                logits = logits.index_put(
                    (torch.arange(len(previous)), torch.full((len(previous),), u), torch.full((len(previous),), token)),
                    seen[:, third],
                )
        return (logits,)

    def get_normalized_probs(self, output, log_probs):
        return torch.log_softmax(output[0], -1)


@pytest.fixture
def sample():
    source = torch.zeros(1, STEPS, 3)
    for third, shown in enumerate((5, 28, 50)):
        source[0, shown : shown + 4, 0] = 1.0 + 0.01 * third
    return {
        "net_input": {"src_tokens": source, "src_lengths": torch.tensor([STEPS]), "prev_output_tokens": None},
        "start_tokens": torch.tensor([EOS]),
    }


TOKENS = torch.tensor([3, 4, 5, 6, EOS])
TIMELINE = Timeline(torch.arange(STEPS, dtype=torch.float64) / RATE, STEPS / RATE)


def test_each_word_rests_on_the_stretch_that_shows_it(sample):
    found = explain([Reader()], sample, TOKENS, decode, TIMELINE, rng=np.random.default_rng(0))
    assert [word.word for word in found.words] == ["one", "two", "ree"]
    for word, second in zip(found.words, (0.5, 2.8, 5.0), strict=True):
        assert word.start <= second + 0.1 and word.end >= second + 0.3 and word.drop > 1, word
        assert 0 <= word.start < word.end <= STEPS / RATE + 1e-9
    assert all(check.drop > 2 * check.random_drop for check in found.checks)
    assert faithfulness(found.checks)["share"] == 1.0


def test_a_model_that_looks_nowhere_is_not_called_faithful(sample):
    found = explain([Reader(gain=0.0)], sample, TOKENS, decode, TIMELINE, rng=np.random.default_rng(0))
    assert [word.drop for word in found.words] == [0, 0, 0]
    assert faithfulness(found.checks)["faithful"] == 0


def test_no_words_no_evidence(sample):
    found = explain([Reader()], sample, torch.tensor([EOS]), decode, TIMELINE, rng=np.random.default_rng(0))
    assert found == ([], []) and faithfulness(found.checks) is None
    assert explain([Reader()], sample, TOKENS, decode, TIMELINE).checks == []


def test_faithful_means_more_than_a_random_stretch():
    found = faithfulness([Check(2.0, 1.0), Check(1.0, 1.0), Check(3.0, 2.9), Check(-1.0, -2.0)])
    assert (found["words"], found["faithful"], found["share"], found["required"]) == (4, 3, 0.75, 0.7)


def test_drops_are_differences_of_log_probabilities(sample):
    model = Reader()
    occlusion = Occlusion([model], sample, TOKENS, [0, 1, 2, 2, None], TIMELINE, max_steps=STEPS)
    (drops,) = occlusion.drops([(2.5, 3.5)], hide_by_mean).tolist()
    # the others' mean: 4 steps of 1.0 and 4 of 1.02 among 50
    left = (4 * 1.0 + 4 * 1.02) / 50

    def score(value):
        return 4 * value - math.log(math.exp(4 * value) + VOCABULARY - 1)

    assert drops == pytest.approx([0, score(1.01) - score(left), 0], abs=1e-5)


def test_batches_of_copies_make_no_difference(sample):
    stretches = [(0.1 * i, 0.1 * i + 1) for i in range(20)]
    one, many = (
        Occlusion([Reader()], sample, TOKENS, [0, 1, 2, 2, None], TIMELINE, max_steps=steps).drops(
            stretches, hide_by_holding
        )
        for steps in (STEPS, 10 * STEPS)
    )
    assert torch.equal(one, many) and one.shape == (20, 3)


def test_an_ensemble_has_the_mean_of_the_probabilities(sample):
    net_input = {"src_tokens": sample["net_input"]["src_tokens"]}
    previous = torch.cat([torch.tensor([EOS]), TOKENS[:-1]]).unsqueeze(0)
    alone = [
        token_log_probabilities([Reader(gain)], net_input, previous, TOKENS.unsqueeze(0)).exp() for gain in (1.0, 4.0)
    ]
    both = token_log_probabilities([Reader(1.0), Reader(4.0)], net_input, previous, TOKENS.unsqueeze(0)).exp()
    assert torch.allclose(both, (alone[0] + alone[1]) / 2)


HIDDEN = torch.tensor([True, False, True, True, False])


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_what_hides(dtype):
    source = torch.tensor([[10], [20], [30], [40], [51]], dtype=dtype)
    mean = 36 if dtype == torch.uint8 else 35.5
    assert hide_by_mean(source, HIDDEN).squeeze(1).tolist() == [mean, 20, mean, mean, 51]
    assert hide_by_holding(source, HIDDEN).squeeze(1).tolist() == [20, 20, 20, 20, 51]
    assert source[0, 0] == 10 and hide_by_mean(source, HIDDEN).dtype == dtype


def test_nothing_left():
    for hide in (hide_by_mean, hide_by_holding):
        with pytest.raises(ValueError, match="nothing is left"):
            hide(torch.zeros(3, 1), torch.ones(3, dtype=torch.bool))


# words


def test_words_and_their_tokens():
    assert words_of_tokens([3, 4, 5, 6, EOS], decode) == [0, 1, 2, 2, None]
    assert words_of_tokens([5, 3, EOS], decode) == [0, 0, None]
    assert words_of_tokens([EOS], decode) == [None]


def test_languages_without_spaces():
    assert split_words("你好 world!") == ["你", "好", "world!"]
    assert split_words("ひらがな") == ["ひ", "ら", "が", "な"]


# times


def test_step_times_of_features_and_poses(tmp_path, pose_corpus):
    row = Row("r", "r.npy", fps=50.0)
    times, seconds = step_times(FeatureSource(tmp_path, channels=3, step=2), row, 5)
    assert times.tolist() == [0, 0.04, 0.08, 0.12, 0.16] and seconds == 0.2
    times, seconds = step_times(FeatureSource(tmp_path, channels=3), Row("r", "r.npy", start=1.0, end=3.0), 4)
    assert times.tolist() == [0, 0.5, 1.0, 1.5] and seconds == 2.0
    assert step_times(FeatureSource(tmp_path, channels=3), Row("r", "r.npy"), 4) is None
    pose = Row("p", "poses/test.npy", start=0.0, end=0.4, fps=25.0)
    times, seconds = step_times(PoseSource(pose_corpus, PoseOptions(step_frames=2)), pose, 5)
    assert times.tolist() == pytest.approx([0, 0.08, 0.16, 0.24, 0.32]) and seconds == pytest.approx(0.4)


def test_step_times_of_overlapping_clips(video_corpus):
    from slt_plugin.data.manifest import read_manifest

    row = read_manifest(video_corpus / "test.tsv")[0]
    source = VideoSource(video_corpus, ClipOptions(num_frames=16, stride=8, sampling_rate=1, size=32))
    times, seconds = step_times(source, row, source.num_steps(row))
    assert len(times) == source.num_steps(row) and seconds == pytest.approx(row.num_frames / 25.0)
    assert times[:16].tolist() == pytest.approx([i / 25 for i in range(16)])
    assert times[16] == pytest.approx(8 / 25)  # the second clip begins in the middle of the first
    hidden = steps_within(times, 8 / 25 - 1e-9, 16 / 25 - 1e-9)
    assert hidden[:24].tolist() == [False] * 8 + [True] * 16  # the same moments in both


def test_every_stretch_hides_equally_many_steps():
    """Also of a source with fewer steps than words; otherwise a random stretch that hides nothing looks faithful."""
    from slt_plugin.report.evidence import _places

    for steps, words in ((4, 20), (7, 3), (60, 3), (201, 30)):
        timeline = Timeline(torch.arange(steps, dtype=torch.float64) * 0.04, steps * 0.04)
        hidden = {int(steps_within(timeline.times, *place).sum()) for place in _places(timeline, words)}
        assert len(hidden) == 1 and 1 <= hidden.pop() <= steps / 2, (steps, words)


def test_too_few_steps(sample):
    sample["net_input"]["src_tokens"] = sample["net_input"]["src_tokens"][:, :3]
    with pytest.raises(ValueError, match="3 source steps: at least 4"):
        explain([Reader()], sample, TOKENS, decode, Timeline(torch.arange(3, dtype=torch.float64), 3.0))


# landmarks


def test_saliency_is_of_the_landmarks_that_are_read(sample):
    values = landmark_saliency([Reader()], sample, TOKENS)
    assert values.shape == (STEPS, 1)
    shown = {step for first in (5, 28, 50) for step in range(first, first + 4)}
    used = set(values.squeeze(1).nonzero().squeeze(1).tolist())
    assert used and used <= shown
    # first-order estimate of the loss: gradient of the log probability times the value
    position = values[28:32].max()
    p = math.exp(4 * 1.01) / (math.exp(4 * 1.01) + VOCABULARY - 1)
    assert values[28:32].sum().item() == pytest.approx(4 * 1.01 * (1 - p), rel=1e-4) and position > 0


def test_saliency_over_time():
    values = torch.arange(8.0).unsqueeze(1).expand(8, 30).contiguous()
    found = saliency_over_time(values, torch.arange(8) / 2, ("body", "right_hand"), bins=4)
    assert found["times"] == [0, 1, 2, 3]
    assert [row[0] for row in found["values"]] == [0.5, 2.5, 4.5, 6.5]
    assert found["parts"] == ["body"] * 9 + ["right_hand"] * 21 and found["landmarks"][:2] == ["nose", "left_eye"]
    assert len(saliency_over_time(values[:3], torch.arange(3), ("body", "right_hand"), bins=48)["times"]) == 3


def test_channels_of_the_groups():
    found = hidden_channels(("body", "left_hand", "right_hand"))
    assert list(found) == ["hands", "body"]
    assert found["body"] == list(range(27)) and found["hands"] == list(range(27, 27 + 126))
    assert hidden_channels(("face",)) == {}
