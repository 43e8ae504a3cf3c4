# lensmith on CPUs and NVIDIA GPUs (driver 580 or newer). From the root of the repository:
#   docker build -f examples/docker/cuda.Dockerfile -t lensmith:0.1.0-cuda .
FROM rust:1.89.0-bookworm AS build
WORKDIR /build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
# nvcc 13.0, in the versions that the repository is tested with.
COPY tools/setup_cuda tools/setup_cuda
RUN tools/setup_cuda
COPY Cargo.toml Cargo.lock build.rs README.md ./
COPY build build
COPY kernels kernels
COPY src src
COPY benches benches
COPY ptx ptx
COPY python/Cargo.toml python/Cargo.toml
COPY python/src python/src
COPY examples/hh-harmless examples/hh-harmless
RUN LENSMITH_REQUIRE_CUDA=1 cargo build --release --locked --bin lensmith

# Without a compiler; the driver comes from the machine.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04
# Certificates, for object stores.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home lensmith
COPY --from=build /build/target/release/lensmith /usr/local/bin/lensmith
USER 10001
WORKDIR /home/lensmith
ENTRYPOINT ["lensmith"]
CMD ["--help"]
