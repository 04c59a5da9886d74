# SPDX-License-Identifier: Apache-2.0
"""A frozen block of a language model as a booster for networks on 3D medical images.

::

    LLM checkpoint --extract--> frozen block --wrap--> booster --place--> network --name--> bundle --run--> prediction
       (hub/local)    llm/         llm/       boosters/         networks/         bundles/   MONAI + Ignite
                                                                    ^
                                         volumes (MedMNIST, NIfTI, phantoms) -- data/

A folder imports only from folders to its left; this module imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def bundle_path(name: str) -> Path:
    """The folder of a bundle that comes with this package.

    Raises:
        FileNotFoundError: there is no bundle of this name; the message lists those there are.
    """
    package = Path(__file__).parent
    # In an installed wheel they lie inside the package, in a checkout (and so an editable install) beside it.
    places = (package / "bundles", package.parent / "bundles")
    for place in places:
        if (place / name / "configs" / "metadata.json").is_file():
            return place / name
    names = sorted(file.parts[-3] for place in places for file in place.glob("*/configs/metadata.json"))
    raise FileNotFoundError(f"there is no bundle {name!r}: choose one of {', '.join(names) or 'none installed'}")
