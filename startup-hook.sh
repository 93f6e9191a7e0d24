# Determined sources this in every container before the entrypoint: make the environment of poetry.lock, and use it.
for python in python3.13 python3.12 python3.11 python3; do command -v "$python" && break; done
make cluster PYTHON="$python"
export PATH="$PWD/.venv/bin:$PATH"
