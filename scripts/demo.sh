#!/usr/bin/env bash
# Install the core into .venv and segment both hippocampi of the MNI152 brain into demo_output/ of the checkout.
# Arguments go to the demo:  bash scripts/demo.sh -o elsewhere
set -euo pipefail
caller="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment
checkout="$PWD"
cd "$caller"
exec "$checkout/.venv/bin/napari-seg" demo -o "$checkout/demo_output" "$@"
