"""Gives the finished demo model the narrow cone that trained CLIP models have.

    python cone.py --model ../../assets/demo-model

Large CLIP models put all their vectors into a narrow cone, so the direction opposite to it is further from
every query than any real vector is; Sidelens answers broken pictures with that direction where it is asked
to, so that they rank last. A model this small spreads over the whole sphere and has no such direction. This
script adds one constant vector to each tower's output, orthogonal as far as possible to what the outputs
differ in, and as long as the outputs are on average. Cosines c become about (c + 1) / 2: the order of
candidates stays, and minus the constant vector is below them all.

The constant goes into the bias of each tower's last layer norm, along the hidden direction that varies
least, and a rank-one change of the projection turns that direction into the wanted one. So the checkpoint
stays a plain CLIPModel.
"""

import argparse
import os
import random

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPModel

import world

# Length of the norm's extra bias: large beside what varies along it, small enough for bf16 arithmetic.
HIDDEN_LENGTH = 4.0


def features(model, folder, n):
    """Outputs of both towers' last norms for n drawn pictures and their captions, in float64."""
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    pictures, texts = [], []
    for seed in range(n):
        rng = random.Random(f"cone {seed}")
        draw = world.random_scene if seed % 2 else world.random_single
        spec = draw(rng, False)
        pictures.append(np.asarray(world.training_pixels(rng, spec)))
        texts.append(world.caption(rng, spec, True)[0])
    mean, std = np.float32(0.5), np.float32(0.5)
    pixels = (np.stack(pictures).astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        image = model.vision_model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output
        rows = [model.text_model(torch.tensor([tokenizer.encode(t).ids])).pooler_output[0] for t in texts]
    return image.double(), torch.stack(rows).double()


def least_direction(rows):
    """The unit vector along which the rows have the least energy."""
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return vectors[:, 0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--samples", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(2)
    model = CLIPModel.from_pretrained(args.model, dtype=torch.float32).eval()
    path = os.path.join(args.model, "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    image, text = features(model, args.model, args.samples)

    towers = [
        ("vision_model.post_layernorm.bias", "visual_projection.weight", image),
        ("text_model.final_layer_norm.bias", "text_projection.weight", text),
    ]
    outputs = [hidden @ weights[w].double().T for _, w, hidden in towers]
    units = torch.cat([o / o.norm(dim=1, keepdim=True) for o in outputs])
    constant = least_direction(units)
    share = float((units @ constant).abs().max())
    print(f"largest share of a vector along the constant, before: {share:.4f}")
    if share > 0.5:
        raise SystemExit("the model has a cone already, or no free direction: nothing changed")

    for (bias, projection, hidden), output in zip(towers, outputs):
        matrix = weights[projection].double()
        delta = HIDDEN_LENGTH * least_direction(hidden - hidden.mean(0))
        wanted = output.norm(dim=1).mean() * constant
        # After this, matrix @ delta == wanted, and nothing orthogonal to delta changes.
        matrix = matrix + torch.outer(wanted - matrix @ delta, delta) / (delta @ delta)
        weights[bias] = (weights[bias].double() + delta).to(weights[bias].dtype)
        weights[projection] = matrix.to(weights[projection].dtype)
        moved = (hidden + delta) @ matrix.T
        moved = moved / moved.norm(dim=1, keepdim=True)
        print(f"{projection}: cosine to the constant {float((moved @ constant).min()):.3f} at least")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
