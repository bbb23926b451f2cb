# The image of Quipu: `make image`. It has no shell, runs as nobody in particular, and writes to two directories only.
FROM rust:1-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev ca-certificates \
 && rm -rf /var/lib/apt/lists/* && rustup target add wasm32-wasip2
WORKDIR /src
COPY . .
RUN make build && kubernetes/image/rootfs target/release/quipu /rootfs

FROM scratch
COPY --from=build /rootfs /
ENV QUIPU_DATA_DIR=/var/lib/quipu QUIPU_CACHE_DIR=/var/cache/quipu/policies
USER 65532:65532
EXPOSE 8080 7070
VOLUME ["/var/lib/quipu", "/var/cache/quipu"]
ENTRYPOINT ["/usr/bin/quipu"]
CMD ["serve"]
