# Operator, gateway and the gptoss command in one small image: no shell, no package manager, no root.
# Built from the repository's root: docker build -f docker/operator.Dockerfile -t gptoss-operator .
# Give both base images by digest to build the same bytes again; the workflow that publishes records them.
ARG BUILD_IMAGE=python:3.11-slim-bookworm
ARG BASE_IMAGE=gcr.io/distroless/python3-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY locks/operator.txt locks/
# Everything by hash, and wheels only: nothing runs code of a package while it is installed.
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
    --target /app -r locks/operator.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY serving serving
RUN cp -r operator/gptoss_* serving/gptoss_* /app/ \
    && find /app -name __pycache__ -type d -prune -exec rm -rf {} + \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /app

FROM ${BASE_IMAGE}
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gptoss-operator" \
      org.opencontainers.image.description="Operator and gateway for verified, scale-to-zero gpt-oss endpoints" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /app /app
COPY LICENSE /licenses/LICENSE
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python3", "-m"]
CMD ["gptoss_operator", "--help"]
