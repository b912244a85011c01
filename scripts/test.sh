#!/usr/bin/env bash
# Installs what the tests need, then checks style and types and runs all tests, real windows under Xvfb among them.
# Further arguments go to pytest:  bash scripts/test.sh -k geometry
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# what a real napari window needs on a bare Debian
packages=(libgl1 libegl1 libxkbcommon0 libfontconfig1 libdbus-1-3 libglib2.0-0 xvfb xauth libxcb-cursor0
    libxcb-icccm4 libxcb-keysyms1 libxcb-shape0 libxcb-xkb1 libxcb-randr0 libxkbcommon-x11-0)
missing=()
for package in "${packages[@]}"; do
    # newer Debian and Ubuntu releases carry some of them with a t64 behind the name
    dpkg -s "$package" >/dev/null 2>&1 || dpkg -s "${package}t64" >/dev/null 2>&1 || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "The window tests need Debian packages that are missing. Install them and run this again:" >&2
        echo "  sudo apt-get install -y ${missing[*]}" >&2
        exit 5
    fi
fi

make_environment "[dev,napari]"
export PATH="$PWD/.venv/bin:$PATH" QT_API=pyqt6

echo "== style"
ruff check .
ruff format --check .
echo "== types"
mypy
echo "== tests"
pytest -m "not window and not slow and not gpu" --cov --cov-report=term "$@"
echo "== windows"
xvfb-run -a -s "-screen 0 1920x1200x24" pytest -m window "$@" || { status=$?; [ "$status" -eq 5 ] || exit "$status"; }
