"""Makes tests/fixtures/demo-world: the measuring set of the demo model.

    python fixtures.py --out ../../tests/fixtures/demo-world
"""

import argparse
import base64
import io
import json
import os
import random

from PIL import Image

import world

SEED = 900_001
BLOCKS = 5


def picture(rng, spec):
    image = world.render(rng, spec, short=rng.randint(72, 90),
                         aspect=rng.choice((1.0, 1.0, 1.1, 1.2)),
                         noise=rng.uniform(0, 4))
    return world.jpeg(image, rng.randint(68, 80))


def captioned(scenes):
    """(spec, caption, jpeg) for five blocks of a hundred."""
    rng = random.Random(SEED + scenes)
    for _ in range(BLOCKS):
        for spec, text in world.block(rng, bool(scenes)):
            yield spec, text, picture(rng, spec)


def copies():
    """(jpeg, jpeg of the picture resized and coded again)."""
    rng = random.Random(SEED + 2)
    for _ in range(BLOCKS):
        entries = world.block(rng, False, 50) + world.block(rng, True, 50)
        rng.shuffle(entries)
        for spec, _ in entries:
            first = picture(rng, spec)
            image = Image.open(io.BytesIO(first))
            f = rng.uniform(0.6, 1.7)
            size = tuple(max(40, round(edge * f)) for edge in image.size)
            method = rng.choice((Image.Resampling.BILINEAR,
                                 Image.Resampling.BICUBIC,
                                 Image.Resampling.LANCZOS))
            yield first, world.jpeg(image.resize(size, method),
                                    rng.randint(45, 85))


def b64(data):
    return base64.b64encode(data).decode("ascii")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    for name, rows in (
        ("singles", ({"caption": t, "image": b64(j)}
                     for _, t, j in captioned(0))),
        ("scenes", ({"caption": t, "image": b64(j)}
                    for _, t, j in captioned(1))),
        ("copies", ({"image": b64(a), "copy": b64(b)} for a, b in copies())),
    ):
        path = os.path.join(args.out, name + ".jsonl")
        n = 0
        with open(path, "w", encoding="utf-8") as f:
            for row in rows:
                f.write(json.dumps(row) + "\n")
                n += 1
        print(name, n, os.path.getsize(path))


if __name__ == "__main__":
    main()
