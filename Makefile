# Two commands are all there is to know: `make run` and `make test`. Each does its own set-up (as root, on Debian or
# Ubuntu: missing packages, .venv, the C programs, the install) and is quick the second time.

PYTHON := .venv/bin/python
# Anything else for pytest: make test PYTEST="-k network --must-have cgroup2"
PYTEST :=

run:
	@tools/setup run
	@$(PYTHON) tools/main_job.py

test:
	@tools/setup test
	tools/suite $(PYTEST)

lint:
	@tools/setup lint
	$(PYTHON) -m ruff check .

types:
	@tools/setup lint
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy bench tools

# `make bench` writes its figures to build/bench.json; `make fuzz` wants clang.
bench:
	@tools/setup test
	$(PYTHON) -m bench --json build/bench.json

FUZZ_SECONDS := 600
fuzz:
	@tools/setup test
	$(MAKE) -C tests/fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)

clean:
	$(MAKE) -C runtime/init clean
	$(MAKE) -C pycontain/isolation/probes clean
	rm -rf build dist pycontain.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: run test lint types bench fuzz clean
