"""slt-evaluate: what is refused before decoding, and what is written. The model is untrained."""

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pose_corpus
from forked_training import Forked
from omegaconf import OmegaConf
from sonar_helpers import FEATURES, make_fake_release

import slt_plugin.tasks  # noqa: F401
from slt_plugin.cli import evaluate, import_checkpoint
from slt_plugin.cli.evaluation import decoder
from slt_plugin.cli.translation_file import configuration, write_translation_model
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.launch.ranks import local_environments
from slt_plugin.models.sign_to_text import SignToTextConfig
from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig


@pytest.fixture(scope="module")
def checkpoint(spm_model, tmp_path_factory):
    """Untrained, of lower-cased text, for sources of up to 90 steps."""
    task = SignToTextTask(
        SignToTextTaskConfig(data="", codec_path=str(spm_model), pose_parts="body,right_hand", lowercase=True,
                             train_subset="train", seed=1, eval_bleu=False)
    )  # fmt: skip
    config = SignToTextConfig(source_encoder="pose", pose_dim=16, encoder_layers=1, decoder_layers=1,
                              encoder_embed_dim=16, decoder_embed_dim=16, encoder_ffn_embed_dim=16,
                              decoder_ffn_embed_dim=16)  # fmt: skip
    cfg = configuration(task.cfg, config, "sign_to_text")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "checkpoint_best.pt"
    write_translation_model(path, cfg, task, task.build_model(cfg.model).state_dict())
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Rows of 35 to 49 steps."""
    return write_pose_corpus(tmp_path_factory.mktemp("data") / "corpus", {"test": 5, "dev": 3})


@pytest.fixture(scope="module")
def sonar(tmp_path_factory):
    """SONAR's models, tiny, that read features, and the folder of a manifest whose language has another name there."""
    folder = tmp_path_factory.mktemp("sonar")
    release, path = make_fake_release(folder / "release"), folder / "sonar_features.pt"
    assert import_checkpoint.main(["sonar-asl", str(release), str(path), "--source", "features"]) == 0
    rng = np.random.default_rng(0)
    rows = [Row(f"r{i}", f"{i}.npy", "hello world", text_lang="en", num_frames=6) for i in range(3)]
    for row in rows:
        np.save(folder / row.path, rng.normal(size=(6, FEATURES)).astype(np.float32))
    write_manifest(folder / "test.tsv", rows)
    return path, folder


