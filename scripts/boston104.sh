#!/usr/bin/env bash
# RWTH-BOSTON-104, a small real corpus (161 sentences for training, 40 for the test, 3 signers): sign_to_text_tiny on hand
# and nose tracks, over several seeds, each beside a control whose training texts are shuffled against the poses:
#   bash scripts/boston104.sh DIR
# DIR holds hands_condensed.csv, speaker.csv, train_words.csv and test_words.csv (manifests/boston104.py says where they
# come from). Every seed trains twice, three minutes each on one CPU core. Finished steps are skipped when it runs again.
# Settings are environment variables: SEEDS ("1 2 3") DATA (data/boston104) RUN (runs/boston104)
# PYTHON VENV CONSTRAINTS (scripts/common.sh explains them).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
esac
[ $# -eq 1 ] || die "the folder of the tables is needed" "bash scripts/boston104.sh DIR"
[ -f "$1/hands_condensed.csv" ] || die "$1 has no hands_condensed.csv" \
    "git clone https://github.com/udacity/AIND-Recognizer && bash scripts/boston104.sh AIND-Recognizer/data"
tables="$(absolute "$1")"
SEEDS="${SEEDS:-1 2 3}"
DATA="$(absolute "${DATA:-$ROOT/data/boston104}")"
RUN="$(absolute "${RUN:-$ROOT/runs/boston104}")"
config=slt_plugin/config/finetune

step "environment"
prepare_environment
cd "$ROOT"
step "corpus ($DATA)"
run python manifests/boston104.py "$tables" --out "$DATA"
# all the glosses of the training set, whole
run python scripts/train_sentencepiece.py "$DATA/train.tsv" --out "$DATA/gloss" --model-type word --vocab-size 116
true_runs="" control_runs=""
for seed in $SEEDS; do
    run python scripts/shuffle_texts.py "$DATA" --out "$RUN/shuffled-$seed" --splits train --seed "$seed"
    for kind in true shuffled; do
        out="$RUN/$kind-$seed" data="$DATA"
        [ "$kind" = true ] || data="$RUN/shuffled-$seed"
        mkdir -p "$out"
        step "seed $seed, texts $kind: training ($out)"
        INPUTS=("$data/train.tsv" "$DATA/gloss.model" "$config/_base.yaml" "$config/_sign_to_text.yaml"
            "$config/boston104_pose.yaml" "$config/experiment/boston104_pose.yaml")
        # the settings were chosen before, on 20 sentences of the training set: here nothing is chosen
        once "$out/trained" slt-finetune --config-name boston104_pose "task.data=$data" "task.media_root=$DATA" \
            "task.codec_path=$DATA/gloss.model" dataset.disable_validation=true "common.seed=$seed" \
            "checkpoint.save_dir=$out"
        step "seed $seed, texts $kind: generation and scores"
        if [ "$out/results/test.done" -nt "$out/checkpoint_last.pt" ]; then
            echo "done before: slt-evaluate (again: rm '$out/results/test.done')"
        else
            quietly "$out/results/test.log" slt-evaluate "checkpoint=$out/checkpoint_last.pt" "data=$DATA" subset=test \
                "results=$out/results" generation.max_len_b=16 evidence=0
            touch "$out/results/test.done"
        fi
    done
    true_runs="$true_runs${true_runs:+,}$RUN/true-$seed/results/test"
    control_runs="$control_runs${control_runs:+,}$RUN/shuffled-$seed/results/test"
done
end_step
printf '\nMean and standard deviation over seeds %s, beam 5, the 40 test sentences:\n' "$SEEDS"
run slt-report compare "true texts=$true_runs" "shuffled texts=$control_runs" --metrics bleu4,chrf,wer \
    --note "26 of the 40 test sentences occur word by word in the training set, signed another time."
