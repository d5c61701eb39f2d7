#!/usr/bin/env bash
# Training of one of our configurations on N GPUs of this machine:
#   bash scripts/train_multi_gpu.sh CONFIG N [OPTION=VALUE ...]
#   bash scripts/train_multi_gpu.sh hf_mt5_large_isign_pose 4 task.data=data/isign
# An update stays the same: the batches that the configuration collects on one GPU (optimization.update_freq) are divided
# among the N. Where that does not come out even, or N is larger, nothing is divided and a line says how much larger the
# update is; optimization.update_freq=[K] among the options is taken as it is. Several machines: launcher=slurm.
# The commands are those in PATH: activate the environment first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

USAGE="bash scripts/train_multi_gpu.sh CONFIG N [OPTION=VALUE ...], for example hf_mt5_large_isign_pose 4 task.data=data/isign"
case "${1:-}" in
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    "" | -* | *=*) die "the first word is the CONFIG" "$USAGE" ;;
esac
[[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || die "the second word is the number of GPUs, not '${2:-}'" "$USAGE"
config="$1" gpus="$2"
shift 2
need_gpus "$gpus" "$config"
words=("distributed_training.distributed_world_size=$gpus")
if [[ " $* " != *" optimization.update_freq="* ]]; then
    batches="$(update_freq "$config")"
    if [ $((batches % gpus)) -eq 0 ]; then
        words+=("optimization.update_freq=[$((batches / gpus))]")
    else
        printf 'update_freq=[%s] is not divided: an update is %s times that of one GPU\n' "$batches" "$gpus"
    fi
fi
run slt-finetune --config-name "$config" "${words[@]}" "$@"
