PYTHON ?= python3
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --cores all --rerun-incomplete --show-failed-logs --scheduler greedy
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test install check demo-world demo-flow-world docs clean

# flock goes with its process, Snakemake's own lock stays behind a kill -9: so a killed run just continues.
ALONE := flock --nonblock --conflict-exit-code 75 .venv/installed
OR_SAY := || { code=$$?; test $$code != 75 || echo "make demo or demo-world runs here already: wait for it." >&2; exit $$code; }

demo: install  ## set-up, then the whole pipeline on the demo world
	@$(ALONE) $(SNAKEMAKE) --nolock $(OR_SAY)
	@$(BIN)/safetydpo summary results/demo

test: install  ## set-up, then every test
	$(BIN)/pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

install: .venv/installed  ## .venv with pinned dependencies

.venv/installed: pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint envs/constraints.txt --editable '.[dev]'
	@touch $@

check: install  ## format, lint, types, workflow lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint  # all rules

docs: install  ## config/README.md from the schema, tables of docs/models.md from the registries
	$(BIN)/safetydpo config-docs > config/README.md
	$(BIN)/safetydpo model-docs docs/models.md

demo-world demo-flow-world: install  ## train a demo world's models from scratch (hours)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(ALONE) \
		$(BIN)/snakemake --snakefile workflow/$(subst -,_,$@).smk --cores all --rerun-incomplete --nolock $(OR_SAY)

clean:  ## remove runs and logs, keep the environment
	rm -rf results logs .snakemake
