# Medfusion in a container: its studio, or any run of a bundle. docs/docker.md has the commands.
#   docker build --build-arg TORCH_INDEX_URL=ADDRESS --tag medfusion .
# ADDRESS: PyTorch's index of the builds for CPU, or for a version of CUDA, see PyTorch's installation page. Without it,
# pip installs the build for CUDA of its default index, which also runs on a CPU but is 4 GB larger.
FROM python:3.11-slim

ARG TORCH_INDEX_URL=""
ARG EXTRAS="studio dicom"

# A home that is writable for every --user and with --read-only --tmpfs /tmp; torch asks for a user's name.
ENV HOME=/tmp USER=medfusion PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /opt/medfusion

# From the layer that changes least to the one that changes most: the last, with the code, has a few megabytes.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch torchvision

COPY pyproject.toml ./
RUN python -c "import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = [project['optional-dependencies'][name] for name in sys.argv[1:]]; \
        print(*project['dependencies'], *sum(extras, []), sep='\n')" $EXTRAS > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY medfusion_monai ./medfusion_monai
COPY bundles ./bundles
RUN pip install --no-deps . \
    && rm -rf build medfusion_monai medfusion_monai.egg-info \
    && mkdir -p /data /models \
    && chmod 1777 /data /models

VOLUME ["/data", "/models"]
USER 1000:1000
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as url; url.urlopen('http://127.0.0.1:7860/health', timeout=5)"]

# All addresses of the container: from outside, only those reach the port for whom it is published.
CMD ["medfusion", "studio", "--model", "bundles/medfusion_cxr", "--host", "0.0.0.0", "--port", "7860"]
