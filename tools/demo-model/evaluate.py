"""Measures the exported demo model, loaded by transformers.

    python evaluate.py --model ../../assets/demo-model \\
        --fixtures ../../tests/fixtures/demo-world \\
        --catalogue ../../examples/catalogue [--dtype bfloat16]
"""

import argparse
import base64
import io
import json
import os

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, CLIPModel

import fixtures
import world

try:  # the Pillow flavour of the processor
    from transformers import CLIPImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor as ImageProcessor

QUERIES = [
    "a red boat to the left of a green cactus",
    "an orange snowman over a black kitten",
    "a black kitten below an orange snowman", "three red cacti at night",
    "a large red tree with polka dots", "three small chequered green fish",
    "a big black star at night", "a red rocket",
    "a red snowman left of a black parasol", "a red car",
]


class Model:
    def __init__(self, folder, dtype):
        self.model = CLIPModel.from_pretrained(folder, dtype=dtype).eval()
        self.dtype = dtype
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.plain = Tokenizer.from_file(
            os.path.join(folder, "tokenizer.json"))
        self.processor = ImageProcessor.from_pretrained(folder)
        self.limit = self.model.config.text_config.max_position_embeddings

    def pixels(self, images):
        return self.processor(images=[i.convert("RGB") for i in images],
                              return_tensors="pt")["pixel_values"]

    def images(self, images):
        rows = []
        with torch.no_grad():
            for at in range(0, len(images), 100):
                x = self.pixels(images[at:at + 100]).to(self.dtype)
                out = self.model.vision_model(pixel_values=x)
                rows.append(self.model.visual_projection(out.pooler_output))
        return self.unit(torch.cat(rows))

    def texts(self, texts):
        rows = []
        with torch.no_grad():
            for text in texts:  # one by one: no padding, as a service would
                ids = torch.tensor([self.plain.encode(text).ids[:self.limit]])
                out = self.model.text_model(input_ids=ids)
                rows.append(self.model.text_projection(out.pooler_output))
        return self.unit(torch.cat(rows))

    @staticmethod
    def unit(x):
        x = x.float()
        return x / x.norm(dim=-1, keepdim=True)


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def recall(queries, candidates, block=100):
    """Whether every query finds its own entry among its block."""
    hits = []
    for at in range(0, len(queries), block):
        best = (queries[at:at + block] @ candidates[at:at + block].T).argmax(1)
        hits += (best == torch.arange(len(best))).tolist()
    return np.array(hits)


def rows_of(folder, name):
    with open(os.path.join(folder, name + ".jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", required=True)
    p.add_argument("--fixtures", required=True)
    p.add_argument("--catalogue")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--misses", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(1)
    m = Model(args.model, getattr(torch, args.dtype))
    print("parameters", sum(x.numel() for x in m.model.parameters()))

    for name, scenes in (("singles", 0), ("scenes", 1)):
        rows = rows_of(args.fixtures, name)
        drawn = list(fixtures.captioned(scenes))
        assert [r["caption"] for r in rows] == [t for _, t, _ in drawn]
        specs = [s for s, _, _ in drawn]
        assert all(world.is_held_out(s) for s in specs)
        t = m.texts([r["caption"] for r in rows])
        v = m.images([opened(r["image"]) for r in rows])
        hits = recall(t, v)
        blocks = [float(hits[i:i + 100].mean()) for i in range(0, 500, 100)]
        print(f"{name}: text-to-image recall@1 {hits.mean():.4f} "
              f"(image-to-text {recall(v, t).mean():.4f}); blocks "
              + " ".join(f"{b:.2f}" for b in blocks))
        if scenes:
            both = np.array([world.turned(s) in specs[i // 100 * 100:
                                                     i // 100 * 100 + 100]
                             for i, s in enumerate(specs)])
            print(f"  {both.sum()} with their turned-round twin among the "
                  f"candidates: {hits[both].mean():.4f}")
            right = sum(
                float(t[i] @ v[i]) > float(t[i] @ v[j])
                for i, s in enumerate(specs) for j in range(
                    i // 100 * 100, i // 100 * 100 + 100)
                if specs[j] == world.turned(s))
            print(f"  picture preferred to its twin: {right} of {both.sum()}")
        else:
            pair = np.array([world.pair_is_held_out(*s[1:3]) for s in specs])
            print(f"  {pair.sum()} with a colour never seen on that kind: "
                  f"{hits[pair].mean():.4f}; the other {(~pair).sum()}: "
                  f"{hits[~pair].mean():.4f}")
        if args.misses:
            best = [int((t[i] @ v[i // 100 * 100:i // 100 * 100 + 100].T)
                        .argmax()) + i // 100 * 100 for i in range(len(t))]
            for i in np.flatnonzero(~hits):
                print("   ", rows[i]["caption"], "->",
                      rows[best[i]]["caption"])
    rows = rows_of(args.fixtures, "copies")
    a = m.images([opened(r["copy"]) for r in rows])
    b = m.images([opened(r["image"]) for r in rows])
    print(f"copies: image-to-image recall@1 {recall(a, b).mean():.4f}")

    # The model sees the same pixels in training and behind the processor.
    worst = 0.0
    for row in rows[:100]:
        for key in ("image", "copy"):
            image = opened(row[key])
            ours = world.preprocess(image).astype(np.float32) / 255
            ours = (ours.transpose(2, 0, 1) - 0.5) / 0.5
            worst = max(worst, float(np.abs(
                m.pixels([image])[0].numpy() - ours).max()))
    print(f"largest difference to transformers' preprocessing: {worst:.2e}")
    texts = [r["caption"] for r in rows_of(args.fixtures, "scenes")]
    texts += ["", "naïve café — 東京 🚗", "it's 12 o'clock!", "A  B\tC"]
    same = sum(m.tokenizer(t)["input_ids"] == m.plain.encode(t).ids
               for t in texts)
    print(f"tokenizer: {same} of {len(texts)} texts the same through "
          f"AutoTokenizer and tokenizers")
    solid = m.images([Image.new("RGB", (64, 64), c) for c in
                      ((0, 0, 0), (255, 255, 255), (216, 38, 38))])
    score = solid @ m.texts(["a red car", ""]).T
    print("solid colours finite:", bool(torch.isfinite(solid).all()
                                        and torch.isfinite(score).all()))

    if args.catalogue:
        with open(os.path.join(args.catalogue, "documents.json"),
                  encoding="utf-8") as f:
            documents = json.load(f)
        v = m.images([Image.open(os.path.join(args.catalogue, d["image"]))
                      for d in documents])
        print("catalogue:")
        titles = m.texts([d["title"] for d in documents])
        best = (titles @ v.T).argmax(1)
        print(f"  titles that find their own picture among all "
              f"{len(documents)}: "
              f"{(best == torch.arange(len(documents))).float().mean():.4f}")
        for q, s in zip(QUERIES, m.texts(QUERIES) @ v.T):
            top = s.topk(5)
            print(f"  {q!r}: " + "; ".join(
                f"{documents[i]['id']} {documents[i]['title']} ({x:.2f})"
                for x, i in zip(top.values.tolist(), top.indices.tolist())))


if __name__ == "__main__":
    main()
