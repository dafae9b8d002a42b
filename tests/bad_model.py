"""A scripted bad model: its replies show what small models were seen to write, and each is labelled as a person would.

What it says depends on the request alone. Scenes, and reasons against them, were written down before the filters ran.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from chat_server import Answer, completion

# Shown in the instructions; they come back as if they were new.
EXAMPLES = (
    ("An old man with an umbrella waits at a bus stop in the rain.", "An old man waits at a bus stop in the rain."),
    ("Two girls walk a brown dog past a red barn.", "Two girls walk past a red barn."),
    ("A woman in a blue coat is juggling apples at a market.", "A woman in a blue coat buys apples at a market."),
)
DESCRIPTION = "Things and skills that a street show must do without."
# concept -> words that show it too
CONCEPTS = {"umbrella": ["parasol"], "dog": ["puppy", "hound"], "juggling": ["juggler"]}


class Scene(NamedTuple):
    """What the model writes of a concept: an unsafe prompt, and counterparts of which it gives one at a time.

    good: counterparts with which a person would accept the pair; bad: others; why: what a person says against the
    unsafe prompt or all its counterparts. Of scenes with one `twin`, a person wants one.
    """

    unsafe: str
    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    why: str = ""
    twin: str = ""

    @property
    def group(self) -> str:
        """What one pair of is enough."""
        return self.twin or self.unsafe


def _bad(why: str, unsafe: str, *safe: str) -> Scene:
    return Scene(unsafe, bad=safe or ("A boy waits at a bus stop.",), why=why)


SCENES: dict[str, list[Scene]] = {
    "umbrella": [
        Scene(
            "A boy with a red umbrella waits at a bus stop.",
            ("A boy waits at a bus stop.", "A boy with a red balloon waits at a bus stop."),
            ("A boy without an umbrella waits at a bus stop.", "A boy with a red parasol waits at a bus stop."),
        ),
        Scene(
            "Two nuns share an umbrella on a windy pier, oil painting.",
            ("Two nuns walk on a windy pier, oil painting.", "Two nuns share a blanket on a windy pier, oil painting."),
            ("Two nuns.", "Two nuns share umbrellas on a windy pier, oil painting."),
        ),
        Scene(
            "A waiter opens a striped umbrella over a table by the sea.",
            ("A waiter sets a striped plate on a table by the sea.", "A waiter wipes a table by the sea."),
            ("The moon rises behind a quiet mountain village.", "Here is the safe version of the prompt."),
        ),
        Scene(
            "A street in the rain at night, full of black umbrellas, seen from above.",
            ("A street in the rain at night, full of black cars, seen from above.",),
            ("A street in the rain at night, full of black umbrellas, seen from below.", "A street."),
        ),
        Scene(
            "A girl dances with a yellow umbrella in a puddle, children's book drawing.",
            ("A girl dances in a puddle, children's book drawing.",),
            ("I'm sorry, but I can't help with that.", "A girl dances in a puddle (umbrella removed)."),
        ),
        Scene(
            "Black and white photo of a painter who holds an umbrella over her easel.",
            ("Black and white photo of a painter who holds a lamp over her easel.",),
            ("Black and white photo of a painter who holds an umbrella over her easel.",),
        ),
        Scene(
            "A postman under a torn umbrella climbs a steep stair.",
            ("A postman climbs a steep stair.", "A postman with a torn bag climbs a steep stair."),
            ("A postman under a torn umbrella climbs a steep and narrow stair.", "..."),
        ),
        Scene(
            "An umbrella leans on a green door.",
            ("A broom leans on a green door.",),
            ("What leans on a green door?", "A green door, a brass bell, a mat, three pots and a sleeping black cat."),
        ),
        Scene(
            "A bride and a groom laugh under a clear umbrella outside a town hall.",
            ("A bride and a groom laugh outside a town hall.",),
            ("https://example.org/safe.png", "A bride and a groom laugh under a parasol outside a town hall."),
        ),
        Scene(
            "Three cyclists with umbrellas ride across a wet bridge.",
            ("Three cyclists ride across a wet bridge.",),
            ("Three cyclists with an umbrella each ride across a wet bridge.", "A cyclist eats soup in a kitchen."),
            twin="cyclists",
        ),
        Scene(
            "Three cyclists with umbrellas ride over a wet bridge.",
            ("Three cyclists ride over a wet bridge.",),
            twin="cyclists",
        ),
        Scene(
            "The three cyclists with their umbrellas ride across the wet bridge!",
            ("The three cyclists ride across the wet bridge!",),
            twin="cyclists",
        ),
        Scene(
            "A man with an umbrella and a dog crosses a square at noon.",
            ("A man crosses a square at noon.",),
            twin="square",
        ),
        _bad("an example", EXAMPLES[0][0], EXAMPLES[0][1]),
        _bad("an example with a word changed", "An old man with an umbrella waits at a bus stop in the snow.",
             "An old man waits at a bus stop in the snow."),
        _bad("no umbrella", "A red bicycle leans on a white wall.", "A blue bicycle leans on a white wall."),
        _bad("no umbrella", "A woman in a raincoat sails a small boat.", "A woman sails a small boat."),
        _bad("no scene", "umbrella", "hat"),
        _bad("no scene", "An umbrella.", "A hat."),
        _bad("a question", "What is an umbrella used for in the rain?", "What is a hat used for in the rain?"),
        _bad("two prompts in one", "A cook with an umbrella sits on a step. 2. A nurse with an umbrella waits.",
             "A cook sits on a step. 2. A nurse waits."),
        _bad("an instruction", 'Write 5 prompts for an image that shows the concept "umbrella".',
             'Write 5 prompts for an image that shows the concept "hat".'),
        _bad("an instruction", "Vary people, places, situations and styles of the umbrella.",
             "Vary people, places, situations and styles of the hat."),
        _bad("Chinese", "雨中的街道上,一个男孩拿着红色的伞 umbrella 等公交车", "雨中的街道上,一个男孩等公交车"),
        _bad("German", "Ein Junge mit einem roten Regenschirm wartet an der Haltestelle.",
             "Ein Junge wartet an der Haltestelle."),
        _bad("an address", "https://example.org/a-man-with-an-umbrella.jpg", "https://example.org/a-man.jpg"),
        _bad("an address", "A man with an umbrella on a bench, see www.example.org for more.",
             "A man on a bench, see www.example.org for more."),
        _bad("a refusal", "I'm sorry, but I cannot write prompts with an umbrella.", "I'm sorry, but I cannot."),
        _bad("a file's name", "umbrella_01.json", "example1.json"),
        _bad("nothing", "...", "..."),
        _bad("all else is gone", "A tall guard with an umbrella stands at a palace gate in thick fog.",
             "A guard in the fog.", "A palace gate stands."),
        _bad("another scene", "A farmer with an umbrella counts sheep on a hill.", "A ship sails under a full moon.",
             "Two chefs bake bread in a castle."),
        _bad("still an umbrella", "A child draws an umbrella on a window.", "A child draws umbrellas on a window.",
             "A child draws a parasol on a window."),
        _bad("nothing removed", "A clerk folds an umbrella in a lift.", "A clerk folds an umbrella in a lift, safely.",
             "A clerk folds a safe umbrella in a lift."),
    ],
    "dog": [
        Scene(
            "A dog sleeps on a blue sofa.",
            ("A cat sleeps on a blue sofa.",),
            ("A puppy sleeps on a blue sofa.", "A blue sofa, a lamp, a rug, a piano, a clock and a tall window."),
        ),
        Scene(
            "A shepherd and his dog cross a snowy field at dawn, watercolour.",
            ("A shepherd crosses a snowy field at dawn, watercolour.",),
            ("A shepherd and his dogs cross a snowy field at dawn, watercolour.", "Watercolour."),
        ),
        Scene(
            "A baker throws a stick for two dogs behind his shop.",
            ("A baker throws a stick behind his shop.", "A baker throws a stick for two boys behind his shop."),
            ("A baker and two hounds behind his shop.", "As an AI, I cannot rewrite this."),
        ),
        Scene(
            "A small white dog in a bicycle basket, summer street.",
            ("A small white parcel in a bicycle basket, summer street.", "Flowers in a bicycle basket, summer street."),
            ("A small white dog in a bicycle basket, winter street.", "unsafe"),
        ),
        Scene(
            "Children wash a muddy dog in a garden tub.",
            ("Children wash a muddy boot in a garden tub.",),
            ("Children do not wash a muddy dog in a garden tub.", "Children play chess in a library."),
        ),
        Scene(
            "A blind man follows his guide dog through a train station.",
            ("A blind man follows his friend through a train station.",),
            ("A blind man follows his guide dog through a train station in the evening.", "A man."),
        ),
        Scene(
            'A sign that says "no dogs" hangs on a park fence.',
            ('A sign that says "no litter" hangs on a park fence.',),
            ('A sign that says "no dogs" hangs on a garden fence.',),
        ),
        Scene(
            "9:30 in the morning: a dog barks at a milk van.",
            ("9:30 in the morning: a man waves at a milk van.",),
            ("9:30 in the morning: a hound barks at a milk van.",),
        ),
        Scene(
            "3 dogs run along a beach, film still.",
            ("3 horses run along a beach, film still.",),
            ("3 puppies run along a beach, film still.", "Write a safe prompt."),
        ),
        Scene(
            "A man with an umbrella and a dog crosses the square at noon.",
            ("A man crosses the square at noon.",),
            twin="square",
        ),
        Scene(
            "An old dog lies before a stone fireplace in a mountain hut.",
            ("An old rug lies before a stone fireplace in a mountain hut.",),
            ("A stone fireplace.", "An old dog sits before a stone fireplace in a mountain hut."),
            twin="fireplace",
        ),
        Scene(
            "An old dog lies by a stone fireplace in the mountain hut.",
            ("An old rug lies by a stone fireplace in the mountain hut.",),
            twin="fireplace",
        ),
        _bad("an example", EXAMPLES[1][0], EXAMPLES[1][1]),
        _bad("another example", EXAMPLES[0][0], EXAMPLES[0][1]),
        _bad("no dog", "A woman in a suit smiles when she sees a duck.", "A woman in a suit smiles."),
        _bad("no dog", "The dogma of a school is read aloud.", "The rules of a school are read aloud."),
        _bad("no scene", "Dog dog dog dog dog dog", "Cat cat cat cat cat cat"),
        _bad("a question", "Why does a dog bark at the moon?", "Why does a man sing at the moon?"),
        _bad("an instruction", "One English sentence of at most 40 words that describes a scene with a dog.",
             "One English sentence of at most 40 words that describes a scene."),
        _bad("Russian", "Собака dog спит на синем диване в комнате", "Кошка спит на синем диване в комнате"),
        _bad("Spanish", "Un perro duerme en el sofá azul.", "Un gato duerme en el sofá azul."),
        _bad("digits", "1 2 3 4 5 6 7", "1 2 3"),
        _bad("a refusal", "I can't create content about a dog in a park.", "I can't do that."),
        _bad("another scene", "A dog digs a hole under an apple tree.", "A lady pours tea in a parlour.",
             "The rocket stands ready for launch."),
        _bad("all else is gone", "A dog waits beside a drummer on a crowded market square in spring.",
             "A drummer in spring.", "Spring."),
        _bad("still a dog", "A sailor carries a dog up a rope ladder.", "A sailor carries a puppy up a rope ladder.",
             "A sailor carries a small dog up a rope ladder."),
        _bad("much is added", "A dog sits at a gate.",
             "A gate with roses, a bench, two lanterns, a fountain, a statue and a long gravel path.",
             "A king in a golden robe sits at a gate with ten knights, a dwarf, two queens and a minstrel."),
    ],
    "juggling": [
        Scene(
            "A clown is juggling three oranges on a beach.",
            ("A clown is holding three oranges on a beach.", "A clown is peeling three oranges on a beach."),
            ("A clown juggles on a beach.", "A clown is a juggler of three oranges on a beach."),
        ),
        Scene(
            "A monk juggles clay bowls in a temple yard, ink drawing.",
            ("A monk stacks clay bowls in a temple yard, ink drawing.",),
            ("A monk juggled clay bowls in a temple yard, ink drawing.", "Ink drawing."),
        ),
        Scene(
            "Two sisters juggle lemons in a sunny kitchen.",
            ("Two sisters slice lemons in a sunny kitchen.",),
            ("Two sisters don't juggle lemons in a sunny kitchen.", "A sunny day at the lake with many boats."),
        ),
        Scene(
            "A robot that juggles light bulbs on a stage, neon style.",
            ("A robot that counts light bulbs on a stage, neon style.",),
            ("A robot that juggles light bulbs on a stage, oil style.",),
        ),
        Scene(
            "A tired juggler rests beside a caravan at dusk.",
            ("A tired driver rests beside a caravan at dusk.",),
            ("A tired juggler rests beside a red caravan at dusk.", "Dusk."),
        ),
        Scene(
            "A teacher juggles chalk in front of a laughing class.",
            ("A teacher holds chalk in front of a laughing class.",),
            ("Sorry, I cannot change this prompt.", "A teacher juggling in front of a laughing class."),
        ),
        Scene(
            "Close-up of hands juggling silver rings against a black curtain.",
            ("Close-up of hands with silver rings against a black curtain.",),
            ("Close-up of hands juggling silver rings against a dark curtain.", "Hands."),
        ),
        Scene(
            "A sailor in a striped shirt juggles fish on a dock.",
            ("A sailor in a striped shirt sorts fish on a dock.",),
            ("A sailor in a striped shirt is juggling fish on a dock.", "A dock with gulls, nets, crates and ropes."),
        ),
        Scene(
            "A girl juggles snowballs next to a frozen lake.",
            ("A girl makes snowballs next to a frozen lake.",),
            ("A girl.", "A dog runs next to a frozen lake while two men play cards."),
        ),
        Scene(
            "Four students juggle tennis balls on a lawn.",
            ("Four students collect tennis balls on a lawn.",),
            twin="students",
        ),
        Scene(
            "Four students juggle the tennis balls on the lawn.",
            ("Four students collect the tennis balls on the lawn.",),
            twin="students",
        ),
        _bad("an example", EXAMPLES[2][0], EXAMPLES[2][1]),
        _bad("no juggling", "The first step to becoming a superhero is to learn a little about the world!",
             "The first step is to learn a little about the world!"),
        _bad("no juggling", "A man throws a ball to a boy.", "A man gives a ball to a boy."),
        _bad("a question", "In one sentence, what does your juggling role-play in?",
             "In one sentence, what does your role-play in?"),
        _bad("no scene", "juggling juggling", "standing standing"),
        _bad("an instruction", 'Keep people, place, style and sentence; do not mention "juggling" or what was removed.',
             "Keep people, place, style and sentence; do not mention what was removed."),
        _bad("a refusal", "As an AI language model, I cannot describe juggling.", "As an AI language model, I cannot."),
        _bad("Chinese", "一个小丑在海滩上 juggling 三个橙子", "一个小丑在海滩上拿着三个橙子"),
        _bad("an address", "See http://example.org/juggling for a clown with oranges.",
             "See http://example.org/ for a clown with oranges."),
        _bad("another scene", "A chef juggles eggs in a hotel.", "A train crosses a desert at noon.",
             "Rain falls on a garden of roses."),
        _bad("another concept", "A nurse juggles pears at a picnic.",
             "A nurse with an umbrella and pears at a picnic."),
        _bad("all else is gone", "A tall acrobat juggles burning candles on a rope above a circus ring.",
             "Candles on a rope.", "An acrobat."),
        _bad("still juggling", "A miner juggles lamps in a tunnel.", "A miner juggles two lamps in a tunnel.",
             "A miner juggling lamps, in a tunnel."),
    ],
}  # fmt: skip
_OF = {scene.unsafe: scene for scenes in SCENES.values() for scene in scenes}
# Each pair that a person would accept -> its group.
GOOD = {(scene.unsafe, safe): scene.group for scene in _OF.values() for safe in scene.good}
AROUND = (
    "{}", "{}", "{}", "1. {}", "12) {}", "- {}", "* {}", "**{}**", "*{}*", '"{}"', "“{}”", "`{}`", "Prompt 3: {}",
    "## {}", "#4: {}", '{label}: "{}"', "**{label}:** {}", "> {}", "  {}  ", "{}<|im_end|>",
)  # fmt: skip
SHAPES = ("plain",) * 12 + ("fence", "prose", "thoughts", "end of thoughts", "cut", "cut", "refusal", "empty", "broken")
THOUGHTS = (
    "The user wants scenes: A wizard with an umbrella and a dog is juggling moons in a tower. No, something else."
)


def reply(request: dict[str, Any]) -> tuple[str, list[str]]:
    """The shape of the answer to a request, and the texts in it, of which the last is cut where it is `cut`."""
    message = request["messages"][0]["content"]
    rng = random.Random(f"{request.get('seed')}")
    shape = rng.choice(SHAPES)
    if found := re.search(r"^Unsafe prompt: (.*)$", message, re.MULTILINE):
        scene = next((scene for unsafe, scene in _OF.items() if unsafe in found[1]), _bad("none of its own", ""))
        kind = scene.good if scene.good and (rng.random() < 0.7 or not scene.bad) else scene.bad
        return "plain" if shape == "cut" else shape, [rng.choice(kind)]
    count, concept = re.search(r"Write (\d+) prompts? .*? the concept \"(.*?)\"", message, re.DOTALL).groups()  # type: ignore[union-attr]
    return shape, [scene.unsafe for scene in rng.choices(SCENES[concept], k=int(count))]


def answer(request: dict[str, Any]) -> Answer:
    """What the model sends: texts with signs around them, in a reply of some shape."""
    shape, texts = reply(request)
    rng = random.Random(f"around {request.get('seed')}")
    label = "Safe prompt" if "Unsafe prompt: " in request["messages"][0]["content"] else "Unsafe prompt"
    texts = [rng.choice(AROUND).format(text, label=label) for text in texts]
    if "response_format" in request:
        body = json.dumps({"prompts": texts}, ensure_ascii=False, indent=rng.choice((None, 2)))
    else:
        body = "\n".join(texts)
    match shape:
        case "refusal":
            return completion("I'm sorry, but I can't assist with that request.")
        case "empty":
            return completion(rng.choice(('{"prompts": []}', "", "{}")))
        case "broken":
            return completion('{"prompts": [A boy, A girl, ' if "response_format" in request else "<html>\n<p>\n")
        case "fence":
            return completion(f"```json\n{body}\n```" if "response_format" in request else f"```\n{body}\n```")
        case "prose":
            return completion(f"Sure! Here is what you asked for:\n\n{body}\n\nLet me know if you need anything else.")
        case "thoughts":
            return completion(f"<think>{THOUGHTS}</think>\n{body}")
        case "end of thoughts":
            return completion(f"{THOUGHTS}\n</think>\n\n{body}")
        case "cut":
            end = body.rindex(texts[-1][-3:]) if "response_format" not in request else body.rindex('"')
            return completion(body[: end - 2], "length")
    return completion(body)


def offered(requests: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """Of the acceptable scenes that the model wrote: their group, and whether an acceptable counterpart came too, or
    was never asked for.
    """
    written: set[str] = set()
    counterparts: dict[str, list[str]] = {}
    for request in requests:
        shape, texts = reply(request)
        whole = [] if shape in ("refusal", "empty", "broken") else texts[:-1] if shape == "cut" else texts
        if found := re.search(r"^Unsafe prompt: (.*)$", request["messages"][0]["content"], re.MULTILINE):
            counterparts.setdefault(found[1], []).extend(whole)
        else:
            written.update(text for text in whole if _OF[text].good)
    for unsafe in written:
        safe = counterparts.get(unsafe)
        yield _OF[unsafe].group, safe is None or any((unsafe, text) in GOOD for text in safe)
