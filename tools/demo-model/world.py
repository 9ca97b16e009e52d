"""The drawn world of the Sidelens demo model.

Twenty kinds of things, ten colours, four patterns, three sizes, counts from
one to three, day and night, and scenes of two things in a spatial relation.
Everything is drawn from polygons with Pillow and described in English by a
small grammar.  All randomness comes from the ``random.Random`` that the
caller passes in, so a seed gives the same pictures and the same captions.

A picture is described by a *spec*, a plain tuple:

    ("single", kind, colour, pattern, count, size, time)
    ("scene", kind, colour, pattern, kind, colour, pattern, relation, time)

with every entry an index into the lists below.  Scenes are stored in one
canonical direction: ``relation`` is LEFT (first thing left of the second) or
ABOVE (first thing above the second); "right of" and "below" are only other
ways of saying the same.
"""

import io
import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

KINDS = [
    "house", "tree", "car", "fish", "cup", "flower", "sun", "cat", "boat",
    "star", "moon", "umbrella", "bird", "mushroom", "balloon", "cactus",
    "snowman", "rocket", "heart", "butterfly",
]
COLOURS = [
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
    "black", "white",
]
PATTERNS = ["plain", "striped", "dotted", "checked"]
SIZES = ["medium", "small", "large"]
TIMES = ["day", "night"]
RELATIONS = ["left", "above"]
LEFT, ABOVE = 0, 1

RGB = {
    "red": (216, 38, 38), "orange": (247, 137, 28), "yellow": (250, 214, 40),
    "green": (46, 150, 62), "blue": (40, 92, 214), "purple": (126, 56, 170),
    "pink": (248, 138, 184), "brown": (128, 78, 40), "black": (38, 38, 42),
    "white": (246, 246, 242),
}
# The second colour of a pattern is a lighter or darker relative, so that a
# pattern never looks like a second named colour.
SECOND = {
    "red": (255, 178, 170), "orange": (255, 222, 170),
    "yellow": (196, 146, 0), "green": (178, 228, 160),
    "blue": (168, 204, 255), "purple": (216, 178, 244),
    "pink": (206, 58, 124), "brown": (214, 176, 134),
    "black": (150, 150, 156), "white": (150, 152, 160),
}

# --------------------------------------------------------------------------
# What is held out
# --------------------------------------------------------------------------


