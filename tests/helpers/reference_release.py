"""The model, losses, optimizer and inference of the paper's release, written out slowly from its description.

Nothing here calls magicseg. Parameters come as mappings from this file's own names to tensors. Without dropout.
"""

import torch
import torch.nn.functional as F


def linear(x, parameters, name):
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def layer_norm(x, parameters, name, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def decode(cls, patches, text, layers, query, heads):
    """Return the mask logits (B, K, N) of every layer. The last layer may have queries and keys only.

    Args: cls: (B, D). patches: (B, N, D). text: (B, K, D). layers: of each its parameters. query: those of the input.
    """
    return [torch.stack(each) for each in zip(*_each_image(cls, patches, text, layers, query, heads), strict=True)]


def _each_image(cls, patches, text, layers, query, heads):
    width = patches.shape[-1]
    part = width // heads
    for c, memory, classes in zip(cls, patches, text, strict=True):
        related = torch.stack([torch.cat([c * t, t]) for t in classes])
        x = linear(related, query, "query")
        found = []
        for layer in layers:
            q, k = linear(x, layer, "q"), linear(memory, layer, "k")
            cuts = [slice(head * part, (head + 1) * part) for head in range(heads)]
            scores = [q[:, cut] @ k[:, cut].T / part**0.5 for cut in cuts]
            found.append(sum(scores) / heads)
            if layer is layers[-1]:
                break
            v = linear(memory, layer, "v")
            mixed = [torch.softmax(score, -1) @ v[:, cut] for score, cut in zip(scores, cuts, strict=True)]
            x = layer_norm(x + linear(torch.cat(mixed, -1), layer, "out"), layer, "norm1", 1e-5)
            inner = linear(x, layer, "up").clamp(min=0)
            x = layer_norm(x + linear(inner, layer, "down"), layer, "norm2", 1e-5)
        yield found


def positions(embedding, old, new):
    """Resize (1 + old * old, C) to (1 + height * width, C) bilinearly, point by point; ``new``: (height, width)."""
    grid = embedding[1:].view(old, old, -1)
    rows = [embedding[0]]
    for y in range(new[0]):
        for x in range(new[1]):
            (top, bottom, down), (left, right, along) = (
                _neighbours(place, old, count) for place, count in ((y, new[0]), (x, new[1]))
            )
            upper = grid[top, left] * (1 - along) + grid[top, right] * along
            lower = grid[bottom, left] * (1 - along) + grid[bottom, right] * along
            rows.append(upper * (1 - down) + lower * down)
    return torch.stack(rows)


def _neighbours(place, old, new):
    centre = max((place + 0.5) * old / new - 0.5, 0)
    first = min(int(centre), old - 1)
    return first, min(first + 1, old - 1), centre - first


def encode(images, visual, prompts, mean, std):
    """Return class and patch tokens, (B, 1 + N, D), of length 1.

    Args: images: uint8 (B, 3, H, W). visual: open_clip's image tower, for its layers. prompts: "tokens" (layers, P,
    C), "projection" and "norm". mean, std: of the pixels, (3, 1, 1).
    """
    side = visual.patch_size[0]
    patches = F.conv2d((images / 255 - mean) / std, visual.conv1.weight, stride=side)
    grid = patches.shape[-2:]
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + positions(visual.positional_embedding, visual.grid_size[0], grid)
    x = visual.ln_pre(x)
    for tokens, block in zip(prompts["tokens"], visual.transformer.resblocks, strict=True):
        own = linear(tokens, prompts, "projection").expand(len(x), -1, -1)
        x = block(torch.cat([x[:, :1], own, x[:, 1:]], 1))
        x = torch.cat([x[:, :1], x[:, 1 + len(tokens) :]], 1)
    x = layer_norm(x, prompts, "norm", 1e-6)
    x = visual.ln_post(x) @ visual.proj
    return x / x.norm(dim=-1, keepdim=True)


def focal(logits, masks, present, ignored=None):
    """Sum of the masks' means, by the number of present masks. ``ignored``: bool (B, H, W), left out of the means."""
    total = 0
    for b in range(logits.shape[0]):
        counts = torch.ones_like(masks[b, 0]) if ignored is None else ~ignored[b]
        for k in range(logits.shape[1]):
            z, t = logits[b, k][counts], masks[b, k][counts].float()
            p = z.sigmoid()
            likely = p * t + (1 - p) * (1 - t)
            entropy = F.binary_cross_entropy_with_logits(z, t, reduction="none")
            total = total + ((0.25 * t + 0.75 * (1 - t)) * (1 - likely) ** 2 * entropy).mean()
    return total / max(int(present.sum()), 1)


def dice(logits, masks, present):
    values = []
    for b, k in present.nonzero().tolist():
        p, t = logits[b, k].sigmoid(), masks[b, k].float()
        values.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    return sum(values) / len(values)


def counterfactual(cls, other):
    cosines = [torch.dot(a, b) / (a.norm() * b.norm()) for a, b in zip(cls, other, strict=True)]
    return sum(cosine.clamp(min=0) for cosine in cosines) / len(cosines)


def rate(step, *, base, steps, warmup, least=1e-6, power=0.9, ratio=1e-6):
    """The learning rate of a group at a step, as mmcv's hook for "poly" with a linear warm-up sets it."""
    regular = (base - least) * (1 - step / steps) ** power + least
    if step >= warmup:
        return regular
    k = (1 - step / warmup) * (1 - ratio)
    return regular * (1 - k)


def window_means(logits_of, image, window, stride):
    """The mean of the windows' sigmoids, (K, H, W), pixel by pixel. Args: image: (3, H, W), no smaller than one."""
    height, width = image.shape[1:]
    tops, lefts = (
        sorted({min(start, side - window) for start in range(0, side, stride)}) for side in (height, width)
    )
    found = {}
    for top in tops:
        for left in lefts:
            grid = logits_of(image[None, :, top : top + window, left : left + window])
            full = F.interpolate(grid, (window, window), mode="bilinear", align_corners=False)[0].sigmoid()
            for y in range(window):
                for x in range(window):
                    found.setdefault((top + y, left + x), []).append(full[:, y, x])
    means = [[torch.stack(found[y, x]).mean(0) for x in range(width)] for y in range(height)]
    return torch.stack([torch.stack(row, -1) for row in means], 1)
