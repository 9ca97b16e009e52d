"""Complete a CLIP checkpoint for servers that load it through `transformers` 4.

    python tools/peers/complete.py SOURCE TARGET

`tools/fixtures/clip.py --large` writes what Sidelens reads.  Older libraries
also ask for the tokenizer's class and for its vocabulary and merges in files of
their own; all of that is taken out of `tokenizer.json`.  The weights are
linked, not copied.  Needs nothing but Python.
"""

import argparse
import json
import pathlib
import shutil

START, END = "<|startoftext|>", "<|endoftext|>"


def complete(source, target):
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source / name, target / name)

    preprocessor = json.loads((source / "preprocessor_config.json").read_text())
    preprocessor |= {"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"}
    write(target / "preprocessor_config.json", preprocessor)

    config = json.loads((source / "config.json").read_text())
    write(target / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "processor_class": "CLIPProcessor",
        "model_max_length": config["text_config"]["max_position_embeddings"],
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
    })

    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write(target / "vocab.json", model["vocab"])
    # A merge is a pair, or in older files one string.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (target / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")

    weights = target / "model.safetensors"
    weights.unlink(missing_ok=True)
    weights.symlink_to((source / "model.safetensors").resolve())


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    found = parser.parse_args()
    complete(found.source, found.target)