def pair_is_held_out(kind, colour):
    """One colour of every kind is never trained, whatever the pattern."""
    return colour == (7 * kind + 3 + kind // 10) % len(COLOURS)


def look_is_held_out(kind, colour, pattern):
    """Looks (kind, colour, pattern) never drawn for training: the pairs
    above, and a balanced fifth of the other triples."""
    return (
        pair_is_held_out(kind, colour)
        or (kind + 3 * colour + 2 * pattern + kind // 5) % 5 == 0
    )


def duo_is_held_out(kind_a, colour_a, kind_b, colour_b):
    """A tenth of the unordered pairs of coloured kinds never meet in a
    training scene, in any relation."""
    a, b = kind_a * 10 + colour_a, kind_b * 10 + colour_b
    low, high = min(a, b), max(a, b)
    return (low * 7919 + high * 104729) % 1000 < 100


def is_held_out(spec):
    if spec[0] == "single":
        return look_is_held_out(*spec[1:4])
    _, ka, ca, pa, kb, cb, pb, _, _ = spec
    return (
        look_is_held_out(ka, ca, pa)
        or look_is_held_out(kb, cb, pb)
        or duo_is_held_out(ka, ca, kb, cb)
    )


# --------------------------------------------------------------------------
# Shapes, in a box from -1 to 1, y pointing down
# --------------------------------------------------------------------------


def ell(cx, cy, rx, ry=None, start=0.0, stop=360.0, n=26):
    ry = rx if ry is None else ry
    t = np.radians(np.linspace(start, stop, n))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def rect(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def pol(*points):
    return np.array(points, float)


def stroke(points, width):
    """A thick open line as one polygon."""
    p = np.array(points, float)
    d = np.gradient(p, axis=0)
    d /= np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-6)
    n = np.stack([-d[:, 1], d[:, 0]], 1) * (width / 2)
    return np.concatenate([p + n, (p - n)[::-1]])


def capsule(x0, y0, x1, y1, r):
    angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
    return np.concatenate([
        ell(x1, y1, r, start=angle - 90, stop=angle + 90, n=10),
        ell(x0, y0, r, start=angle + 90, stop=angle + 270, n=10),
    ])


WOOD, LEAF, CREAM = (112, 74, 44), (70, 140, 60), (244, 232, 206)
GLASS, TYRE, GREY = (206, 232, 246), (44, 44, 50), (170, 174, 182)
GOLD, TERRA = (250, 196, 56), (190, 106, 66)

# A shape is (layer, polygon).  Layer "body" takes the colour and the pattern,
# "shade" a darker and "tint" a lighter version of the colour, "ink" is dark
# (light on a black thing), anything else is a fixed RGB.


def _star(points, outer, inner, turn=-90.0, cx=0.0, cy=0.0):
    t = np.radians(turn + np.arange(2 * points) * 180.0 / points)
    r = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack([cx + r * np.cos(t), cy + r * np.sin(t)], 1)


def house(v):
    shapes = []
    if v % 2 == 0:
        shapes.append(("shade", rect(0.34, -0.88, 0.58, -0.3)))
    return shapes + [
        ("body", rect(-0.72, -0.14, 0.72, 0.9)),
        ("shade", pol((-0.96, -0.1), (0, -0.96), (0.96, -0.1))),
        (WOOD, rect(-0.16, 0.36, 0.18, 0.9)),
        (GLASS, rect(-0.56, 0.08, -0.26, 0.38)),
        (GLASS, rect(0.28, 0.08, 0.58, 0.38)),
    ]


def tree(v):
    trunk = [(WOOD, rect(-0.14, 0.3, 0.14, 0.98))]
    if v % 2:
        return trunk + [
            ("body", pol((-0.8, 0.56), (0, -0.2), (0.8, 0.56))),
            ("body", pol((-0.66, 0.1), (0, -0.6), (0.66, 0.1))),
            ("body", pol((-0.5, -0.34), (0, -0.98), (0.5, -0.34))),
        ]
    return trunk + [
        ("body", ell(-0.4, 0.0, 0.46)), ("body", ell(0.4, 0.0, 0.46)),
        ("body", ell(0, -0.46, 0.5)), ("body", ell(0, 0.1, 0.5, 0.4)),
    ]


def car(v):
    cabin = pol((-0.58, -0.02), (-0.36, -0.52), (0.3, -0.52), (0.6, -0.02))
    return [
        ("body", cabin),
        ("body", np.concatenate([
            ell(0.78, 0.12, 0.2, start=-90, stop=0, n=6),
            pol((0.98, 0.4), (-0.98, 0.4)),
            ell(-0.82, 0.1, 0.16, start=180, stop=270, n=6)])),
        (GLASS, pol((-0.42, -0.06), (-0.28, -0.4), (-0.04, -0.4),
                    (-0.04, -0.06))),
        (GLASS, pol((0.06, -0.06), (0.06, -0.4), (0.24, -0.4),
                    (0.42, -0.06))),
        (TYRE, ell(-0.52, 0.42, 0.25)), (TYRE, ell(0.52, 0.42, 0.25)),
        (GREY, ell(-0.52, 0.42, 0.11, n=14)),
        (GREY, ell(0.52, 0.42, 0.11, n=14)),
        (GOLD, ell(0.9, 0.1, 0.08, n=12)),
    ]


def fish(v):
    return [
        ("shade", pol((-0.2, -0.4), (0.1, -0.82), (0.36, -0.36))),
        ("shade", pol((-0.1, 0.36), (0.04, 0.72), (0.3, 0.36))),
        ("body", pol((-0.4, 0), (-0.98, -0.52), (-0.84, 0),
                     (-0.98, 0.52))),
        ("body", ell(0.2, 0, 0.76, 0.5)),
        ((250, 250, 250), ell(0.62, -0.12, 0.15, n=16)),
        (TYRE, ell(0.65, -0.12, 0.08, n=12)),
        ("ink", stroke([(0.74, 0.2), (0.84, 0.16), (0.92, 0.1)], 0.06)),
    ]


def cup(v):
    handle = np.concatenate([ell(0.58, 0.06, 0.4, 0.44, -85, 85, 14),
                             ell(0.58, 0.06, 0.23, 0.26, 85, -85, 14)])
    return [
        ("shade", handle),
        ("body", np.concatenate([
            pol((-0.74, -0.56), (0.62, -0.56)),
            ell(0.3, 0.68, 0.26, 0.24, 0, 90, 6),
            ell(-0.42, 0.68, 0.26, 0.24, 90, 180, 6)])),
        ("tint", ell(-0.06, -0.56, 0.68, 0.2)),
        ((104, 66, 42), ell(-0.06, -0.54, 0.54, 0.13)),
    ]


def flower(v):
    shapes = [
        (LEAF, stroke([(0, 0.0), (0.03, 0.5), (0.0, 1.0)], 0.12)),
        (LEAF, ell(0.28, 0.66, 0.28, 0.12)),
        (LEAF, ell(-0.26, 0.78, 0.26, 0.11)),
    ]
    petals = 6 + v % 2
    for i in range(petals):
        a = 2 * math.pi * i / petals
        shapes.append(("body", ell(0.42 * math.cos(a),
                                   -0.32 + 0.42 * math.sin(a), 0.29, n=18)))
    return shapes + [("heart", ell(0, -0.32, 0.23, n=18))]


def sun(v):
    shapes = []
    rays = 10
    for i in range(rays):
        a = 2 * math.pi * i / rays
        c, s = math.cos(a), math.sin(a)
        shapes.append(("body", pol(
            (0.66 * c - 0.16 * s, 0.66 * s + 0.16 * c), (1.0 * c, 1.0 * s),
            (0.66 * c + 0.16 * s, 0.66 * s - 0.16 * c))))
    return shapes + [
        ("shade", ell(0, 0, 0.64)), ("body", ell(0, 0, 0.57)),
        ("ink", ell(-0.2, -0.1, 0.07, 0.1, n=12)),
        ("ink", ell(0.2, -0.1, 0.07, 0.1, n=12)),
        ("ink", stroke(ell(0, 0.06, 0.28, 0.22, 20, 160, 9), 0.08)),
    ]


def cat(v):
    tail = stroke([(0.4, 0.8), (0.74, 0.72), (0.86, 0.4), (0.76, 0.1),
                   (0.86, -0.06)], 0.18)
    return [
        ("shade", tail),
        ("body", ell(0, 0.5, 0.52, 0.48)),
        ("body", pol((-0.54, -0.36), (-0.5, -0.98), (-0.08, -0.66))),
        ("body", pol((0.54, -0.36), (0.5, -0.98), (0.08, -0.66))),
        ((244, 170, 170), pol((-0.43, -0.56), (-0.42, -0.82),
                              (-0.22, -0.66))),
        ((244, 170, 170), pol((0.43, -0.56), (0.42, -0.82), (0.22, -0.66))),
        ("body", ell(0, -0.28, 0.56, 0.46)),
        ((196, 236, 120), ell(-0.23, -0.34, 0.14, 0.13, n=14)),
        ((196, 236, 120), ell(0.23, -0.34, 0.14, 0.13, n=14)),
        (TYRE, ell(-0.23, -0.34, 0.05, 0.12, n=10)),
        (TYRE, ell(0.23, -0.34, 0.05, 0.12, n=10)),
        ((240, 130, 140), pol((-0.09, -0.16), (0.09, -0.16), (0, -0.05))),
        ("ink", stroke([(-0.14, 0.06), (0, 0.0), (0.14, 0.06)], 0.05)),
    ]


def boat(v):
    return [
        (WOOD, rect(-0.1, -0.96, 0.0, 0.4)),
        ("body", pol((0.06, -0.9), (0.06, 0.2), (0.82, 0.2))),
        ("tint", pol((-0.16, -0.66), (-0.16, 0.2), (-0.7, 0.2))),
        ("body", pol((-0.98, 0.34), (0.98, 0.34), (0.66, 0.84),
                     (-0.64, 0.84))),
        ("shade", pol((-0.98, 0.32), (0.98, 0.32), (0.92, 0.44),
                      (-0.92, 0.44))),
    ]


def star(v):
    return [("body", _star(5, 1.0, 0.46, cy=0.06))]


def moon(v):
    outer = ell(0, 0, 0.96, 0.96, 55, 305, 30)
    inner = ell(0.36, 0, 0.8, 0.8, 285, 75, 26)
    return [
        ("body", np.concatenate([outer, inner])),
        ("ink", ell(-0.66, -0.2, 0.07, 0.09, n=12)),
    ]


def umbrella(v):
    dome = [ell(0, 0.08, 0.98, 0.94, 180, 360, 26)]
    for i in range(4):
        cx = 0.735 - 0.49 * i
        dome.append(ell(cx, 0.08, 0.245, 0.14, 0, -180, 8))
    return [
        (WOOD, rect(-0.05, -0.98, 0.05, 0.7)),
        (WOOD, stroke(ell(0.19, 0.7, 0.19, 0.2, 180, 10, 10), 0.11)),
        ("body", np.concatenate(dome)),
        ("shade", stroke([(0, -0.84), (-0.17, -0.44), (-0.24, -0.02)], 0.05)),
        ("shade", stroke([(0, -0.84), (0.17, -0.44), (0.24, -0.02)], 0.05)),
    ]


def bird(v):
    return [
        ((240, 150, 40), stroke([(-0.06, 0.5), (-0.08, 0.92)], 0.08)),
        ((240, 150, 40), stroke([(0.14, 0.5), (0.14, 0.92)], 0.08)),
        ((244, 160, 40), pol((0.8, -0.48), (1.0, -0.3), (0.78, -0.22))),
        ("shade", pol((-0.5, 0.0), (-1.0, -0.34), (-0.94, 0.18),
                      (-0.5, 0.34))),
        ("body", ell(0, 0.14, 0.64, 0.5)),
        ("body", ell(0.5, -0.38, 0.38, 0.36)),
        ("shade", ell(-0.16, 0.16, 0.38, 0.23)),
        ((250, 250, 250), ell(0.58, -0.44, 0.12, n=14)),
        (TYRE, ell(0.6, -0.44, 0.06, n=10)),
    ]


def mushroom(v):
    return [
        (CREAM, np.concatenate([
            pol((-0.2, 0.0), (0.2, 0.0)),
            ell(0.16, 0.8, 0.2, 0.16, 0, 90, 6),
            ell(-0.16, 0.8, 0.2, 0.16, 90, 180, 6)])),
        ((206, 186, 150), ell(0, 0.12, 0.74, 0.16)),
        ("body", np.concatenate([
            ell(0, 0.08, 0.96, 0.98, 180, 360, 26),
            ell(0, 0.08, 0.96, 0.16, 0, 180, 14)])),
    ]


def balloon(v):
    return [
        ("ink", stroke([(0, 0.5), (0.08, 0.66), (-0.06, 0.8), (0.03, 1.0)],
                       0.05)),
        ("shade", pol((-0.13, 0.6), (0.13, 0.6), (0, 0.38))),
        ("body", ell(0, -0.24, 0.62, 0.74)),
        ("shine", ell(-0.26, -0.52, 0.11, 0.2, n=16)),
    ]


def cactus(v):
    return [
        ("body", capsule(0, 0.6, 0, -0.66, 0.26)),
        ("body", stroke([(-0.1, 0.16), (-0.5, 0.16), (-0.6, 0.06),
                         (-0.6, -0.3)], 0.26)),
        ("body", ell(-0.6, -0.3, 0.13, n=14)),
        ("body", stroke([(0.1, -0.04), (0.5, -0.04), (0.6, -0.14),
                         (0.6, -0.5)], 0.26)),
        ("body", ell(0.6, -0.5, 0.13, n=14)),
        (TERRA, pol((-0.42, 0.52), (0.42, 0.52), (0.3, 0.98),
                    (-0.3, 0.98))),
        ((160, 84, 52), rect(-0.48, 0.46, 0.48, 0.62)),
    ]


def snowman(v):
    return [
        (WOOD, stroke([(-0.36, 0.02), (-0.9, -0.26)], 0.07)),
        (WOOD, stroke([(0.36, 0.02), (0.9, -0.26)], 0.07)),
        ("body", ell(0, 0.56, 0.56, 0.44)),
        ("body", ell(0, -0.02, 0.42, 0.36)),
        ("body", ell(0, -0.46, 0.31, 0.3)),
        ("hat", rect(-0.36, -0.74, 0.36, -0.64)),
        ("hat", rect(-0.22, -1.0, 0.22, -0.7)),
        ("ink", ell(-0.12, -0.52, 0.045, n=10)),
        ("ink", ell(0.12, -0.52, 0.045, n=10)),
        ((246, 130, 30), pol((0, -0.46), (0.34, -0.38), (0, -0.36))),
        ("ink", ell(0, -0.06, 0.05, n=10)), ("ink", ell(0, 0.12, 0.05, n=10)),
        ("ink", ell(0, 0.44, 0.06, n=10)), ("ink", ell(0, 0.64, 0.06, n=10)),
    ]


def rocket(v):
    hull = np.concatenate([
        pol((-0.3, 0.52)), pol((-0.36, 0.0)), pol((-0.26, -0.5)),
        pol((0, -1.0)), pol((0.26, -0.5)), pol((0.36, 0.0)),
        pol((0.3, 0.52))])
    return [
        ((250, 150, 30), pol((-0.24, 0.5), (0, 1.0), (0.24, 0.5))),
        ((255, 226, 90), pol((-0.12, 0.5), (0, 0.8), (0.12, 0.5))),
        ("shade", pol((-0.3, 0.06), (-0.74, 0.74), (-0.28, 0.54))),
        ("shade", pol((0.3, 0.06), (0.74, 0.74), (0.28, 0.54))),
        ("body", hull),
        ("shade", pol((-0.22, -0.58), (0, -1.0), (0.22, -0.58))),
        (TYRE, ell(0, -0.18, 0.22, n=18)), (GLASS, ell(0, -0.18, 0.15, n=16)),
    ]


def heart(v):
    t = np.linspace(0, 2 * math.pi, 40)
    x = 0.96 * np.sin(t) ** 3
    y = -(0.81 * np.cos(t) - 0.31 * np.cos(2 * t) - 0.13 * np.cos(3 * t)
          - 0.06 * np.cos(4 * t)) + 0.02
    return [
        ("body", np.stack([x, y], 1)),
        ("shine", ell(-0.48, -0.42, 0.15, 0.11, n=14)),
    ]


def butterfly(v):
    def wing(cx, cy, rx, ry, turn):
        p = ell(0, 0, rx, ry)
        c, s = math.cos(turn), math.sin(turn)
        return np.stack([cx + c * p[:, 0] - s * p[:, 1],
                         cy + s * p[:, 0] + c * p[:, 1]], 1)
    return [
        ("ink", stroke([(0.02, -0.44), (0.16, -0.74), (0.34, -0.92)], 0.06)),
        ("ink", stroke([(-0.02, -0.44), (-0.16, -0.74), (-0.34, -0.92)],
                       0.06)),
        ("body", wing(0.5, -0.26, 0.52, 0.38, -0.6)),
        ("body", wing(-0.5, -0.26, 0.52, 0.38, 0.6)),
        ("body", wing(0.4, 0.46, 0.42, 0.32, 0.7)),
        ("body", wing(-0.4, 0.46, 0.42, 0.32, -0.7)),
        ((70, 52, 48), ell(0, 0.06, 0.11, 0.56, n=18)),
    ]


DRAW = [house, tree, car, fish, cup, flower, sun, cat, boat, star, moon,
        umbrella, bird, mushroom, balloon, cactus, snowman, rocket, heart,
        butterfly]
assert [f.__name__ for f in DRAW] == KINDS
_SHAPES = [[f(v) for v in range(2)] for f in DRAW]
# Things whose two sides may be exchanged without changing what they are.
_UPRIGHT = {KINDS.index(k) for k in ("house", "tree", "snowman", "cactus")}


def _mix(a, b, t):
    return tuple(int(round(x + (y - x) * t)) for x, y in zip(a, b))


def _texture(rng, size, unit, colour, second, pattern):
    tile = Image.new("RGB", (size, size), colour)
    if pattern == 0:
        return tile
    d = ImageDraw.Draw(tile)
    c = size / 2
    reach = 1.3 * unit
    if pattern == 1:
        angle = rng.choice((0, 90, 45, 135)) + rng.uniform(-8, 8)
        step = unit * rng.uniform(0.42, 0.52)
    elif pattern == 2:
        angle = rng.uniform(-10, 10) + rng.choice((0, 45))
        step = unit * rng.uniform(0.44, 0.52)
    else:
        angle = rng.uniform(-8, 8) + rng.choice((0, 0, 45))
        step = unit * rng.uniform(0.30, 0.36)
    ca, sa = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    ox, oy = rng.uniform(-0.5, 0.5) * step, rng.uniform(-0.5, 0.5) * step
    n = int(reach / step) + 1

    def place(x, y):
        return (c + ca * x - sa * y, c + sa * x + ca * y)

    if pattern == 1:
        for i in range(-n, n + 1):
            x = i * step + ox
            d.polygon([place(x - step / 4, -1.5 * unit),
                       place(x + step / 4, -1.5 * unit),
                       place(x + step / 4, 1.5 * unit),
                       place(x - step / 4, 1.5 * unit)], fill=second)
    elif pattern == 2:
        r = step * 0.30
        for i in range(-n, n + 1):
            for j in range(-n, n + 1):
                x, y = place(i * step + ox, (j + (i % 2) / 2) * step + oy)
                d.ellipse((x - r, y - r, x + r, y + r), fill=second)
    else:
        h = step / 2
        for i in range(-n, n + 1):
            for j in range(-n, n + 1):
                if (i + j) % 2:
                    x, y = i * step + ox, j * step + oy
                    d.polygon([place(x - h, y - h), place(x + h, y - h),
                               place(x + h, y + h), place(x - h, y + h)],
                              fill=second)
    return tile


def _grow(mask, by):
    """A mask made wider by some pixels on every side."""
    for dx, dy in ((by, 0), (0, by)):
        mask = ImageChops.lighter(
            mask, ImageChops.lighter(ImageChops.offset(mask, dx, dy),
                                     ImageChops.offset(mask, -dx, -dy)))
    return mask


def draw_thing(rng, canvas, cx, cy, unit, kind, colour, pattern, night):
    """Draws one thing with its middle at (cx, cy); it reaches about `unit`
    pixels to every side."""
    name = COLOURS[colour]
    base, second = RGB[name], SECOND[name]
    # A little variety in the shade of the colour itself.
    jitter = [rng.randint(-10, 10) for _ in range(3)]
    base = tuple(max(0, min(255, v + j)) for v, j in zip(base, jitter))
    dark = name == "black"
    layers = {
        "shade": (92, 92, 100) if dark else _mix(base, (20, 16, 40), 0.30),
        "tint": _mix(base, (255, 255, 255), 0.45),
        "ink": (228, 226, 214) if dark else (44, 36, 44),
        "shine": _mix(base, (255, 255, 255), 0.65),
        "heart": WOOD if name in ("yellow", "orange") else GOLD,
        "hat": (92, 92, 100) if dark else (52, 48, 60),
    }
    turn = math.radians(rng.uniform(-7, 7) if kind in _UPRIGHT
                        else rng.uniform(-15, 15))
    sx, sy = rng.uniform(0.9, 1.05), rng.uniform(0.9, 1.05)
    if rng.random() < 0.5:
        sx = -sx
    shear = rng.uniform(-0.08, 0.08)
    ct, st = math.cos(turn), math.sin(turn)
    m = np.array([[ct, -st], [st, ct]]) @ np.array([[1, shear], [0, 1]])
    m = (m * np.array([sx, sy])) * unit
    size = int(unit * 2.7) + 8
    half = size / 2
    shapes = [
        (layer, [tuple(p) for p in (points @ m.T + half).tolist()])
        for layer, points in _SHAPES[kind][rng.randint(0, 1)]
    ]
    texture = _texture(rng, size, unit, base, second, pattern)
    art = Image.new("RGB", (size, size))
    whole = Image.new("L", (size, size))
    draw_art, draw_whole = ImageDraw.Draw(art), ImageDraw.Draw(whole)
    body, draw_body = None, None
    for layer, points in shapes:
        draw_whole.polygon(points, fill=255)
        if layer == "body":
            if body is None:
                body = Image.new("L", (size, size))
                draw_body = ImageDraw.Draw(body)
            draw_body.polygon(points, fill=255)
        else:
            if body is not None:
                art.paste(texture, (0, 0), body)
                body = None
            fill = layers[layer] if isinstance(layer, str) else layer
            draw_art.polygon(points, fill=fill)
    if body is not None:
        art.paste(texture, (0, 0), body)
    x, y = int(cx - half), int(cy - half)
    line = max(1, round(unit * 0.05))
    edge = _grow(whole, line)
    if night:
        canvas.paste((206, 206, 222), (x, y), _grow(edge, line))
    art.paste((34, 28, 36), (0, 0), ImageChops.subtract(edge, whole))
    canvas.paste(art, (x, y), edge)


# --------------------------------------------------------------------------
# Backgrounds
# --------------------------------------------------------------------------

_SKY = [((150, 206, 250), (216, 238, 252)), ((184, 222, 248), (240, 246, 250)),
        ((252, 222, 190), (252, 240, 216)), ((206, 226, 236), (232, 240, 240))]
_GROUND = [(150, 200, 120), (222, 204, 156), (236, 240, 244), (176, 208, 150),
           (120, 182, 214), (204, 190, 170)]
_PAPER = [(244, 240, 230), (226, 238, 232), (238, 228, 240), (232, 236, 246),
          (250, 236, 220), (228, 228, 228), (214, 232, 240)]
_NIGHT_SKY = [((14, 20, 52), (38, 48, 96)), ((22, 16, 44), (56, 40, 88)),
              ((10, 14, 30), (30, 40, 62)), ((16, 30, 52), (30, 62, 92))]
_NIGHT_GROUND = [(24, 44, 40), (40, 38, 52), (52, 60, 84), (30, 34, 44)]


def _gradient(width, height, top, bottom, sideways):
    two = Image.new("RGB", (2, 1) if sideways else (1, 2))
    two.putpixel((0, 0), top)
    two.putpixel((1, 0) if sideways else (0, 1), bottom)
    return two.resize((width, height), Image.Resampling.BILINEAR)


def _background(rng, width, height, night):
    shift = rng.randint(-8, 8)

    def near(c):
        return tuple(max(0, min(255, v + shift)) for v in c)

    style = rng.random()
    if night:
        top, bottom = rng.choice(_NIGHT_SKY)
    elif style < 0.6:
        top, bottom = rng.choice(_SKY)
    else:
        top = rng.choice(_PAPER)
        bottom = _mix(top, rng.choice(_PAPER), rng.random())
    canvas = _gradient(width, height, near(top), near(bottom),
                       style > 0.9 and not night)
    d = ImageDraw.Draw(canvas)
    if style < 0.6:
        if night:
            for _ in range(rng.randint(8, 22)):
                x, y = rng.random() * width, rng.random() * height
                r = max(1.0, width * rng.uniform(0.003, 0.008))
                d.ellipse((x - r, y - r, x + r, y + r), fill=(220, 222, 200))
        elif rng.random() < 0.5:
            for _ in range(rng.randint(1, 3)):
                x, y = rng.random() * width, rng.random() * height * 0.5
                r = width * rng.uniform(0.05, 0.1)
                for k in (-1, 0, 1):
                    d.ellipse((x + k * r * 1.1 - r, y - r * 0.7,
                               x + k * r * 1.1 + r, y + r * 0.7),
                              fill=(250, 252, 254))
        if rng.random() < 0.75:
            ground = near(rng.choice(_NIGHT_GROUND if night else _GROUND))
            y = height * rng.uniform(0.62, 0.9)
            bend = height * rng.uniform(-0.08, 0.08)
            d.polygon([(0, y), (width / 2, y + bend), (width, y),
                       (width, height), (0, height)], fill=ground)
    elif rng.random() < 0.3 and not night:
        soft = _mix(top, (255, 255, 255), 0.45)
        step = width / rng.randint(4, 7)
        for i in range(-1, 8):
            x = i * step
            d.polygon([(x, 0), (x + step / 2, 0), (x + step / 2, height),
                       (x, height)], fill=soft)
    return canvas


# --------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------

_NOISE = np.random.default_rng(7).normal(0, 1, 3 * 220 * 220 + 65536).astype(
    np.float32)


def _positions(rng, spec):
    """Middles and half-extents in units of the short edge, around (0, 0)."""
    j = rng.uniform
    if spec[0] == "scene":
        unit = j(0.20, 0.23)
        gap = j(0.235, 0.265)
        off_a, off_b = j(-0.08, 0.08), j(-0.08, 0.08)
        if spec[7] == LEFT:
            return [(-gap, off_a, unit * j(0.92, 1.05)),
                    (gap, off_b, unit * j(0.92, 1.05))]
        return [(off_a, -gap, unit * j(0.92, 1.05)),
                (off_b, gap, unit * j(0.92, 1.05))]
    count, size = spec[4], spec[5]
    if count == 1:
        unit = (j(0.26, 0.31), j(0.14, 0.17), j(0.40, 0.46))[size]
        room = 0.48 - unit
        return [(j(-room, room) * 0.8, j(-room, room) * 0.8, unit)]
    if count == 2:
        unit = j(0.12, 0.14) if size == 1 else j(0.19, 0.225)
        gap = unit * 1.06 + 0.01
        angle = math.radians(rng.choice((0, 0, 0, 90, 40, -40)) + j(-8, 8))
        if size == 1:
            gap *= j(1.0, 1.3)
        mx = my = 0.0
        if size == 1:
            mx, my = j(-0.12, 0.12), j(-0.12, 0.12)
        dx, dy = gap * math.cos(angle), gap * math.sin(angle)
        return [(mx - dx, my - dy, unit), (mx + dx, my + dy, unit)]
    unit = j(0.115, 0.13) if size == 1 else j(0.165, 0.195)
    style = rng.random()
    if style < 0.35 or size == 1 and style < 0.5:
        unit = min(unit, 0.158)
        spots = [(-0.325, 0), (0, 0), (0.325, 0)]
        if size == 1:
            spots = [(x * 0.9, y) for x, y in spots]
    else:
        r = unit * 1.32
        base = rng.choice((-90, 90)) + j(-12, 12)
        spots = [(r * math.cos(math.radians(base + 120 * i)),
                  r * math.sin(math.radians(base + 120 * i)))
                 for i in range(3)]
    return [(x + j(-0.015, 0.015), y + j(-0.03, 0.03), unit)
            for x, y in spots]


def render(rng, spec, short=None, aspect=None, noise=None):
    """Draws a spec; returns an RGB image whose short edge is `short`."""
    if short is None:
        short = int(rng.triangular(64, 140, 64))
    if aspect is None:
        aspect = 1.0 if rng.random() < 0.5 else rng.uniform(1.0, 1.35)
    width, height = short, int(round(short * aspect))
    if rng.random() < 0.6:
        width, height = height, width
    scale = 2
    night = spec[-1] == 1
    canvas = _background(rng, width * scale, height * scale, night)
    mx, my = width * scale / 2, height * scale / 2
    edge = short * scale
    if spec[0] == "single":
        looks = [spec[1:4]] * spec[4]
    else:
        looks = [spec[1:4], spec[4:7]]
    spots = _positions(rng, spec)
    order = list(range(len(spots)))
    rng.shuffle(order)
    for i in order:
        x, y, unit = spots[i]
        draw_thing(rng, canvas, mx + x * edge, my + y * edge, unit * edge,
                   *looks[i], night)
    canvas = canvas.reduce(scale)
    strength = rng.uniform(0, 7) if noise is None else noise
    if strength > 1:
        a = np.asarray(canvas, np.float32)
        start = rng.randint(0, 65535)
        grain = _NOISE[start:start + a.size]
        if grain.size == a.size:
            a = a + strength * grain.reshape(a.shape)
            canvas = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
    return canvas


def jpeg(image, quality):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def preprocess(image, edge=64):
    """The pixels the model sees: shortest edge bicubic to 64, centre crop;
    the same as transformers' CLIPImageProcessor before rescaling."""
    image = image.convert("RGB")
    w, h = image.size
    if w <= h:
        new = (edge, int(edge * h / w))
    else:
        new = (int(edge * w / h), edge)
    if new != (w, h):
        image = image.resize(new, Image.Resampling.BICUBIC)
    a = np.asarray(image)
    top, left = (a.shape[0] - edge) // 2, (a.shape[1] - edge) // 2
    return a[top:top + edge, left:left + edge]


def training_pixels(rng, spec):
    """A picture as a service would meet it: drawn, JPEG-coded, sometimes
    resized and coded again, then preprocessed."""
    image = render(rng, spec)
    image = Image.open(io.BytesIO(jpeg(image, rng.randint(60, 95))))
    if rng.random() < 0.25:
        f = rng.uniform(0.55, 1.7)
        w, h = image.size
        method = rng.choice((Image.Resampling.BILINEAR,
                             Image.Resampling.BICUBIC,
                             Image.Resampling.LANCZOS))
        image = image.resize((max(40, int(w * f)), max(40, int(h * f))),
                             method)
        image = Image.open(io.BytesIO(jpeg(image, rng.randint(50, 90))))
    return preprocess(image)


# --------------------------------------------------------------------------
# Specs
# --------------------------------------------------------------------------


def random_look(rng, plain=0.4):
    kind, colour = rng.randrange(len(KINDS)), rng.randrange(len(COLOURS))
    pattern = 0 if rng.random() < plain else rng.randint(1, 3)
    return kind, colour, pattern


def random_single(rng, held_out):
    while True:
        look = random_look(rng)
        if look_is_held_out(*look) == held_out:
            break
    count = rng.choice((1, 1, 1, 2, 2, 3, 3))
    size = rng.choice((0, 0, 1, 2)) if count == 1 else rng.choice((0, 0, 1))
    return ("single", *look, count, size, int(rng.random() < 0.3))


def random_scene(rng, held_out):
    """Both looks are trained ones; with held_out the two coloured kinds are
    a pair that never meets in training."""
    while True:
        a, b = random_look(rng, 0.7), random_look(rng, 0.7)
        if a[0] == b[0] or look_is_held_out(*a) or look_is_held_out(*b):
            continue
        if duo_is_held_out(a[0], a[1], b[0], b[1]) == held_out:
            break
    return ("scene", *a, *b, rng.randint(0, 1), int(rng.random() < 0.3))


def turned(spec):
    """The same two things with the relation the other way round."""
    return ("scene", *spec[4:7], *spec[1:4], *spec[7:])


# --------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------

KIND_WORDS = {
    "house": [("house", "houses"), ("home", "homes"),
              ("cottage", "cottages")],
    "tree": [("tree", "trees")],
    "car": [("car", "cars"), ("automobile", "automobiles")],
    "fish": [("fish", "fish")],
    "cup": [("cup", "cups"), ("mug", "mugs")],
    "flower": [("flower", "flowers"), ("blossom", "blossoms")],
    "sun": [("sun", "suns")],
    "cat": [("cat", "cats"), ("kitten", "kittens")],
    "boat": [("boat", "boats"), ("sailboat", "sailboats"), ("ship", "ships")],
    "star": [("star", "stars")],
    "moon": [("moon", "moons"), ("crescent moon", "crescent moons")],
    "umbrella": [("umbrella", "umbrellas"), ("parasol", "parasols")],
    "bird": [("bird", "birds")],
    "mushroom": [("mushroom", "mushrooms"), ("toadstool", "toadstools")],
    "balloon": [("balloon", "balloons")],
    "cactus": [("cactus", "cacti"), ("cactus", "cactuses")],
    "snowman": [("snowman", "snowmen")],
    "rocket": [("rocket", "rockets"), ("spaceship", "spaceships")],
    "heart": [("heart", "hearts")],
    "butterfly": [("butterfly", "butterflies")],
}
COLOUR_WORDS = {
    "red": ["red", "crimson", "scarlet"], "orange": ["orange"],
    "yellow": ["yellow", "golden"], "green": ["green"], "blue": ["blue"],
    "purple": ["purple", "violet"], "pink": ["pink", "rose"],
    "brown": ["brown"], "black": ["black"], "white": ["white"],
}
PATTERN_WORDS = {
    "plain": ["plain"], "striped": ["striped", "stripy"],
    "dotted": ["dotted", "spotted", "polka dot"],
    "checked": ["checked", "checkered", "chequered"],
}
PATTERN_TAILS = {
    "striped": ["with stripes"],
    "dotted": ["with dots", "with spots", "with polka dots"],
    "checked": ["with checks", "with a check pattern"],
}
SIZE_WORDS = {1: ["small", "little", "tiny"], 2: ["large", "big", "huge"]}
NIGHT_WORDS = ["at night", "by night", "in the dark", "at night time"]
DAY_WORDS = ["by day", "in daylight", "in the daytime"]
OPENINGS = ["a picture of", "an image of", "a drawing of", "picture of",
            "an illustration of", "there is", "this is", "a photo of"]


def _first(rng, words, main=0.6):
    return words[0] if rng.random() < main else rng.choice(words)


def _a(text):
    return ("an " if text[0] in "aeiou" else "a ") + text


def noun_phrase(rng, kind, colour, pattern, count, size, article=True):
    """Words for one thing; any argument may be None (left unsaid)."""
    many = count is not None and count > 1
    if kind is None:
        noun = rng.choice(["thing", "object"]) + ("s" if many else "")
    else:
        noun = _first(rng, KIND_WORDS[KINDS[kind]])[1 if many else 0]
    front, tail = [], ""
    if size:
        front.append(_first(rng, SIZE_WORDS[size], 0.5))
    middle = []
    if pattern is not None:
        name = PATTERNS[pattern]
        if pattern and rng.random() < 0.3:
            tail = " " + rng.choice(PATTERN_TAILS[name])
        else:
            middle.append(_first(rng, PATTERN_WORDS[name], 0.5))
    if colour is not None:
        word = _first(rng, COLOUR_WORDS[COLOURS[colour]])
        middle.insert(rng.choice((0, len(middle))), word)
    text = " ".join(front + middle + [noun])
    if many:
        number = {2: ["two", "two", "two", "2", "a pair of"],
                  3: ["three", "three", "three", "3"]}[count]
        text = rng.choice(number) + " " + text
    elif count == 1 and article:
        text = "one " + text if rng.random() < 0.08 else _a(text)
    return text + tail


def _dress(rng, text, time, plural=False):
    """Adds an opening and the time of day."""
    if time == 1:
        words = _first(rng, NIGHT_WORDS, 0.6)
    elif time == 0:
        words = rng.choice(DAY_WORDS)
    else:
        words = ""
    if words:
        if rng.random() < 0.15:
            return words + " " + text
        text = text + " " + words
    if rng.random() < 0.3:
        opening = rng.choice(OPENINGS)
        if plural:
            opening = opening.replace("there is", "there are").replace(
                "this is", "these are")
        text = opening + " " + text
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:] + rng.choice(("", "."))
    return text


_SIDES = {
    (LEFT, 0): ["to the left of", "left of", "on the left of",
                "on the left side of"],
    (LEFT, 1): ["to the right of", "right of", "on the right of",
                "on the right side of"],
    (ABOVE, 0): ["above", "over", "higher than", "on top of"],
    (ABOVE, 1): ["below", "under", "beneath", "underneath", "lower than"],
}
_ENDS = {
    LEFT: [("on the left", "on the right"),
           ("on the left side", "on the right side")],
    ABOVE: [("at the top", "at the bottom"), ("above", "below")],
}


def scene_phrase(rng, a, b, relation, simple=False):
    """a is left of or above b; relation None leaves it unsaid.  `simple`
    keeps to "a left of b" and "a above b"."""
    one, two = noun_phrase(rng, *a, 1, None), noun_phrase(rng, *b, 1, None)
    if relation is None:
        if rng.random() < 0.5:
            one, two = two, one
        return f"{one} {rng.choice(('and', 'and', 'next to', 'with'))} {two}"
    if rng.random() < 0.75 or simple:
        flip = 0 if simple else rng.randint(0, 1)
        word = _first(rng, _SIDES[relation, flip], 0.5)
        return f"{two} {word} {one}" if flip else f"{one} {word} {two}"
    here, there = rng.choice(_ENDS[relation])
    if rng.random() < 0.5:
        one, two, here, there = two, one, there, here
    if rng.random() < 0.6:
        return f"{one} {here} and {two} {there}"
    return f"{here} {one}, {there} {two}"


# A caption's claim: (kind, colour, pattern, count, size, time) for one kind
# of thing, or (kind, colour, pattern, kind, colour, pattern, relation, time)
# for a scene; None is unsaid.


def caption(rng, spec, full, simple=False):
    """Returns (text, claim).  With `full` everything that sets the picture
    apart is said (a plain pattern, a medium size and daylight go unsaid, as
    people leave them); otherwise things are left out at random."""
    time = spec[-1]

    def keep(p):
        return full or rng.random() < p

    if spec[0] == "single":
        _, kind, colour, pattern, count, size, _ = spec
        k = kind if keep(0.96) else None
        c = colour if keep(0.9) else None
        p = pattern if (keep(0.9) if pattern else rng.random() < 0.12) \
            else None
        s = size if size and keep(0.85) else None
        t = time if (keep(0.85) if time else rng.random() < 0.12) else None
        n = count
        if not full and count == 1 and rng.random() < 0.15:
            n = None
        text = noun_phrase(rng, k, c, p, n, s)
        return (_dress(rng, text, t, count > 1),
                ("single", k, c, p, n, s, t))
    _, ka, ca, pa, kb, cb, pb, relation, _ = spec
    looks = []
    for k, c, p in ((ka, ca, pa), (kb, cb, pb)):
        looks.append((
            k if keep(0.98) else None,
            c if keep(0.93) else None,
            p if (keep(0.92) if p else rng.random() < 0.08) else None))
    r = relation if keep(0.93) else None
    t = time if (keep(0.85) if time else rng.random() < 0.1) else None
    text = scene_phrase(rng, looks[0], looks[1], r, simple)
    return _dress(rng, text, t), ("scene", *looks[0], *looks[1], r, t)


def _says(claimed, actual):
    return all(c is None or c == a for c, a in zip(claimed, actual))


def fits(claim, spec):
    """Whether a picture with this spec satisfies what a caption claims."""
    if claim[-1] is not None and claim[-1] != spec[-1]:
        return False
    if claim[0] == "single":
        if spec[0] == "single":
            return _says(claim[1:6], spec[1:6])
        return (claim[4] in (None, 1) and claim[5] is None
                and (_says(claim[1:4], spec[1:4])
                     or _says(claim[1:4], spec[4:7])))
    if spec[0] == "single":
        return False
    if _says(claim[1:8], spec[1:8]):
        return True
    return claim[7] is None and _says(claim[1:7], spec[4:7] + spec[1:4])


def block(rng, scenes, size=100):
    """A measuring block: (spec, text) for held-out pictures of which no two
    fit the same caption.  Blocks contain near misses: singles that differ in
    one thing only, and for scenes a tenth of the entries is another entry
    with the relation turned round."""
    entries = []

    def offer(spec):
        text, claim = caption(rng, spec, True)
        for other, _, other_claim in entries:
            if fits(claim, other) or fits(other_claim, spec):
                return False
        entries.append((spec, text, claim))
        return True

    while len(entries) < (size - size // 10 if scenes else size):
        if scenes:
            offer(random_scene(rng, True))
            continue
        spec = random_single(rng, True)
        if entries and rng.random() < 0.25:
            near = neighbour(rng, rng.choice(entries)[0])
            if is_held_out(near):
                spec = near
        offer(spec)
    if scenes:
        firsts = list(entries)
        rng.shuffle(firsts)
        for spec, _, _ in firsts:
            if len(entries) < size:
                offer(turned(spec))
    rng.shuffle(entries)
    assert len(entries) == size
    return [(spec, text) for spec, text, _ in entries]


def neighbour(rng, spec):
    """A single that differs from another one in one thing."""
    s = list(spec)
    which = rng.randrange(6)
    if which == 0:
        s[1] = rng.randrange(len(KINDS))
    elif which == 1:
        s[2] = rng.randrange(len(COLOURS))
    elif which == 2:
        s[3] = rng.randrange(len(PATTERNS))
    elif which == 3:
        s[4] = rng.randint(1, 3)
        if s[4] > 1 and s[5] == 2:
            s[5] = 0
    elif which == 4:
        s[5] = rng.choice((0, 1, 2) if s[4] == 1 else (0, 1))
    else:
        s[6] = 1 - s[6]
    return tuple(s)


def encode(spec_or_claim):
    """Eleven small integers (-1: unsaid or not there), for fast masks."""
    s = [-1 if v is None else v for v in spec_or_claim[1:]]
    if spec_or_claim[0] == "single":
        k, c, p, n, z, t = s
        return [0, k, c, p, n, z, t, -1, -1, -1, -1]
    ka, ca, pa, kb, cb, pb, r, t = s
    return [1, ka, ca, pa, 1, -1, t, kb, cb, pb, r]
