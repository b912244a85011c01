# Sourced by the other scripts: makes .venv in the checkout and installs napari-seg into it from the pinned set.
# usage: make_environment "EXTRAS"   (such as "[dev,napari]", or "" for the core)

cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_environment() {
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "napari-seg needs Python 3.11 or later; found: $("$python" --version 2>&1 || echo none)." >&2
        echo "Install one and say which:  PYTHON=python3.12 bash $0" >&2
        exit 5
    fi
    if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
        echo "Python's venv module is missing; on Debian:  apt-get install python3-venv" >&2
        exit 5
    fi
    # installing anew costs seconds when nothing has changed
    local wanted
    wanted="$1 $(cat setup.cfg pyproject.toml constraints.txt | cksum)"
    if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
        echo "installing napari-seg$1 into .venv; the first time takes a few minutes"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$1"
        echo "$wanted" > .venv/installed
    fi
}
