# What Ray's nodes run on AMD's cards: vLLM's own image for ROCm with Ray, the serving application and the weights
# puller. Ray publishes no image for ROCm, and vLLM's wheels for it are in no package index that a lock could name.
#   docker build -f docker/serving-rocm.Dockerfile -t gptoss-serving:rocm .
# That image is root's, on Python 3.12, with all packages in the system's folder. Ours go into a virtual environment
# that sees them: vLLM's pins stay what they were (locks/serving-rocm-base.txt), nothing of Debian's is in the way.
ARG VLLM_IMAGE=vllm/vllm-openai-rocm:v0.33.0
FROM ${VLLM_IMAGE}
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
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --gid 100 --create-home ray \
    && install --directory --owner 1000 --group 100 /opt/gptoss
USER 1000:100
WORKDIR /opt/gptoss
ENV PATH=/opt/gptoss/venv/bin:${PATH}
RUN python3 -m venv --system-site-packages venv
COPY --chown=1000:100 locks/serving-rocm.txt locks/lock.txt
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
# It installs nothing: it fails where this image does not hold all that we, Ray and vLLM ask for.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --disable-pip-version-check --no-index --dry-run "gptoss-operator[serving]"
ENV RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1 \
    RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S=3600 \
    RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S=5 \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1 \
    HF_HUB_OFFLINE=1
# vLLM's image starts its own server.
ENTRYPOINT []
CMD ["bash"]
