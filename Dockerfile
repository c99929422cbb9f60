# Two images, neither with a compiler, pip or a cache in it; docker/README.md has the commands and the sizes.
#
#   gpu   torch with its own CUDA: the host needs the driver and NVIDIA's container toolkit, nothing else
#   cpu   OpenVINO, without torch: the network is exported here, by the stage `graph`
#
# Any image serves as BASE that has python3 with venv: an official slim Python, or Debian's own.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS tools
RUN python3 -m venv /tools && python3 -m venv --without-pip /opt/nam
COPY constraints.txt /
ENV PATH=/tools/bin:$PATH PIP_CONSTRAINT=/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1

# What each image installs, out of pyproject.toml: a version of ours that needs nothing new changes no large layer.
FROM tools AS requirements
COPY pyproject.toml docker/requirements.py /
RUN python3 /requirements.py /pyproject.toml --extra otel --without openvino > /gpu.txt \
 && python3 /requirements.py /pyproject.toml --extra otel --without torch torchvision > /cpu.txt

# Ours: app, nam, the page, the weights, laid out to be copied into /opt/nam.
FROM tools AS application
COPY . /source
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip --python /opt/nam/bin/python install --no-deps --prefix /application /source

# Headers and static libraries are for compilers: inference reads neither.
FROM tools AS gpu-packages
COPY --from=requirements /gpu.txt /
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip --python /opt/nam/bin/python install --requirement /gpu.txt \
 && find /opt/nam/lib -type f \( -path '*/include/*' -o -path '*/cmake/*' -o -name '*.a' -o -name '*.h' -o -name '*.cuh' \) -delete

# OpenVINO for devices and formats that are never asked for here: this image serves exported graphs on CPUs.
FROM tools AS cpu-packages
COPY --from=requirements /cpu.txt /
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip --python /opt/nam/bin/python install --requirement /cpu.txt \
 && find /opt/nam/lib -type f \( -path '*/include/*' -o -path '*/cmake/*' -o -name '*.a' -o -name '*.h' -o -name '*.cuh' \) -delete \
 && find /opt/nam/lib -path '*/openvino/libs/*' \( -name 'libopenvino_intel_[gn]pu_*' -o -name cache.json \
       -o -name 'libopenvino_*_frontend.so*' ! -name 'libopenvino_ir_frontend.so*' \) -delete

# The graph, in fp32 whatever the CPU: which precision computes it is chosen where it is served.
FROM gpu-packages AS graph
ARG WEIGHTS=resnet18-nam-tiny-imagenet
COPY --from=requirements /cpu.txt /
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip --python /opt/nam/bin/python install --requirement /cpu.txt
COPY --from=application /application /opt/nam
RUN NAM_WEIGHTS=${WEIGHTS} NAM_DEVICE=cpu NAM_ENGINE=openvino NAM_CACHE_DIR=/graphs /opt/nam/bin/nam check

# What both are when they run. The base's own pip goes; HOME is where a container may write, if anywhere.
FROM ${BASE} AS runtime
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/bin/pip* /usr/local/bin/wheel \
 && groupadd --gid 10001 nam \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nam
ARG WEIGHTS=resnet18-nam-tiny-imagenet
ENV PATH=/opt/nam/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 \
    NAM_HOST=0.0.0.0 NAM_PORT=8000 NAM_WEIGHTS=${WEIGHTS}
COPY --chmod=644 docker/healthcheck.py /opt/
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "/opt/healthcheck.py"]
ENTRYPOINT ["nam"]
CMD ["serve"]
ARG VERSION=0.5.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="NAM Serve" \
      org.opencontainers.image.description="Image classification that explains itself, over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"

FROM runtime AS cpu
ENV NAM_ENGINE=openvino NAM_CACHE_DIR=/opt/nam/graphs
COPY --from=cpu-packages /opt/nam /opt/nam
COPY --from=application /application /opt/nam
COPY --from=graph /graphs /opt/nam/graphs

FROM runtime AS gpu
ENV NAM_ENGINE=torch NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-packages /opt/nam /opt/nam
COPY --from=application /application /opt/nam
