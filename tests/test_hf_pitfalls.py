"""Pitfalls of transformers 5 and of the hub, options of sign_to_text_hf, and what is refused with which words."""

import json
import shutil

import pytest
import torch
from codec_helpers import REAL, needs_real
from hf_helpers import LANGUAGES, UNTIED, WIDTH, tiny_model, write_tokenizer
from hf_training import hf_model, hf_task, model_config, train_hf, whole_batch, write_corpus
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from test_config import FINETUNE

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.data.errors import DataError
from slt_plugin.models.errors import OptionError
from slt_plugin.models.hf import build_model, describe, load_model
from slt_plugin.models.sign_to_text import TinyConfig
from slt_plugin.models.sign_to_text_hf import SignToTextHFConfig
from slt_plugin.text.codec import build_codec
from slt_plugin.text.errors import HubError
from slt_plugin.text.hub import resolve


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), "t5")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_model("t5", tmp_path_factory.mktemp("models") / "t5")


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


# transformers 5


@pytest.mark.parametrize("family", [*UNTIED, "t5"])
def test_output_tables_of_t5_are_those_of_the_file(family, tmp_path):
    folder = tiny_model(family, tmp_path / "model")
    file = load_file(folder / "model.safetensors")
    hf = load_model(folder)
    torch.testing.assert_close(hf.shared.weight.detach(), file["shared.weight"])
    torch.testing.assert_close(hf.lm_head.weight.detach(), file.get("lm_head.weight", file["shared.weight"]))
    assert hf.config.tie_word_embeddings == (family == "t5")
    if family != "mt5":  # T5 v1.0 scales what it writes, v1.1 does not
        assert hf.config.scale_decoder_outputs == (family == "t5")
    assert hf.encoder.embed_tokens.weight is hf.shared.weight is hf.decoder.embed_tokens.weight

    again = build_model(describe(hf))
    state = hf.state_dict()
    for source, target in ((hf, again), (again, load_model(folder))):  # loading ties nothing and parts nothing
        target.load_state_dict(source.state_dict())
        assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    assert (again.lm_head.weight is again.shared.weight) == (family == "t5")
    inputs = {"inputs_embeds": torch.randn(1, 4, WIDTH), "decoder_input_ids": torch.tensor([[0, 5]])}
    assert torch.equal(hf.eval()(**inputs).logits, again.eval()(**inputs).logits)


def test_a_half_precision_file_is_trained_in_fp32(tmp_path):
    folder = tiny_model("bart", tmp_path / "model")
    state = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, dtype="float16")
    assert {parameter.dtype for parameter in load_model(folder).parameters()} == {torch.float32}


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    folder = tiny_model("mt5", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    name = "decoder.block.1.layer.0.SelfAttention.q.weight"
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"1 weights.*would stay random: {name}"):
        load_model(folder)
    edit_config(folder, d_ff=48)
    with pytest.raises(CheckpointError, match=r"DenseReluDense\.wi_0\.weight \(32, 16\) for \(48, 16\)"):
        load_model(folder)


def test_adapter_writes_at_the_size_of_the_embeddings(corpus, tmp_path):
    """scale_embedding included: the encoder of the pretrained model was never fed with anything else."""
    for family in ("t5", "mbart50"):
        folder = tiny_model(family, tmp_path / family)
        task = hf_task(corpus, folder, target_lang="en_XX" if family == "mbart50" else None)
        model = hf_model(task, folder)
        encoder = model.hf.get_encoder()
        seen = []
        embedded = encoder.embed_tokens(torch.arange(4, len(task.target_dictionary)))
        hook = encoder.register_forward_pre_hook(lambda _m, _a, kw, seen=seen: seen.append(kw), with_kwargs=True)
        model.encoder(torch.randn(8, 50, 6), torch.full((8,), 50))
        hook.remove()
        assert float(seen[0]["inputs_embeds"].std()) == pytest.approx(float(embedded.std()), rel=0.4)


# options