@pytest.fixture
def run(checkpoint, corpus, tmp_path, capsys):
    """Runs slt-evaluate in this process with small options; returns (exit code, stdout, stderr)."""

    def call(*words, **options):
        given = {"checkpoint": checkpoint, "data": corpus, "results": tmp_path / "results"} | options
        small = ["common.cpu=true", "dataset.num_workers=0", "generation.beam=1", "generation.max_len_b=5"]
        code = evaluate.main([*small, *(f"{key}={value}" for key, value in given.items()), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def refused(result) -> str:
    code, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("slt-evaluate: ")]
    assert code == 1 and not out and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def long_row(corpus, tmp_path):
    """A copy of the test manifest whose row test-3 is 100 steps long."""
    rows = read_manifest(corpus / "test.tsv")
    lines = []
    for row in rows:
        fields = {name: getattr(row, name) for name in row.__slots__}
        if row.id == "test-3":
            fields |= {"start": 0.0, "end": 100 / row.fps, "num_frames": 100}
        lines.append(type(row)(**fields))
    write_manifest(tmp_path / "test.tsv", lines)
    return {"data": tmp_path, "media_root": corpus}


def test_results_name_everything_that_made_them(run, checkpoint, tmp_path, corpus):
    code, out, _ = run("metrics=bleu4", "subset=[test,dev]")
    assert code == 0 and "test.tsv: 5 rows -> " in out and "dev.tsv: 3 rows" in out
    found = json.loads((tmp_path / "results/test/metrics.json").read_text())
    assert list(found["metrics"]) == ["bleu4"] and "tok:13a" in found["signatures"]["bleu4"]
    assert (found["rows"], found["sentences"], found["skipped"]) == (5, 5, [])
    assert found["checkpoints"] == [str(checkpoint)] and found["seed"] == 1
    assert found["generation"]["beam"] == 1 and found["generation"]["max_len_b"] == 5
    lines = [json.loads(line) for line in (tmp_path / "results/test/hypotheses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"test-{i}" for i in range(5)]


def test_too_long_rows_are_refused_with_this_commands_option(run, corpus, tmp_path):
    line = refused(run("dataset.max_source_positions=90", **long_row(corpus, tmp_path)))
    assert "test-3" in line and "dataset.skip_invalid_size_inputs=true" in line and "_valid_test" not in line


def test_skipped_rows_are_counted_and_named(run, corpus, tmp_path):
    options = ("dataset.skip_invalid_size_inputs=true", "dataset.max_source_positions=90")
    code, out, _ = run(*options, **long_row(corpus, tmp_path))
    assert code == 0 and "4 of 5 rows (skipped: test-3)" in out
    found = json.loads((tmp_path / "results/test/metrics.json").read_text())
    assert (found["rows"], found["sentences"], found["skipped"]) == (5, 4, ["test-3"])


def test_batch_smaller_than_a_row(run):
    line = refused(run("dataset.max_tokens=10"))
    assert "dataset.max_tokens=10" in line and "_valid_test" not in line


def test_case_of_the_references(run, caplog):
    with caplog.at_level(logging.WARNING):
        run()
        assert "lowercase=true" in caplog.text
        caplog.clear()
        run("lowercase=true")
        assert "lowercase=true" not in caplog.text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("+generation.max_len=3", "generation.max_len is no option; did you mean 'generation.max_len_b'?"),
        ("generation.beem=3", "did you mean 'generation.beam'?"),
        ("generation.nbest=3", "generation.nbest=3: at least 1 and at most generation.beam=1"),
        ("confidence=-1", "confidence=-1: 0 (none) or more"),
        ("blur_faces=true", "blur_faces=true has no effect with frames=false"),
        ("average=true", "average=true needs several checkpoints"),
        ("breakdown=[length,signr]", "cannot be broken down by signr"),
        ("generation.sampling_topk=5", "no effect: add generation.sampling=true"),
        ("metrics=[bleu4,bleurt]", "bleurt needs a local checkpoint"),
        ("bleurt=/nothing", "bleurt has no effect"),
        ("train_manifest=/nothing", "train_manifest has no effect"),
        ("metrics=[reduced_bleu]", "train.tsv does not exist"),
        ("launcher.chain=2", "launcher.chain"),
        ("hydra.run.dir=x", "hydra.run.dir is no option"),
        ("generation={beam:2}", "generation is no option"),
        ("~generation.beam", "neither added nor removed"),
        ("+generation.beam=2", "neither added nor removed"),
        ("generation.beam=0", "at least 1"),
        ("generation.beam=many", "generation.beam is a whole number"),
        ("generation.beam=true", "generation.beam is a whole number"),
        ("generation.lenpen=a", "generation.lenpen is a number"),
        ("lowercase=1", "lowercase is true or false"),
        ("dataset.max_tokens=null", "both null"),
        ("dataset.batch_size=0", "dataset.batch_size=0"),
        ("dataset.num_workers=-1", "dataset.num_workers=-1"),
        ("common.log_format=jsn", "did you mean 'json'?"),
        ("metrics=blue4", "did you mean 'bleu4'?"),
        ("subset=test,dev", "'subset=[test,dev]'"),
        ("subset=tst", "did you mean 'test'?; manifests in data="),
        ("results=/proc/x", "results=/proc/x"),
        ("checkpoint=nothing.pt", "checkpoint=nothing.pt cannot be loaded: no such file"),
    ],
)
def test_refused_before_the_model_is_loaded(run, monkeypatch, word, expected):
    monkeypatch.setattr(decoder, "Decoder", None)
    assert expected in refused(run(word))


def test_missing_options_are_named(capsys):
    assert evaluate.main(["data=x"]) == 1
    assert "data" in capsys.readouterr().err
    assert evaluate.main(["subset=test"]) == 1
    assert capsys.readouterr().err.strip() == "slt-evaluate: Missing mandatory value: data"


def test_rows_without_text_are_named(run, corpus, tmp_path):
    rows = [type(row)(row.id, row.path, None if i in (1, 3) else row.text) for i, row in
            enumerate(read_manifest(corpus / "test.tsv"))]  # fmt: skip
    write_manifest(tmp_path / "test.tsv", rows)
    line = refused(run(data=tmp_path, media_root=corpus))
    assert "2 of 5 rows have no text to score against: test-1, test-3." in line


class Code:
    """An object that torch refuses to read."""


def test_checkpoints_that_cannot_be_used(run, checkpoint, tmp_path):
    torch.save({"model": {}, "other": Code()}, tmp_path / "code.pt")
    line = refused(run(checkpoint=tmp_path / "code.pt"))
    assert "could run code" in line and "weights_only" not in line and "trust" not in line
    (tmp_path / "half.pt").write_bytes(checkpoint.read_bytes()[:2000])
    assert "half.pt cannot be loaded" in refused(run(checkpoint=f"{checkpoint}:{tmp_path / 'half.pt'}"))
    (tmp_path / "old.pt").write_bytes(pickle.dumps(3))
    assert "old.pt cannot be loaded" in refused(run(checkpoint=tmp_path / "old.pt"))
    torch.save({"model": {}, "task_state": {}}, tmp_path / "other.pt")
    assert "import it with slt-import-checkpoint" in refused(run(checkpoint=tmp_path / "other.pt"))


def scores_of(folder) -> list[float]:
    return [json.loads(line)["score"] for line in (folder / "test/hypotheses.jsonl").read_text().splitlines()]


def test_language_of_the_texts(run, sonar, tmp_path):
    given = dict(zip(("checkpoint", "data"), sonar, strict=True))
    assert run(**given, results=tmp_path / "rows")[0] == 0  # the rows' text_lang is en
    for language in ("eng_Latn", "fra_Latn"):
        results = tmp_path / language
        assert run(**given, results=results, target_lang=language)[0] == 0
        assert json.loads((results / "test/metrics.json").read_text())["target_lang"] == language
    assert scores_of(tmp_path / "rows") == scores_of(tmp_path / "eng_Latn") != scores_of(tmp_path / "fra_Latn")
    assert "did you mean 'zho_Hans'?" in refused(run(**given, target_lang="zh"))  # or in the other script
    assert "the vocabulary has no language tokens" in refused(run(target_lang="eng_Latn"))


def test_one_command_compares_zero_shot_fine_tuned_and_published(sonar, tmp_path):
    checkpoint, data = sonar
    script = Path(__file__).parents[1] / "scripts/compare_sonar.sh"
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def compare(*words):
        command = ["bash", str(script), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    small = ("common.cpu=true", "dataset.num_workers=0", "generation.beam=1", "generation.max_len_b=5", "evidence=0",
             "report=false")  # fmt: skip
    done = compare(checkpoint, checkpoint, data, *small)
    assert done.returncode == 0, done.stderr[-3000:]
    table = done.stdout.split("== table")[1]
    rows = [line for line in table.splitlines() if "zero-shot" in line or "fine-tuned" in line]
    assert len([line for line in rows if not line.startswith("+")]) >= 2
    assert "Rust et al" in table
    for name in ("zero-shot", "fine-tuned"):
        metrics = json.loads((tmp_path / "results/compare_sonar" / name / "test/metrics.json").read_text())
        assert metrics["target_lang"] == "eng_Latn" and metrics["generation"]["beam"] == 1
    missing = compare(checkpoint, tmp_path / "no.pt", data, "dev")
    assert missing.returncode == 1 and f"error: {tmp_path / 'no.pt'} does not exist" in missing.stderr
    assert "dev.tsv does not exist" in compare(checkpoint, checkpoint, data, "dev").stderr
    assert "two checkpoints" in compare(checkpoint).stderr
    assert compare("--help").stdout.count("\n") == 8


def test_config_has_no_options_without_effect():
    options = OmegaConf.load(evaluate.CONFIGS / "evaluate.yaml")
    assert "hydra" not in options


# what else is written


def results_of(folder) -> tuple[list[dict], dict]:
    lines = (folder / "hypotheses.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((folder / "metrics.json").read_text())


def test_metrics_hold_what_a_report_needs(run, checkpoint, corpus, tmp_path):
    code, _, _ = run("metrics=[bleu4,chrf,wer]", "confidence=50", "evidence=3", "masked_parts=true", "lowercase=true")
    assert code == 0
    folder = tmp_path / "results/test"
    _, found = results_of(folder)
    for metric, (low, high) in found["intervals"].items():
        assert low <= found["metrics"][metric] <= high, metric
    assert set(found["intervals"]) == {"bleu4", "chrf", "wer"}
    assert sum(group["sentences"] for group in found["breakdown"] if group["by"] == "length") == 5
    speed = found["speed"]
    assert speed["sentences_per_second"] == pytest.approx(5 / speed["seconds"])
    assert speed["peak_memory_mb"] > 50 and (speed["device"], speed["ranks"]) == ("cpu", 1)
    # the model sees the body and the right hand
    assert set(found["masked_parts"]) == {"all", "no_hands", "no_body"}
    assert found["masked_parts"]["all"] == found["metrics"]
    assert found["manifest"] == str((corpus / "test.tsv").resolve()) and found["dataset"]["rows"] == "5"
    assert found["command"][0] == "slt-evaluate" and f"checkpoint={checkpoint}" in found["command"]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] and "bleu4" in found["config"]
    assert found["model"]["parameters"] > 1000 and found["averaged"] is False
    evidence = json.loads((folder / "evidence.json").read_text())
    assert len(evidence["sentences"]) == 3 and {s["why"] for s in evidence["sentences"]} == {"worst", "best", "random"}
    assert evidence["faithfulness"] == found["faithfulness"]
    for sentence in evidence["sentences"]:
        assert sentence["strip"]["kind"] == "skeleton"
        assert len(sentence["saliency"]["landmarks"]) == 9 + 21
    assert (folder / "report.html").stat().st_size > 10_000
    run("metrics=[bleu4]", "confidence=0", "evidence=0", "report=false")
    assert not (folder / "evidence.json").exists() and results_of(folder)[1]["intervals"] == {}


def test_results_of_two_runs_are_never_mixed(run, tmp_path, monkeypatch):
    """A run that fails after decoding leaves no scores and no report of the run before it."""
    run("evidence=0", "confidence=0")
    monkeypatch.setattr("slt_plugin.cli.evaluation.results.score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("evidence=0", "confidence=0", "generation.max_len_b=2")
    assert [path.name for path in (tmp_path / "results/test").iterdir()] == ["hypotheses.jsonl"]


def test_a_failing_report_leaves_the_scores(run, tmp_path, monkeypatch):
    monkeypatch.setattr("slt_plugin.report.evidence.explain", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("confidence=0", "metrics=[bleu4]")
    assert set(results_of(tmp_path / "results/test")[1]["metrics"]) == {"bleu4"}


def test_rows_too_short_for_evidence_are_left_out(run, corpus, tmp_path, caplog):
    rows = read_manifest(corpus / "test.tsv")
    first = rows[0]
    short = type(first)(first.id, first.path, first.text, first.start, first.start + 2 / first.fps, 2, first.fps)
    write_manifest(tmp_path / "test.tsv", [short, *rows[1:]])
    with caplog.at_level(logging.WARNING):
        code, _, err = run("evidence=5", "confidence=0", data=tmp_path, media_root=corpus)
    assert code == 0 and "2 source step(s), too short for evidence" in caplog.text, err
    found = json.loads((tmp_path / "results/test/evidence.json").read_text())
    assert len(found["sentences"]) == 4


def test_the_breakdown_follows_the_manifest():
    from slt_plugin.cli.evaluation.results import parts_of

    rows = [Row("a", "a.npy", "x", text_lang="en", signer="1"), Row("b", "b.npy", "y", text_lang="de", signer="1")]
    assert parts_of(rows, None) == ["length", "text_lang"] and parts_of(rows, ["signer"]) == ["signer"]


def test_n_best(run, tmp_path):
    run("generation.beam=4", "generation.nbest=3", "evidence=0", "report=false", "confidence=0")
    for line in results_of(tmp_path / "results/test")[0]:
        assert len(line["alternatives"]) == 3 and line["alternatives"][0]["text"] == line["hyp"]
        scores = [alternative["score"] for alternative in line["alternatives"]]
        assert scores == sorted(scores, reverse=True) and scores[0] == line["score"]


def test_average_of_checkpoints(run, checkpoint, tmp_path):
    """The mean of a model with itself is that model; with its negative it is nothing."""
    state = torch.load(checkpoint, weights_only=True)
    quick = ("evidence=0", "report=false", "confidence=0", "average=true")
    run("evidence=0", "report=false", "confidence=0", results=tmp_path / "one")
    run(*quick, checkpoint=f"{checkpoint}:{checkpoint}", results=tmp_path / "same")
    assert scores_of(tmp_path / "one") == scores_of(tmp_path / "same")
    state["model"] = {name: value + 1 if value.is_floating_point() else value for name, value in state["model"].items()}
    torch.save(state, tmp_path / "moved.pt")
    run(*quick, checkpoint=f"{checkpoint}:{tmp_path / 'moved.pt'}", results=tmp_path / "mean")
    assert scores_of(tmp_path / "one") != scores_of(tmp_path / "mean")
    assert results_of(tmp_path / "mean/test")[1]["averaged"] is True


def test_ranks_share_the_rows_and_count_none_twice(run, checkpoint, corpus, tmp_path):
    """5 rows on 2 ranks, a row a batch: the second rank's part is filled up with nothing."""
    words = ("common.cpu=true", "dataset.num_workers=0", "generation.beam=1", "generation.max_len_b=5", "evidence=0",
             "dataset.batch_size=1", "subset=[test,dev]", "masked_parts=true", "report=false")  # fmt: skip
    run(*words, results=tmp_path / "one")
    line = [f"checkpoint={checkpoint}", f"data={corpus}", f"results={tmp_path}/two", *words]
    ranks = [
        Forked(lambda: evaluate.main(line), tmp_path / f"rank{rank}.log", environ)
        for rank, environ in enumerate(local_environments(2))
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].text() + ranks[1].text()
    assert "BLEU-4" in ranks[0].text() and "BLEU-4" not in ranks[1].text()
    for subset in ("test", "dev"):
        (one, alone), (two, shared) = (results_of(tmp_path / name / subset) for name in ("one", "two"))
        assert one == two and (alone["speed"]["ranks"], shared["speed"]["ranks"]) == (1, 2)
        for key in ("metrics", "masked_parts", "intervals", "sentences"):
            assert alone[key] == shared[key], key


def test_local_ranks_are_processes_of_this_command(run, monkeypatch):
    started = []
    monkeypatch.setattr("slt_plugin.launch.local.run_ranks", lambda command, count: started.append((command, count)))
    run("launcher.local_ranks=2")
    ((command, count),) = started
    assert count == 2 and command[:3] == [sys.executable, "-m", "slt_plugin.cli.evaluate"] and "launcher" not in command


def test_chosen_sentences():
    from slt_plugin.cli.evaluation.evidence import chosen_sentences

    chosen = chosen_sentences([5.0, 1.0, 9.0, 3.0, 7.0, 8.0, 2.0], 5, seed=1)
    assert chosen[1] == chosen[6] == "worst" and chosen[2] == chosen[5] == "best"
    assert sorted(chosen.values()) == ["best", "best", "random", "worst", "worst"] and list(chosen) == sorted(chosen)
    assert len(chosen_sentences([1.0, 2.0], 12, seed=1)) == 2 and chosen_sentences([], 3, seed=1) == {}
