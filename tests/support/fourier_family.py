"""
Registers the family of `fourier/` as its author would, from its two files and by one line; as a script, a command of
the package that knows it.

    python fourier_family.py serve FOLDER --port 8000
"""

from pathlib import Path

import synkhorn
from synkhorn import Family, cli, configuration, modeling, register

FOLDER = str(Path(__file__).parent / "fourier")
PAPER = "Lee-Thorp et al., *FNet: Mixing Tokens with Fourier Transforms*, [arXiv 2105.03824]."


def register_fourier() -> None:
    for package in (configuration, modeling):
        # where they would lie if they were the package's own
        package.__path__.append(FOLDER)
    from synkhorn.configuration.configuration_fourier import FourierConfig
    from synkhorn.modeling import modeling_fourier

    register(Family(FourierConfig, modeling_fourier, PAPER))


def forget_fourier() -> None:
    """So that no other test of the process meets it in the register."""
    del synkhorn.FAMILIES["fourier"]
    for package in (configuration, modeling):
        package.__path__.remove(FOLDER)


if __name__ == "__main__":
    register_fourier()
    cli.main()
