"""The compiled loops of core. All else is in pyproject.toml, where extensions are still an experiment."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fedlearn.core._kernels",
            ["services/fedlearn/core/kernels.c", "services/fedlearn/core/products.c"],
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off"],
            optional=True,  # where there is no compiler it is left out, and numpy does its work
        )
    ]
)
