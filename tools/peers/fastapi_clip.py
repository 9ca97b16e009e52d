"""CLIP behind FastAPI, the way it is usually written: one upload, one forward.

    python tools/peers/fastapi_clip.py MODEL [--dtype fp32|bf16] [--port N]

    POST /embed         multipart, the picture in `file`  ->  {"embedding": [...]}
    POST /embed-text    {"text": "..."}                   ->  {"embedding": [...]}

A peer to measure Sidelens against.  One uvicorn worker, no batching, no queue.
The handlers are coroutines that compute in place, so forwards follow one
another with all of torch's threads; as plain functions they run in
FastAPI's forty threads, which was a little slower.
"""

import argparse
import io
import pathlib

import fastapi
import pydantic
import torch
import transformers
import uvicorn
from PIL import Image

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Text(pydantic.BaseModel):
    text: str


def application(directory, dtype):
    model = transformers.CLIPModel.from_pretrained(directory, dtype=dtype).eval()
    processor = transformers.CLIPProcessor.from_pretrained(directory)
    app = fastapi.FastAPI()

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.post("/embed")
    async def embed(file: fastapi.UploadFile):
        image = Image.open(io.BytesIO(await file.read())).convert("RGB")
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return answer(model.get_image_features(pixel_values=pixels.to(dtype)))

    @app.post("/embed-text")
    async def embed_text(body: Text):
        ids = processor(text=body.text, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            return answer(model.get_text_features(**ids))

    return app


def answer(features):
    vector = features.pooler_output[0].float()
    return {"embedding": (vector / vector.norm()).tolist()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--port", type=int, default=7998)
    found = parser.parse_args()
    app = application(found.model, DTYPES[found.dtype])
    uvicorn.run(app, host="127.0.0.1", port=found.port, log_level="warning")


if __name__ == "__main__":
    main()
