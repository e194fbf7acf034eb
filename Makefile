# make reproduce  set-up, then every notebook with its committed defaults -> figures/
# make test       set-up, lint, tests
# make train      the desk study (resumable): one run per variant under runs/
# make bundle     the run of desk/lin-cae into data/checkpoints/
# make lab        JupyterLab
# make publish    executed notebooks of the last `make reproduce` back into notebooks/
# make clean      everything that is generated and not tracked, .venv included

PYTHON ?= python3
# Asked for by version: a range would let pip take the newest build, which the other pins were not tested with.
TORCH ?= torch==2.13.0
DEVICE ?= # empty: the notebooks' and the trainer's own choice, CUDA where there is one
VARIANTS ?= lin-cae lin-cae-2 no-additivity no-homogeneity m2l

# Threads that wait by spinning cost a busy machine several times their share.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := .venv/bin
READY := .venv/ready
PACKAGE := $(wildcard lincae/*.py)
NOTEBOOKS := $(notdir $(wildcard notebooks/[0-9][0-9]_*.ipynb))
EXECUTED := $(addprefix runs/notebooks/,$(NOTEBOOKS))

.PHONY: reproduce test train bundle lab publish clean
.DELETE_ON_ERROR:

reproduce: $(EXECUTED)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps linear-cae==0.1.4 music2latent==0.1.8 # peers, for parity
	touch $@

# One at a time, in order: a notebook may take the checkpoint that an earlier one trained.
.NOTPARALLEL:
runs/notebooks/%.ipynb: notebooks/%.ipynb $(PACKAGE) | $(READY)
	mkdir -p $(@D)
	cd notebooks && ../$(BIN)/python -m papermill --kernel python3 --no-progress-bar --log-output \
	  $(if $(DEVICE),-p device $(DEVICE)) $*.ipynb ../$@

test: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest

# The checkpoint that ships: the EMA weights of the run in half precision, with the run's logs.
bundle: $(READY)
	$(BIN)/python -c "import torch, lincae; m = lincae.load('runs/desk-lin-cae', 'cpu'); \
	  m.name = 'desk/lin-cae'; m.save('data/checkpoints/desk/lin-cae', torch.float16)"
	cp runs/desk-lin-cae/*.csv data/checkpoints/desk/lin-cae/

train: $(READY)
	for variant in $(VARIANTS); do \
	  $(BIN)/python -m lincae.training --preset desk --variant $$variant $(if $(DEVICE),--device $(DEVICE)) || exit; \
	done

lab: $(READY)
	$(BIN)/jupyter lab

publish: $(EXECUTED)
	cp $(EXECUTED) notebooks/
	$(BIN)/python -m nbstripout --keep-output --keep-count \
	  --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.widgets" notebooks/*.ipynb

clean:
	rm -rf .venv runs data/synthetic *.egg-info .pytest_cache .ruff_cache .hypothesis
