"""Parts of a config that do not fit together."""

import pytest

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError


def test_a_folder_of_images_has_no_safe_prompts_to_prefer_them_under(with_value):
    config = with_value("train.condition", "both")
    config["prompts"] = {"source": "folder", "path": "data", "pairs": 48}
    with pytest.raises(SafetyDPOError, match=r"train\.condition: `both` needs safe prompts, source `folder` has none"):
        load_config(config)


def test_other_prompts_than_the_demos_need_files_for_tuning_and_preservation(with_value):
    config = with_value("prompts", {"source": "pairs", "path": "pairs.csv", "pairs": 9})
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "tune.path",
        "train.preserve.path",
    ]
