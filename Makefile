# `make run` builds and serves, `make test` tests; both fetch libtorch into vendor/ first, once.
# A LIBTORCH of your own wins: LIBTORCH=/opt/libtorch make run

LIBTORCH ?= $(CURDIR)/vendor/libtorch
CARGO ?= cargo
# One profile for everything, so that dependencies compile once.
PROFILE := --release --locked

.PHONY: run build test fmt clippy doc check libtorch clean

run: libtorch
	$(CARGO) run $(PROFILE) -- $(ARGS)

build: libtorch
	$(CARGO) build $(PROFILE)

test: libtorch
	$(CARGO) test $(PROFILE)

fmt:
	$(CARGO) fmt --check

clippy: libtorch
	$(CARGO) clippy $(PROFILE) --all-targets -- -D warnings

doc: libtorch
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --no-deps --document-private-items

# What .ci/run runs.
check: fmt clippy doc test

# Does nothing when the pinned version is there, or when LIBTORCH points elsewhere.
libtorch:
	@if [ "$(LIBTORCH)" = "$(CURDIR)/vendor/libtorch" ]; then python3 tools/libtorch/fetch.py vendor/libtorch; fi

clean:
	$(CARGO) clean
