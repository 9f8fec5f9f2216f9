# SPDX-License-Identifier: GPL-2.0-or-later
# The newcomer's way in; everything else is the lab command, .venv/bin/lab --help.

.DEFAULT_GOAL := help
.PHONY: help setup run test lint check docs test-hosts test-kernels bench mutants judge-coverage

help: ## Show this
	@awk -F ': ## ' '/^[a-z-]+: ## / { printf "make %-16s%s\n", $$1, $$2 }' Makefile

setup: ## Install what is missing: Debian packages (sudo), and .venv
	@images/host/setup

run: ## Set up, build all images, run a first campaign and write its report below reports/
	@images/host/setup
	.venv/bin/lab run --out "reports/first-$$(date +%Y%m%d-%H%M%S)"

test: ## Set up and run all tests
	@images/host/setup
	.venv/bin/lab build all
	.venv/bin/lab build kernel --base linux-6.12
	.venv/bin/pytest -n auto --dist worksteal

lint: ## Set up and run the linters: ruff, mypy, shellcheck, clang-format, licences, imports
	@images/host/setup
	.venv/bin/pytest -q testcases/unit/test_linters.py

check: ## Set up and run the linters, then the unit tests
	@images/host/setup
	.venv/bin/pytest -q -n auto testcases/unit

docs: ## Set up, write the pages that come from the lab itself, build the site into site/ and check its links
	@images/host/setup
	@.venv/bin/python -c 'import material' 2>/dev/null || .venv/bin/pip install --quiet --disable-pip-version-check -e '.[docs]'
	PYTHONPATH=. .venv/bin/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

test-hosts: ## Run both commands above on a fresh Debian of its own, as root (RELEASE=bookworm: another than trixie)
	@images/host/setup
	images/host/test-hosts $(if $(RELEASE),--release $(RELEASE))

test-kernels: ## Set up and try the judge on kernels as people build them: 20 builds, most of a day
	@images/host/setup
	.venv/bin/pytest -rA testcases/kernel_matrix.py

bench: ## Set up and measure boot, trial and report times
	@images/host/setup
	.venv/bin/lab bench

mutants: ## Set up and try whether the lab notices all that is broken on purpose
	@images/host/setup
	.venv/bin/lab mutants --out "reports/mutants-$$(date +%Y%m%d-%H%M%S)"

judge-coverage: ## Set up and show that a test goes red for each invariant that is taken out of the judge
	@images/host/setup
	.venv/bin/python testcases/unit/judge_coverage.py
