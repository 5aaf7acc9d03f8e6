# The training image:  docker build -t mistral-nli-ft .
#
#   --build-arg BASE_IMAGE=debian:bookworm-slim   another base; Debian or Ubuntu with Python 3.11 or newer in their packages
#   --build-arg TORCH_INDEX=                      torch from the ordinary registry (empty) instead of PyTorch's own for CUDA 12.6
#   --build-arg FLASH_ATTN=1                      compile FlashAttention 2 as well (needs a CUDA base; takes long)
#
# torch brings its CUDA libraries along. The base adds the compiler that FlashAttention and DeepSpeed's kernels need.
# CUDA 12.6 runs on every driver that runs CUDA 12 (525 and newer), those of CUDA 12.1 included.
ARG BASE_IMAGE=nvidia/cuda:12.6.3-devel-ubuntu24.04
FROM ${BASE_IMAGE}

ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Versions change seldom and code often: what follows is a layer of its own, made anew only when the lists change.
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
COPY requirements.txt constraints.txt /opt/build/
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' /opt/build/constraints.txt)" \
    && pip install --requirement /opt/build/requirements.txt

ARG FLASH_ATTN=0
RUN if [ "$FLASH_ATTN" = 1 ]; then pip install packaging ninja wheel && pip install --no-build-isolation flash-attn; fi

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY recipes recipes
RUN pip install --no-deps .

# Nobody needs root to train. run_training.sh names your own user instead, so that files stay yours.
RUN useradd --create-home --uid 10001 trainer \
    && mkdir -p /data /models /hf_cache \
    && chown -R trainer /app /data /models /hf_cache
USER trainer
ENV HF_HOME=/hf_cache TOKENIZERS_PARALLELISM=false

WORKDIR /app/recipes/nli_cot
CMD ["python", "train/train_sft.py", "--help"]
