# lensmith on CPUs. From the root of the repository:
#   docker build -f examples/docker/cpu.Dockerfile -t lensmith:0.1.0 .
FROM rust:1.89.0-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs README.md ./
COPY build build
COPY kernels kernels
COPY src src
COPY benches benches
COPY ptx ptx
COPY python/Cargo.toml python/Cargo.toml
COPY python/src python/src
COPY examples/hh-harmless examples/hh-harmless
RUN cargo build --release --locked --bin lensmith

FROM debian:bookworm-slim
# Certificates, for object stores.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home lensmith
COPY --from=build /build/target/release/lensmith /usr/local/bin/lensmith
USER 10001
WORKDIR /home/lensmith
ENTRYPOINT ["lensmith"]
CMD ["--help"]