def test_every_option_is_listed_with_its_default():
    listed = OmegaConf.to_container(OmegaConf.load(FINETUNE / "_hf.yaml").model)
    defaults = OmegaConf.to_container(OmegaConf.structured(SignToTextHFConfig), enum_to_str=True)
    defaults["lora_config"].pop("_name", None)
    assert {**listed, "_name": None} == {**{k: v for k, v in defaults.items() if k != "max_target_positions"},
                                         "_name": None}  # fmt: skip


def test_dropout_is_the_models_own_or_the_given_one(corpus, t5):
    task = hf_task(corpus, t5)
    for given, expected in ((None, 0.1), (0.35, 0.35), (0.0, 0.0)):
        model = task.build_model(model_config(t5, dropout=given))
        layer = model.hf.encoder.block[0].layer[0].dropout
        assert layer.p == expected == model.hf.config.dropout_rate
    with pytest.raises(OptionError, match=r"model\.dropout=1\.5"):
        task.build_model(model_config(t5, dropout=1.5))


def test_frozen_parts(corpus, t5, tmp_path):
    def trained(folder, **options):
        model = task.build_model(model_config(folder, **options))
        return {name for name, p in model.named_parameters() if p.requires_grad}

    task = hf_task(corpus, t5)
    whole = trained(t5)
    adapter = {name for name in whole if name.startswith("encoder.")}
    encoder = {name for name in whole if name.startswith("hf.encoder.")}
    table = {"hf.shared.weight"}
    assert encoder and adapter and table <= whole
    # the encoder's table is the decoder's, from which it is written
    assert trained(t5, freeze_decoder=True) == adapter | encoder
    assert trained(t5, freeze_encoder=True) == whole - encoder
    assert trained(t5, freeze="text_decoder.layers.0") == {n for n in whole if not n.startswith("hf.decoder.block.0.")}
    with pytest.raises(OptionError, match=r"text_decoder has layers 0-1"):
        trained(t5, freeze="text_decoder.layers.2")
    with pytest.raises(OptionError, match="freeze_updates does not go with"):
        trained(t5, freeze_encoder=True, freeze_updates=5)
    untied = tiny_model("mt5", tmp_path / "mt5")
    assert "hf.lm_head.weight" not in trained(untied, freeze_decoder=True)


def test_checkpointed_activations_give_the_same_gradients(corpus, t5):
    task, gradients = hf_task(corpus, t5), []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = task.build_model(model_config(t5, checkpoint_activations=checkpoint, dropout=0.0)).train()
        assert model.hf.is_gradient_checkpointing == checkpoint
        logits, _ = model(**whole_batch(task)["net_input"])
        logits.logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_t5_and_pegasus_refuse_fp16_and_bart_does_not(corpus, t5, tmp_path):
    with pytest.raises(OptionError, match=r"overflows in fp16.*common\.bf16=true"):
        hf_model(hf_task(corpus, t5), t5).half()
    for family, refused in (("pegasus", True), ("bart", False)):
        folder = tiny_model(family, tmp_path / family)
        model = hf_model(hf_task(corpus, folder), folder)
        assert model.overflows_in_fp16 == refused
    assert model.half().hf.lm_head.weight.dtype == torch.float16


def test_t5_refuses_fp16_autocast_and_bart_does_not(corpus, t5, tmp_path):
    words = ("common.amp=true", "optimization.max_update=1")
    with pytest.raises(OptionError, match=r"overflows in fp16.*common\.bf16=true.*instead of common\.amp=true"):
        train_hf(corpus, t5, tmp_path / "t5", *words)
    train_hf(corpus, tiny_model("bart", tmp_path / "bart"), tmp_path / "run", *words)


def test_freezing_for_some_updates_recommends_amp_only_where_it_works(corpus, t5, tmp_path):
    words = ("common.bf16=true", "model.freeze=text_decoder", "model.freeze_updates=5")
    with pytest.raises(OptionError, match="weights too: use fp32, or train in two runs"):
        train_hf(corpus, t5, tmp_path / "t5", *words)
    with pytest.raises(OptionError, match=r"weights too: use common\.amp=true, or"):
        train_hf(corpus, tiny_model("bart", tmp_path / "bart"), tmp_path / "run", *words)


