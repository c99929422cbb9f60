# Two commands: `make serve` and `make test`. Each makes .venv first and is quick the second time.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
MINUTES ?= 30
FUZZ_SECONDS ?= 300
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test check format screenshots bench soak fuzz gpu image smoke clean

serve: $(VENV)/.serve
	$(BIN)/nam serve --host $(HOST) --port $(PORT)

test: check
	$(BIN)/python -m pytest

# Format, lint, types, and version = changelog.
check: $(VENV)/.test
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_changelog.py

format: $(VENV)/.test
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

# The README's pictures of the page; the Chinese one needs a Chinese font, such as Debian's fonts-wqy-microhei.
screenshots: $(VENV)/.test
	SCREENSHOTS=tests/e2e/screenshots $(BIN)/python -m pytest tests/e2e/test_page_for_all.py -k screenshot

# HTTP beside the bare in-process loop, in one run; prints a table and writes tests/bench/results/.
bench: $(VENV)/.test
	$(BIN)/python -m tests.bench.http

# Mixed traffic, a third of it hostile: nothing is lost, swapped, or grows; writes tests/bench/results/soak.json.
soak: $(VENV)/.test
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

# Images, bodies and every endpoint, FUZZ_SECONDS each; what is found lies in runs/fuzz.
fuzz: $(VENV)/.test
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -s tests/hostile/test_fuzz.py

# On a CUDA device: the engine's tests, then its figures, tests/bench/results/cuda.json.
gpu: $(VENV)/.test
	$(BIN)/python -m pytest tests/gpu
	$(BIN)/python -m tests.bench.cuda

# The two images; and both built, started, asked and stopped: docker/README.md.
image:
	docker build --target cpu --tag nam-serve:cpu .
	docker build --target gpu --tag nam-serve:gpu .

smoke: $(VENV)/.serve
	docker/smoke

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.serve: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages; PyTorch's CUDA build is most of it (5.4 GB)."
	$(BIN)/python -m pip install --progress-bar on --constraint constraints.txt --editable .
	touch $@

$(VENV)/.test: $(VENV)/.serve
	@{ command -v curl && command -v promtool && { command -v chromium || command -v google-chrome; }; } >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	    && apt-get install -qq -y --no-install-recommends curl chromium prometheus; } \
	  || { echo "the tests need curl (the README), chromium (the page) and prometheus (the metrics)"; exit 1; }
	$(BIN)/python -m pip install --progress-bar on --constraint constraints.txt --editable ".[test]"
	touch $@
