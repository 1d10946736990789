# `make quickstart`, `make recipes` and `make test` set up everything they need in .venv
PYTHON ?= python3
FAMILY ?= synthesizer
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: install quickstart recipes test common-tests lint benchmark clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -c constraints.txt torch
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

quickstart: install
	$(RUN) -m synkhorn.scripts.quickstart --family $(FAMILY) $(ARGS)

recipes: install
	rm -rf build/recipes
	cd tests && ../$(RUN) recipes.py ../build/recipes

test: install lint
	$(RUN) tests/common/fetch.py
	$(TEST) $(RUN) -m pytest -n auto $(ARGS)

common-tests: install
	$(RUN) tests/common/fetch.py
	$(TEST) $(RUN) -m pytest tests/common -n auto --junitxml=build/common_tests.xml
	$(RUN) tests/common/counts.py build/common_tests.xml benchmarks/common_tests.md

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	@mkdir -p build/types/synkhorn
	@ln -sfn $(CURDIR)/configuration $(CURDIR)/modeling $(CURDIR)/tokenization $(CURDIR)/scripts \
		$(CURDIR)/synkhorn/*.py build/types/synkhorn/
	cd build/types && $(CURDIR)/$(RUN) -m mypy --config-file $(CURDIR)/pyproject.toml

benchmark: install
	$(RUN) -m synkhorn.scripts.benchmark $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