def test_positions_end_where_the_tables_do(corpus, t5, tmp_path):
    bart = tiny_model("bart", tmp_path / "bart")  # 64 positions
    assert hf_model(hf_task(corpus, bart), bart, adapter_stride=2).max_positions() == (128, 40)
    assert hf_model(hf_task(corpus, t5), t5, max_encoder_positions=3000).max_positions() == (3000, 40)


# other families


def write_marian(folder):
    """An untested family, which begins decoding with padding."""
    from transformers import MarianConfig, MarianMTModel

    write_tokenizer("t5", folder)
    size = len(build_codec("hf", folder).dictionary)
    config = MarianConfig(
        vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, forced_eos_token_id=1, max_position_embeddings=64,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(folder)
    return folder


def test_an_untested_family_works_with_a_warning(corpus, tmp_path, caplog):
    (tmp_path / "marian").mkdir()
    folder = write_marian(tmp_path / "marian")
    task = hf_task(corpus, folder)
    model = hf_model(task, folder)
    assert "model_type marian is not among the tested ones" in caplog.text
    batch = whole_batch(task)
    assert model(**batch["net_input"])[0].isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "vocab_size": 60}, "model_type gpt2 has no encoder and decoder of text"),
        ({"model_type": "nonsense"}, "no configuration that transformers knows"),
    ],
)
def test_what_is_no_seq2seq_model_is_refused(config, message, corpus, t5, tmp_path):
    shutil.copytree(t5, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match=message):
        hf_model(hf_task(corpus, t5), tmp_path / "model")


def test_a_model_that_cannot_be_fed_says_what_is_missing(corpus, t5, monkeypatch):
    from transformers.models.t5.modeling_t5 import T5Stack

    def forward(self, input_ids=None, attention_mask=None):
        raise AssertionError

    monkeypatch.setattr(T5Stack, "forward", forward)
    with pytest.raises(OptionError, match=r"T5ForConditionalGeneration.*its encoder does not take inputs_embeds"):
        hf_model(hf_task(corpus, t5), t5)


# vocabularies


def test_a_vocabulary_of_another_model_is_refused(corpus, t5, tmp_path):
    bart = tiny_model("bart", tmp_path / "bart")
    with pytest.raises(OptionError, match=r"task\.codec=hf, 294 symbols\) is not that of T5.*has 64 rows"):
        hf_model(hf_task(corpus, bart), t5)
    with pytest.raises(OptionError, match="has its pad symbol at 0, BartForConditionalGeneration at 1"):
        hf_model(hf_task(corpus, t5), bart)


