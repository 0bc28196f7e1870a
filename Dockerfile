# docker build -t gsdd . && docker run --rm -p 8888:8888 gsdd
# then open the address that it prints. Any other target: docker run --rm gsdd make test PYTHON=python
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /gsdd
COPY . .
# PIP_EXTRA_INDEX_URL may name an index of torch without CUDA, which is a tenth of the size.
ARG PIP_EXTRA_INDEX_URL=
RUN pip install --no-cache-dir -e ".[notebooks,dev]" -c constraints.txt
EXPOSE 8888
CMD ["make", "lab", "PYTHON=python", "ARGS=--no-browser --ip=0.0.0.0"]
