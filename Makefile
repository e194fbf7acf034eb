# make reproduce  set-up, then every notebook with its committed defaults -> figures/
# make reproduce DATASET=musdb MUSDB_PATH=... MODELS="m2l lin-cae"
#                 the evaluation (notebooks 02 to 06) of other models or data -> runs/musdb/; see README
# make test       set-up, lint, tests
# make train      the desk study (resumable): one run per variant under runs/; SEEDS="0 1 2" for more of each
# make study      all of it, for a GPU: three seeds of every desk variant, then `small` (resumable)
# make bundle     finished runs of the desk study into data/checkpoints/
# make reencoder  Re-Encoders of the bundled autoencoders into data/checkpoints/reencoder/ (resumable)
# make bench      every benchmark, anew
# make lab        JupyterLab
# make mixer      the latent mixing desk as a page, by Voila
# make screenshots   pictures of the desk and of the demo page -> figures/
# make publish    executed notebooks of the last `make reproduce` back into notebooks/
# make clean      everything that is generated and not tracked, .venv included

PYTHON ?= python3
# Asked for by version: a range would let pip take the newest build, which the other pins were not tested with.
TORCH ?= torch==2.13.0
DEVICE ?= # empty: the notebooks' and the trainer's own choice, CUDA where there is one
PRESET ?= desk
VARIANTS ?= lin-cae lin-cae-2 no-additivity no-homogeneity m2l lin-cae-odd lin-cae-odd-sub lin-vae vae
SEEDS ?= 0
# Of `make reencoder`: bundled autoencoders of the desk study, and the synthetic songs to train on.
REENCODED ?= lin-cae m2l lin-vae vae
SONGS ?= 24
HARDWARE ?= # in the card of the modules; empty: as found
# Of `make reproduce`, all empty: the notebooks' defaults. DATASET and MODELS are names or paths.
DATASET ?=
MODELS ?=
N_TRACKS ?=
SECONDS_EACH ?=

# Threads that wait by spinning cost a busy machine several times their share.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := .venv/bin
READY := .venv/ready
PACKAGE := $(shell find lincae -name "*.py" -o -path "*/web/*" -type f)
NOTEBOOKS := $(notdir $(wildcard notebooks/[0-9][0-9]_*.ipynb))
RUN := runs/notebooks
absolute = $(if $(wildcard $1),$(abspath $1),$1)
quoted = "$(call absolute,$1)"
comma := ,
empty :=
MODEL_LIST = [$(subst $(empty) $(empty),$(comma),$(foreach m,$(MODELS),$(call quoted,$m)))]
ifneq ($(DATASET)$(MODELS),)
# Another question than the committed one: other figures, always asked anew (finished chunks are kept in runs/).
RUN := runs/$(or $(notdir $(DATASET)),evaluation)
NOTEBOOKS := $(filter 02_% 03_% 04_% 05_% 06_%,$(NOTEBOOKS))
ifneq ($(wildcard $(or $(DATASET),-)/.),)
ifeq ($(wildcard $(DATASET)/*/drums.wav $(DATASET)/*/bass.wav $(DATASET)/*/other.wav $(DATASET)/*/vocals.wav),)
NOTEBOOKS := $(filter-out 04_% 05_%,$(NOTEBOOKS)) # a folder without stems: nothing to add or separate
endif
endif
ANEW := anew
PARAMETERS := -p out_dir ../$(RUN)/figures
PARAMETERS += $(if $(DATASET),-p dataset '$(call absolute,$(DATASET))' -p n_tracks $(or $(N_TRACKS),1000) \
  -p seconds $(or $(SECONDS_EACH),100000))
PARAMETERS += $(if $(MODELS),-p models '$(MODEL_LIST)')
ifdef MUSDB_PATH
override export MUSDB_PATH := $(abspath $(MUSDB_PATH))
endif
endif
# The longest first, as they run side by side.
EXECUTED := $(addprefix $(RUN)/,$(filter 06_%,$(NOTEBOOKS)) $(filter-out 06_%,$(NOTEBOOKS)))

.PHONY: reproduce notebooks test train study bundle reencoder lab mixer screenshots publish clean bench anew
.DELETE_ON_ERROR:

# Notebooks side by side, each with its share of the cores: one thread wastes less of a core than two.
JOBS ?= 2
reproduce: $(READY)
	cores=$$($(BIN)/python -c "import os; print(max(1, len(os.sched_getaffinity(0)) // $(JOBS)))"); \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$cores} $(MAKE) --no-print-directory --jobs $(JOBS) notebooks

