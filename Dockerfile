# syntax=docker/dockerfile:1
# Two images: `--target cpu` and `--target cuda` (the last, so the default). Both run as an ordinary user and contain no
# build tools. Exact versions and hashes come from constraints.txt.
#
#   docker build --target cuda --tag recipro-stream:cuda .
#   docker build --target cpu --build-arg TORCH_INDEX=ADDRESS --tag recipro-stream:cpu .
#
# ADDRESS is PyTorch's index of CPU wheels, as its installation page names it.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/recipro
RUN pip install --no-cache-dir uv==0.9.7 && uv venv "$VIRTUAL_ENV"
WORKDIR /src
COPY constraints.txt constraints-cpu.txt pyproject.toml README.md LICENSE run.py ./
COPY commands commands
COPY configs configs
COPY engine engine
COPY overlays overlays
COPY pipeline pipeline
COPY recipro_stream recipro_stream
COPY stream stream

FROM build AS build-cuda
RUN uv pip install --no-cache --require-hashes -r constraints.txt \
    && uv pip install --no-cache --no-deps .

FROM build AS build-cpu
ARG TORCH_INDEX
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN test -n "$TORCH_INDEX" || { echo "give --build-arg TORCH_INDEX=ADDRESS of the index of CPU wheels" >&2; exit 2; }; \
    grep -oE '^torch(vision)?==[0-9.]+' constraints.txt > torch.txt \
    && uv pip install --no-cache --index-url "$TORCH_INDEX" -r torch.txt \
    && uv pip install --no-cache --require-hashes -r constraints-cpu.txt \
    && uv pip install --no-cache --no-deps .

FROM python:${PYTHON_VERSION}-slim-bookworm AS runtime
ENV PATH=/opt/recipro/bin:$PATH PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/var/cache/recipro \
    XDG_STATE_HOME=/var/cache/recipro
RUN useradd --create-home --uid 10001 recipro \
    && install -d -o recipro -g recipro /data /var/cache/recipro
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/var/cache/recipro"]
EXPOSE 5555 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["recipro-stream"]
CMD ["doctor"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/recipro /opt/recipro

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
COPY --from=build-cuda /opt/recipro /opt/recipro
