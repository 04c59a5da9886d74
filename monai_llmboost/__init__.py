# SPDX-License-Identifier: Apache-2.0
"""A frozen block of a language model as a booster for networks on 3D medical images.

::

    LLM checkpoint --extract--> frozen block --wrap--> booster --place--> network --name--> bundle --run--> prediction
       (hub/local)    llm/         llm/       boosters/         networks/         bundles/   MONAI + Ignite
                                                                    ^
                                         volumes (MedMNIST, NIfTI, phantoms) -- data/

A folder imports only from folders to its left; this module imports nothing heavy.
"""

__version__ = "0.1.0"
