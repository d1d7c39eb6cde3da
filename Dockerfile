# One image for the API, the migrations and the workers; the command chooses.
#
#   docker build .                                               the torch that pip finds: runs on CPUs and on NVIDIA GPUs
#   docker build --build-arg TORCH_INDEX_URL=<torch's CPU wheel index> .                    CPU only, far smaller
#   docker build --build-arg EXTRAS=cuda --build-arg BUILD_IMAGE=<CUDA devel image> --build-arg BASE_IMAGE=<its runtime> .
#                                                 adds the fast Hadamard kernels, which need nvcc while they are built
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
ARG TORCH_INDEX_URL=""
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# CUDA images bring no Python.
RUN command -v python3 > /dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
# Layers that change seldom come first. The lock pins everything. It is used as constraints, so its development tools are not installed.
COPY requirements.lock ./
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' requirements.lock)"
COPY pyproject.toml ./
# A list that names another of this package's lists ("quantry[server]") adds nothing here: both are read.
RUN python3 -c "import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = project['optional-dependencies']; print(*project['dependencies'], *(each for name in sys.argv[1].split(',') for each in extras[name] if not each.startswith('quantry[')), sep='\n')" server,worker > runtime.txt \
    && pip install --constraint requirements.lock --requirement runtime.txt "setuptools>=77"
RUN if [ -n "$EXTRAS" ]; then \
        python3 -c "import sys, tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*(each for name in sys.argv[1].split(',') for each in extras[name]), sep='\n')" "$EXTRAS" > extras.txt \
        && pip install --no-build-isolation --constraint requirements.lock --requirement extras.txt; \
    fi
COPY alembic.ini LICENSE README.md ./
COPY quant_engine quant_engine
COPY jobs jobs
COPY api api
COPY worker worker
COPY migrations migrations
COPY quantry quantry
RUN pip install --no-deps --no-build-isolation --editable . && python3 -m compileall -q api jobs quant_engine quantry worker

FROM ${BASE_IMAGE}
RUN command -v python3 > /dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*)
RUN groupadd --gid 10001 quantry \
    && useradd --uid 10001 --gid quantry --no-create-home --home-dir /data --shell /usr/sbin/nologin quantry \
    && install --directory --owner=quantry --group=quantry /data /models
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false \
    QUANTRY_DATA_DIR=/data \
    QUANTRY_MODELS_DIR=/models
WORKDIR /app
USER quantry
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=4 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# QUANTRY_HOST equals the address of the socket, so a service without a key refuses to listen on all addresses.
CMD ["env", "QUANTRY_HOST=0.0.0.0", "uvicorn", "api.main:app", "--host", "0.0.0.0", "--port", "8000", "--http", "api.http_protocol:BoundedHttp", "--timeout-graceful-shutdown", "5"]
