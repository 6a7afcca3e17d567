"""Scoring files on a benchmark: published numbers on real data, and every way in which files can be wrong."""

import json

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from helpers.odd_pngs import GREY, PALETTE, png
from magicseg.cli.score import score as score_command
from magicseg.core.errors import ConfigError, DataError
from magicseg.data.protocol import load_protocol, protocol_names
from magicseg.evaluate.score_predictions import score

VOC21, VOC20 = load_protocol("voc21"), load_protocol("voc20")
NAMES = ("2007_000001", "2007_000002")


def write_png(path, values, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    else:
        image = Image.fromarray(values.astype(np.uint8))
        if mode == "P":
            image = image.copy()
            image.putpalette(bytes(range(256)) * 3)
    image.save(path)


@pytest.fixture
def data(tmp_path):
    """A tiny data set of two images in the devkit's layout."""
    folder = tmp_path / "VOC2012"
    split = folder / "ImageSets" / "Segmentation" / "val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("".join(f"{name}\n" for name in NAMES))
    write_png(folder / "SegmentationClass" / f"{NAMES[0]}.png", [[0, 0, 15], [255, 15, 15]])
    write_png(folder / "SegmentationClass" / f"{NAMES[1]}.png", [[0, 20]])
    return folder


@pytest.fixture
def predictions(tmp_path):
    folder = tmp_path / "predictions"
    write_png(folder / f"{NAMES[0]}.png", [[0, 15, 15], [255, 15, 15]])
    write_png(folder / f"{NAMES[1]}.png", [[0, 20]])
    return folder


@pytest.fixture
def run_command():
    app = typer.Typer()
    app.command()(score_command)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_real_predictions_get_exactly_the_published_scores(real_data):
    published = json.loads((real_data / "predictions" / "deeplabv3-mobilenetv2.json").read_text())
    result = score(
        VOC21, real_data / "VOCdevkit" / "VOC2012", real_data / "predictions" / "deeplabv3-mobilenetv2"
    ).to_dict()
    assert result["images"] == published["images"]
    assert result["pixels"] == published["pixels"]
    assert result["confusion"] == published["confusion_rows_are_ground_truth"]
    assert result["iou"] == pytest.approx(published["iou"], abs=1e-12)
    assert result["miou"] == pytest.approx(published["miou_over_classes_with_union"], abs=1e-12)
    expected = published["miou_over_classes_in_ground_truth"]
    assert result["miou_over_classes_in_ground_truth"] == pytest.approx(expected, abs=1e-12)
    assert result["pixel_accuracy"] == pytest.approx(published["pixel_accuracy"], abs=1e-12)


def test_real_labels_score_perfectly_against_themselves(real_data):
    voc = real_data / "VOCdevkit" / "VOC2012"
    for protocol in (VOC21, VOC20):
        scores = score(protocol, voc, voc / "SegmentationClass").scores
        assert scores.miou == scores.miou_over_classes_in_ground_truth == scores.pixel_accuracy == 1


def test_voc20_leaves_out_background_and_shifts_classes(data, tmp_path):
    predictions = tmp_path / "objects"
    write_png(predictions / f"{NAMES[0]}.png", [[3, 0, 15], [255, 15, 20]])
    write_png(predictions / f"{NAMES[1]}.png", [[1, 20]])
    result = score(VOC20, data, predictions)
    assert len(result.classes) == 20
    assert result.classes[14] == "person"
    assert result.scores.pixels == 4
    assert result.scores.confusion[14, 14] == 2
    assert result.scores.confusion[14, 19] == 1
    assert result.scores.confusion[19, 19] == 1


def test_scores_name_classes_as_the_benchmark_does():
    assert VOC21.classes[0] == "background"
    assert (VOC21.classes[11], VOC21.classes[16], VOC21.classes[20]) == ("diningtable", "pottedplant", "tvmonitor")
    assert VOC20.classes == VOC21.classes[1:]


@pytest.mark.parametrize("mode", ["P", "L", "I;16"])
def test_palette_and_grey_predictions_score_the_same(data, predictions, mode):
    expected = score(VOC21, data, predictions).to_dict()
    write_png(predictions / f"{NAMES[0]}.png", [[0, 15, 15], [255, 15, 15]], mode)
    assert score(VOC21, data, predictions).to_dict() == expected


def test_predictions_of_other_images_do_no_harm(data, predictions):
    expected = score(VOC21, data, predictions).to_dict()
    write_png(predictions / "2009_000009.png", [[200]])
    assert score(VOC21, data, predictions).to_dict() == expected


def test_a_coloured_prediction_is_refused(data, predictions):
    Image.new("RGB", (3, 2)).save(predictions / f"{NAMES[0]}.png")
    with pytest.raises(DataError, match=rf"{NAMES[0]}\.png: a PNG of mode RGB"):
        score(VOC21, data, predictions)


def test_a_lossy_file_with_the_name_of_a_png_is_refused(data, predictions):
    Image.new("L", (3, 2)).save(predictions / f"{NAMES[0]}.png", format="JPEG")
    with pytest.raises(DataError, match=rf"{NAMES[0]}\.png: this PNG cannot be read"):
        score(VOC21, data, predictions)


def test_a_missing_prediction_is_named(data, predictions):
    (predictions / f"{NAMES[1]}.png").unlink()
    with pytest.raises(DataError, match=rf"1 of 2 files are missing: .*{NAMES[1]}\.png"):
        score(VOC21, data, predictions)


def test_predictions_may_have_the_names_that_predict_gives_them(data, predictions):
    before = score(VOC21, data, predictions).to_dict()
    (predictions / f"{NAMES[0]}.png").rename(predictions / f"{NAMES[0]}.jpg.png")
    assert score(VOC21, data, predictions).to_dict() == before


def test_two_predictions_of_one_image_are_refused(data, predictions):
    content = (predictions / f"{NAMES[0]}.png").read_bytes()
    (predictions / f"{NAMES[0]}.jpg.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"{NAMES[0]}\.png and {NAMES[0]}\.jpg\.png are both predictions"):
        score(VOC21, data, predictions)


@pytest.mark.parametrize(("bits", "colour"), [(4, GREY), (4, PALETTE), (8, GREY), (16, GREY)])
def test_a_prediction_of_any_depth_holds_the_same_numbers(data, predictions, bits, colour):
    write_png(data / "SegmentationClass" / f"{NAMES[1]}.png", [[0, 15]])
    (predictions / f"{NAMES[0]}.png").write_bytes(png([[0, 0, 15], [0, 15, 15]], bits, colour))
    (predictions / f"{NAMES[1]}.png").write_bytes(png([[0, 15]], bits, colour))
    assert score(VOC21, data, predictions).scores.pixel_accuracy == 1


def test_of_many_missing_predictions_the_first_few_are_named_and_all_are_counted(data, predictions):
    many = [f"image{number:02}" for number in range(30)]
    (data / VOC21.split_list).write_text("\n".join(many))
    for name in many:
        write_png(data / "SegmentationClass" / f"{name}.png", [[0]])
    with pytest.raises(DataError, match=r"30 of 30 files .*image00\.png.*image04\.png and 25 more") as caught:
        score(VOC21, data, predictions)
    assert "image05" not in str(caught.value)


def test_a_prediction_of_another_size_is_refused_with_both_sizes(data, predictions):
    write_png(predictions / f"{NAMES[1]}.png", [[0], [20]])
    with pytest.raises(DataError, match=rf"{NAMES[1]}\.png: the prediction is 1 x 2 pixels, its label 2 x 1"):
        score(VOC21, data, predictions)


@pytest.mark.parametrize("value", [21, 254, 255])
def test_a_prediction_that_is_no_class_is_refused_where_the_pixel_counts(data, predictions, value):
    write_png(predictions / f"{NAMES[1]}.png", [[0, value]])
    with pytest.raises(DataError, match=rf"{NAMES[1]}\.png: .* the first {value}; classes are 0 to 20"):
        score(VOC21, data, predictions)


@pytest.mark.parametrize("value", [0, 21, 255])
def test_any_prediction_is_accepted_where_the_label_ignores(data, predictions, value):
    expected = score(VOC21, data, predictions).to_dict()
    write_png(predictions / f"{NAMES[0]}.png", [[0, 15, 15], [value, 15, 15]])
    assert score(VOC21, data, predictions).to_dict() == expected


def test_background_is_no_answer_where_it_is_no_class(data, predictions):
    write_png(predictions / f"{NAMES[1]}.png", [[0, 0]])
    with pytest.raises(DataError, match="classes are 1 to 20") as caught:
        score(VOC20, data, predictions)
    assert "background is not a class in voc20" in (caught.value.hint or "")


def test_a_label_that_is_no_class_is_blamed_on_the_label_file(data, predictions):
    write_png(data / "SegmentationClass" / f"{NAMES[1]}.png", [[0, 77]])
    with pytest.raises(DataError, match=r"SegmentationClass.*the first 77"):
        score(VOC21, data, predictions)


@pytest.mark.parametrize("kept", [0, 4, 30, 60, -20])
def test_a_truncated_prediction_is_refused(data, predictions, kept):
    path = predictions / f"{NAMES[0]}.png"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{NAMES[0]}\.png: this PNG cannot be read"):
        score(VOC21, data, predictions)


def test_a_prediction_with_any_flipped_bit_is_refused_or_scores_the_same(data, predictions):
    path = predictions / f"{NAMES[0]}.png"
    content, expected = path.read_bytes(), score(VOC21, data, predictions).to_dict()
    refusals = []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert score(VOC21, data, predictions).to_dict() == expected
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 0.9 * len(content)
    assert all(str(path) in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("ImageSets/Segmentation/val.txt", r"val\.txt: the list of images cannot be read"),
        (f"SegmentationClass/{NAMES[0]}.png", rf"1 of 2 files are missing: .*SegmentationClass.{NAMES[0]}\.png"),
    ],
)
def test_a_missing_file_of_the_data_set_is_named(data, predictions, lost, named):
    (data / lost).unlink()
    with pytest.raises(DataError, match=named):
        score(VOC21, data, predictions)


def test_missing_folders_are_named(data, predictions, tmp_path):
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        score(VOC21, tmp_path / "nowhere", predictions)
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        score(VOC21, data, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [("\n \n", "names no image"), (f"{NAMES[0]}\n\n{NAMES[0]}\n", r"val\.txt:3: .* already on line 1")],
)
def test_an_empty_or_repetitive_list_is_refused(data, predictions, content, message):
    (data / VOC21.split_list).write_text(content)
    with pytest.raises(DataError, match=message):
        score(VOC21, data, predictions)


def test_every_shipped_protocol_is_valid_and_carries_its_own_name():
    assert {"voc20", "voc21"} <= set(protocol_names())
    for name in protocol_names():
        protocol = load_protocol(name)
        assert protocol.name == name
        assert protocol.ignore_value not in range(protocol.first_value, protocol.first_value + len(protocol.classes))
        assert set(protocol.spelling) <= set(protocol.labels.names)


def test_an_unknown_benchmark_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'voc21'") as caught:
        load_protocol("VOC-21")
    assert "voc20, voc21" in (caught.value.hint or "")


def test_the_command_prints_json_with_null_for_classes_without_pixels(data, predictions, run_command):
    outcome = run_command("--benchmark", "voc21", "--data", data, "--predictions", predictions, "--json")
    assert outcome.exit_code == 0
    values = json.loads(outcome.stdout)
    assert set(values) == {
        "benchmark",
        "images",
        "pixels",
        "miou",
        "miou_over_classes_in_ground_truth",
        "iou",
        "pixel_accuracy",
        "mean_accuracy",
        "confusion",
    }
    assert (values["benchmark"], values["images"], values["pixels"]) == ("voc21", 2, 7)
    assert values["iou"]["person"] == 0.75
    assert values["iou"]["cat"] is None


def test_the_command_prints_a_table_with_both_means(data, predictions, run_command):
    outcome = run_command("--benchmark", "voc21", "--data", data, "--predictions", predictions)
    assert outcome.exit_code == 0
    lines = {tuple(part.strip() for part in line.strip("│ ").split("│")) for line in outcome.stdout.splitlines()}
    assert ("person", "75.00") in lines
    assert ("cat", "-") in lines
    assert ("mean IoU", "80.56") in lines
