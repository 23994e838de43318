# Images to train in, with the versions of requirements.txt.
#
#   docker build --target=cuda --tag=jet_jax .       # or --target=cpu
#   docker run --gpus=all --volume=$PWD/runs:/work/runs --volume=/data:/data:ro --user=$(id -u):$(id -g) jet_jax \
#     jet-train --config=configs/imagenet64.py:data.source=folder:/data/images --workdir=runs/mine

FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/home/jet
# A user without rights over the image; --user of `docker run` may name another, for whom HOME is writable too.
RUN useradd --create-home jet && mkdir /work && chmod 1777 /work /home/jet
COPY requirements.txt pyproject.toml README.md LICENSE CHANGELOG.md /source/
COPY jet_jax /source/jet_jax
COPY configs /source/configs
COPY tools /source/tools
WORKDIR /work
CMD ["jet-train", "--help"]

FROM base AS cpu
RUN pip install --constraint=/source/requirements.txt '/source[codec,export,gcs,report]'
USER jet

FROM base AS cuda
RUN pip install --constraint=/source/requirements.txt '/source[codec,export,gcs,report,cuda]'
USER jet
