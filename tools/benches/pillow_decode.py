"""Times Pillow on what Sidelens does to a picture: open, RGB, bicubic resize of the shortest edge, centre crop.

    python3 tools/benches/pillow_decode.py [--size 224] PICTURE...

Prints the median milliseconds on one core, at full size and in Pillow's draft mode, where libjpeg decodes a JPEG at
1/2, 1/4 or 1/8. Beside it, in the same minute: `cargo bench -- decode`.
"""

import argparse
import io
import pathlib
import statistics
import time

import PIL
from PIL import Image, features


def prepare(encoded, size, draft):
    """The crop of one encoded picture."""
    image = Image.open(io.BytesIO(encoded))
    width, height = image.size
    short = min(width, height)
    resized = (size * width // short, size * height // short)
    if draft:
        # Pillow takes the largest reduction that leaves both sides at least this long.
        image.draft("RGB", resized)
    image = image.convert("RGB").resize(resized, Image.Resampling.BICUBIC)
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def median_ms(work, seconds=2.0):
    """The median of as many runs as fit into the time, after one that does not count."""
    work()
    runs, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        runs.append((time.perf_counter() - start) * 1e3)
    return statistics.median(runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("pictures", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    print(f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}, {args.size} pixels")
    for path in args.pictures:
        encoded = path.read_bytes()
        full, draft = (median_ms(lambda: prepare(encoded, args.size, draft)) for draft in (False, True))
        print(f"{path}: {full:.3f} ms, draft mode {draft:.3f} ms")


if __name__ == "__main__":
    main()
