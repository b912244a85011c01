#!/usr/bin/env bash
# Install what the tests need, check style and types, and run all tests, including real windows under Xvfb.
# Further arguments go to pytest:  bash scripts/test.sh -k geometry
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# packages that a real napari window needs on a minimal Debian
packages=(libgl1 libegl1 libxkbcommon0 libfontconfig1 libdbus-1-3 libglib2.0-0 xvfb xauth libxcb-cursor0
    libxcb-icccm4 libxcb-keysyms1 libxcb-shape0 libxcb-xkb1 libxcb-randr0 libxkbcommon-x11-0)
missing=()
for package in "${packages[@]}"; do
    # newer Debian and Ubuntu releases add t64 to some of the names
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

make_environment dask dev docs napari openvino
# napari[all] installs PyQt6; QT_API names another binding
export PATH="$PWD/.venv/bin:$PATH" QT_API="${QT_API:-pyqt6}"

# arguments may select tests of one of the two runs only: pytest exits with 5 if none was selected
run_pytest() {
    local status=0
    "$@" || status=$?
    if [ "$status" -ne 0 ] && { [ "$status" -ne 5 ] || [ "$selects" = no ]; }; then exit "$status"; fi
}
selects=$([ "$#" -gt 0 ] && echo yes || echo no)

echo "== style"
ruff check .
ruff format --check .
echo "== types"
mypy
echo "== tests and windows"
# two processes of one thread take half of the tests each, then half of those in windows: most tests keep one core busy
screen="-screen 0 1920x1200x24"
in_windows=()  # to look for tests with windows elsewhere takes longer than most of them
if [ "$selects" = no ]; then mapfile -t in_windows < <(grep -l "pytest\.mark\.window" tests/test_*.py); fi
run_half() {
    export OMP_NUM_THREADS=1
    COVERAGE_FILE=".coverage.half$1" \
        run_pytest pytest -m "not window and not slow and not gpu" --half "$1" --cov --cov-report= "${@:2}"
    # each half has its own range of numbers of screens, because both may look for a free one at the same time
    run_pytest xvfb-run -n "$((100 + 50 * $1))" -a -s "$screen" pytest -m window --half "$1" "${in_windows[@]}" "${@:2}"
}
rm -f .coverage .coverage.half*
printed=$(mktemp)
status=0
set -m  # a process group of its own, which ends as a whole
run_half 1 "$@" >"$printed" 2>&1 &
other=$!
set +m
trap 'kill -- "-$other" || true; rm -f "$printed"' EXIT
(run_half 0 "$@") || status=$?
wait "$other" || status=$?
trap 'rm -f "$printed"' EXIT
cat "$printed"
if [ "$status" -ne 0 ]; then exit "$status"; fi
{ coverage combine --quiet && coverage report; } || [ "$selects" = yes ]
