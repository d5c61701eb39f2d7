#!/usr/bin/env bash
# Does pretraining the video encoder help? On the quickstart's videos, with as many updates of training each and over
# several seeds: from scratch; with the encoder of a masked autoencoder, frozen; with the same encoder trained further.
# Finished steps are skipped when it runs again. It is nine trainings of the quickstart long. Settings are variables:
# SEEDS ("1 2 3") UPDATES (400, of each training) ABLATION (folder of results: runs/ablation)
# PYTHON VENV CONSTRAINTS DATA VIDEO_DATA (scripts/common.sh explains them).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    "") ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "unknown argument $1" "settings are environment variables: SEEDS='1 2' bash scripts/ablation.sh" ;;
esac
SEEDS="${SEEDS:-1 2 3}"
UPDATES="${UPDATES:-400}"
ABLATION="$(absolute "${ABLATION:-$ROOT/runs/ablation}")"

step "environment"
prepare_environment
SEED=1 # of the corpus, which all trainings share
experiment_folders ""
use_track video
step "corpus ($MANIFESTS)"
build_corpus
ABLATION="${ABLATION#"$ROOT"/}"
VARIABLE=ABLATION
declare -A RUNS=()
for SEED in $SEEDS; do
    OUT="$ABLATION/seed-$SEED"
    step "seed $SEED: pretraining without texts ($OUT/mae)"
    pretrain
    weights="$OUT/mae/checkpoint_best.pt"
    for kind in scratch frozen tuned; do
        OUT="$ABLATION/seed-$SEED/$kind"
        mkdir -p "$OUT"
        case "$kind" in
            scratch) start=() ;;
            frozen) start=("model.signhiera_pretrained=$weights" model.signhiera_trainable_blocks=0) ;;
            tuned) start=("model.signhiera_pretrained=$weights") ;;
        esac
        step "seed $SEED, $kind: training ($OUT)"
        train "$MANIFESTS" "optimization.max_update=$UPDATES" "dataset.validate_interval_updates=$UPDATES" \
            "checkpoint.save_interval_updates=$UPDATES" "${start[@]}"
        for split in test test_unseen; do
            step "seed $SEED, $kind: generation and scores: $split"
            evaluate "$split" evidence=0
        done
        RUNS[$kind]="${RUNS[$kind]:+${RUNS[$kind]},}$OUT/results/SPLIT"
    done
done
end_step
printf '\nAfter %s updates, mean and standard deviation over seeds %s:\n' "$UPDATES" "$SEEDS"
for split in test test_unseen; do
    printf '\n'
    run slt-report compare "from scratch=${RUNS[scratch]//SPLIT/$split}" "MAE, frozen=${RUNS[frozen]//SPLIT/$split}" \
        "MAE, trained further=${RUNS[tuned]//SPLIT/$split}" --metrics bleu4,chrf,rouge_l,wer
done
