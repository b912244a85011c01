#!/usr/bin/env bash
# Installs the core into .venv and segments both hippocampi of the MNI152 brain into demo_output/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment ""
.venv/bin/napari-seg demo "$@"
