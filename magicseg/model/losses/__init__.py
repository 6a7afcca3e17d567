"""The losses: their formulas as plain functions, and the list of terms that training adds up (`loss_terms`).

With z the logit of a class at a pixel, t in {0, 1} the truth, p = sigmoid(z), and V the pixels that are not IGNORE
(background pixels are in V, as negatives of every class). z' and p' are those of the counterfactual image. Pairs are
those of `pairs.true_pairs`.

    focal             mean over images, queried classes and V of  -a_t (1 - p_t)^gamma log p_t
                      p_t = p where t = 1, else 1 - p;  a_t = alpha where t = 1, else 1 - alpha
                      with ``losses: release`` instead: the sum over images and queried classes of the mean over V,
                      divided by the number of classes present in an image, summed over images
    dice              mean over the classes present in an image of
                      1 - (2 sum_V p t + 1) / (sum_V p + sum_V t + 1)
    counterfactual    mean over pairs of max(0, cos(cls, cls of the counterfactual image))
    silence           mean over pairs, classes and V of  -(1 - alpha) p'^gamma log(1 - p')
                      classes: the queried ones where the pair was validated, else those present in the image
    aligned_pair      mean over pairs, queried classes and A of (p - p')^2
                      + mean over pairs, classes present and their pixels of max(0, margin - (z - z'))
                      A: the background pixels of V that differ by at most a tolerance in every channel
    text_direction    mean over pairs and classes present of max(0, margin - (cos(c, t) - cos(c', t)))
                      c, c': the class tokens; t: the class's text embedding
    deep_supervision  the weighted sum of focal and dice, summed over the decoder's earlier layers

A batch may be sharded across ranks and micro-batches. A mean over the whole batch is the sum of the parts' losses if
each part divides by the count of the whole batch. So every loss takes a ``count``, and `LossTerm.count` gives the
count of a part.

The losses on masks are sums over classes as well, by the same counts. So they can be computed for some of the classes
at a time (`magicseg.model.losses.class_chunks`).

To add a loss, write its function and its `LossTerm` in `masks` or `pairs`, add the term to `loss_terms`, and give its
weight a setting in `magicseg.config.training.TrainSettings`. The log and the checkpoints use the term's name.

Shapes: B images, K classes queried per image, D the joint image-text space. logits float (B, K, H, W); masks bool
(B, K, H, W); valid bool (B, 1, H, W); present, asked bool (B, K); count: a tensor () of any type, or None for the
count of the given tensors. A mean over nothing is 0.
"""

from magicseg.config.training import TrainSettings
from magicseg.model.losses.masks import deep_supervision_term, dice_term, focal_term
from magicseg.model.losses.pairs import aligned_pair_term, counterfactual_term, silence_term, text_direction_term
from magicseg.model.losses.release import release_focal_term
from magicseg.model.losses.term import LossTerm


def loss_terms(settings: TrainSettings) -> tuple[LossTerm, ...]:
    """Return the terms of the loss in the log's order: the mask losses, and the others whose weight is above 0."""
    focal = release_focal_term(settings) if settings.losses == "release" else focal_term(settings)
    masks = (focal, dice_term(settings))
    others = (
        counterfactual_term(settings),
        silence_term(settings),
        aligned_pair_term(settings),
        text_direction_term(settings),
        deep_supervision_term(settings, masks),
    )
    return *masks, *(term for term in others if term.weight > 0)
