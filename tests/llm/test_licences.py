# SPDX-License-Identifier: Apache-2.0
"""The licence of a donor: its card's, else that of a well-known text, else where to read it; never a guess."""

import pytest
from conftest import ROOT

from monai_llmboost.llm.donor.folder import LocalFolder
from monai_llmboost.llm.donor.licences import identify_licence

APACHE = (ROOT / "LICENSE").read_text()
MIT = """MIT License

Copyright (c) 2024 The Authors

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
CLAUSES = """Copyright (c) 2024, The Authors

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
disclaimer in the documentation and/or other materials provided with the distribution.
{more}
THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""
BSD_2 = CLAUSES.format(more="")
THIRD = """
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote products
derived from this software without specific prior written permission.
"""
BSD_3 = CLAUSES.format(more=THIRD)
BSD_4 = CLAUSES.format(more="3. All advertising materials must display the following acknowledgement." + THIRD)
CC = "By exercising the Licensed Rights (defined below), You accept and agree to be bound by the terms."

TEXTS = {
    "Apache-2.0": APACHE,
    "Apache-2.0 with a line before it": f"Copyright 2024 The Authors. All rights reserved.\n\n{APACHE}",
    "MIT": MIT,
    "BSD-2-Clause": BSD_2,
    "BSD-3-Clause": BSD_3,
    "CC-BY-4.0": f"Attribution 4.0 International\n\n=====\n\nCreative Commons Corporation is not a law firm.\n{CC}",
    "CC-BY-NC-4.0": f"Attribution-NonCommercial 4.0 International\n\n{CC}",
    "CC-BY-SA-4.0": f"Creative Commons Attribution-ShareAlike 4.0 International Public License\n\n{CC}",
    "CC-BY-NC-SA-3.0": f"Creative Commons Legal Code\n\nAttribution-NonCommercial-ShareAlike 3.0 Unported\n\n{CC}",
    "CC-BY-NC-ND-4.0": f"Attribution-NonCommercial-NoDerivatives 4.0 International\n\n{CC}",
    "CC0-1.0": f"Creative Commons Legal Code\n\nCC0 1.0 Universal\n\n{CC}",
    "llama2": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version Release Date: July 18, 2023\n",
    "llama3": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date: April 18, 2024\n",
    "llama3.2": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, 2024\n",
    "llama4": "LLAMA 4 COMMUNITY LICENSE AGREEMENT\nLlama 4 Version Effective Date: April 5, 2025\n",
    "gemma": "Gemma Terms of Use\n\nLast modified: March 24, 2025\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_well_known_text(name, tmp_path):
    (tmp_path / "LICENSE").write_text(TEXTS[name])
    assert identify_licence(tmp_path / "LICENSE") == name.partition(" ")[0]


OTHERS = {
    "terms added to MIT": (MIT + "\nCommercial use by companies needs a contract.\n", "MIT License"),
    "terms within MIT": (MIT.replace("distribute, ", ""), "MIT License"),
    "terms added to Apache's": (APACHE + "No commercial use of any kind.\n", "Apache License"),
    "terms within Apache's": (APACHE.replace("royalty-free", ""), "Apache License"),
    "terms added to BSD's": (BSD_3 + "No commercial use.\n", "Copyright (c) 2024, The Authors"),
    "terms within BSD's": (CLAUSES.format(more="3. Not for money. " * 20), "Copyright (c) 2024, The Authors"),
    "the name of a licence only": ("This model is under the Apache License, Version 2.0.", "This model is under the"),
    "four clauses": (BSD_4, "Copyright (c) 2024, The Authors"),
    "a licence of one's own": ("\n\n  ===\nTongyi   Qianwen LICENSE AGREEMENT\n", "Tongyi Qianwen LICENSE AGREEMENT"),
    "GPL": ("         GNU GENERAL PUBLIC LICENSE\n            Version 3\n", "GNU GENERAL PUBLIC LICENSE"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_text_is_referred_to(name, tmp_path):
    text, first = OTHERS[name]
    (tmp_path / "LICENSE.txt").write_text(text)
    assert identify_licence(tmp_path / "LICENSE.txt").startswith(f"see LICENSE.txt: {first}")


def test_an_empty_licence_file(tmp_path):
    (tmp_path / "LICENSE").write_bytes(b" \n\n")
    assert identify_licence(tmp_path / "LICENSE") == ""
    (tmp_path / "LICENSE").write_bytes(b"\xff\xfe\x00")
    assert identify_licence(tmp_path / "LICENSE") == ""


@pytest.mark.parametrize("name", ["LICENSE", "LICENCE", "license.md", "LICENSE.txt", "COPYING", "LICENSE-MODEL"])
def test_names_of_licence_files(name, tmp_path):
    (tmp_path / name).write_text(MIT)
    (tmp_path / "LICENSED_TO.txt").write_text(APACHE)
    assert LocalFolder(tmp_path).find_licence() == "MIT"


def test_the_card_is_preferred(tmp_path):
    (tmp_path / "LICENSE").write_text(MIT)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert LocalFolder(tmp_path).find_licence() == "apache-2.0"
    (tmp_path / "README.md").write_text("# A model\n")
    assert LocalFolder(tmp_path).find_licence() == "MIT"
