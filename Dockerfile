# Images to train in: docker build --target=cpu . or --target=cuda; versions are those of requirements.txt.
#
#   docker build --target=cuda --tag=jet_jax .
#   docker run --gpus=all --volume=$PWD/runs:/work/runs --volume=/data:/data:ro --user=$(id -u):$(id -g) jet_jax \
#     jet-train --config=configs/imagenet64.py:data.source=folder:/data/images --workdir=runs/mine

FROM python:3.11-slim-bookworm AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY requirements.txt pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY jet_jax jet_jax
COPY configs configs
COPY tools tools

FROM source AS cpu
RUN pip install --constraint=requirements.txt '.[codec,export,report]'
# A user without rights over the image; --user of `docker run` may name another, for whom HOME is writable too.
RUN useradd --create-home jet && mkdir /work && chmod 1777 /work /home/jet
ENV HOME=/home/jet
USER jet
WORKDIR /work
CMD ["jet-train", "--help"]

FROM source AS cuda
RUN pip install --constraint=requirements.txt '.[codec,export,report,cuda]'
RUN useradd --create-home jet && mkdir /work && chmod 1777 /work /home/jet
ENV HOME=/home/jet
USER jet
WORKDIR /work
CMD ["jet-train", "--help"]
