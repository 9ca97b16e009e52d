"""Makes examples/catalogue: 300 pictures of the drawn world and
documents.json for Meilisearch.

    python catalogue.py --out ../../examples/catalogue
"""

import argparse
import json
import os
import random

import world

SEED = 31_337
SINGLES, SCENES = 190, 110


def specs(rng):
    """Distinct pictures; half of them held out from training."""
    chosen, claims = [], []
    while len(chosen) < SINGLES + SCENES:
        scene = len(chosen) >= SINGLES
        make = world.random_scene if scene else world.random_single
        spec = make(rng, rng.random() < 0.5)
        _, claim = world.caption(rng, spec, True)
        if any(world.fits(claim, s) or world.fits(c, spec)
               for s, c in zip(chosen, claims)
               if s[0] == spec[0]):
            continue
        chosen.append(spec)
        claims.append(claim)
    rng.shuffle(chosen)
    return chosen


def look_words(colour, pattern, kind):
    words = [] if pattern == 0 else [world.PATTERNS[pattern]]
    return words + [world.COLOURS[colour], kind]


def title(spec):
    """A title for people."""
    if spec[0] == "single":
        _, k, c, p, count, size, time = spec
        one, many = world.KIND_WORDS[world.KINDS[k]][0]
        words = look_words(c, p, one if count == 1 else many)
        if size:
            words.insert(0, world.SIZES[size])
        if count > 1:
            words.insert(0, ("two", "three")[count - 2])
    else:
        _, ka, ca, pa, kb, cb, pb, relation, time = spec
        second = " ".join(look_words(cb, pb, world.KINDS[kb]))
        article = "an" if second[0] in "aeiou" else "a"
        words = look_words(ca, pa, world.KINDS[ka])
        words += ["left of", "above"][relation:relation + 1]
        words += [article, second]
    text = " ".join(words) + (" at night" if time else "")
    return text[0].upper() + text[1:]


def document(number, spec, image):
    scene = spec[0] == "scene"
    looks = [spec[1:4], spec[4:7]] if scene else [spec[1:4]]
    return {
        "id": number,
        "title": title(spec),
        "image": image,
        "kind": [world.KINDS[k] for k, _, _ in looks],
        "color": [world.COLOURS[c] for _, c, _ in looks],
        "pattern": [world.PATTERNS[p] for _, _, p in looks],
        "count": 2 if scene else spec[4],
        "size": "medium" if scene else world.SIZES[spec[5]],
        "time": world.TIMES[spec[-1]],
        "relation": ["left of", "above"][spec[7]] if scene else "none",
    }


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    rng = random.Random(SEED)
    documents = []
    for number, spec in enumerate(specs(rng), 1):
        kind = ("png" if number % 50 == 25 else
                "webp" if number % 20 == 10 else "jpg")
        noise = 0 if kind == "png" else rng.uniform(0, 4)
        image = world.render(rng, spec, short=rng.randint(96, 136),
                             aspect=rng.choice((1.0, 1.0, 1.1, 1.18)),
                             noise=noise)
        name = f"{number:04}.{kind}"
        path = os.path.join(args.out, name)
        if kind == "png":
            image.save(path, optimize=True)
        elif kind == "webp":
            image.save(path, quality=80)
        else:
            image.save(path, quality=82)
        documents.append(document(number, spec, name))
    with open(os.path.join(args.out, "documents.json"), "w",
              encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(d) for d in documents)
                + "\n]\n")
    total = sum(os.path.getsize(os.path.join(args.out, n))
                for n in os.listdir(args.out))
    print(len(documents), "documents,", total, "bytes")


if __name__ == "__main__":
    main()
