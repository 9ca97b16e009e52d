"""Export an image model from PyTorch as a directory that Sidelens serves.

    python export.py DIRECTORY                         a small random ResNet
    python export.py DIRECTORY --torchvision resnet50  pretrained; pip install torchvision

Writes model.pt, and beside it the sidelens.toml of this folder with the right
`dimensions`. For a model of your own, change `network` below, and the toml.
"""

import argparse
import pathlib
import re

import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent


class Residual(nn.Module):
    """Two convolutions with batch norms, and a way around them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x):
        return torch.relu(self.inner(x) + self.around(x))


def network(name):
    """A module from pixels [batch, 3, height, width] to a feature map [batch, channels, rows, columns]."""
    if name is None:
        widths = [3, 32, 64, 128, 256]
        return nn.Sequential(*(Residual(a, b) for a, b in zip(widths, widths[1:])))
    import torchvision

    model = torchvision.models.get_model(name, weights="DEFAULT")
    # EfficientNet and its like say where the features end; a ResNet ends in a pool and a classifier.
    return model.features if hasattr(model, "features") else nn.Sequential(*list(model.children())[:-2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--torchvision", metavar="NAME", help="a model of torchvision instead")
    options = parser.parse_args()

    module = network(options.torchvision).eval()
    # A script keeps the size of a batch open. A trace does so only where the code takes no size as a number.
    scripted = torch.jit.script(module)
    with torch.inference_mode():
        channels = scripted(torch.zeros(2, 3, 224, 224)).shape[1]

    options.directory.mkdir(parents=True, exist_ok=True)
    scripted.save(options.directory / "model.pt")
    description = (HERE / "sidelens.toml").read_text(encoding="utf-8")
    description = re.sub(r"(?m)^dimensions = \d+$", f"dimensions = {channels}", description)
    (options.directory / "sidelens.toml").write_text(description, encoding="utf-8")
    print(f"{options.directory}: {channels} dimensions")


if __name__ == "__main__":
    main()
