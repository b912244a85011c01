# Sourced by the other scripts: create .venv in the checkout, install napari-seg into it with the pinned versions, and
# change into the checkout.
# usage: make_environment [EXTRA...]

cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_environment() {
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "napari-seg needs Python 3.11 or later; found: $("$python" --version 2>&1 || echo none)." >&2
        echo "Install one and name it:  PYTHON=python3.12 bash $0" >&2
        exit 5
    fi
    # a venv that was created without pip (Debian without python3-venv) is created again
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! "$python" -m venv --clear .venv; then
        echo "Python's venv module is missing; on Debian:  apt-get install python3-venv" >&2
        exit 5
    fi
    # extras of other scripts stay; nothing is installed again if nothing has changed
    local extras state
    extras=$(printf '%s\n' "$@" $(cat .venv/extras 2>/dev/null) | sort -u | paste -sd, | sed 's/^,//')
    state="$extras $(cat setup.cfg pyproject.toml constraints.txt | cksum)"
    if [ "$(cat .venv/installed 2>/dev/null)" != "$state" ]; then
        echo "installing napari-seg[$extras] into .venv; the first time takes a few minutes"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}"
        echo "${extras//,/ }" > .venv/extras
        echo "$state" > .venv/installed
    fi
}
