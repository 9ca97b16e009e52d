"""Trains the Sidelens demo model: a tiny CLIP on the drawn world.

    python train.py --out ../../assets/demo-model

Draws the training pictures, trains the tokenizer and the model from scratch
and writes a checkpoint in the Hugging Face layout.  Seeded; under an hour on
two cores.  `--cache` keeps the drawn pictures and checkpoints in a folder.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time

import numpy as np

import world

PICTURES = 32_000
MORE_PICTURES = 20_000  # drawn with the next seed, for the last lesson
SCENE_SHARE = 0.6  # of the drawn pictures
SINGLE_GROUP, SCENE_GROUP = 2, 4
CONTEXT = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MEAN = [0.5, 0.5, 0.5]
STD = [0.5, 0.5, 0.5]


# The lessons.  Each starts from the exported weights of the one before, with
# a fresh optimiser.  `scenes`: share of scenes in a batch at the beginning
# and after `ramp` steps.  `colours`: most batches draw their singles from so
# many colours only, so that kind, pattern, count and size have to tell them
# apart.  `scale`: how much faster the temperature learns.  `more`: use the
# second drawing too.  `heads`: weight of the helper loss
# (see make_heads), `heads_lr`: a fixed rate for the heads themselves.
# `simple`: for so many steps scenes are told in one direction only.
PHASES = [
    dict(steps=750, horizon=1100, lr=1.5e-3, warmup=100,
         scenes=(0.4, 0.7), ramp=275, colours=None, scale=1.0),
    dict(steps=750, horizon=1050, lr=1.2e-3, warmup=60,
         scenes=(0.5, 0.5), ramp=1, colours=3, scale=5.0),
    dict(steps=750, horizon=1000, lr=1.0e-3, warmup=40,
         scenes=(0.6, 0.6), ramp=1, colours=3, scale=5.0,
         more=True, heads=0.5),
    dict(steps=720, horizon=720, lr=8e-4, warmup=60,
         scenes=(0.5, 0.5), ramp=1, colours=3, scale=5.0,
         more=True, heads=0.5, heads_lr=3e-3, simple=280),
]


# -- pictures --------------------------------------------------------------


def other_scene(rng, spec, how):
    """A hard negative of a scene: the same two kinds, something exchanged."""
    _, ka, ca, pa, kb, cb, pb, relation, night = spec
    if how == 0:
        return world.turned(spec)
    if how == 1:  # colours and patterns exchanged
        return ("scene", ka, cb, pb, kb, ca, pa, relation, night)
    if how == 2:  # kinds in place, other axis
        return ("scene", ka, ca, pa, kb, cb, pb, 1 - relation, night)
    if how == 3:  # other axis, turned
        return ("scene", kb, cb, pb, ka, ca, pa, 1 - relation, night)
    # one of the two looks replaced
    a, b = world.random_look(rng, 0.7), (kb, cb, pb)
    return ("scene", *a, *b, relation, night)


def scene_group(rng):
    base = world.random_scene(rng, False)
    group = [base, world.turned(base)]
    kinds_of_change = [1, 2, 3, 4, 4]
    while len(group) < SCENE_GROUP:
        spec = other_scene(rng, base, rng.choice(kinds_of_change))
        if (spec[1] != spec[4] and spec not in group
                and not world.is_held_out(spec)):
            group.append(spec)
    return group


def single_group(rng):
    base = world.random_single(rng, False)
    group = [base]
    while len(group) < SINGLE_GROUP:
        spec = world.neighbour(rng, base)
        if spec not in group and not world.is_held_out(spec):
            group.append(spec)
    return group


def draw_chunk(job):
    seed, chunk, scenes, groups = job
    rng = random.Random(seed * 1_000_003 + chunk)
    specs, pixels = [], []
    for _ in range(groups):
        for spec in scene_group(rng) if scenes else single_group(rng):
            specs.append(spec)
            pixels.append(world.training_pixels(rng, spec))
    return specs, np.stack(pixels)


def draw_all(pool, seed, total):
    """Singles and scenes, each as (specs, pixels), in whole groups."""
    chunk = 800
    n_scenes = int(total * SCENE_SHARE) // chunk
    n_singles = total // chunk - n_scenes
    result = []
    for scenes, n, size in ((False, n_singles, SINGLE_GROUP),
                            (True, n_scenes, SCENE_GROUP)):
        jobs = [(seed, i + 100_000 * scenes, scenes, chunk // size)
                for i in range(n)]
        specs, pixels = [], []
        for s, p in pool.imap(draw_chunk, jobs):
            specs += s
            pixels.append(p)
        result.append((specs, np.concatenate(pixels)))
    return result


def validation(seed, blocks=2):
    """Held-out blocks like those of the fixtures, but other pictures."""
    rng = random.Random(seed + 77)
    sets = []
    for scenes in (False, True):
        for _ in range(blocks):
            entries = world.block(rng, scenes)
            sets.append((scenes, [t for _, t in entries], np.stack(
                [world.training_pixels(rng, s) for s, _ in entries])))
    return sets


# -- tokenizer -------------------------------------------------------------


def byte_symbols():
    """The printable stand-ins of the 256 bytes, in CLIP's order."""
    keep = (list(range(ord("!"), ord("~") + 1))
            + list(range(0xA1, 0xAC + 1)) + list(range(0xAE, 0xFF + 1)))
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def make_tokenizer(seed):
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models,
                            normalizers, pre_tokenizers, processors, trainers)

    def pipeline(model):
        t = Tokenizer(model)
        t.normalizer = normalizers.Sequence([
            normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase()])
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
                      r"[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False,
                                     use_regex=False)])
        t.decoder = decoders.ByteLevel()
        return t

    rng = random.Random(seed + 1)
    corpus = []
    for i in range(40_000):
        spec = (world.random_scene if i % 2 else world.random_single)(
            rng, False)
        corpus.append(world.caption(rng, spec, i % 4 < 2)[0])
    learner = pipeline(models.BPE(end_of_word_suffix="</w>"))
    learner.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=4000, min_frequency=2, end_of_word_suffix="</w>",
        initial_alphabet=byte_symbols(), show_progress=False))
    merges = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m)
              for m in merges]
    symbols = byte_symbols()
    words = symbols + [s + "</w>" for s in symbols]
    for left, right in merges:
        if left + right not in words:
            words.append(left + right)
    words += [BOS, EOS]
    vocab = {w: i for i, w in enumerate(words)}
    final = pipeline(models.BPE(
        vocab=vocab, merges=merges, unk_token=EOS,
        continuing_subword_prefix="", end_of_word_suffix="</w>",
        fuse_unk=False))
    final.post_processor = processors.RobertaProcessing(
        (EOS, vocab[EOS]), (BOS, vocab[BOS]),
        trim_offsets=False, add_prefix_space=False)
    final.add_special_tokens([
        AddedToken(BOS, normalized=True, special=True),
        AddedToken(EOS, normalized=False, special=True)])
    longest = max(len(e.ids) for e in final.encode_batch(corpus))
    return final, longest


