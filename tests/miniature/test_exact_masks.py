"""The painter as a masker: exact class maps for painted images only."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.tiny_runs import do, make_run
from magicseg.backends import Masked, MaskRequest, Rejection
from magicseg.labels import load_vocabulary
from magicseg.miniature.exact_masker import PainterMasker
from magicseg.miniature.painter import paint

CAR = load_vocabulary("miniature").by_name("car")
CAPTION = "A large red car on the left, on a beach at noon."


@pytest.fixture
def masker():
    return PainterMasker(None, PainterMasker.Options())


def request(seed=3, **changes):
    painted = paint(CAPTION, seed=seed, size=48, labels=(CAR,))
    made = MaskRequest(
        index=0,
        labels=(CAR,),
        caption=CAPTION,
        image=painted.image,
        counterfactual=painted.empty,
        seed=0,
        image_seed=seed,
    )
    return replace(made, **changes), painted


def test_the_mask_equals_the_painters_mask(masker):
    asked, painted = request()
    (found,) = masker.mask([asked])
    assert isinstance(found, Masked)
    assert np.array_equal(found.mask, painted.mask)
    assert found.quality["area"] == pytest.approx((painted.mask == CAR.id).mean())


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"image_seed": None}, "was not generated"),
        ({"image_seed": 4}, "another image"),
        ({"caption": "Something else altogether"}, ""),
        ({"labels": ()}, "among the 0 labels"),
    ],
)
def test_images_that_the_painter_did_not_paint_are_rejected(masker, changes, detail):
    (found,) = masker.mask([request(**changes)[0]])
    assert isinstance(found, Rejection)
    assert found.reason == "not-painted"
    assert detail in found.detail


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_a_run_with_the_painter_masker_has_exact_masks(tmp_path, codec):
    run = make_run(
        tmp_path / "run", "mask.backend=painter", "plan.samples=32", "plan.max_labels=2", f"store.image_codec={codec}"
    )
    do(run)
    commits = run.ledger("mask").commits()
    assert sum(len(record.kept_offsets()) for record in commits.values()) == 32
    masks = np.asarray(run.store.read("mask/mask", 0, 32))
    for index in range(32):
        assert set(np.unique(masks[index])) <= {0, *run.plan.label_ids(index)}
    assert ((masks > 0).mean(axis=(1, 2)) > 0.01).all()
