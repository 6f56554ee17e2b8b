# `make help` lists the targets. Every target sets itself up: virtual environment, pinned packages, data.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python

# options of the pretraining targets: make pretrain-gpt2 DATA=offline STEPS=3, or DRY=1, or any ARGS="optim.lr=3e-4"
DATA ?=
STEPS ?=
DRY ?=
ARGS ?=
ONLY ?=
SOAK_SECONDS ?= 600
LR ?= 3e-4,6e-4,5e-3,5e-2
PRETRAIN_ARGS = $(if $(DATA),data=$(DATA)) $(if $(STEPS),train.steps=$(STEPS)) $(if $(DRY),dry_run=true) $(ARGS)

# the paper's experiments: a target each, all of them with `make reproduce`, the longest first; finished ones have nothing to do. What is timed runs alone, the others JOBS at once
TIMED := throughput
EXPERIMENTS := curation classification fidelity fidelity-early curation-pythia intervals copyright stability dynamics fidelity-pythia retrieval
JOBS ?= 2
THREADS = $(shell n=$$(( $$(getconf _NPROCESSORS_ONLN) / $(JOBS) )); echo $$(( n > 1 ? n : 1 )))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check lint format pretrain-gpt2 pretrain-pythia reproduce $(TIMED) $(EXPERIMENTS) pool notebooks sweep-lr survey soak conformance kernels-aot bench bench-kernels profile roofline clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## virtual environment with the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; choose another: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## prepare text, train a small GPT-2, show what its chunks were worth (minutes, CPU)
	$(RUN) -m experiments demo $(ARGS)

test: $(STAMP)  ## the whole suite: no network, no GPU needed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 $(ARGS)

test-fast: $(STAMP)  ## the suite without the tests marked slow
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not slow" $(ARGS)

check: lint test  ## what has to pass: style, types, the whole suite

lint: $(STAMP)  ## style, formatting and types, nothing is changed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(STAMP)  ## let ruff format and repair what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

pretrain-gpt2: $(STAMP)  ## GPT-2 124M with the paper's settings, on the Pile (DATA=offline STEPS=3 DRY=1 ARGS=...)
	$(RUN) -m experiments pretrain experiment=gpt2 $(PRETRAIN_ARGS)

pretrain-pythia: $(STAMP)  ## Pythia 410M with the paper's settings, on the Pile (same options)
	$(RUN) -m experiments pretrain experiment=pythia $(PRETRAIN_ARGS)

reproduce: $(STAMP)  ## every experiment of the paper at CPU scale, two at once (JOBS=1: one); what is finished is not repeated
	@$(MAKE) --no-print-directory $(TIMED)
	@OMP_NUM_THREADS=$(THREADS) $(MAKE) --no-print-directory --keep-going -j $(JOBS) $(EXPERIMENTS)

throughput: $(STAMP)  ## the paper's table 1 over widths and lengths, with peak memory (ARGS="scale=paper")
	$(RUN) -m experiments throughput $(ARGS)

fidelity: $(STAMP)  ## how close values come to exact Shapley values of real steps (ARGS=scale=paper, ...)
	$(RUN) -m experiments fidelity $(ARGS)

fidelity-early: $(STAMP)  ## the same for the first steps of AdamW, Lion and SGD with momentum
	$(RUN) -m experiments fidelity scale=early $(ARGS)
	$(RUN) -m experiments fidelity scale=early optim@train_optim=lion "optim.names=[lion]" optim.lr=2e-4 "seeds=[0,1]" $(ARGS)
	$(RUN) -m experiments fidelity scale=early optim@train_optim=sgd train_optim.momentum=0.9 "optim.names=[momentum]" optim.lr=2e-2 "seeds=[0]" $(ARGS)

fidelity-pythia: $(STAMP)  ## the same with Pythia, one step of two runs
	$(RUN) -m experiments fidelity model=pythia-tiny "seeds=[0,1]" train.steps=200 "steps=[200]" "optim.lr=[3e-4,1.5e-3,5e-3,5e-2]" $(ARGS)