# -- model -----------------------------------------------------------------


def make_config(vocab_size, bos, eos):
    from transformers import CLIPConfig

    return CLIPConfig(
        projection_dim=128,
        logit_scale_init_value=2.6592,
        text_config=dict(
            vocab_size=vocab_size, hidden_size=128, intermediate_size=512,
            num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=CONTEXT, projection_dim=128,
            hidden_act="quick_gelu", bos_token_id=bos, eos_token_id=eos,
            pad_token_id=eos),
        vision_config=dict(
            image_size=64, patch_size=8, hidden_size=128,
            intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, projection_dim=128,
            hidden_act="quick_gelu"))


def fit_mask(claims, specs):
    """mask[i, j]: picture j satisfies what caption i claims."""
    import torch

    c = torch.tensor(claims)[:, None, :]
    s = torch.tensor(specs)[None, :, :]
    ok = (c < 0) | (c == s)
    # Columns: 0 type, 1-3 look, 4 count, 5 size, 6 time, 7-9 look, 10 rel.
    second = c[..., 1:4].eq(s[..., 7:10]) | (c[..., 1:4] < 0)
    single = c[..., 0] == 0
    of_single = s[..., 0] == 0
    first_look = ok[..., 1:4].all(-1)
    single_single = first_look & ok[..., 4] & ok[..., 5] & ok[..., 6]
    single_scene = ((first_look | second.all(-1)) & (c[..., 4] <= 1)
                    & (c[..., 5] < 0) & ok[..., 6])
    straight = ok[..., 1:4].all(-1) & ok[..., 6:11].all(-1)
    crossed = (second.all(-1)
               & (c[..., 7:10].eq(s[..., 1:4]) | (c[..., 7:10] < 0)).all(-1)
               & (c[..., 10] < 0) & ok[..., 6])
    return torch.where(
        single, torch.where(of_single, single_single, single_scene),
        ~of_single & (straight | crossed))


