# moe-advisor as a user without rights: build once, run with traces mounted read-only.
#   docker build -t moe-advisor .
#   docker run --rm --network none --read-only --tmpfs /tmp \
#     -v "$PWD/traces:/work:ro" -v "$PWD/out:/out" moe-advisor analyze /work -o /out
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY moe_advisor ./moe_advisor
COPY rules ./rules
COPY reports ./reports
RUN python -m venv /opt/moe-advisor \
    && /opt/moe-advisor/bin/pip install --no-cache-dir --no-compile .

FROM python:3.12-slim
LABEL org.opencontainers.image.title="moe-advisor" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/moe-advisor /opt/moe-advisor
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin advisor \
    && install -d -o advisor -g advisor /work /out
ENV PATH=/opt/moe-advisor/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /work
ENTRYPOINT ["moe-advisor"]
CMD ["--help"]
