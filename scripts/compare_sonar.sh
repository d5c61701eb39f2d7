#!/usr/bin/env bash
# SONAR's zero-shot checkpoint, its fine-tuned one and the published rows in one table:
#   bash scripts/compare_sonar.sh ZERO_SHOT.pt FINE_TUNED.pt DATA [SUBSET] [OPTION=VALUE ...]
# DATA holds SUBSET.tsv (default: test); options are those of slt-evaluate and hold for both (dataset.max_tokens=4096).
# Settings are environment variables:
#   TARGET_LANG  code of the texts' language          (default: eng_Latn)
#   RESULTS      folder of hypotheses and scores      (default: results/compare_sonar)
#   PUBLISHED    corpus of the published rows, or ''  (default: how2sign; dailymoth70h, isign)
# The commands are those in PATH: activate the environment first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

USAGE="bash scripts/compare_sonar.sh ZERO_SHOT.pt FINE_TUNED.pt DATA [SUBSET] [OPTION=VALUE ...]"
case "${1:-}" in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
esac
[ $# -ge 3 ] || die "two checkpoints and the folder of the manifests are needed" "$USAGE"
zero_shot="$1" fine_tuned="$2" data="$3" subset=test
shift 3
case "${1:-=}" in
    *=*) ;;
    *) subset="$1" && shift ;;
esac
language="${TARGET_LANG:-eng_Latn}" results="${RESULTS:-results/compare_sonar}" published="${PUBLISHED-how2sign}"
# before the first of them is decoded, which may take hours
for file in "$zero_shot" "$fine_tuned" "$data/$subset.tsv"; do
    [ -f "$file" ] || die "$file does not exist" "$USAGE"
done
command -v slt-evaluate >/dev/null || die "slt-evaluate is not in PATH: activate the environment" \
    "source .venv/bin/activate   (scripts/test.sh and scripts/quickstart.sh make one)"

# score NAME CHECKPOINT [OPTION=VALUE ...]
score() {
    step "$1"
    run slt-evaluate "checkpoint=$2" "data=$data" "subset=$subset" "results=$results/$1" \
        "target_lang=$language" "${@:3}"
}

score zero-shot "$zero_shot" "$@"
score fine-tuned "$fine_tuned" "$@"
step "table"
run slt-report compare "zero-shot=$results/zero-shot/$subset/metrics.json" \
    "fine-tuned=$results/fine-tuned/$subset/metrics.json" ${published:+--published "$published"}
end_step
