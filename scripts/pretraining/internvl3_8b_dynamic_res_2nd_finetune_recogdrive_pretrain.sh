#!/usr/bin/env bash
# Driving pretraining (stage 1): fine-tunes InternVL3-8B on question-answer data.
#
#   bash scripts/pretraining/internvl3_8b_dynamic_res_2nd_finetune_recogdrive_pretrain.sh [--dry-run] [ARGUMENTS]
#
# As internvl3_2b_dynamic_res_2nd_finetune_recogdrive_pretrain.sh (see its --help), with MODEL [OpenGVLab/InternVL3-8B]
# and ACCELERATE_CONFIG [scripts/pretraining/fsdp.yaml]: its weights and optimiser take 128 GB, so they are divided among
# the GPUs. ACCELERATE_CONFIG= (empty) divides nothing, for --training lora.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
export MODEL="${MODEL:-OpenGVLab/InternVL3-8B}" ACCELERATE_CONFIG="${ACCELERATE_CONFIG-$HERE/fsdp.yaml}"
exec bash "$HERE/internvl3_2b_dynamic_res_2nd_finetune_recogdrive_pretrain.sh" "$@"
