"""From the text of a reply to the texts that were asked for."""

import json

from chat_server import completion
from llm import prompts_of, serving, write

TWO = json.dumps({"prompts": ["a red dog with a fighting", "a blue dog with a fighting"]})


def test_json_with_prose_around_it_is_read(tmp_path):
    server = serving({0: completion(f"Sure! Here is the JSON:\n```json\n{TWO}\n```\nAnything else?")})
    pairs, rejected, _ = write(tmp_path, prompts_of(server))
    assert pairs.unsafe_prompt.to_list()[:2] == json.loads(TWO)["prompts"]
    assert (len(server.requests), len(rejected)) == (6, 0)
