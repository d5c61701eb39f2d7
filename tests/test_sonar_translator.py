"""The model sonar_translator: from the release's files to text in several languages, by the stock generator."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from sonar_helpers import DIM, FEATURES, SPM, make_fake_release
from video_helpers import numbered, write_video

import slt_plugin.tasks  # noqa: F401
from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.cli import import_checkpoint, translate
from slt_plugin.data.manifest import Row, write_manifest

MAPS = Path("/proc/self/maps")  # the files that a process of Linux has mapped
LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn", "zho_Hans")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_fake_release(tmp_path_factory.mktemp("release"))


def imported(folder, out, *options):
    assert import_checkpoint.main(["sonar-asl", str(folder), str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def video_checkpoint(release, tmp_path_factory):
    return imported(release, tmp_path_factory.mktemp("video") / "sonar_asl.pt")


@pytest.fixture(scope="module")
def feature_checkpoint(release, tmp_path_factory):
    return imported(release, tmp_path_factory.mktemp("features") / "sonar_asl.pt", "--source", "features")


def load(path, **options):
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": "", **options})
    return models[0].eval(), task


def dataset_in(folder, task, languages=LANGUAGES, text="hello world"):
    """Rows of one and the same features, each in another language."""
    np.save(folder / "f.npy", np.random.default_rng(0).normal(size=(6, FEATURES)).astype(np.float32))
    rows = [Row(f"r{i}", "f.npy", text, text_lang=code, num_frames=6) for i, code in enumerate(languages)]
    return task.dataset_of(rows, folder, "test")


def batch_in(folder, task, **options):
    dataset = dataset_in(folder, task, **options)
    return dataset.collater([dataset[i] for i in range(len(dataset))])


def generator_of(task, model, **options):
    return task.build_generator([model], SimpleNamespace(max_len_a=0, **({"beam": 3, "max_len_b": 12} | options)))


# import


def test_the_checkpoint_holds_what_the_files_hold(release, video_checkpoint, capsys):
    content = torch.load(video_checkpoint, weights_only=True)
    theirs = torch.load(release / "sonar_text_decoder.pt", weights_only=True)["model"]
    state = content["model"]
    assert torch.equal(state["decoder.embed_tokens.weight"][4:], theirs["decoder_frontend.embed.weight"][4:])
    assert torch.equal(state["decoder.layers.1.fc2.bias"], theirs["decoder.layers.1.ffn.output_proj.bias"])
    assert state["decoder.version"].tolist() == [3.0]
    assert content["cfg"]["model"]["signhiera_variant"] == "tiny_32x64"
    assert content["cfg"]["task"]["clip_sampling_rate"] == 2
    assert set(content["provenance"]) == {
        "dm_70h_ub_signhiera.pth",
        "dm_70h_ub_sonar_encoder.pth",
        "sonar_text_decoder.pt",
    }
    assert {facts["licence"] for facts in content["provenance"].values()} == {"CC BY-NC 4.0"}


def test_describe_tells_where_each_part_comes_from(video_checkpoint, capsys):
    assert import_checkpoint.main(["describe", str(video_checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("sonar_asl.pt: sonar_translator, reads video")
    assert "  from sonar_text_decoder.pt" in lines
    assert lines.count("  licence: CC BY-NC 4.0") == 3


def test_its_sign_hiera_can_be_taken_out_again(release, video_checkpoint):
    theirs, ours = load_sign_hiera(release / "dm_70h_ub_signhiera.pth"), load_sign_hiera(video_checkpoint)
    names = [name for name in theirs.state_dict() if not name.startswith(("norm.", "head."))]
    assert all(torch.equal(ours.state_dict()[name], theirs.state_dict()[name]) for name in names)


def test_the_same_files_give_the_same_checkpoint(release, video_checkpoint, tmp_path):
    again = imported(release, tmp_path / "again.pt")
    one, two = (torch.load(path, weights_only=True)["model"] for path in (video_checkpoint, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_missing_files_and_present_output_are_named(release, tmp_path, video_checkpoint, capsys):
    assert import_checkpoint.main(["sonar-asl", str(tmp_path), str(tmp_path / "o.pt")]) == 1
    message = capsys.readouterr().err
    assert f"lacks dm_70h_ub_sonar_encoder.pth, sonar_text_decoder.pt, {SPM}, dm_70h_ub_signhiera.pth" in message
    assert "scripts/download_pretrained.py --model" in message
    assert import_checkpoint.main(["sonar-asl", str(release), str(video_checkpoint)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_parts_that_do_not_belong_together(release, tmp_path, capsys):
    for file in release.iterdir():
        (tmp_path / file.name).symlink_to(file)
    content = torch.load(release / "dm_70h_ub_sonar_encoder.pth", weights_only=True)
    name = "encoder.feature_projection.feature_proj.weight"
    content["student"][name] = torch.ones(DIM, FEATURES + 1)
    (tmp_path / "dm_70h_ub_sonar_encoder.pth").unlink()
    torch.save(content, tmp_path / "dm_70h_ub_sonar_encoder.pth")
    assert import_checkpoint.main(["sonar-asl", str(tmp_path), str(tmp_path / "o.pt")]) == 1
    assert "gives features of 256 channels, dm_70h_ub_sonar_encoder.pth reads 257" in capsys.readouterr().err


# loading


def test_without_its_version_the_last_layer_norm_would_be_lost(feature_checkpoint, tmp_path):
    content = torch.load(feature_checkpoint, weights_only=True)
    del content["model"]["decoder.version"]
    torch.save(content, tmp_path / "old.pt")
    whole, task = load(feature_checkpoint)
    old, _ = load(tmp_path / "old.pt")
    assert old.decoder.layer_norm is not None
    net_input = batch_in(tmp_path, task)["net_input"]
    with torch.no_grad():
        assert torch.equal(old(**net_input)[0], whole(**net_input)[0])


def test_a_loaded_model_is_complete_and_tied(feature_checkpoint):
    model, _ = load(feature_checkpoint)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.decoder.output_projection.weight is model.decoder.embed_tokens.weight


@pytest.mark.skipif(not MAPS.is_file(), reason=f"no {MAPS} here")
def test_what_is_decoded_is_memory_mapped_and_what_is_trained_is_not(feature_checkpoint, tmp_path):
    path = tmp_path / "mapped.pt"
    path.write_bytes(feature_checkpoint.read_bytes())
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))  # as the trainer does
    assert str(path) not in MAPS.read_text()
    model, _ = load(path)
    assert str(path) in MAPS.read_text()
    assert torch.equal(model.state_dict()["encoder.sonar.start"], state["model"]["encoder.sonar.start"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 3e-2), ("fp16", 3e-3)])
def test_half_precision_is_near_fp32(release, feature_checkpoint, tmp_path, dtype, tolerance):
    half, task = load(imported(release, tmp_path / "half.pt", "--dtype", dtype, "--source", "features"))
    assert half.encoder.sonar.start.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert half.decoder.embed_positions.weights.dtype == torch.float32
    large = {parameter.dtype for parameter in half.encoder.sonar.fp32_weights()}
    assert large == {torch.float32 if dtype == "fp16" else torch.bfloat16}
    whole, _ = load(feature_checkpoint)
    net_input = batch_in(tmp_path, task)["net_input"]
    with torch.no_grad():
        expected, actual = whole(**net_input)[1]["embedding"], half(**net_input)[1]["embedding"].float()
        assert (actual - expected).norm() / expected.norm() < tolerance
        logits, half_logits = whole(**net_input)[0], half(**net_input)[0].float()
        assert (half_logits - logits).norm() / logits.norm() < tolerance


def test_casting_keeps_positions_and_t5s_large_weights_in_fp32(feature_checkpoint):
    model, _ = load(feature_checkpoint)
    before = [parameter.clone() for parameter in model.encoder.sonar.fp32_weights()]
    model.half()
    assert model.decoder.embed_positions.weights.dtype == torch.float32
    after = model.encoder.sonar.fp32_weights()
    assert len(after) == 5
    assert all(torch.equal(one, two) and two.dtype == torch.float32 for one, two in zip(before, after, strict=True))
    assert model.encoder.sonar.encoder.block[0].layer[1].DenseReluDense.wi_0.weight.dtype == torch.float16


# generation


def plain_beam(model, embedding, prefix, eos, pad, unk, beam, max_len):
    """Beam search without a cache, one sentence: the prefix first, scores divided by the length, no <unk>."""
    source = {"encoder_out": [embedding[None, None]], "encoder_padding_mask": []}

    def log_probs(tokens):
        logits = model.decoder(torch.tensor([[eos, *tokens]]), source)[0][0, -1].float()
        values = torch.log_softmax(logits, dim=-1)
        values[[pad, unk]] = -math.inf
        return values

    first = float(log_probs([])[prefix])
    alive, ended = [([prefix], first)], []
    while alive and len(ended) < beam:
        candidates = []
        for tokens, score in alive:
            values = log_probs(tokens)
            if len(tokens) == max_len:
                candidates.append(([*tokens, eos], score + float(values[eos])))
                continue
            top = values.topk(2 * beam)
            candidates += [([*tokens, int(i)], score + float(v)) for v, i in zip(top.values, top.indices, strict=True)]
        candidates.sort(key=lambda pair: -pair[1])
        for tokens, score in candidates[:beam]:
            if tokens[-1] == eos and len(ended) < beam:
                ended.append((tokens, score / len(tokens)))
        alive = [pair for pair in candidates[: 2 * beam] if pair[0][-1] != eos][:beam]
    return sorted(ended, key=lambda pair: -pair[1])


def test_beam_search_equals_a_plain_one(feature_checkpoint, tmp_path):
    model, task = load(feature_checkpoint)
    dictionary, codec = task.target_dictionary, task.codec
    sample = batch_in(tmp_path, task)
    assert sample["prefix_tokens"].flatten().tolist() == [codec.language_id(code) for code in LANGUAGES]
    found = task.inference_step(generator_of(task, model), [model], sample)
    with torch.no_grad():
        embeddings = model.embed(sample["net_input"])
        for row, hypotheses in enumerate(found):
            prefix = int(sample["prefix_tokens"][row])
            eos, pad, unk = dictionary.eos(), dictionary.pad(), dictionary.unk()
            expected = plain_beam(model, embeddings[row], prefix, eos, pad, unk, beam=3, max_len=12)
            assert hypotheses[0]["tokens"].tolist() == expected[0][0]
            assert float(hypotheses[0]["score"]) == pytest.approx(expected[0][1], abs=1e-4)
            assert hypotheses[0]["tokens"][0] == prefix
            text = codec.decode(hypotheses[0]["tokens"])
            assert text == codec.decode(hypotheses[0]["tokens"][1:])
            assert "__" not in text


def test_unknown_symbols_are_never_written(feature_checkpoint, tmp_path):
    model, task = load(feature_checkpoint)
    unk = task.target_dictionary.unk()
    with torch.no_grad():
        model.decoder.embed_tokens.weight[unk] *= 100  # the favourite of every step
    sample = batch_in(tmp_path, task)
    for hypotheses in task.inference_step(generator_of(task, model), [model], sample):
        assert all(unk not in h["tokens"].tolist() for h in hypotheses)


def test_targets_begin_with_the_language(feature_checkpoint, tmp_path):
    _, task = load(feature_checkpoint)
    sample = batch_in(tmp_path, task)
    eos = task.target_dictionary.eos()
    assert sample["target"][:, 0].tolist() == [task.codec.language_id(code) for code in LANGUAGES]
    assert sample["net_input"]["prev_output_tokens"][:, 0].tolist() == [eos] * 4
    assert torch.equal(sample["net_input"]["prev_output_tokens"][:, 1:], sample["target"][:, :-1])
    assert task.codec.decode(sample["target"][0]) == "hello world"


def test_stock_generate_and_the_language_of_the_command_line(feature_checkpoint, tmp_path):
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(6, FEATURES)).astype(np.float32))
    write_manifest(tmp_path / "test.tsv", [Row("r0", "f.npy", "hello world", num_frames=6, text_lang="en")])
    command = ["fairseq-generate", str(tmp_path), "--user-dir", "slt_plugin", "--task", "sign_to_text"]
    command += ["--path", str(feature_checkpoint), "--gen-subset", "test", "--beam", "3", "--max-len-b", "12"]
    program = [sys.executable, "-m", "fairseq_cli.generate", *command[1:]]
    done = subprocess.run([*program, "--target-lang", "fra_Latn", "--cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model, task = load(feature_checkpoint, target_lang="fra_Latn")
    sample = batch_in(tmp_path, task, languages=[None])
    tokens = task.inference_step(generator_of(task, model), [model], sample)[0][0]["tokens"]
    detokenised = next(line for line in done.stdout.splitlines() if line.startswith("D-0\t"))
    assert detokenised.split("\t")[2] == task.codec.decode(tokens)
    refused = subprocess.run([*program, "--target-lang", "zh", "--cpu"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "language 'zh' is not in the vocabulary; did you mean 'zho_Hans'?" in refused.stderr


# slt-translate


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, [numbered(n) for n in range(50)])
    return path


def test_translate_writes_every_language_and_encodes_once(video_checkpoint, video, capsys, monkeypatch):
    from slt_plugin.modules.sonar import SonarEncoder

    calls = []
    forward = SonarEncoder.forward
    monkeypatch.setattr(SonarEncoder, "forward", lambda *args: calls.append(1) or forward(*args))
    words = [str(video), "--checkpoint", str(video_checkpoint), "--beam", "2", "--max-len", "8"]
    assert translate.main([*words, "--json", "--target-lang", *LANGUAGES]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["target_lang"] for result in results] == list(LANGUAGES)
    assert len(calls) == 1
    for result in results:  # alone the same as among others
        assert translate.main([*words, "--target-lang", result["target_lang"]]) == 0
        assert capsys.readouterr().out.rstrip("\n").split("\t")[1] == result["hypotheses"][0]["text"]
    assert len({result["hypotheses"][0]["score"] for result in results}) == 4
    assert translate.main([*words, "--target-lang", "eng_Latn", "fra_Latn"]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == ["eng_Latn", "fra_Latn"]


def test_translate_refuses_before_it_reads(video_checkpoint, video, capsys):
    words = [str(video), "--checkpoint", str(video_checkpoint)]
    assert translate.main(words) == 1
    assert "writes 202 languages: choose with --target-lang (eng_Latn, ...)" in capsys.readouterr().err
    assert translate.main([*words, "--target-lang", "eng_Latn", "zho_hans"]) == 1
    assert "did you mean 'zho_Hans'?" in capsys.readouterr().err
