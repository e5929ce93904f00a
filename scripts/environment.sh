# Sourced by scripts/quickstart and scripts/test: creates .venv with what they need, once.
# Usage: prepare_environment EXTRAS   (e.g. "sim,serve")

say() { printf '\033[1m%s\033[0m\n' "$*"; }

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        [ -n "$candidate" ] || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo "$candidate"; return; }
    done
    echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: PYTHON=/path/to/python3.11 $0" >&2
    return 1
}

install_gl() {
    # The simulator renders off screen through OSMesa; the library is a system package.
    ldconfig -p 2>/dev/null | grep -qE 'libOSMesa\.so' && return 0
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        say "Installing libosmesa6 (software rendering for the simulated robots) ..."
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libosmesa6; } >/dev/null 2>&1 && return 0
    fi
    echo "Rendering needs libosmesa6 and it could not be installed from here: run 'sudo apt-get install libosmesa6'" \
        "(or libegl1 libgl1-mesa-dri and MUJOCO_GL=egl). Everything but the simulated robots works without it." >&2
}

prepare_environment() {
    local extras="$1" stamp wanted
    if [ ! -x .venv/bin/python ]; then
        say "Creating .venv ..."
        "$(find_python)" -m venv .venv
    fi
    stamp=".venv/.installed-$extras"
    wanted="$(cat pyproject.toml requirements.lock | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        say "Installing vla_adapt[$extras] into .venv (about 2 minutes the first time) ..."
        .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -q \
            -c requirements.lock -e ".[$extras]" 2> >(grep -v 'WARNING: Location' >&2)
        echo "$wanted" > "$stamp"
    fi
    case ",$extras," in *,sim,*) install_gl || true ;; esac
}
