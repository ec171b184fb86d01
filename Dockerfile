# docker build --build-arg DEVICE=cpu|cuda .   CUDA comes with torch's own wheels, so the base is the same.
ARG DEVICE=cpu

FROM python:3.11-slim AS builder
# Optional package index for torch, e.g. the one of CPU-only wheels named on PyTorch's install page.
ARG TORCH_INDEX=
RUN python -m venv /opt/sparserm
ENV PATH=/opt/sparserm/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch
COPY pyproject.toml README.md ./
COPY app ./app
RUN pip install -c constraints.txt .

FROM python:3.11-slim
ARG DEVICE
RUN test "$DEVICE" = cpu -o "$DEVICE" = cuda \
 && useradd --uid 10001 --create-home sparserm \
 && install -d -o sparserm /var/cache/sparserm
COPY --from=builder /opt/sparserm /opt/sparserm
COPY models /srv/models
ENV PATH=/opt/sparserm/bin:$PATH \
    SPARSERM_DEVICE=${DEVICE} \
    SPARSERM_HOST=0.0.0.0 \
    SPARSERM_MODELS_DIR=/srv/models \
    SPARSERM_CACHE_DIR=/var/cache/sparserm
USER sparserm
WORKDIR /srv
VOLUME /var/cache/sparserm
EXPOSE 8000
# The first start fetches and converts the backbone; the probe must outwait it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["sparserm"]
CMD ["serve"]