# What the helper heads read from an embedding: (name, classes, column of
# world.encode, asked of singles, asked of scenes).
QUESTIONS = [
    ("type", 2, 0, True, True), ("kind", 20, 1, True, True),
    ("colour", 10, 2, True, True), ("pattern", 4, 3, True, True),
    ("count", 4, 4, True, False), ("size", 3, 5, True, False),
    ("time", 2, 6, True, True), ("second kind", 20, 7, False, True),
    ("second colour", 10, 8, False, True),
    ("second pattern", 4, 9, False, True), ("relation", 2, 10, False, True),
]


def make_heads():
    """Linear heads shared by both towers, used in training only: from a
    picture's or a caption's embedding they name what is left (or above),
    what is right (or below), how many, and so on.  They teach both towers to
    put the same facts, bound to places, into the same directions."""
    import torch

    return torch.nn.Linear(128, sum(q[1] for q in QUESTIONS))


def heads_loss(heads, embeddings, facts):
    """Facts that are -1 (unsaid) are not asked; a scene caption without a
    relation does not say which thing comes first."""
    import torch

    answers = heads(embeddings * 8.0)
    vague = (facts[:, 0] == 1) & (facts[:, 10] < 0)
    total, at = 0.0, 0
    for name, classes, column, singles, scenes in QUESTIONS:
        target = facts[:, column].clone()
        if not singles:
            target[facts[:, 0] == 0] = -1
        if not scenes:
            target[facts[:, 0] == 1] = -1
        if name not in ("type", "time"):
            target[vague] = -1
        part = torch.nn.functional.cross_entropy(
            answers[:, at:at + classes], target, ignore_index=-1,
            reduction="sum")
        total = total + part / len(facts)
        at += classes
    return total


def embed_text(model, ids):
    out = model.text_model(input_ids=ids)
    return model.text_projection(out.pooler_output)


def embed_image(model, pixels):
    out = model.vision_model(pixel_values=pixels)
    return model.visual_projection(out.pooler_output)


def to_pixels(batch):
    import torch

    x = torch.from_numpy(batch).float().permute(0, 3, 1, 2)
    return (x / 255.0 - 0.5) / 0.5


