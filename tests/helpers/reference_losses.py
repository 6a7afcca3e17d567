"""Reference implementations of losses and targets with loops, to compare with the fast ones."""

import math

import torch

from magicseg.labels import BACKGROUND, IGNORE


def slow_focal(logits, masks, valid, alpha, gamma, asked=None):
    total, count = 0.0, 0
    for b, k, y, x in (tuple(place) for place in torch.ones_like(logits).nonzero().tolist()):
        if not valid[b, 0, y, x] or (asked is not None and not asked[b, k]):
            continue
        p = 1 / (1 + math.exp(-logits[b, k, y, x].item()))
        p_t, a_t = (p, alpha) if masks[b, k, y, x] else (1 - p, 1 - alpha)
        total += -a_t * (1 - p_t) ** gamma * math.log(p_t)
        count += 1
    return total / count


def slow_dice(logits, masks, valid, present):
    losses = []
    for b in range(logits.shape[0]):
        for k in range(logits.shape[1]):
            if not present[b, k]:
                continue
            overlap = chance = truth = 0.0
            for y in range(logits.shape[2]):
                for x in range(logits.shape[3]):
                    if valid[b, 0, y, x]:
                        p = 1 / (1 + math.exp(-logits[b, k, y, x].item()))
                        t = float(masks[b, k, y, x])
                        overlap, chance, truth = overlap + p * t, chance + p, truth + t
            losses.append(1 - (2 * overlap + 1) / (chance + truth + 1))
    return sum(losses) / len(losses)


def slow_counterfactual(cls, other, paired, class_map):
    cosines = []
    for b in range(len(cls)):
        if paired[b] and any(id_ not in (BACKGROUND, IGNORE) for row in class_map[b].tolist() for id_ in row):
            dot = sum(x * y for x, y in zip(cls[b].tolist(), other[b].tolist(), strict=True))
            lengths = [math.sqrt(sum(x * x for x in vector[b].tolist())) for vector in (cls, other)]
            cosines.append(max(0.0, dot / (lengths[0] * lengths[1])))
    return sum(cosines) / len(cosines)


def slow_targets(class_map, draws, sampled, allowed=None):
    """Return one image's sampled classes, and for each its mask, its presence and whether it is queried."""
    own = {id_ - 1 for row in class_map for id_ in row if id_ not in (BACKGROUND, IGNORE)}
    ranked = sorted(
        range(len(draws)), key=lambda c: (c in own, c in own or allowed is None or allowed[c], draws[c]), reverse=True
    )
    return {
        c: (
            [[id_ == c + 1 for id_ in row] for row in class_map],
            c in own,
            c in own or allowed is None or bool(allowed[c]),
        )
        for c in ranked[:sampled]
    }


def _true_pair(class_map, paired):
    return bool(paired) and any(id_ not in (BACKGROUND, IGNORE) for row in class_map.tolist() for id_ in row)


def _each(class_map, classes, asked, paired):
    """Yield (image, place, y, x, id at the pixel, whether it is of the class) of what is asked at labelled pixels."""
    for b in range(len(class_map)):
        if not _true_pair(class_map[b], paired[b]):
            continue
        for k, position in enumerate(classes[b].tolist()):
            for y, row in enumerate(class_map[b].tolist()):
                for x, id_ in enumerate(row):
                    if asked[b, k] and id_ != IGNORE:
                        yield b, k, y, x, id_, id_ == position + 1


def _mean(values, like):
    return torch.stack(values).mean() if values else like.sum() * 0


def slow_silence(other, class_map, classes, asked, paired, validated, alpha, gamma):
    """Return a tensor with gradients, as all below. Args: other: the counterfactuals' logits. asked: bool (B, K)."""
    values = []
    for b, k, y, x, _, _ in _each(class_map, classes, asked, paired):
        if validated[b] or bool((class_map[b] == classes[b, k] + 1).any()):
            p = torch.sigmoid(other[b, k, y, x])
            values.append(-(1 - alpha) * p**gamma * torch.log(1 - p))
    return _mean(values, other)


def slow_aligned_pair(logits, other, images, counterfactuals, class_map, classes, asked, paired, margin, tolerance):
    """Args: images, counterfactuals: nested lists (B, 3, H, W)."""
    outside, inside = [], []
    for b, k, y, x, id_, own in _each(class_map, classes, asked, paired):
        z, z_other = logits[b, k, y, x], other[b, k, y, x]
        alike = all(abs(images[b][c][y][x] - counterfactuals[b][c][y][x]) <= tolerance for c in range(3))
        if id_ == BACKGROUND and alike:
            outside.append((1 / (1 + torch.exp(-z)) - 1 / (1 + torch.exp(-z_other))) ** 2)
        if own:
            inside.append(torch.relu(margin - (z - z_other)))
    return _mean(outside, logits) + _mean(inside, logits)


def slow_text_direction(cls, other, text, class_map, classes, paired, margin):
    def cosine(x, y):
        return (x * y).sum() / (x * x).sum().sqrt() / (y * y).sum().sqrt()

    values = []
    for b, row in enumerate(classes.tolist()):
        for k, position in enumerate(row):
            if paired[b] and bool((class_map[b] == position + 1).any()):
                step = cosine(cls[b], text[b, k]) - cosine(other[b], text[b, k])
                values.append(torch.relu(margin - step))
    return _mean(values, cls)


def slow_responses(patches, texts, valid, stride):
    """Return each class's largest cosine with a patch that has a valid pixel; rows of floats."""
    height, width = valid.shape[-2:]
    rows = []
    for b in range(len(patches)):
        seen = [
            bool(valid[b, 0, y : y + stride, x : x + stride].any())
            for y in range(0, height, stride)
            for x in range(0, width, stride)
        ]
        row = []
        for text in texts:
            cosines = [
                float(patch @ text / patch.norm() / text.norm())
                for patch, counts in zip(patches[b], seen, strict=True)
                if counts
            ]
            row.append(max(cosines, default=-math.inf))
        rows.append(row)
    return rows


def slow_hard_negatives(classes, present, asked, responses, count, allowed):
    """Return one image's queried classes, from lists: the strongest absent classes, then the earlier others."""
    others = [c for c, own, counts in zip(classes, present, asked, strict=True) if counts and not own]
    own = {c for c, is_own in zip(classes, present, strict=True) if is_own}
    free = [c for c in range(len(responses)) if c not in own and allowed[c]]
    hard = sorted(free, key=lambda c: -responses[c])[: min(count, len(others))]
    keep = [c for c in others if c not in hard][: len(others) - len(hard)]
    unasked = [c for c, counts in zip(classes, asked, strict=True) if not counts]
    return own, set(hard) | set(keep), set(unasked)
