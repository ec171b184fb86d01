# docker build --target cpu .   or --target cuda: both use the same base image, because torch's wheels contain CUDA.
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
# Package index for torch, e.g. the index of CPU-only wheels on PyTorch's install page; default: PyPI.
ARG TORCH_INDEX=
# Extras of the project to install, e.g. [otel].
ARG EXTRAS=
RUN python -m venv /opt/sparserm
ENV PATH=/opt/sparserm/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY client ./client
COPY app ./app
RUN pip install -c constraints.txt ./client ".${EXTRAS}"

FROM python:${PYTHON} AS server
RUN useradd --uid 10001 --create-home sparserm \
 && install -d -o sparserm /var/cache/sparserm
COPY --from=build /opt/sparserm /opt/sparserm
COPY models /srv/models
ENV PATH=/opt/sparserm/bin:$PATH \
    SPARSERM_HOST=0.0.0.0 \
    SPARSERM_MODELS_DIR=/srv/models \
    SPARSERM_CACHE_DIR=/var/cache/sparserm \
    HF_HOME=/var/cache/sparserm/hub
WORKDIR /srv
USER sparserm
# A backbone to include in the image; without one, the first start downloads and converts it.
ARG BACKBONE=
RUN if [ -n "$BACKBONE" ]; then sparserm models pull "$BACKBONE" && rm -rf "$SPARSERM_CACHE_DIR/sources"; fi
VOLUME /var/cache/sparserm
EXPOSE 8000
# The start period covers a first start, which downloads the backbone.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["sparserm"]
CMD ["serve"]

FROM server AS cuda
# The kernels of packed attention are compiled at run time, which needs a C compiler.
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
USER sparserm
ENV SPARSERM_DEVICE=cuda \
    TRITON_CACHE_DIR=/var/cache/sparserm/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/sparserm/inductor

FROM server AS cpu
ENV SPARSERM_DEVICE=cpu
