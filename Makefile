# make reproduce   every notebook with its committed defaults -> figures/
#     DATASET=musdb MUSDB_PATH=... MODELS="m2l lin-cae"
#                  the evaluation (notebooks 02 to 06) of other models or data -> runs/musdb/
# make check       lint, and the tests that take a minute
# make test        lint, and all tests
# make train       the desk study on free-music (resumable): one run per variant, runs/study-VARIANT; SEEDS="0 1 2"
# make study       all of it, for a GPU: three seeds of every desk variant, then `small` (resumable)
# make music       recordings from free packages of Debian -> data/free-music/ (0.7 GB, by apt-get), and what
#                  `make train` reads: the same as shards at 16 kHz -> runs/free-music-16k (1 GB)
# make listen      the listening model on that music and on sampled songs, runs/study-listen (resumable)
# make bundle      finished runs of the desk study into data/checkpoints/study/
# make reencoder   Re-Encoders of the bundled autoencoders into data/checkpoints/reencoder/ (resumable);
#                  make reencoder-listen: those of the listening model, on recordings
# make linear      linear pairs of the bundled autoencoders into data/checkpoints/linear/ (resumable)
# make bench       every benchmark of a CPU, anew (desk_step.py needs a former checkout, gpu.py a GPU)
# make lab         JupyterLab
# make desk        the latent mixing desk as a page, by Voila; MODELS and DATASET as above
# make screenshots pictures of the desk and of the demo page -> figures/
# make publish     executed notebooks of the last `make reproduce` back into notebooks/
# make pages       the notebooks as HTML -> runs/pages/
# make clean       everything that is generated and not tracked, .venv included

PYTHON ?= python3
# Asked for by version: a range would let pip take the newest build, which the other pins were not tested with.
TORCH ?= torch==2.13.0
DEVICE ?= # empty: the notebooks' and the trainer's own choice, CUDA where there is one
PRESET ?= desk
# In the order of what is asked first. Each takes three core-hours.
VARIANTS ?= m2l lin-cae lin-bypass-code lin-bypass no-homogeneity no-additivity lin-cae-2 lin-bypass-learned
SEEDS ?= 0
# Runs are named STUDY-variant. DATA: what they train on; VALIDATION: what they are watched on.
STUDY ?= study
MUSIC := runs/free-music-16k
LISTEN := runs/listen-16k
DATA ?= shards:$(MUSIC)
VALIDATION ?= shards:$(MUSIC)-valid
# Of `make reencoder`: bundled autoencoders of the desk study, and the synthetic songs to train on.
REENCODED ?= lin-cae m2l lin-vae vae
SONGS ?= 24
# Of `make linear`: bundled autoencoders, and the songs that their maps learn from beside recordings.
LINEARISED ?= desk/m2l desk/vae study/m2l
LINEAR_SONGS := runs/linear-songs
# HARDWARE: what the card of the modules names; by default as found.

# Threads that wait by spinning cost a busy machine several times their share.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := .venv/bin
READY := .venv/ready
PACKAGE := $(shell find lincae -name "*.py" -o -path "*/web/*" -type f)
NOTEBOOKS := $(notdir $(wildcard notebooks/[0-9][0-9]_*.ipynb))
RUN := runs/notebooks
# Notebooks side by side, each with its share of the cores: one thread wastes less of a core than two.
JOBS ?= 2
# First shares of the evaluation that some notebooks read from the store, then the longest notebooks.
READERS := 02_% 03_% 04_% 05_% 06_% 07_%
EVALUATED := $(if $(filter 06_%,$(NOTEBOOKS)),$(addprefix $(RUN)/evaluated-,$(shell seq $(JOBS))))
LONGEST := 12_% 01_% 11_% 10_% 07_%
EXECUTED := $(addprefix $(RUN)/,$(foreach name,$(LONGEST),$(filter $(name),$(NOTEBOOKS))) \
  $(filter-out $(LONGEST),$(NOTEBOOKS)))

# Paths reach recipes by the environment alone: words of make end at a space. A dollar would not arrive there.
$(foreach name,DATASET MODELS MUSDB_PATH,$(if $(findstring command,$(origin $(name))),$(if \
  $(findstring $$,$(value $(name))),$(error make reads the dollar in $(name) as its own: write $(name)='...' make, \
  not make $(name)='...'))))

.PHONY: help reproduce notebooks check test lint train study music listen bundle reencoder reencoder-listen linear lab mixer desk screenshots publish pages clean bench
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p; s/^#  /  /p; /^$$/q' Makefile

