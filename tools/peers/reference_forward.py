"""What the image tower costs without any server: `transformers`, and its matrices alone.

    python tools/peers/reference_forward.py MODEL [--dtype fp32|bf16] [--threads N]

Times the forward of the image tower and its projection over ready pixels at two
batch sizes, and its products alone by `torch.nn.functional.linear`, in the same
shapes but for q, k and v, which are one.  A server that calls `transformers` stays
below the first figure; the second is what torch's products alone would allow.
"""

import argparse
import pathlib
import time

import torch
import transformers
from torch.nn.functional import linear

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def rates(work, batch, seconds):
    """Images per second over rounds that fill `seconds`: the median and the best."""
    work()
    work()
    rounds = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(rounds) < 3:
        start = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - start)
    rounds.sort()
    return batch / rounds[len(rounds) // 2], batch / rounds[0]


def matrices(config, batch, dtype):
    """The products of the tower, in order: rows, columns in, columns out."""
    width, inner = config.hidden_size, config.intermediate_size
    patches = (config.image_size // config.patch_size) ** 2
    rows = batch * (patches + 1)
    patch = config.num_channels * config.patch_size ** 2
    layer = [(rows, width, 3 * width), (rows, width, width), (rows, width, inner), (rows, inner, width)]
    shapes = [(batch * patches, patch, width), *layer * config.num_hidden_layers,
              (batch, width, config.projection_dim)]
    flops = sum(2 * n * i * o for n, i, o in shapes) / batch
    # Every product has weights of its own, as in the model, so that none is left in a cache.
    weights = [torch.randn(o, i).to(dtype) for _, i, o in shapes]
    # One input per shape: activations are warm in a real forward too.
    inputs = {(n, i): torch.randn(n, i).to(dtype) for n, i, _ in shapes}
    return [(inputs[n, i], weight) for (n, i, _), weight in zip(shapes, weights)], flops


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--seconds", type=float, default=8, help="per figure")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    torch.manual_seed(1)
    dtype = DTYPES[found.dtype]

    transformers.logging.set_verbosity_error()  # the text tower of the file is not wanted here
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(found.model, dtype=dtype).eval()
    config = model.config
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {found.threads} threads, "
          f"{found.dtype}, attention {config._attn_implementation}")
    print("| batch | what | images/s, median | best | GFLOP/s of the matrices |")
    print("| --- | --- | --- | --- | --- |")
    with torch.inference_mode():
        for batch in found.batches:
            pixels = torch.randn(batch, config.num_channels, config.image_size, config.image_size).to(dtype)
            products, flops = matrices(config, batch, dtype)

            def multiply():
                for left, weight in products:
                    linear(left, weight)

            for name, work in (("transformers", lambda: model(pixel_values=pixels)), ("matrices", multiply)):
                median, best = rates(work, batch, found.seconds)
                print(f"| {batch} | {name} | {median:.1f} | {best:.1f} | {median * flops / 1e9:.0f} |", flush=True)


if __name__ == "__main__":
    main()
