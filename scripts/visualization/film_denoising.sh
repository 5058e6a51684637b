#!/usr/bin/env bash
# Films how trajectories of a scene come out of noise, for talks: every denoising step of CHECKPOINT's planner, for several
# noises, in the camera and from above; GIF, or MP4 with --film mp4.
#
#   bash scripts/visualization/film_denoising.sh [--dry-run] [OPTIONS]
#
# As draw_scenes.sh (see its --help), with KIND [denoising]; for example --token TOKEN --samples 32 --film gif mp4.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
KIND="${KIND:-denoising}" exec bash "$HERE/draw_scenes.sh" "$@"