# Large pages, where Linux has them: networks on a CPU spend less time on looking up addresses.
reproduce notebooks: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
ifeq ($(origin DATASET)$(origin MODELS),undefinedundefined)
reproduce: $(READY)
	cores=$$($(BIN)/python -c "import os; print(max(1, len(os.sched_getaffinity(0)) // $(JOBS)))"); \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$cores} $(MAKE) --no-print-directory --jobs $(JOBS) notebooks
else
reproduce: $(READY) # another question than the committed one: other figures, always asked anew
	JOBS=$(JOBS) $(BIN)/python tools/notebooks.py
endif

notebooks: $(EVALUATED) $(EXECUTED)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps linear-cae==0.1.4 music2latent==0.1.8 # peers, for parity
	$(BIN)/python -m pip install --quiet --no-deps tinysoundfont==0.3.7 pretty_midi==0.2.11.post0 # without PortAudio
	touch $@

$(RUN)/%.ipynb: notebooks/%.ipynb $(PACKAGE) tools/notebooks.py | $(READY)
	$(BIN)/python tools/notebooks.py $*

$(addprefix $(RUN)/,$(filter $(READERS),$(NOTEBOOKS))): | $(EVALUATED)

$(RUN)/evaluated-%: notebooks/06_ablations.ipynb $(PACKAGE) tools/notebooks.py | $(READY)
	$(BIN)/python tools/notebooks.py --evaluate $* $(JOBS)
	mkdir -p $(RUN) && touch $@

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# Two tests at a time: more need more memory than cores.
check: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not page"

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The checkpoints that ship: the EMA weights of finished runs in half precision, with the runs' logs.
bundle: $(READY)
	$(BIN)/python tools/bundle.py --study runs/$(STUDY)

# Modules of an autoencoder: each run has a folder named by its hash, so another autoencoder of the same name gets
# new ones, and finished runs only write their module again. With a mel loss or a discriminator they start from
# the module that was trained with l1. The card follows every module: without its hash the next could not read it.
reencoder: $(READY)
	for variant in $(REENCODED); do \
	  out=data/checkpoints/reencoder/$$variant; \
	  run() { $(BIN)/python -m lincae reencoder train "$$@" --model desk/$$variant --songs $(SONGS) \
	    $(if $(DEVICE),--device $(DEVICE)) && \
	    $(BIN)/python tools/bundle.py --reencoder $$out --fact "licence=Apache-2.0, as the code" \
	      "data=$(SONGS) synthetic train songs of 20 s, seed 0" $${HARDWARE:+"hardware=$$HARDWARE"}; }; \
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

# Of the listening model, on recordings: the octave from 4 to 8 kHz, and stereo as it was recorded.
# Blocks are as wide as its latents at least.
LISTEN_MODULES := data/checkpoints/reencoder/listen
BAND_MUSIC := --data data/free-music/train/ufoai-music --data data/free-music/train/singularity-music
reencoder-listen: $(READY) music
	run() { $(BIN)/python -m lincae reencoder train "$$@" --model study/listen \
	  $(if $(DEVICE),--device $(DEVICE)) && \
	  $(BIN)/python tools/bundle.py --reencoder $(LISTEN_MODULES) --fact "licence=Apache-2.0, as the code" \
	    "data=recordings of ufoai-music and, but for stereo, singularity-music, split train" \
	    $${HARDWARE:+"hardware=$$HARDWARE"}; }; \
	run bandwidth --factor 2 $(BAND_MUSIC) --out $(LISTEN_MODULES)/bandwidth-m-l1.safetensors \
	  --set module.hidden=128 steps=2000 && \
	run bandwidth --factor 2 $(BAND_MUSIC) --start $(LISTEN_MODULES)/bandwidth-m-l1.safetensors \
	  --objective l1+gan --out $(LISTEN_MODULES)/bandwidth-m-gan.safetensors --set module.hidden=128 && \
	run stereo --data data/free-music/train/ufoai-music --out $(LISTEN_MODULES)/stereo-left_right.safetensors \
	  --set module.hidden=128

