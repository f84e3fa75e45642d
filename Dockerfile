# The project's images, one target for each program: operator, optimiser, agent, simulator.
#   docker build --target operator --tag perseus-operator .
# The base must bring Python >= 3.11 with venv; everything that is compiled is compiled in stages that stay behind.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS python
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_CERT PIP_DEFAULT_TIMEOUT
COPY pyproject.toml /build/
COPY scripts/requirements /build/scripts/
RUN python3 -m venv /opt/perseus

FROM python AS wheel
RUN /opt/perseus/bin/pip install --no-cache-dir --quiet hatchling
COPY README.md LICENSE /build/
COPY api /build/api
COPY planner /build/planner
COPY trainer /build/trainer
COPY daemonset /build/daemonset
COPY operator /build/operator
COPY simulator /build/simulator
RUN cd /build && /opt/perseus/bin/pip wheel --no-cache-dir --quiet --no-deps --no-build-isolation --wheel-dir /wheel .

FROM python AS operator-dependencies
RUN python3 /build/scripts/requirements operator-image | /opt/perseus/bin/pip install --no-cache-dir --quiet -r /dev/stdin

FROM python AS optimiser-dependencies
RUN python3 /build/scripts/requirements optimiser | /opt/perseus/bin/pip install --no-cache-dir --quiet -r /dev/stdin

FROM python AS agent-dependencies
RUN python3 /build/scripts/requirements agent | /opt/perseus/bin/pip install --no-cache-dir --quiet -r /dev/stdin

FROM python AS simulator-dependencies
RUN python3 /build/scripts/requirements simulator | /opt/perseus/bin/pip install --no-cache-dir --quiet -r /dev/stdin

FROM operator-dependencies AS operator-program
COPY --from=wheel /wheel /wheel
RUN /opt/perseus/bin/pip install --quiet --no-deps /wheel/*.whl \
 && /opt/perseus/bin/python -c "import perseus_operator.main"

# The planner's loops, compiled ahead of time: what runs them needs no compiler, and so neither numba nor a second more.
FROM optimiser-dependencies AS optimiser-program
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ gcc libc6-dev python3-dev >/dev/null
RUN /opt/perseus/bin/pip install --no-cache-dir --quiet setuptools
COPY --from=wheel /wheel /wheel
COPY examples/profiles /profiles
RUN /opt/perseus/bin/pip install --quiet --no-deps /wheel/*.whl \
 && /opt/perseus/bin/python -m perseus_planner.ahead \
 && /opt/perseus/bin/pip uninstall --quiet --yes numba llvmlite setuptools \
 && /opt/perseus/bin/python -c "import perseus_operator.optimiser.main" \
 && /opt/perseus/bin/perseus plan --profile /profiles/gpt3-175b-a100-sxm --microbatches 12

FROM agent-dependencies AS agent-program
COPY --from=wheel /wheel /wheel
RUN /opt/perseus/bin/pip install --quiet --no-deps /wheel/*.whl \
 && /opt/perseus/bin/python -c "import perseus_daemonset.agent"

FROM simulator-dependencies AS simulator-program
COPY --from=wheel /wheel /wheel
RUN /opt/perseus/bin/pip install --quiet --no-deps /wheel/*.whl \
 && /opt/perseus/bin/python -c "import perseus_simulator.workload.main, perseus_simulator.device_plugin"

# The simulated libnvidia-ml.so.1.
FROM ${BASE} AS native
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev make >/dev/null
COPY simulator/native /native
RUN make -s -C /native BUILD=/native-build

FROM ${BASE} AS operator
COPY --from=operator-program /opt/perseus /opt/perseus
ENV PATH=/opt/perseus/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1
USER 65532:65532
CMD ["perseus-operator", "run"]

FROM ${BASE} AS optimiser
COPY --from=optimiser-program /opt/perseus /opt/perseus
ENV PATH=/opt/perseus/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1
USER 65532:65532
CMD ["perseus-optimiser"]

# Root: it locks clocks and reads other pods' control groups.
FROM ${BASE} AS agent
COPY --from=agent-program /opt/perseus /opt/perseus
ENV PATH=/opt/perseus/bin:/usr/sbin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1
CMD ["perseus-agent", "run"]

FROM ${BASE} AS simulator
COPY --from=simulator-program /opt/perseus /opt/perseus
COPY --from=native /native-build/libnvidia-ml.so.1 /opt/perseus/share/native/libnvidia-ml.so.1
COPY examples/profiles /opt/perseus/share/profiles
ENV PATH=/opt/perseus/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1
USER 65532:65532
CMD ["perseus-simulator", "status"]
