#!/usr/bin/env bash
# Films how the plans for the same scenes change while a planner is trained: one picture per checkpoint, in the order given.
#
#   bash scripts/visualization/film_training.sh [--dry-run] [OPTIONS]
#
# As draw_scenes.sh (see its --help), with KIND [training]; for example
#   --log NAME --scenes 6 --checkpoint "epoch 1=1.ckpt" --checkpoint "epoch 10=10.ckpt"
# CHECKPOINT is left out then: the film begins with the first that is named.
# Training itself leaves pictures of validation plans in its run's folder; those become a film with
#   python -m navsim_recogdrive.viz.film film.gif RUN/lightning_logs/version_0/pictures/val_plans.*.png
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
KIND="${KIND:-training}" exec bash "$HERE/draw_scenes.sh" "$@"
