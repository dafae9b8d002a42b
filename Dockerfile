# The workflow with the packages of envs/constraints.txt, without the developers' tools:
#
#   docker build --tag safetydpo .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/safetydpo" safetydpo snakemake --cores 2
#
# The second line runs your checkout, and leaves results/ there; without the volume the copy in the image runs, and nothing
# stays. On a GPU add `--gpus all`: pip's torch has CUDA. HF_HOME and HF_HUB_OFFLINE are yours to give.
FROM python:3.11-slim-bookworm

# Any user id may run it: all may write here, and who has no name in the container gets one.
RUN useradd --uid 1000 --create-home safetydpo \
    && mkdir /safetydpo \
    && chmod 1777 /home/safetydpo /safetydpo
ENV HOME=/home/safetydpo USER=safetydpo PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
WORKDIR /safetydpo

COPY . .
RUN python -m venv /opt/venv \
    && pip install --no-cache-dir --constraint envs/constraints.txt --editable '.[nudenet]'

USER 1000:1000
CMD ["snakemake", "--cores", "2"]