notebooks: $(EXECUTED)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps linear-cae==0.1.4 music2latent==0.1.8 # peers, for parity
	touch $@

$(RUN)/%.ipynb: notebooks/%.ipynb $(PACKAGE) $(ANEW) | $(READY)
	mkdir -p $(@D)
	cd notebooks && ../$(BIN)/python -m papermill --kernel python3 --no-progress-bar --log-output \
	  $(PARAMETERS) $(if $(DEVICE),-p device $(DEVICE)) $*.ipynb ../$@

test: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest

# The checkpoints that ship: the EMA weights of finished runs in half precision, with the runs' logs.
bundle: $(READY)
	for variant in $(VARIANTS); do \
	  [ ! -e runs/desk-$$variant/model.safetensors ] || \
	    $(BIN)/python tools/bundle.py runs/desk-$$variant desk/$$variant || exit; \
	done

# Modules of an autoencoder: each run has a folder named by its hash, so another autoencoder of the same name gets
# new ones, and finished runs only write their module again. With a mel loss or a discriminator they start from
# the module that was trained with l1. The card follows every module: without its hash the next could not read it.
reencoder: $(READY)
	for variant in $(REENCODED); do \
	  out=data/checkpoints/reencoder/$$variant; \
	  run() { $(BIN)/python -m lincae reencoder train "$$@" --model desk/$$variant --songs $(SONGS) \
	    $(if $(DEVICE),--device $(DEVICE)) && \
	    $(BIN)/python tools/bundle.py --reencoder $$out --fact "licence=Apache-2.0, as the code" \
	      "data=$(SONGS) synthetic train songs of 20 s, seed 0" $(if $(HARDWARE),"hardware=$(HARDWARE)"); }; \
	  m="bandwidth --size desk-m --start $$out/bandwidth-m-l1.safetensors"; \
	  s="bandwidth --size desk-s --start $$out/bandwidth-s-l1.safetensors"; \
	  run bandwidth --size desk-m --out $$out/bandwidth-m-l1.safetensors && \
	  run bandwidth --size desk-s --out $$out/bandwidth-s-l1.safetensors && \
	  run $$m --objective l1+mel --out $$out/bandwidth-m-mel.safetensors && \
	  run $$m --objective l1+gan --out $$out/bandwidth-m-gan.safetensors && \
	  run $$s --objective l1+gan --out $$out/bandwidth-s-gan.safetensors && \
	  run stereo --out $$out/stereo-left_right.safetensors && \
	  run stereo --layout mid_side --out $$out/stereo-mid_side.safetensors || exit; \
	done

bench: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit; done

train: $(READY)
	for variant in $(VARIANTS); do for seed in $(SEEDS); do \
	  if [ $$seed = 0 ]; then seeded=; else \
	    seeded="--set seed=$$seed --run-folder runs/$(PRESET)-$$variant-seed$$seed"; fi; \
	  $(BIN)/python -m lincae train --preset $(PRESET) --variant $$variant $(if $(DEVICE),--device $(DEVICE)) \
	    $$seeded || exit; \
	done; done

study: $(READY)
	$(MAKE) train SEEDS="0 1 2"
	$(MAKE) train PRESET=small VARIANTS="lin-cae m2l"

lab: $(READY)
	$(BIN)/jupyter lab

# MODELS and DATASET as above. The page has the desk alone; figures of its notebook would go to runs/.
mixer: $(READY)
	mkdir -p runs/mixer
	cd notebooks && ../$(BIN)/python -m papermill --prepare-only -p out_dir $(CURDIR)/runs/mixer \
	  $(if $(MODELS),-p models '$(MODEL_LIST)') $(if $(DATASET),-p dataset '$(call absolute,$(DATASET))') \
	  $(if $(DEVICE),-p device $(DEVICE)) 08_latent_mixer.ipynb ../runs/mixer/08_latent_mixer.ipynb
	JUPYTER_PATH=$(CURDIR)/lincae/listening/web JUPYTER_CONFIG_PATH=$(CURDIR)/lincae/listening/web \
	  $(BIN)/python -m voila runs/mixer/08_latent_mixer.ipynb

screenshots: $(READY)
	$(BIN)/python tools/screenshots.py

publish: $(EXECUTED)
	cp $(EXECUTED) notebooks/
	$(BIN)/python -m nbstripout --keep-output --keep-count \
	  --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.widgets" notebooks/*.ipynb

clean:
	rm -rf .venv runs data/synthetic *.egg-info .pytest_cache .ruff_cache .hypothesis