# Linear pairs. That of desk/m2l learns from recordings; the others, in fewer steps, from as many songs besides.
linear: $(READY) music $(LINEAR_SONGS)/synthetic.json
	songs="$(addprefix data/free-music/train/,$(TRAIN_MUSIC)) $(LINEAR_SONGS)/train=8"; \
	for model in $(LINEARISED); do \
	  name=$$(echo $$model | tr / -); data=$$songs; set="steps=600 encoded_batches=28 validate_every=300 tolerated=0.001"; \
	  if [ $$model = desk/m2l ]; then \
	    data=shards:$(MUSIC); set="steps=1800 encoded_batches=40 validate_every=600"; fi; \
	  $(BIN)/python -m lincae reencoder linear --model $$model --out data/checkpoints/linear/$$name.safetensors \
	    --run runs/linear/$$name --data $$data --validation shards:$(MUSIC)-valid $(if $(DEVICE),--device $(DEVICE)) \
	    --set $$set pair.layers=10 pair.hidden=30 pair.kernel=3 linearity.subtraction_probability=0.5 \
	    'linearity.mixture_weights="equal"' || exit; \
	done
	$(BIN)/python tools/bundle.py --reencoder data/checkpoints/linear --fact "licence=Apache-2.0, as the code" \
	  $${HARDWARE:+"hardware=$$HARDWARE"}

bench: $(READY)
	for script in $(filter-out %/desk_step.py %/gpu.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit; done

# Recordings of the split train, weighted by how much music a package has and how alike it is.
music: $(MUSIC)/index.safetensors $(MUSIC)-valid/index.safetensors

TRAIN_MUSIC := wesnoth-1.16-music=3 warzone2100-music=3 ufoai-music=2.5 singularity-music=1.5
VALID_MUSIC := asc-music=1 ufoai-music=3
$(MUSIC)/index.safetensors: | $(READY)
	$(BIN)/python -m lincae data free-music
	$(BIN)/python -m lincae shards $(addprefix data/free-music/train/,$(TRAIN_MUSIC)) $(MUSIC) --sample-rate 16000

$(MUSIC)-valid/index.safetensors: | $(MUSIC)/index.safetensors
	$(BIN)/python -m lincae shards $(addprefix data/free-music/valid/,$(VALID_MUSIC)) $(MUSIC)-valid --sample-rate 16000

$(LINEAR_SONGS)/synthetic.json: | $(READY)
	$(BIN)/python -m lincae data synthetic $(LINEAR_SONGS) --train 48 --test 0 --seed 1 --sample-rate 16000

listen: $(LISTEN)/index.safetensors $(MUSIC)-valid/index.safetensors
	$(BIN)/python -m lincae train --preset listen --variant lin-bypass-code --run runs/$(STUDY)-listen \
	  --data shards:$(LISTEN) --validation shards:$(MUSIC)-valid $(if $(DEVICE),--device $(DEVICE))

$(LISTEN)/index.safetensors: | $(MUSIC)/index.safetensors
	$(BIN)/python -m lincae data synthetic $(LISTEN)-songs --train 72 --test 0 --seed 1 --sampled
	$(BIN)/python -m lincae shards $(addprefix data/free-music/train/,$(TRAIN_MUSIC)) $(LISTEN)-songs/train=2.5 \
	  $(LISTEN) --sample-rate 16000

train: $(READY) $(if $(findstring $(MUSIC),$(DATA)),music)
	for variant in $(VARIANTS); do for seed in $(SEEDS); do \
	  run=runs/$(STUDY)-$$variant; [ $$seed = 0 ] || run=$$run-seed$$seed; \
	  $(BIN)/python -m lincae train --preset $(PRESET) --variant $$variant --run $$run \
	    --data $(DATA) $(if $(VALIDATION),--validation $(VALIDATION)) \
	    $(if $(DEVICE),--device $(DEVICE)) --set seed=$$seed || exit; \
	done; done

study: $(READY)
	$(MAKE) train SEEDS="0 1 2"
	$(MAKE) train STUDY=small PRESET=small VARIANTS="lin-cae m2l" DATA=synthetic VALIDATION=

lab: $(READY)
	$(BIN)/jupyter lab

mixer: desk # its name before

desk: $(READY)
	eval "set -- $$MODELS" && $(BIN)/python -m lincae desk "$$@" $${DATASET:+--data "$$DATASET"} \
	  $${DEVICE:+--device "$$DEVICE"}

screenshots: $(READY)
	$(BIN)/python tools/screenshots.py

publish: $(EXECUTED)
	cp $(EXECUTED) notebooks/
	$(BIN)/python -m nbstripout --keep-output --keep-count \
	  --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.widgets" notebooks/*.ipynb

pages: $(READY)
	$(BIN)/jupyter nbconvert --to html --template page --TemplateExporter.extra_template_basedirs tools \
	  --output-dir runs/pages notebooks/*.ipynb

clean:
	rm -rf .venv runs build data/synthetic *.egg-info .pytest_cache .ruff_cache .hypothesis
