#!/usr/bin/env bash
# Installs engine, client and gateway, and of the locked versions only what they need, into a new virtual environment.
#
#   deploy/install.sh FOLDER        PYTHON=python3.12 chooses the interpreter
set -euo pipefail
folder=$(realpath -m "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

# uv itself comes from the lock, with its hashes.
sed -n '/^uv==/,/^    # via/p' requirements/requirements.lock > "$tools/uv.txt"
"$python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --target "$tools" -r "$tools/uv.txt"
uv=$tools/bin/uv

"$uv" venv --quiet --python "$(command -v "$python")" "$folder"
# As constraints the lock's versions and hashes hold for what is needed, and nothing else of it is installed.
install=("$uv" pip install --quiet --python "$folder/bin/python" --verify-hashes
    --constraints requirements/requirements.lock --overrides requirements/overrides.txt)
"${install[@]}" setuptools
cp -rL engine client gateway "$tools"  # a build leaves files in the folder it is made from; VERSION is a link
"${install[@]}" --no-build-isolation "$tools/engine" "$tools/client" "$tools/gateway"
chmod -R a+rX "$folder"  # for any user, whatever the umask and the modes of the sources
