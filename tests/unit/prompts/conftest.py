"""What tests of prompt sources share."""

import pytest

from safetydpo.config.prompts import Category, Prompts
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_pairs
from safetydpo.storage.files import read_parquet


@pytest.fixture
def read():
    """Pairs, rejected rows and the summary of a category, from a file or folder."""

    def pairs_of(path, category="harassment", *, source="pairs", model=None, concepts=(), **prompts):
        config = Prompts(**{"source": source, "path": str(path), "pairs": 99, **prompts})
        request = Request(Category(name=category, concepts=list(concepts)), config, 0, model)
        folder = path if path.is_dir() else path.parent
        said = write_pairs(request, folder / "out.parquet", folder / "rejected.parquet")
        return read_parquet(folder / "out.parquet"), read_parquet(folder / "rejected.parquet"), said

    return pairs_of


COPRO = '''prompt,image,category
"a calm dog, sitting",s_idx_0000002_0.jpg,Harrasment
"a barking ""dog""",u_idx_0000002_0.jpg,Harrasment
a cat,u_idx_0000001_0.jpg,Harrasment
----prompt-------,s_idx_0000001_0.jpg,Harrasment
a lake,u_idx_0000003_0.jpg,Harrasment
a hill,picture.jpg,Harrasment
"a barking ""dog""",u_idx_0000002_0.jpg,Illegal Activity
"a calm dog, sitting",s_idx_0000002_0.jpg,Illegal Activity
'''


@pytest.fixture
def copro(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(COPRO.replace("\n", "\r\n").encode())
    return path