def test_fairseq_decoders_still_refuse_languages_that_are_written_first(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", "nllb")
    task = hf_task(corpus, tiny_model("nllb", tmp_path / "nllb"))
    small = {"source_encoder": "none", "max_target_positions": 40, "encoder_layers": 1, "decoder_layers": 1}
    task.build_model(OmegaConf.merge(OmegaConf.structured(TinyConfig), {"_name": "sign_to_text_tiny"}, small))
    with pytest.raises(OptionError, match=r"not those of mBART-cc25.*or model sign_to_text_hf"):
        task.load_dataset("test")


def test_a_language_that_the_model_does_not_know_is_named(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", "t5")  # text_lang en
    folder = tiny_model("mbart50", tmp_path / "mbart50")
    task = hf_task(corpus, folder)
    hf_model(task, folder)
    task.load_dataset("test")  # en is en_XX there
    assert task.dataset("test")[0]["target"][0] == task.codec.language_id("en_XX")
    task.cfg.target_lang = "en_UK"
    with pytest.raises(DataError, match=r"row test-0: language 'en_UK' is not in the vocabulary; did you mean 'en_XX'"):
        task.load_dataset("test")


# the hub


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cache_model(cache, name, folder):
    """As the hub's client leaves a download."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_missing_model_gives_one_message_with_the_command(offline, corpus, t5):
    for call in (lambda: hf_task(corpus, "google/mt5-base"), lambda: hf_model(hf_task(corpus, t5), "google/mt5-base")):
        with pytest.raises(HubError) as caught:
            call()
        message = str(caught.value)
        assert "hf download google/mt5-base" in message and "HF_HUB_OFFLINE is set" in message
        assert message.count("google/mt5-base") <= 3 and "\n" not in message


def test_a_cached_model_is_found_without_network(offline, corpus, t5):
    assert resolve(t5) == t5
    snapshot = cache_model(offline, "someone/tiny-t5", t5)
    assert resolve("someone/tiny-t5") == snapshot
    model = hf_model(hf_task(corpus, "someone/tiny-t5"), "someone/tiny-t5")
    assert model.hf.config.model_type == "t5"
    (snapshot / "model.safetensors").unlink()  # as where only the tokenizer was downloaded
    with pytest.raises(HubError, match="hf download someone/tiny-t5"):
        resolve("someone/tiny-t5")


def test_paths_are_not_taken_for_ids(tmp_path):
    for name in ("/no/such/folder", "./model", "a/b/c", str(tmp_path / "x")):
        with pytest.raises(HubError, match="does not exist: give the directory"):
            resolve(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match="is a file: give the directory"):
        resolve(tmp_path / "file")


# real tokenizers


@needs_real
def test_the_real_t5_vocabulary_with_a_model_of_its_size(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    shutil.copy(REAL / "t5/spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)  # 32128 rows
    corpus = write_corpus(tmp_path / "corpus", "t5")
    task = hf_task(corpus, tmp_path)
    model, batch = hf_model(task, tmp_path), whole_batch(task)
    assert len(task.target_dictionary) == 32100
    probabilities = model.get_normalized_probs(model(**batch["net_input"]), log_probs=False)
    assert probabilities.shape[2] == 32100
    assert 0.99 < float(probabilities.sum(2).min()) < 1  # the 28 rows without a symbol have the rest
    assert [task.codec.decode(row) for row in batch["target"]] == batch["texts"]


@needs_real
def test_the_real_trimmed_mbart_vocabulary(tmp_path):
    from transformers import AutoConfig, MBartForConditionalGeneration

    for file in (REAL / "gfslt_mbart_trimmed").iterdir():
        shutil.copy(file, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.update({"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                   "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8})  # fmt: skip
    MBartForConditionalGeneration(config).save_pretrained(tmp_path)
    corpus = write_corpus(tmp_path / "corpus", "mbart_cc25")
    task = hf_task(corpus, tmp_path)
    hf_model(task, tmp_path)
    batch = whole_batch(task)
    codes = [task.codec.language_id(code) for code in LANGUAGES["mbart_cc25"]]
    assert batch["start_tokens"].tolist() == codes * 3
    german = task.codec.encode("der wind weht schwach")
    assert task.codec.decode([codes[1], *german, codes[1]]) == "der wind weht schwach"


# sources


def test_poses_and_raw_video_feed_it_too(pose_corpus, video_corpus, t5):
    pose = {"pose_parts": "body,left_hand,right_hand", "source": "pose", "feature_channels": 0}
    clips = {"clip_frames": 32, "clip_sampling_rate": 1, "clip_stride": 16, "clip_size": 64}
    for corpus, options, encoder in (
        (pose_corpus, pose, {"source_encoder": "pose", "pose_dim": 16}),
        (
            video_corpus,
            {"source": "video", "feature_channels": 0, **clips},
            {"source_encoder": "signhiera", "signhiera_variant": "tiny_32x64", "signhiera_trainable_blocks": -1},
        ),
    ):
        task = hf_task(corpus, t5, **options)
        model, batch = hf_model(task, t5, **encoder), whole_batch(task, "valid")
        logits, _ = model(**batch["net_input"])
        assert logits.shape[:2] == batch["target"].shape and logits.isfinite().all()
