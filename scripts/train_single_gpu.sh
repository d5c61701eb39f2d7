#!/usr/bin/env bash
# Training of one of our configurations on one GPU of this machine, the first that is visible:
#   bash scripts/train_single_gpu.sh CONFIG [OPTION=VALUE ...]
#   bash scripts/train_single_gpu.sh hf_t5_base_isign_pose task.data=data/isign
# CONFIG is a file of slt_plugin/config/finetune without .yaml; the options are those of slt-finetune. Another GPU:
# CUDA_VISIBLE_DEVICES=2 bash scripts/train_single_gpu.sh ... The same command again goes on with an interrupted training.
# The commands are those in PATH: activate the environment first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    "" | -* | *=*) die "the first word is the CONFIG" \
        "bash scripts/train_single_gpu.sh CONFIG [OPTION=VALUE ...], for example hf_t5_base_isign_pose task.data=data/isign" ;;
esac
config="$1"
shift
need_gpus 1 "$config"
run slt-finetune --config-name "$config" distributed_training.distributed_world_size=1 "$@"