def augment(gen, batch):
    """Shifts by up to two pixels; brightness and contrast."""
    out = np.empty_like(batch)
    padded = np.pad(batch, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    moves = gen.integers(0, 5, (len(batch), 2))
    for i, (dy, dx) in enumerate(moves):
        out[i] = padded[i, dy:dy + 64, dx:dx + 64]
    gain = gen.uniform(0.9, 1.1, (len(batch), 1, 1, 1)).astype(np.float32)
    lift = gen.uniform(-12, 12, (len(batch), 1, 1, 1)).astype(np.float32)
    return np.clip(out * gain + lift, 0, 255).astype(np.float32)


def encode_texts(tokenizer, eos, texts):
    import torch

    rows = [e.ids[:CONTEXT] for e in tokenizer.encode_batch(texts)]
    width = max(map(len, rows))
    return torch.tensor([r + [eos] * (width - len(r)) for r in rows])


def measure(model, tokenizer, eos, sets):
    import torch

    model.eval()
    hits = {False: [], True: []}
    with torch.no_grad():
        for scenes, texts, pixels in sets:
            t = embed_text(model, encode_texts(tokenizer, eos, texts))
            v = embed_image(model, to_pixels(pixels))
            t = t / t.norm(dim=-1, keepdim=True)
            v = v / v.norm(dim=-1, keepdim=True)
            best = (t @ v.T).argmax(1)
            hits[scenes].append(
                (best == torch.arange(len(texts))).float().mean().item())
    model.train()
    return [sum(h) / len(h) for h in (hits[False], hits[True])]


# quick_gelu(x) = x * sigmoid(1.702 x) = silu(1.702 x) / 1.702.  silu is one
# fused operation in torch, so the model is trained with it and the constant
# is folded into the two layers around it when weights are written.
FOLD = 1.702


def quick_gelu_state(model):
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("position_ids"):
            continue
        value = value.detach().clone()
        if ".mlp.fc1." in name:
            value /= FOLD
        elif name.endswith(".mlp.fc2.weight"):
            value *= FOLD
        state[name] = value
    return state


def load_folded(model, folder):
    """Takes exported weights back into the model in training."""
    from safetensors.torch import load_file

    state = load_file(os.path.join(folder, "model.safetensors"))
    for name, value in state.items():
        value = value.float()
        if ".mlp.fc1." in name:
            value *= FOLD
        elif name.endswith(".mlp.fc2.weight"):
            value /= FOLD
        state[name] = value
    missing, extra = model.load_state_dict(state, strict=False)
    assert not extra and all(n.endswith("position_ids") for n in missing)


def train(rank, args, data, first, sets, tokenizer, begun, rendezvous):
    """One of `--workers` processes of one thread each.  All of them draw the
    same batches; each embeds its share, the embeddings are exchanged, every
    worker computes the whole loss and the gradients are summed."""
    import torch
    import torch.distributed as dist
    from transformers import CLIPModel

    def log(text):
        if rank == 0:
            print(f"[{time.time() - begun:6.0f} s] {text}", flush=True)

    os.setsid()  # schedulers that share by session treat workers alike
    workers = args.workers
    torch.set_num_threads(1)
    try:  # keep freed memory: page faults are dear on small machines
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, 2 ** 31 - 1)
    except OSError:
        pass
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank,
                            world_size=workers)
    torch.manual_seed(args.seed)
    vocab = tokenizer.get_vocab()
    eos = vocab[EOS]
    config = make_config(len(vocab), vocab[BOS], eos)
    config.text_config.hidden_act = "silu"
    config.vision_config.hidden_act = "silu"
    model = CLIPModel(config)
    heads = make_heads()
    params = [p for p in model.parameters()]
    log(f"parameters {sum(p.numel() for p in params)}")
    (single_specs, single_pixels), (scene_specs, scene_pixels) = data

    def exchange(local):
        parts = [torch.empty_like(local) for _ in range(workers)]
        dist.all_gather(parts, local.detach().contiguous())
        parts[rank] = local
        return torch.cat(parts)

    previous = args.resume
    for number, phase in enumerate(PHASES):
        if number < args.phase:
            continue
        if previous:
            load_folded(model, previous)
        use_heads = phase.get("heads", 0)
        # The first drawing lies in front of the second one.
        limits = ([len(single_specs), len(scene_specs)]
                  if phase.get("more") else first)
        by_colour = {}
        for g in range(limits[0] // SINGLE_GROUP):
            colour = single_specs[g * SINGLE_GROUP][2]
            by_colour.setdefault(colour, []).append(g)
        no_decay, decay = [], []
        for name, p in model.named_parameters():
            if name == "logit_scale":
                continue
            small = p.ndim < 2 or "embedding" in name
            (no_decay if small else decay).append(p)
        opt = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.05, "rate": 1.0},
             {"params": no_decay, "weight_decay": 0.0, "rate": 1.0},
             {"params": [model.logit_scale], "weight_decay": 0.0,
              "rate": phase["scale"]},
             {"params": list(heads.parameters()), "weight_decay": 0.0,
              "rate": 3.0}],
            lr=phase["lr"], betas=(0.9, 0.98), eps=1e-8)
        trained = params + (list(heads.parameters()) if use_heads else [])
        rng = random.Random(args.seed + 2 + 1000 * number)
        gen = np.random.default_rng(args.seed + 3 + 1000 * number)
        orders = [[], []]

        def draw_groups(which, n_pictures):
            size = (SINGLE_GROUP, SCENE_GROUP)[which]
            total = limits[which] // size
            picked = []
            while len(picked) < n_pictures:
                if not orders[which]:
                    orders[which] = list(range(total))
                    rng.shuffle(orders[which])
                g = orders[which].pop()
                picked += range(g * size, g * size + size)
            return picked[:n_pictures]

        def draw_singles(n_pictures):
            if not phase["colours"] or rng.random() < 0.3:
                return draw_groups(0, n_pictures)
            colours = rng.sample(range(len(world.COLOURS)), phase["colours"])
            pool = [g for c in colours for g in by_colour[c]]
            picked = []
            for g in rng.sample(pool, n_pictures // SINGLE_GROUP):
                picked += range(g * SINGLE_GROUP, (g + 1) * SINGLE_GROUP)
            return picked

        running, helped = None, 0.0
        phase_begun = time.time()
        for step in range(phase["steps"]):
            lr = phase["lr"] * min(1.0, (step + 1) / phase["warmup"])
            done = step / phase["horizon"]
            lr *= 0.5 * (1 + math.cos(math.pi * done)) * 0.99 + 0.01
            for group in opt.param_groups:
                group["lr"] = lr * group["rate"]
            if "heads_lr" in phase:
                opt.param_groups[-1]["lr"] = phase["heads_lr"]
            low, high = phase["scenes"]
            share = low + (high - low) * min(1.0, step / phase["ramp"])
            n_scene = int(args.batch * share) // SCENE_GROUP * SCENE_GROUP
            a = draw_singles(args.batch - n_scene)
            b = draw_groups(1, n_scene)
            chosen = [(0, i) for i in a] + [(1, i) for i in b]
            # Worker r embeds every workers-th entry, so that the order after
            # the exchange is by worker.
            chosen = [c for r in range(workers) for c in chosen[r::workers]]
            specs = [(scene_specs if w else single_specs)[i]
                     for w, i in chosen]
            simple = step < phase.get("simple", 0)
            said = [world.caption(rng, s, rng.random() < 0.5, simple)
                    for s in specs]
            each = args.batch // workers
            mine = slice(rank * each, (rank + 1) * each)
            pixels = np.stack([(scene_pixels if w else single_pixels)[i]
                               for w, i in chosen[mine]])
            ids = encode_texts(tokenizer, eos, [t for t, _ in said[mine]])
            claims = [world.encode(c) for _, c in said]
            facts = [world.encode(s) for s in specs]
            skip = fit_mask(claims, facts)
            skip.fill_diagonal_(False)
            t = embed_text(model, ids)
            v = embed_image(model, to_pixels(augment(gen, pixels)))
            t = exchange(t / t.norm(dim=-1, keepdim=True))
            v = exchange(v / v.norm(dim=-1, keepdim=True))
            logits = model.logit_scale.exp() * t @ v.T
            logits = logits.masked_fill(skip, -1e4)
            target = torch.arange(len(specs))
            loss = (torch.nn.functional.cross_entropy(logits, target)
                    + torch.nn.functional.cross_entropy(logits.T, target)) / 2
            value = loss.item()
            if use_heads:  # every worker asks about its own share
                helper = (
                    heads_loss(heads, v[mine], torch.tensor(facts[mine]))
                    + heads_loss(heads, t[mine], torch.tensor(claims[mine])))
                loss = loss + use_heads / 2 / workers * helper
                helped = helper.item() / 2
            opt.zero_grad(set_to_none=True)
            loss.backward()
            model.logit_scale.grad /= workers
            flat = torch.cat([p.grad.reshape(-1) for p in trained])
            dist.all_reduce(flat)
            flat *= min(1.0, 1.0 / (flat.norm().item() + 1e-6))
            at = 0
            for p in trained:
                p.grad.copy_(flat[at:at + p.numel()].view_as(p))
                at += p.numel()
            opt.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            running = (value if running is None
                       else 0.95 * running + 0.05 * value)
            if (step + 1) % 50 == 0:
                took = (time.time() - phase_begun) / (step + 1)
                log(f"phase {number} step {step + 1} loss {running:.3f} "
                    f"helper {helped:.2f} lr "
                    f"{lr:.2e} scale {model.logit_scale.exp().item():.1f} "
                    f"{took:.3f} s/step")
            if rank == 0 and (step + 1) % args.every == 0:
                singles, scenes = measure(model, tokenizer, eos, sets)
                log(f"validation: singles {singles:.4f} scenes {scenes:.4f}")
                if args.cache:
                    export(model, tokenizer,
                           os.path.join(args.cache, "latest"))
        log(f"phase {number} took {time.time() - phase_begun:.0f} s")
        if rank == 0:
            singles, scenes = measure(model, tokenizer, eos, sets)
            log(f"validation: singles {singles:.4f} scenes {scenes:.4f}")
            export(model, tokenizer, args.out)
        previous = args.out
        dist.barrier()
    dist.destroy_process_group()


# -- export ----------------------------------------------------------------


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def export(model, tokenizer, folder):
    import torch
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    tensors = {k: v.to(torch.float16).contiguous()
               for k, v in quick_gelu_state(model).items()}
    save_file(tensors, os.path.join(folder, "model.safetensors"),
              metadata={"format": "pt"})
    config = model.config.to_dict()
    config["architectures"] = ["CLIPModel"]
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("_name_or_path", None)
        part["dtype"] = "float16"
        if "hidden_act" in part:
            part["hidden_act"] = "quick_gelu"
    write_json(folder, "config.json", config)
    write_json(folder, "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": 64}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 64, "width": 64},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": MEAN, "image_std": STD})
    with open(os.path.join(folder, "tokenizer.json"), "w",
              encoding="utf-8") as f:
        f.write(tokenizer.to_str(pretty=True) + "\n")
    token = {"lstrip": False, "rstrip": False, "single_word": False}
    special = {
        "bos_token": {"content": BOS, "normalized": True, **token},
        "eos_token": {"content": EOS, "normalized": False, **token},
        "unk_token": {"content": EOS, "normalized": False, **token},
        "pad_token": EOS}
    write_json(folder, "special_tokens_map.json", special)
    write_json(folder, "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "add_prefix_space": False,
        "do_lower_case": True, "errors": "replace",
        "model_max_length": CONTEXT, "bos_token": BOS, "eos_token": EOS,
        "unk_token": EOS, "pad_token": EOS})


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", required=True)
    p.add_argument("--cache")
    p.add_argument("--seed", type=int, default=2024)
    p.add_argument("--pictures", type=int, default=PICTURES)
    p.add_argument("--phase", type=int, default=0,
                   help="start with this phase, from --resume")
    p.add_argument("--resume", help="folder of an exported checkpoint")
    p.add_argument("--batch", type=int, default=160)
    p.add_argument("--every", type=int, default=240)
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args()
    begun = time.time()

    def log(text):
        print(f"[{time.time() - begun:6.0f} s] {text}", flush=True)

    tokenizer, longest = make_tokenizer(args.seed)
    log(f"tokenizer of {tokenizer.get_vocab_size()}, longest caption "
        f"{longest} tokens")
    parts = []
    for seed, pictures in ((args.seed, args.pictures),
                           (args.seed + 1, MORE_PICTURES)):
        key = os.path.join(args.cache or "", f"drawn-{seed}-{pictures}.npz")
        if args.cache and os.path.exists(key):
            kept = np.load(key, allow_pickle=False)
            parts.append([
                ([(n, *row) for row in kept[n + "_specs"].tolist()], kept[n])
                for n in ("single", "scene")])
            continue
        with multiprocessing.get_context("fork").Pool(
                2, initializer=os.setsid) as pool:
            parts.append(draw_all(pool, seed, pictures))
        if args.cache:
            os.makedirs(args.cache, exist_ok=True)
            np.savez(key, **{n: d[1] for n, d in zip(
                ("single", "scene"), parts[-1])}, **{
                n + "_specs": np.array([s[1:] for s in d[0]])
                for n, d in zip(("single", "scene"), parts[-1])})
    first = [len(specs) for specs, _ in parts[0]]
    data = [(parts[0][i][0] + parts[1][i][0],
             np.concatenate([parts[0][i][1], parts[1][i][1]]))
            for i in (0, 1)]
    del parts
    for specs, _ in data:
        assert not any(world.is_held_out(s) for s in specs)
    log("pictures drawn: " + ", ".join(str(len(d[0])) for d in data))
    sets = validation(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        ctx = multiprocessing.get_context("fork")
        procs = [ctx.Process(target=train, args=(
            r, args, data, first, sets, tokenizer, begun, rendezvous))
            for r in range(args.workers)]
        for proc in procs:
            proc.start()
        for proc in procs:
            proc.join()
        if any(proc.exitcode for proc in procs):
            return 1
    log("all done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
