# `make quickstart`, `make recipes` and `make test` set up everything they need in .venv
PYTHON ?= python3
FAMILY ?= synthesizer
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# the lowest version of Transformers, beside the pinned one
LOWEST := .venv-lowest
LOWEST_VERSION := 5.17.0
LOWEST_TESTS := common configuration tokenization package/test_convert.py package/test_hub.py package/test_supply.py \
	$(addprefix modeling/test_,cache.py cross_attention.py generation.py heads.py)
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: install quickstart recipes test test-all test-versions coverage common-tests lint benchmark course course-live \
	course-test clean

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
	$(RUN) tests/support/recipes.py build/recipes

test: install lint
	$(RUN) tests/common/fetch.py
	$(TEST) $(RUN) -m pytest -n auto $(ARGS)

coverage: install
	$(RUN) tests/common/fetch.py
	$(TEST) $(RUN) -m pytest -n auto -m 'slow or not slow' --cov --cov-report=term --cov-report=json:build/coverage.json $(ARGS)

# hours: everything, with the versions of Transformers, and thousands of examples of every property
test-all: test coverage test-versions
	$(TEST) $(RUN) -m pytest -n auto -m hypothesis --hypothesis-profile=thorough $(ARGS)

common-tests: install
	$(RUN) tests/common/fetch.py
	$(TEST) $(RUN) -m pytest tests/common -n auto -m 'slow or not slow' --junitxml=build/common_tests.xml
	$(RUN) tests/common/counts.py build/common_tests.xml benchmarks/tests/common_tests.md

$(LOWEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	grep -vE '^(transformers|huggingface_hub)==' constraints.txt > $(LOWEST)/constraints.txt
	echo transformers==$(LOWEST_VERSION) >> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e '.[test]'
	touch $@

# each version reads what the other wrote, with the package and without it, then some of the tests with the lowest
test-versions: install $(LOWEST)/.installed
	rm -rf build/versions
	for version in $(VENV) $(LOWEST); do \
		$(TEST) $$version/bin/python tests/support/checkpoints.py write build/versions/$$version || exit; done
	for pair in $(VENV):$(LOWEST) $(LOWEST):$(VENV); do reader=$${pair%:*} writer=build/versions/$${pair#*:}; \
		$(TEST) $$reader/bin/python tests/support/checkpoints.py check $$writer || exit; \
		for family in $$($(RUN) -c 'import synkhorn; print(*synkhorn.FAMILIES)'); do \
			$(TEST) $$reader/bin/python tests/support/remote_load.py $$writer/$$family $$writer/$$family-again || exit; done; done
	$(LOWEST)/bin/python tests/common/fetch.py
	$(TEST) $(LOWEST)/bin/python -m pytest -n auto $(addprefix tests/,$(LOWEST_TESTS))

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	@mkdir -p build/types/synkhorn
	@ln -sfn $(CURDIR)/configuration $(CURDIR)/modeling $(CURDIR)/tokenization $(CURDIR)/scripts \
		$(CURDIR)/synkhorn/*.py build/types/synkhorn/
	@ln -sfn $(CURDIR)/synkhorn/console build/types/synkhorn_console
	cd build/types && $(CURDIR)/$(RUN) -m mypy --config-file $(CURDIR)/pyproject.toml

benchmark: install
	$(RUN) -m synkhorn.scripts.benchmark $(ARGS)

$(VENV)/.course: $(STAMP)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[course]'
	touch $@

# the course's site in build/course/site, from recorded results and what is computed in minutes
course: $(VENV)/.course
	$(TEST) $(RUN) -m course.run
	$(TEST) $(RUN) -m course.site

# the same, with every recorded result computed anew
course-live: $(VENV)/.course
	rm -rf build/course/data build/course/studies
	COURSE_LIVE=1 $(MAKE) course

# in a browser: Debian's chromium
course-test: course
	$(TEST) $(RUN) -m pytest -m 'slow or not slow' tests/course

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info