sweep-lr: $(STAMP)  ## fidelity, one run for each learning rate (LR=1e-4,1e-3 ARGS=launcher=joblib: at once, extra `sweep`)
	$(RUN) -m experiments fidelity -m optim.lr=$(LR) $(ARGS)

curation: $(STAMP)  ## score, drop what values call harmful, train again, against random, loss, online (ARGS=scale=paper, ...)
	$(RUN) -m experiments curation $(ARGS)

curation-pythia: $(STAMP)  ## the same with Pythia, two seeds, against random removal and perfect knowledge
	$(RUN) -m experiments curation model=pythia-tiny "seeds=[0,1]" "controls=[random,clean]" $(ARGS)

dynamics: $(STAMP)  ## which domains carry a target's progress, and when; drift and residual beside them (ARGS="seeds=[0,1]", "scale=paper")
	$(RUN) -m experiments dynamics $(ARGS)

copyright: $(STAMP)  ## where the original of a rewritten text ranks among all training chunks (ARGS="texts.source=files ...": yours)
	$(RUN) -m experiments copyright $(ARGS)

retrieval: $(STAMP)  ## do values find the training chunks of a domain, beside search and influence functions
	$(RUN) -m experiments retrieval $(ARGS)

stability: $(STAMP)  ## how much values depend on the seed: In-Run beside retraining-based ones (about 6 minutes, CPU)
	$(RUN) -m experiments stability $(ARGS)

pool: $(STAMP)  ## subset trainings for the retraining-based baselines (ARGS="-m shard=0,1 shards=2 launcher=joblib")
	$(RUN) -m experiments pool $(ARGS)

classification: $(STAMP)  ## every method of appendix E.6 on labelled data with wrong labels (DATA="digits" or "cifar10", ARGS=...)
	@for data in $(or $(DATA),digits mnist-5k diabetes); do $(RUN) -m experiments classification data=$$data $(ARGS) || exit 1; done

notebooks: $(STAMP)  ## a small run with values, and the notebooks executed on it (INRUN_RUN=runs/NAME jupyter lab notebooks: on yours)
	$(RUN) -m experiments notebooks $(ARGS)

survey: $(STAMP)  ## is a step's value exact for every model type of transformers and peft; into docs/models.md (ONLY=regex: some)
	OMP_NUM_THREADS=1 $(RUN) -m experiments survey $(if $(ONLY),'only="$(ONLY)"',record=true) $(ARGS)

conformance: $(STAMP)  ## judge our engine by the cases in which published implementations went wrong
	$(RUN) -m inrun.conformance $(ARGS)

kernels-aot: $(STAMP)  ## compile every kernel for sm_80 and sm_90, without a GPU; check spills, registers, tensor cores
	$(RUN) -m inrun_kernels.aot

intervals: $(STAMP)  ## what values lose when measured every k-th step only, or with a target's gradient of some steps ago
	$(RUN) -m experiments intervals $(ARGS)

soak: $(STAMP)  ## stop, spoil and resume runs at random for 10 minutes, then a store of 1e8 values (SOAK_SECONDS=60 ARGS="rows=1e6")
	OMP_NUM_THREADS=1 $(RUN) -m experiments soak seconds=$(SOAK_SECONDS) $(ARGS)

bench: $(STAMP)  ## what values cost beside plain training, on this idle machine (ARGS="scale=full")
	$(RUN) -m experiments bench $(ARGS)

bench-kernels: $(STAMP)  ## time the kernels' routes on this machine, into kernels/inrun_kernels/bench.csv (ARGS=--quick)
	$(RUN) -m inrun_kernels.bench $(ARGS)

profile: $(STAMP)  ## where a step's time goes, with and without values
	$(RUN) -m experiments profile $(ARGS)

roofline: $(STAMP)  ## predicted cost of each method on a GPU, from shapes and data sheets
	$(RUN) -m inrun_kernels.cost $(ARGS)

clean:  ## remove the virtual environment (data and runs stay)
	rm -rf $(VENV)
