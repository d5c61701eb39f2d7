#!/usr/bin/env bash
# The quickstart's training with the texts of train and valid shuffled against the poses; --track video: against the
# videos. A model that then still scores on the true test set reads something else than its input: fails at 10 BLEU-4 or
# more. Settings are environment variables: PYTHON VENV CONSTRAINTS SEED DATA RUN VIDEO_DATA VIDEO_RUN (scripts/common.sh
# explains them).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

track=pose
case "${1:-}" in
    "") ;;
    --track) track="${2:-}" ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) die "unknown argument $1" "on raw video:  bash scripts/control.sh --track video" \
        "settings are environment variables: SEED=2 bash scripts/control.sh" ;;
esac
case "$track" in
    pose | video) ;;
    *) die "--track $track: there are two tracks, pose and video" ;;
esac
LIMIT=10

step "environment"
prepare_environment
experiment_folders -control
use_track "$track"
step "corpus ($MANIFESTS), texts shuffled ($OUT/shuffled)"
build_corpus
run python scripts/shuffle_texts.py "$MANIFESTS" --out "$OUT/shuffled" --splits train valid --seed "$SEED"
train_track "$OUT/shuffled" "task.media_root=$MANIFESTS"
step "generation and scores: the true test set"
evaluate test evidence=0
end_step

bleu="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["metrics"]["bleu4"])' "$OUT/results/test/metrics.json")"
if python -c 'import sys; sys.exit(not float(sys.argv[1]) < float(sys.argv[2]))' "$bleu" "$LIMIT"; then
    printf '\ncontrol passed in %d s: BLEU-4 %.2f with shuffled texts, below %d\n' "$SECONDS" "$bleu" "$LIMIT"
else
    die "control failed: BLEU-4 $bleu with texts shuffled against the input, expected below $LIMIT" \
        "the model scores without reading its input: look for a leak of the text into it (media order, lengths)" \
        "hypotheses: $OUT/results/test/hypotheses.jsonl"
fi
