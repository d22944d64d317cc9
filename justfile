# Common tasks; `just` lists them. Everything runs in the project's uv environment.

default:
    @just --list

# install all development dependencies
setup:
    uv sync

# explain the simulated inspection line for 30 s
demo:
    uv run run.py

# run all tests
test *args:
    uv run pytest -n auto {{args}}

# run the tests that take no more than a few seconds each
quick *args:
    uv run pytest -n auto -m "not slow" {{args}}

# check style and types
lint:
    uv run ruff check .
    uv run ruff format --check .
    uv run mypy

# format the code
format:
    uv run ruff check --fix .
    uv run ruff format .

# build the documentation
docs:
    uv run --group docs mkdocs build --strict

# pin exact versions and hashes, without index addresses: all packages, and those besides PyTorch
constraints:
    uv export --quiet {{export}} --output-file constraints.txt
    uv export --quiet {{export}} --prune torch --prune torchvision --output-file constraints-cpu.txt

export := "--format requirements-txt --no-dev --no-emit-project --no-header --no-annotate --extra mcap --extra foxglove --extra bags --extra fleet --extra genicam --extra modbus --extra mqtt --extra opcua --extra parquet --extra timm --extra export"
