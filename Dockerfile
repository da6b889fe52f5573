# tenure as an image:
#
#   docker build -t tenure --build-arg VERSION=1.0 .
#   docker build -t tenure-with-ollama --build-arg VERSION=1.0 --target with-ollama .
#
# make image-check builds both without Docker and tries them.

# NVIDIA's library is opened at run time, through cgo. So every base has glibc,
# none an older one than the builder's: Debian 12's, which Ubuntu 24.04's exceeds.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN CGO_ENABLED=1 CGO_CFLAGS="-O2 -Wno-deprecated-declarations" \
    go build -trimpath -ldflags "-s -w -X main.built=$VERSION" -o bin/tenure ./cmd/tenure

# Ollama and tenure in one container, for hosts that run a single one, such as
# RunPod. Ollama's base runs as root, for the volumes of such hosts are root's.
FROM ollama/ollama:0.17.4 AS with-ollama
ARG VERSION=unknown
LABEL org.opencontainers.image.title="tenure with Ollama" \
      org.opencontainers.image.description="An OpenAI-compatible proxy that runs several recruiting models on one GPU, and its Ollama" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /src/bin/tenure /usr/local/bin/tenure
COPY cmd/tenure/deploy/start.sh /usr/local/bin/tenure-start
COPY LICENSE /usr/share/doc/tenure/LICENSE
# Nobody but tenure is to reach Ollama.
ENV OLLAMA_HOST=127.0.0.1:11434 \
    TENURE_LISTEN=0.0.0.0:11435 \
    TENURE_LEDGER=/root/.ollama/tenure-ledger.json \
    TENURE_STOP_TIMEOUT=8s
VOLUME /root/.ollama
EXPOSE 11435
STOPSIGNAL SIGTERM
# The first start pulls some 16 GB before anything answers.
HEALTHCHECK --interval=15s --timeout=11s --start-period=30m --retries=3 CMD ["tenure", "status", "--ready"]
ENTRYPOINT ["tenure-start"]

# tenure alone, the default.
FROM debian:bookworm-20260202-slim
ARG VERSION=unknown
LABEL org.opencontainers.image.title="tenure" \
      org.opencontainers.image.description="An OpenAI-compatible proxy that runs several recruiting models on one GPU" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION"
# What changes is the ledger, and the file of keys if there is one: the rest of
# the file system may be read-only.
RUN groupadd --gid 10001 tenure \
    && useradd --uid 10001 --gid tenure --home-dir /var/lib/tenure --no-create-home --shell /usr/sbin/nologin tenure \
    && install -d -o tenure -g tenure -m 0750 /var/lib/tenure
# For an OLLAMA_HOST that is https.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/bin/tenure /usr/local/bin/tenure
COPY LICENSE /usr/share/doc/tenure/LICENSE
# A container is reached from outside or not at all. So tenure listens on all
# its interfaces, and refuses to without TENURE_API_KEYS or TENURE_KEYS_FILE.
# docker stop waits 10 s: what is under way is told to end before that.
# Of the driver only NVML is wanted, which is "utility".
ENV TENURE_LISTEN=0.0.0.0:11435 \
    TENURE_LEDGER=/var/lib/tenure/ledger.json \
    TENURE_STOP_TIMEOUT=8s \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=utility
USER 10001:10001
WORKDIR /var/lib/tenure
VOLUME /var/lib/tenure
EXPOSE 11435
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=11s --start-period=1m --retries=3 CMD ["tenure", "status", "--ready"]
ENTRYPOINT ["tenure"]
CMD ["serve", "--wait"]
