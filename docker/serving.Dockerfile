# What Ray's nodes run: Ray's own image with vLLM, the serving application and the weights puller.
# Variants by argument; Ray's version in the image and in the lock must be the same:
#   CUDA  docker build -f docker/serving.Dockerfile -t gptoss-serving .
#   CPU   docker build -f docker/serving.Dockerfile -t gptoss-serving:cpu \
#           --build-arg RAY_IMAGE=rayproject/ray:2.60.0-py311-cpu --build-arg LOCK=serving-cpu.txt .
#   ROCm  serving-rocm.Dockerfile: on vLLM's image
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-cu130
FROM ${RAY_IMAGE}
ARG LOCK=serving.txt
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gptoss-serving" \
      org.opencontainers.image.description="Ray Serve replicas of gpt-oss on vLLM that load verified weights only" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 0:0
# libnuma1 is vLLM's; KubeRay's probes call bash and wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash libnuma1 wget \
    && rm -rf /var/lib/apt/lists/*
USER 1000:100
WORKDIR /opt/gptoss
COPY --chown=1000:100 locks/${LOCK} locks/lock.txt
# Everything by hash, and wheels only: nothing runs code of a package while it is installed, nor fetches what builds it.
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: --no-deps \
    -r locks/lock.txt
COPY --chown=1000:100 locks/build.txt locks/
COPY --chown=1000:100 pyproject.toml README.md LICENSE ./
COPY --chown=1000:100 operator operator
COPY --chown=1000:100 serving serving
# The project is built by what its own lock names, in a folder that the image does not keep, and fetches nothing.
RUN build="$(mktemp -d)" \
    && pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: --no-deps \
        --target "$build" -r locks/build.txt \
    && PYTHONPATH="$build" pip install --no-cache-dir --disable-pip-version-check --no-index --no-deps \
        --no-build-isolation . \
    && rm -r "$build"
ENV RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1 \
    RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S=3600 \
    RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S=5 \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1 \
    HF_HUB_OFFLINE=1
