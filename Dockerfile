# CPU:  docker build -t anchored .
# GPU:  docker build -t anchored:cuda --build-arg TORCH_BACKEND=cu130 .
#       PyTorch's wheels carry CUDA's libraries; the host has the driver and NVIDIA's container toolkit. A base with CUDA's
#       own tools: --build-arg BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04
# Run:  docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" anchored study demo -o runs/demo    (GPU: --gpus all)
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG VERSION=0.1.0.dev0
ARG TORCH_BACKEND=cpu
ARG EXTRAS=[onnx]
COPY . /source
RUN VERSION="${VERSION}" TORCH_BACKEND="${TORCH_BACKEND}" EXTRAS="${EXTRAS}" sh /source/docker/install.sh /source /opt/anchored

FROM ${BASE}
# CUDA's images come without Python; the environment of the first stage needs the same one.
# hadolint ignore=DL3008
RUN command -v python3 >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /opt/anchored /opt/anchored
ENV PATH=/opt/anchored/bin:${PATH} \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["anchored"]
CMD ["--help"]
