# Sidelens as an image, for x86-64:
#
#   docker build --tag sidelens .                        on the CPU
#   docker build --tag sidelens:cuda --target cuda .     on GPUs, with NVIDIA's libraries; the driver is the host's
#   docker build --build-arg MODEL=NAME .                with the directory models/NAME as /models/NAME
#
# BuildKit and buildah (--format docker, for the health check) both take it. The service runs as user 65532, needs no
# shell and no capability, and writes nowhere but to /data (models of the hub) and /tmp.

# --- What compiles: a C++ compiler for libtorch's bindings and libjpeg, nasm for libjpeg's SIMD, Python for fetching
# libtorch. Its version of Rust is the workflows', too (`make toolchain`).
FROM rust:1.95-slim-bookworm AS tools
# The versions are the distribution's: pinned ones vanish from its mirrors with each update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ make nasm python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# --- libtorch, from wheels that are pinned by digest. Names of other indexes are passed as pip knows them. PyTorch's
# own libraries bring 90 MB of names for debuggers; NVIDIA's stay as they are, as their licence wants.
FROM tools AS libtorch
ARG PIP_INDEX_URL
COPY tools/libtorch/fetch.py tools/libtorch/fetch.py
RUN python3 tools/libtorch/fetch.py /opt/libtorch \
    && strip --strip-unneeded /opt/libtorch/lib/libtorch*.so /opt/libtorch/lib/libc10*.so

FROM tools AS libtorch-cuda
ARG PIP_INDEX_URL
COPY tools/libtorch/fetch.py tools/libtorch/fetch.py
RUN python3 tools/libtorch/fetch.py --cuda /opt/libtorch-cuda \
    && strip --strip-unneeded /opt/libtorch-cuda/lib/libtorch*.so /opt/libtorch-cuda/lib/libc10*.so

# --- The binary. Its run path is $LIBTORCH/lib, so libtorch lies at the same place in the final image.
FROM libtorch AS build
ENV LIBTORCH=/opt/libtorch
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock build.rs ./
# build.rs compiles it.
COPY src/libtorch.cpp src/
# The dependencies, in a layer that holds until the files above change: an empty program pulls them in.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    mkdir -p src tests/it benches \
    && touch src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && cp src/main.rs tests/it/main.rs \
    && cp src/main.rs benches/main.rs \
    && cargo build --release --locked --bin sidelens
COPY assets assets
COPY config config
COPY src src
# In a container the loopback address is nobody's. It is the default that changes here, not a variable: a variable would
# win over configuration files. `touch`, since cargo goes by the time of files, and a checkout may be older than the
# empty program.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    sed -i 's/^listen = "127\.0\.0\.1:7800"$/listen = "0.0.0.0:7800"/' config/default.toml \
    && grep -q '^listen = "0\.0\.0\.0:7800"$' config/default.toml \
    && touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin sidelens \
    && install -D target/release/sidelens /out/sidelens \
    && strip --strip-debug /out/sidelens
COPY LICENSE-APACHE LICENSE-MIT ./
COPY tools/release tools/release
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    python3 tools/release/notices.py /out/notices

# --- What both images share.
FROM debian:bookworm-slim AS base
# The hub's certificate is judged by the system's authorities.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
    && install -d -o 65532 -g 65532 /data
COPY --from=libtorch /opt/libtorch/licenses /usr/share/doc/libtorch
COPY --from=libtorch /opt/libtorch/lib /opt/libtorch/lib
# Without MODEL a text file that says how.
ARG MODEL
COPY models/${MODEL:-README.md} /models/${MODEL:-README.md}
COPY LICENSE LICENSE-APACHE LICENSE-MIT /usr/share/doc/sidelens/
COPY --from=build /out/notices /usr/share/doc/sidelens
COPY --from=build /out/sidelens /usr/local/bin/sidelens
# The user has no entry in /etc/passwd, hence no home. The settings `hub.*` win over the second. Threads that compute a pass
# together spin a twentieth of a millisecond where they wait, not three: docs/benchmarks.md.
ENV HOME=/tmp \
    HF_HUB_CACHE=/data/hub \
    GOMP_SPINCOUNT=5000
WORKDIR /data
USER 65532:65532
EXPOSE 7800
STOPSIGNAL SIGTERM
# Large models take minutes to load; the first success ends the start period. Each check loads libtorch, which takes most
# of a second of one core, and longer where cores are busy. It asks where the variables SIDELENS_* say that the service is, and
# knows nothing of the flags and files that the service was started with.
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --retries=3 CMD ["sidelens", "healthcheck"]
ENTRYPOINT ["sidelens"]
# A library that is missing is found here.
RUN ["sidelens", "--version"]
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Sidelens" \
      org.opencontainers.image.description="Image and text vectors for Meilisearch, beside it, on libtorch" \
      org.opencontainers.image.source="https://github.com/sidelens/sidelens" \
      org.opencontainers.image.documentation="https://github.com/sidelens/sidelens/blob/main/README.md" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# --- For GPUs. NVIDIA's libraries come under NVIDIA's licences, which lie in /usr/share/doc/libtorch-cuda.
FROM base AS cuda
COPY --from=libtorch-cuda /opt/libtorch-cuda/licenses /usr/share/doc/libtorch-cuda
COPY --from=libtorch-cuda /opt/libtorch-cuda/lib /opt/libtorch/lib
# What NVIDIA's container runtime brings in from the host.
ENV LD_LIBRARY_PATH=/opt/libtorch/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# That there is no GPU while building is fine; that a library is missing is not.
# hadolint ignore=DL4006
RUN sidelens --version | grep -E "cuda: +([0-9]+ device|none \(no CUDA device answers)"

# --- For the CPU; the last stage is what is built unless another is asked for.
FROM base AS cpu
